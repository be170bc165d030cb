"""What went wrong with a download or an upload, and what to do about it."""

import errno
import urllib.error
from collections.abc import Iterator

from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

_OFFLINE = (
    "Without a connection, weights load from the cache, from a folder ('local-dir:PATH' as the model's name) or from a "
    'file (pretrained=True, pretrained_cfg_overlay=dict(file=PATH)).'
)
_LOG_IN = 'log in (HF_TOKEN, or huggingface_hub.login())'
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, 'EDQUOT', errno.ENOSPC)}  # Windows knows no quota
_READ_ONLY = {errno.EROFS}
# Of a file; sockets know some of them as well.
_NOT_WRITABLE = {
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
}  # fmt: skip


class DownloadError(RuntimeError):
    """Weights cannot be fetched, or are not what was asked for.

    Attributes:
        offline: Whether it is for lack of a connection.
    """

    def __init__(self, message: str, offline: bool = False):
        super().__init__(message)
        self.offline = offline


def failed_download(error: BaseException, what: str, on_hub: bool = True) -> DownloadError:
    """Error to raise for a failed download.

    Args:
        error: The failure.
        what: What was to be transferred.
        on_hub: The other side is the Hub, not another server.
    """
    return DownloadError(explain(error, what, on_hub), offline=without_connection(error))


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
    elif is_disk_error(error):
        home = 'HF_HOME' if on_hub else 'TORCH_HOME'
        is_full = any(isinstance(e, OSError) and e.errno in _FULL for e in chain)
        advice = f'It cannot be written: {"free some space, or " if is_full else ""}set {home} to a folder that can be'
        advice += ' written.'
    elif any(isinstance(e, (HFValidationError, AssertionError)) for e in chain):  # AssertionError: timm's hf_split
        advice = "It is not a repository name, 'owner/name'."
    elif upload:
        advice = 'Check the connection and run it again.'
    elif any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        advice = f'HF_HUB_OFFLINE is set and it is not in the cache. {_OFFLINE}'
    else:
        advice = f'Check the connection and try again. {_OFFLINE}'
    return f'Cannot {"upload" if upload else "download"} {what}. {advice} ({_summary(chain)})'


def is_from_the_hub(error: BaseException) -> bool:
    """Whether an error comes from talking to the Hub, whatever the version of its client."""
    client = ('httpx', 'httpcore', 'requests', 'urllib3', 'huggingface_hub')
    return any(type(e).__module__.startswith(client) or _status(e) is not None for e in _causes(error))


def without_connection(error: BaseException) -> bool:
    """Whether an error means that no server answered, as when the machine is offline."""
    chain = list(_causes(error))
    return all(_status(e) is None for e in chain) and any(map(_is_of_the_connection, chain))


def is_disk_error(error: BaseException) -> bool:
    """Whether an error means that a file cannot be written: no space, or no permission."""
    return any(
        isinstance(e, OSError)
        and (e.errno in _FULL | _READ_ONLY or (e.errno in _NOT_WRITABLE and e.filename is not None))
        for e in _causes(error)
    )


def _is_of_the_connection(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, urllib.error.URLError)):
        return True
    # The Hub's client has changed its HTTP library twice: httpx and its successor have one base, requests has two.
    names = {base.__name__ for base in type(error).__mro__ if base.__module__.startswith(('httpx', 'requests'))}
    return bool(names & {'TransportError', 'ConnectionError', 'Timeout'})


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
