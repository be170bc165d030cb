"""Downloads of weights, which are checked here before timm loads them."""

import hashlib
import http.client
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import get_pretrained_cfg, is_model, parse_model_name

from .._compat import get_cache_dir, hf_split, load_model_config_from_path
from .download_error import DownloadError, explain, failed_download, is_disk_error, is_from_the_hub
from .http_file import TooLargeError, download
from .hub_file import hub_file, remove
from .manifest import weights

__all__ = ['DownloadError', 'explain', 'explain_hub_failure', 'fetch_from_hub', 'fetch_url', 'is_from_the_hub']

_PART = re.compile(r'.+\.[0-9a-f]{8}(\..+)?\.[0-9a-f]{32}\.part(\.[0-9a-f]{32}\.partial)?')  # the last by torch.hub
_DAY = 24 * 60 * 60


def fetch_url(url: str, blob_sha1: str, cache_dir: str | None = None, size: int | None = None) -> str:
    """Download a file unless it is in torch's cache, check it, and return its path.

    It enters the cache under a name of its own, which contains the start of its checksum, once it is complete.

    Args:
        url: URL of the file.
        blob_sha1: What git calls the file.
        cache_dir: Cache to use instead of torch's.
        size: Bytes of the file, if they are known.

    Raises:
        DownloadError: If it cannot be fetched, or is not the expected file, which is then removed.
    """
    name = Path(url.rpartition('/')[2])
    part = None
    try:
        folder = Path(cache_dir or get_cache_dir())
        path = folder / f'{name.stem}.{blob_sha1[:8]}{name.suffix}'
        if path.is_file() and _git_blob_sha1(path) == blob_sha1:
            return str(path)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old_parts(folder)
        part = folder / f'{path.name}.{uuid.uuid4().hex}.part'
        download(url, part, size)
        found = _git_blob_sha1(part)
        if found == blob_sha1:
            os.replace(part, path)
            return str(path)
    except TooLargeError as e:
        raise DownloadError(f'{url} is not the expected {name}: {e}. It was not kept.') from e
    except (OSError, ValueError, http.client.HTTPException) as e:  # ValueError: a redirect to what is no URL
        raise failed_download(e, url, on_hub=False) from e
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    raise DownloadError(
        f'{url} is not the expected {name}: its git blob is {found}, not {blob_sha1}. The download was truncated or '
        f'changed on the way, or the authors replaced the file. It was not kept; try again.'
    )


def _git_blob_sha1(path: Path) -> str:
    digest = hashlib.sha1(b'blob %d\0' % path.stat().st_size)
    with path.open('rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_old_parts(folder: Path) -> None:
    """Remove what downloads that were killed more than a day ago have left."""
    for path in folder.iterdir():
        if _PART.fullmatch(path.name):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _DAY:
                    path.unlink()


def fetch_from_hub(hub_id: str, filename: str | None = None, cache_dir: str | None = None) -> str:
    """Download the weights of a model on the Hub unless they are in the cache, check them, and return their path.

    Args:
        hub_id: ``owner/name``, optionally with ``@revision``.
        filename: File of the repository; what timm looks for if None.
        cache_dir: Cache to use instead of the Hub's.

    Raises:
        DownloadError: If it cannot be fetched, or is not the expected file, which is then removed from the cache.
    """
    try:
        return str(_weights_file(hub_id, filename, cache_dir))
    except DownloadError:
        raise
    except Exception as e:
        raise failed_download(e, f'the weights of {hub_id}') from e


def _weights_file(hub_id: str, filename: str | None, cache_dir: str | None) -> Path:
    repo, revision = hf_split(hub_id)
    if filename:
        return hub_file(repo, filename, revision, cache_dir)
    try:
        return hub_file(repo, 'model.safetensors', revision, cache_dir)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return hub_file(repo, 'pytorch_model.bin', revision, cache_dir)


@contextmanager
def explain_hub_failure(name: str, pretrained: bool = False, cache_dir: str | None = None) -> Iterator[None]:
    """Within it, failures to get a model from the Hub become a :class:`DownloadError`; others stay as they are.

    timm reads the ``config.json`` of ``hf-hub:owner/name``, and the weights of its own models, without any code of this
    package. They are fetched and checked here first, so that a missing connection is found at once, and what is broken
    does not stay in the cache::

        with explain_hub_failure(name, pretrained=True):
            model = timm.create_model(name, pretrained=True)

    Args:
        name: Name of the model, as ``timm.create_model`` takes it; with another source than the Hub nothing is changed.
        pretrained: Whether its weights will be loaded.
        cache_dir: The same that ``timm.create_model`` is given.

    Raises:
        DownloadError: If the model cannot be fetched, or its ``config.json`` cannot be used.
    """
    source, model_id = parse_model_name(name)
    hub_id, arch, filename = (model_id if source == 'hf-hub' else None), model_id.partition('.')[0], None
    if source is None and is_model(arch):
        cfg = get_pretrained_cfg(model_id)  # raises for an unknown tag
        hub_id, filename = (cfg.hf_hub_id, cfg.hf_hub_filename) if cfg else (None, None)
    try:
        if source == 'hf-hub':
            arch, filename = _check_config(model_id, cache_dir)
        if hub_id and pretrained and not any(weight.arch == arch for weight in weights().values()):
            with suppress(EntryNotFoundError):  # timm may know of another file
                _weights_file(hub_id, filename, cache_dir)
    except DownloadError:
        raise
    except Exception as e:
        raise failed_download(e, name) from e
    try:
        yield
    except DownloadError:
        raise
    except Exception as e:
        if hub_id and (is_from_the_hub(e) or is_disk_error(e)):
            raise failed_download(e, name) from e
        raise


def _check_config(hub_id: str, cache_dir: str | None) -> tuple[str, str | None]:
    """Architecture, and name of the weights' file if there is one, that the ``config.json`` of a repository states."""
    repo, revision = hf_split(hub_id)
    path = hub_file(repo, 'config.json', revision, cache_dir)
    try:
        cfg, arch, args = load_model_config_from_path(path.parent)
        if not isinstance(args, dict):
            raise TypeError('model_args must be an object')
        return arch.partition('.')[0], cfg.get('hf_hub_filename')
    except OSError:
        raise
    except (ValueError, RecursionError) as e:
        raise DownloadError(f'The config.json of {hub_id} is not JSON: {e}. {remove(path)}') from e
    except Exception as e:  # right for another library, perhaps: it stays in the cache
        raise DownloadError(f'{hub_id} has a config.json that timm cannot use: {e!r}. Is it a timm model?') from e
