"""Only one process writes to the folder of a run: a lock that the operating system drops when its process ends."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .options import RunError

if sys.platform == 'win32':
    import msvcrt
else:
    import fcntl

_logger = logging.getLogger(__name__)

_held: set[Path] = set()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, whose file ``run.lock`` says who holds it.

    Args:
        folder: Folder of a run, which exists.

    Raises:
        RunError: If another process holds it; the message says which.
    """
    path = folder / 'run.lock'
    real = path.resolve()
    if real in _held:  # the lock of the operating system belongs to the whole process
        raise RunError(f'{folder} is in use by this process.')
    while True:
        file = path.open('a+', encoding='utf-8')
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError):
            with file:
                file.seek(0)
                holder = file.read().strip() or 'another process'
            raise RunError(
                f'{folder} is in use by {holder}. Wait for it to end, or name another --experiment.'
            ) from None
        except OSError as e:  # a file system without locks
            _logger.warning(f'{folder} cannot be locked ({e}): do not start another run in it.')
        if _is_at(path, file.fileno()):
            break
        file.close()  # removed by its holder, who ended between the two calls
    with file:
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n')
        file.flush()
        _held.add(real)
        try:
            yield
        finally:
            _held.remove(real)
            with suppress(OSError):  # while it is still locked; Windows keeps a file that is open
                path.unlink()


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at a path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _lock(descriptor: int) -> None:
    """Lock a file for this process alone; the workers that it forks do not inherit the lock, as they would flock's."""
    if sys.platform == 'win32':
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # beyond the text, which others read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
