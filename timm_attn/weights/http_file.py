"""A file of a web server that is not trusted: bounded in size and in time."""

import http.client
import io
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import BinaryIO

SILENCE = 20.0
"""Seconds without a byte after which a server counts as silent."""

MIN_RATE = 10_000
"""Bytes a second below which a download is given up, so that it ends even if the server sends a byte now and then."""

GRACE = 60.0
"""Seconds that a download may take besides."""

MAX_SIZE = 100 * 2**20
"""Bytes of the largest file that is taken where the size is not known; GitHub accepts no larger ones into Git."""

_CHUNK = 2**16


class TooLargeError(Exception):
    """The server sends more than the file can hold."""


def download(url: str, path: Path, size: int | None = None) -> None:
    """Download a file.

    Args:
        url: URL, http or https; redirects are followed to these only.
        path: New file to write. If the download fails, what it wrote so far is still there.
        size: Bytes of the file, if they are known.

    Raises:
        TooLargeError: If the server sends more than ``size``, or than :data:`MAX_SIZE`.
        TimeoutError: If the server is silent or too slow.
        OSError: If the download fails for another reason, or the file cannot be written.
        http.client.HTTPException: If the server does not speak HTTP.
    """
    most = MAX_SIZE if size is None else size
    seconds = GRACE + most / MIN_RATE
    with _Watch(seconds) as watch, path.open('xb') as file:
        try:
            _transfer(url, file, most, watch)
        except (OSError, http.client.HTTPException):
            if not watch.expired:
                raise
        if watch.expired:  # the connection was shut, whatever that looked like
            raise TimeoutError(f'the server needs more than {seconds:.0f} s')


def _transfer(url: str, file: BinaryIO, most: int, watch: '_Watch') -> None:
    request = urllib.request.Request(url, headers={'User-Agent': 'timm-attn'})
    with _opener(watch).open(request, timeout=SILENCE) as response:
        announced = response.headers.get('Content-Length') or ''
        if announced.isdecimal() and int(announced[:20]) > most:
            raise TooLargeError(f'it has {announced[:20]} bytes, and at most {most} are expected')
        written = 0
        while chunk := response.read1(_CHUNK):
            written += len(chunk)
            if written > most:
                raise TooLargeError(f'it does not end after {most} bytes')
            file.write(chunk)


class _Watch:
    """Shuts the connections of a download when its time is over: timeouts of sockets never end one that drips."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._end

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self.expired:
            raise TimeoutError

    def _shut(self) -> None:
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue

    def __enter__(self) -> '_Watch':
        self._timer.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._timer.cancel()


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """Opener for http and https alone, with the proxies of the environment, whose connections are watched."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class Encrypted(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req):
            return self.do_open(Plain, req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req):
            return self.do_open(Encrypted, req)

    class Redirect(urllib.request.HTTPRedirectHandler):
        def http_error_302(self, req, fp, code, msg, headers):
            fp.close()  # else its body would be read, however large
            return super().http_error_302(req, io.BytesIO(), code, msg, headers)

        http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), Http(), Https(), urllib.request.UnknownHandler(),
        Redirect(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener
