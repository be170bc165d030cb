"""Downloads of weights: timm and huggingface_hub fetch the bytes, which are checked here before they are loaded."""

import contextlib
import errno
import http.client
import os
import re
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from .._compat import download_cached_file, get_cache_dir, hf_split

_OFFLINE = (
    "Without a connection, weights load from the cache, from a folder ('local-dir:PATH' as the model's name) or from a "
    'file (pretrained=True, pretrained_cfg_overlay=dict(file=PATH)).'
)
_LOG_IN = 'log in (HF_TOKEN, or huggingface_hub.login())'
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}  # of a file; sockets know some of them as well


class DownloadError(RuntimeError):
    """Weights cannot be fetched, or are not what was asked for."""


def fetch_url(url: str, blob_sha1: str, cache_dir: str | None = None) -> str:
    """Download a file unless it is in torch's cache, check it, and return its path.

    It enters the cache under a name of its own, which contains the start of its checksum, once it is complete.

    Args:
        url: URL of the file.
        blob_sha1: What git calls the file.
        cache_dir: Cache to use instead of torch's.

    Raises:
        DownloadError: If it cannot be fetched, or is not the expected file, which is then removed.
    """
    name = Path(url.rpartition('/')[2])
    part = None
    try:
        folder = Path(cache_dir or get_cache_dir())
        path = folder / f'{name.stem}.{blob_sha1[:8]}{name.suffix}'
        if path.exists() and git_hash(path.read_bytes()) == blob_sha1:
            return str(path)
        part = folder / f'{path.name}.{uuid.uuid4().hex}.part'
        download_cached_file((url, part.name), check_hash=False, progress=False, cache_dir=cache_dir)
        found = git_hash(part.read_bytes())
        if found == blob_sha1:
            os.replace(part, path)
            return str(path)
    except (OSError, http.client.HTTPException) as e:
        raise DownloadError(explain(e, url, on_hub=False)) from e
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    raise DownloadError(
        f'{url} is not the expected {name}: its git blob is {found}, not {blob_sha1}. The download was truncated or '
        f'changed on the way, or the authors replaced the file. It was not kept; try again.'
    )


def fetch_from_hub(hub_id: str, filename: str | None = None, cache_dir: str | None = None) -> str:
    """Download the weights of a model on the Hub unless they are in the cache, check them, and return their path.

    The file is compared with the SHA-256 that the Hub announces for large files. In a cache without symbolic links
    (Windows without developer mode) that is no longer known, and only the size is checked.

    Args:
        hub_id: ``owner/name``, optionally with ``@revision``.
        filename: File of the repository; what timm looks for if None.
        cache_dir: Cache to use instead of the Hub's.

    Raises:
        DownloadError: If it cannot be fetched, or is not the expected file, which is then removed from the cache.
    """
    repo, revision = hf_split(hub_id)
    names = [filename] if filename else ['model.safetensors', 'pytorch_model.bin']
    try:
        for name in names:
            try:
                path = Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
                break
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                if name == names[-1]:
                    raise
        blob = path.resolve()
        if not re.fullmatch('[0-9a-f]{64}', blob.name):
            return str(path)
        with blob.open('rb') as f:
            found = sha_fileobj(f).hex()
    except Exception as e:
        raise DownloadError(explain(e, f'the weights of {hub_id}')) from e
    if found == blob.name:
        return str(path)
    removed = 'It was removed from the cache; try again.'
    try:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
    except OSError as e:
        removed = f'Remove it and try again; it could not be removed here ({e}).'
    raise DownloadError(
        f'{path} is not the file that the Hub announced: its SHA-256 is {found}, not {blob.name}. {removed}'
    )


def explain(error: BaseException, what: str, on_hub: bool = True, upload: bool = False) -> str:
    """Message for a failed download or upload: what happened and what to do.

    Args:
        error: The failure.
        what: What was to be transferred.
        on_hub: The other side is the Hub, not another server.
        upload: It was an upload.
    """
    chain = list(_causes(error))
    status = next(filter(None, map(_status, chain)), None)
    if status in (401, 403) and upload:
        advice = f'It needs a token that may write there: {_LOG_IN}.'
    elif status in (401, 403) and on_hub:
        advice = f'It is private, gated or absent: check the name, and {_LOG_IN}.'
    elif status in (401, 403):
        advice = 'The server refuses it.'
    elif status == 404:
        advice = 'It does not exist: check the name and the revision.' if on_hub else 'The server does not have it.'
    elif status == 429:
        advice = f'Too many requests: wait some minutes{f", or {_LOG_IN}" if on_hub else ""}.'
    elif status is not None and status >= 500:
        advice = 'The server has a problem: try again later.'
    elif any(_is_disk_error(e) for e in chain):
        home = 'HF_HOME' if on_hub else 'TORCH_HOME'
        advice = f'It cannot be written: free some space, or set {home} to a folder that can be written.'
    elif upload:
        advice = 'Check the connection and run it again.'
    elif any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        advice = f'HF_HUB_OFFLINE is set and it is not in the cache. {_OFFLINE}'
    else:
        advice = f'Check the connection and try again. {_OFFLINE}'
    return f'Cannot transfer {what}. {advice} ({_summary(chain)})'


def is_from_the_hub(error: BaseException) -> bool:
    """Whether an error comes from talking to the Hub, whatever the version of its client."""
    client = ('httpx', 'httpcore', 'requests', 'urllib3', 'huggingface_hub')
    return any(type(e).__module__.startswith(client) or _status(e) is not None for e in _causes(error))


def _is_disk_error(error: BaseException) -> bool:
    if not isinstance(error, OSError):
        return False
    return error.errno in _FULL or (error.errno in _NOT_WRITABLE and error.filename is not None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    if isinstance(error, urllib.error.HTTPError):
        return error.code
    return getattr(getattr(error, 'response', None), 'status_code', None)


def _summary(chain: list[BaseException]) -> str:
    """First line of the most telling error: of those that only say 'not in the cache', the reason."""
    telling = next((e for e in chain if not isinstance(e, LocalEntryNotFoundError)), chain[0])
    lines = str(telling).strip().splitlines() or ['no details']
    return f'{type(telling).__name__}: {lines[0]}'
