"""A file of the Hub in the client's cache: refused unless it is inside, and is what the Hub announced."""

import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils.sha import sha_fileobj

from .download_error import DownloadError, without_connection


def hub_file(repo: str, name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Download a file of the Hub unless it is in the cache, check it, and return its path.

    It is compared with the SHA-256 that the Hub announces for large files. In a cache without symbolic links (Windows
    without developer mode) that is no longer known, and only the size is checked.

    Args:
        repo: ``owner/name``.
        name: File of the repository.
        revision: Branch, tag or commit; ``main`` if None.
        cache_dir: Cache to use instead of the Hub's.

    Raises:
        DownloadError: If it is not the expected file, which is then removed from the cache.
        Exception: Those of ``hf_hub_download``, if it cannot be fetched.
    """
    before = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
    path = Path(_fetch(repo, name, revision, cache_dir))
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    folder = cache / f'models--{repo.replace("/", "--")}'
    # What large repositories share lies in the cache's own folder of blobs.
    homes = (folder / 'blobs', folder / 'snapshots', cache / 'blobs')
    if not any(path.resolve().is_relative_to(home.resolve()) for home in homes):
        target = path.resolve()
        if str(path) == before:
            advice = f'Remove {path}, unless the link is yours.'
        else:
            path.unlink()  # the link that this call made; what it points to may be the user's
            advice = 'It was removed.'
        raise DownloadError(f'{name} of {repo} is outside of the cache, at {target}: it is not used. {advice}')
    sha256 = path.readlink().name if path.is_symlink() else ''
    if re.fullmatch('[0-9a-f]{64}', sha256):
        with path.open('rb') as f:
            found = sha_fileobj(f).hex()
        if found != sha256:
            raise DownloadError(
                f'{path} is not the file that the Hub announced: its SHA-256 is {found}, not {sha256}. {remove(path)}'
            )
    return path


def remove(path: Path) -> str:
    """Remove a file from the cache, with the blobs that it is a link to, and return a sentence that says so."""
    try:
        links = [path]
        while links[-1].is_symlink():
            links.append(links[-1].parent / links[-1].readlink())
        for link in links:
            link.unlink(missing_ok=True)
    except OSError as e:
        return f'Remove it and try again; it could not be removed here ({e}).'
    return 'It was removed from the cache; try again.'


def _fetch(repo: str, name: str, revision: str | None, cache_dir: str | Path | None) -> str:
    try:
        announced = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
    except Exception as e:
        if without_connection(e):  # new clients would try again for half a minute
            with suppress(OSError):
                cached = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
                if isinstance(cached, str):
                    return cached
            raise
    else:
        # The client writes to a file and to a folder of these names.
        for what, value in (('ETag', announced.etag or ''), ('commit', announced.commit_hash or '')):
            if value.startswith('.') or re.search(r'[/\\:\0]', value):
                raise DownloadError(f'The Hub announces {name} of {repo} under the {what} {value!r}: it is refused.')
    return hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir)
