"""Downloads: whatever a server does, they end, in time and in bounded space, with the right file or a DownloadError."""

import gzip
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hub_server import Hub
from safetensors.torch import save
from test_hub import environment, worker_process

from timm_attn.weights import DownloadError, http_file
from timm_attn.weights.download import fetch_url

GOOD = random.Random(0).randbytes(150_000)
SHA1 = hashlib.sha1(b'blob %d\0' % len(GOOD) + GOOD).hexdigest()
LONGEST = 20  # seconds; with the bounds below every download ends after about one, on an idle machine


@pytest.fixture(autouse=True)
def short_bounds(monkeypatch):
    monkeypatch.setattr(http_file, 'SILENCE', 0.3)
    monkeypatch.setattr(http_file, 'GRACE', 0.5)
    monkeypatch.setattr(http_file, 'MIN_RATE', 10**7)
    monkeypatch.setattr(http_file, 'MAX_SIZE', 10**6)


class Server:
    """A server of bytes: a behaviour is called with the connection, after the request was read."""

    def __init__(self):
        self.behaviour = None
        self.socket = socket.create_server(('127.0.0.1', 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}/dir/weights.pth.tar'
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection, self.behaviour), daemon=True).start()

    def answer(self, connection, behaviour):
        with connection:
            try:
                request = b''
                while b'\r\n\r\n' not in request:
                    if not (more := connection.recv(4096)):
                        break
                    request += more
                behaviour(connection)
            except OSError:
                pass


@pytest.fixture(scope='module')
def server():
    server = Server()
    yield server
    server.socket.close()


def http(body=b'', status='200 OK', **headers):
    lines = [f'HTTP/1.1 {status}', *(f'{k.replace("_", "-")}: {v}' for k, v in headers.items()), '', '']
    return '\r\n'.join(lines).encode('latin-1') + body


def sends(*pieces, pause=0.0, then=0.0):
    """Behaviour that sends pieces, with a pause after each, and waits at the end."""

    def behave(connection):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        time.sleep(then)

    return behave


def drips(start, data, seconds=0.1):
    """Behaviour that sends one byte now and then: no read ever times out."""

    def behave(connection):
        connection.sendall(start)
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            connection.sendall(data)
            time.sleep(seconds)

    return behave


def endless(start, piece):
    def behave(connection):
        connection.sendall(start)
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            connection.sendall(piece)

    return behave


def resets(start):
    def behave(connection):
        connection.sendall(start)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

    return behave


def whole(content, **headers):
    return http(content, Content_Length=len(content), **headers)


def hostile():
    n = len(GOOD)
    long = http(Content_Length=n)
    chunked = http(Transfer_Encoding='chunked')
    yield 'silent', sends(then=2)
    yield 'silent after the status', sends(b'HTTP/1.1 200 OK\r\n', then=2)
    yield 'silent after the headers', sends(long, then=2)
    yield 'closes at once', sends()
    yield 'resets at once', resets(b'')
    for part in range(1, 10):
        some = GOOD[: n * part // 10]
        yield f'stalls at {part}/10', sends(long + some, then=2)
        yield f'ends at {part}/10', sends(long + some)
        yield f'ends at {part}/10, without a length', sends(http(some))
        yield f'resets at {part}/10', resets(long + some)
        yield f'announces {part}/10', sends(http(GOOD, Content_Length=n * part // 10))
        yield f'stalls in chunk {part}', sends(chunked + b'%x\r\n' % n + some, then=2)
    yield 'drips the status', drips(b'HTTP/1.1 200 ', b'O')
    yield 'drips headers', drips(b'HTTP/1.1 200 OK\r\nX: ', b'x')
    yield 'drips many headers', drips(b'HTTP/1.1 200 OK\r\n', b'X: x\r\n')
    yield 'drips the body', drips(long, b'x')
    yield 'drips the body without a length', drips(http(), b'x')
    yield 'drips a chunk', drips(chunked + b'ffff\r\n', b'x')
    yield 'drips the size of a chunk', drips(chunked, b'0')
    yield 'drips an extension of a chunk', drips(chunked + b'5;x=', b'x')
    yield 'drips trailers', drips(chunked + b'0\r\n', b'X: x\r\n')
    yield 'drips 100 Continue', drips(b'', b'HTTP/1.1 100 Continue\r\n\r\n')
    yield 'endless', endless(http(), bytes(10_000))
    yield 'endless status', endless(b'HTTP/1.1 200 ', b'O' * 10_000)
    yield 'endless header', endless(b'HTTP/1.1 200 OK\r\nX: ', b'x' * 10_000)
    yield 'endless headers', endless(b'HTTP/1.1 200 OK\r\n', b'X: x\r\n' * 1000)
    yield 'endless chunks', endless(chunked, b'100\r\n' + bytes(256) + b'\r\n')
    yield 'endless size of a chunk', endless(chunked, b'0' * 10_000)
    yield 'endless trailers', endless(chunked + b'0\r\n', b'X: x\r\n' * 1000)
    yield 'endless 100 Continue', endless(b'', b'HTTP/1.1 100 Continue\r\n\r\n' * 100)
    yield 'a chunk of 2**70', sends(chunked + b'4' + b'0' * 17 + b'\r\nx', then=2)
    yield 'a negative chunk', sends(chunked + b'-5\r\nhello\r\n0\r\n\r\n')
    yield 'a chunk without a size', sends(chunked + b'zz\r\nhello')
    for length in (n + 1, 10**9, 10**18, 10**30, '9' * 4000):
        yield f'announces {str(length)[:20]}', sends(http(GOOD[:-1] + b'?', Content_Length=length))
    for length in ('-1', 'abc', '', '0', '1e3', '²', '0x10', f'{n}, {n - 5}'):
        yield f'length {length!r} of other bytes', sends(http(GOOD[:-1] + b'?', Content_Length=length))
    yield 'one byte more', sends(whole(GOOD + b'x'))
    yield 'one byte less', sends(whole(GOOD[:-1]))
    yield 'nothing', sends(whole(b''))
    rng = random.Random(1)
    for _ in range(10):
        at = rng.randrange(n)
        yield f'another byte at {at}', sends(whole(GOOD[:at] + bytes([GOOD[at] ^ 1]) + GOOD[at + 1 :]))
    yield 'the same in another order', sends(whole(GOOD[::-1]))
    yield 'a page', sends(whole(b'<!doctype html><title>Sign in</title>', Content_Type='text/html'))
    yield 'an LFS pointer', sends(whole(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'))
    yield 'gzip of the right bytes', sends(whole(gzip.compress(GOOD), Content_Encoding='gzip'))
    yield 'gzip bomb', sends(whole(gzip.compress(bytes(50_000_000)), Content_Encoding='gzip'))
    yield 'deflate bomb', sends(whole(zlib.compress(bytes(50_000_000)), Content_Encoding='deflate'))
    yield (
        'bomb in chunks',
        sends(http(b'%x\r\n' % 48_000 + gzip.compress(bytes(48_000_000))[:48_000], Transfer_Encoding='chunked, gzip')),
    )
    yield 'part of it', sends(http(GOOD[5:], '206 Partial Content', Content_Range=f'bytes 5-{n - 1}/{n}'))
    for status in (204, 205, 304, 400, 401, 402, 403, 404, 405, 407, 408, 410, 416, 418, 421, 429, 451, 500, 501, 502,
                   503, 504, 507, 511, 520, 599, 600, 999):  # fmt: skip
        body = whole(b'no', Retry_After='99999').partition(b'\r\n')[2]
        yield f'status {status}', sends(f'HTTP/1.1 {status} x\r\n'.encode() + body)
    for status in ('000', '-1', '20', '2000', 'OK', '', '²00'):
        yield f'status {status!r}', sends(http(b'', status))
    for start in (b'', b'\r\n\r\n', b'SSH-2.0-OpenSSH\r\n', b'\x16\x03\x01\x02\x00\x01', b'HTTP/9.9 200\r\n\r\n',
                  b'\0' * 99, b'ICY 200 OK\r\n\r\n', b'220 ftp\r\n', b'HTTP/1.1\r\n\r\n', b'\xff' * 70_000,
                  ):  # fmt: skip
        yield f'{start[:12]!r}', sends(start)
    for code in (301, 302, 303, 307, 308):
        for where in ('', '/dir/weights.pth.tar', 'file:///etc/passwd', 'ftp://127.0.0.1/x', 'data:,x', '//', 'http://[',
                      'http://', 'javascript:x', 'http://127.0.0.1:99999/', 'http://127.0.0.1:x/', '\x00',
                      'http://\xff/', 'https://127.0.0.1:1/', 'http://127.0.0.1:1/', 'gopher://127.0.0.1',
                      'http://a b/', '?', '#'):  # fmt: skip
            yield f'{code} to {where!r}', sends(http(b'', f'{code} Found', Location=where, Content_Length=0))
    yield 'redirect without a place', sends(http(b'', '302 Found', Content_Length=0))
    yield 'redirect in a body without end', endless(http(b'', '302 Found', Location='/x'), bytes(10_000))
    yield 'an error without end', endless(http(b'', '500 Error'), bytes(10_000))
    yield 'an error that drips', drips(http(b'', '404 Not Found', Content_Length=10**9), b'x')


def test_hostile_servers(attack, server, tmp_path):
    for name, server.behaviour in hostile():
        for size in (None, len(GOOD)):
            begun = time.monotonic()
            with attack.case(f'{name}, size {size}'):
                try:
                    fetch_url(server.url, SHA1, str(tmp_path), size)
                except DownloadError as e:
                    message = str(e)
                else:
                    raise AssertionError('it was taken')
                assert len(message) < 1200
                assert 'free some space' not in message
                assert time.monotonic() - begun < LONGEST
                assert not list(tmp_path.iterdir())
            for left in tmp_path.iterdir():  # so that it does not count for the next case
                left.unlink()
            if 'drips' in name or 'stalls' in name or 'silent' in name:
                break  # those take a second each


def test_it_knows_when_there_is_no_connection(attack, server, tmp_path):
    for url, behaviour, offline in (
        ('http://127.0.0.1:1/w.pth', None, True), ('http://name.invalid/w.pth', None, True),
        (f'https://127.0.0.1:{server.port}/w.pth', sends(then=2), True),
        (server.url, sends(http(b'', '404 Not Found')), False), (server.url, sends(http(b'', '500 Error')), False),
        (server.url, sends(whole(b'other')), False), (server.url, sends(then=2), True),
    ):  # fmt: skip
        server.behaviour = behaviour
        with attack.case(url):
            try:
                fetch_url(url, SHA1, str(tmp_path))
            except DownloadError as e:
                assert e.offline == offline, e  # noqa: PT017


def test_servers_that_are_only_odd(attack, server, tmp_path):
    """What a proxy or an old server may do: the file is taken, under our name."""
    n = len(GOOD)
    chunks = b''.join(b'%x\r\n' % len(GOOD[i : i + 999]) + GOOD[i : i + 999] + b'\r\n' for i in range(0, n, 999))
    odd = {
        'plain': sends(whole(GOOD)),
        'no length': sends(http(GOOD)),
        'too great a length': sends(http(GOOD, Content_Length=len(GOOD) + 1)),
        'HTTP/1.0': sends(http(GOOD).replace(b'HTTP/1.1', b'HTTP/1.0')),
        'chunks': sends(http(chunks + b'0\r\n\r\n', Transfer_Encoding='chunked')),
        'extensions and trailers': sends(
            http(chunks.replace(b'3e7\r\n', b'3e7;a=b\r\n') + b'0\r\nX: x\r\n\r\n', Transfer_Encoding='chunked')
        ),
        'no end of the chunks': sends(http(chunks, Transfer_Encoding='chunked') + b'0\r\n'),
        'pieces': sends(http(Content_Length=n), *(GOOD[i : i + 15_000] for i in range(0, n, 15_000)), pause=0.01),
        'nonsense as a length': sends(http(GOOD, Content_Length='abc')),
        '100 Continue first': sends(b'HTTP/1.1 100 Continue\r\n\r\n' + whole(GOOD)),
        'many headers': sends(whole(GOOD, **{f'X{i}': 'x' * 500 for i in range(80)})),
        'keep-alive': sends(whole(GOOD, Connection='keep-alive'), then=0.3),
    }
    for name in ('../../escaped.pth', '/tmp/escaped.pth', '..\\escaped', 'a\0b', '.', '..', 'x' * 5000, '~/.bashrc'):
        odd[f'named {name[:20]}'] = sends(whole(GOOD, Content_Disposition=f'attachment; filename="{name}"'))
    for name, server.behaviour in odd.items():
        folder = tmp_path / hashlib.md5(name.encode()).hexdigest()
        with attack.case(name):
            path = Path(fetch_url(server.url, SHA1, str(folder)))
            assert path.read_bytes() == GOOD
            assert [p.name for p in folder.iterdir()] == [f'weights.pth.{SHA1[:8]}.tar']
    assert {p.parent for p in tmp_path.rglob('*') if p.is_file()} == {p for p in tmp_path.iterdir() if p.is_dir()}
    for hops in range(12):
        left = [hops]

        def redirect(connection, left=left):
            left[0] -= 1
            reply = http(b'', '302 Found', Location=f'/{left[0]}', Content_Length=0) if left[0] >= 0 else whole(GOOD)
            connection.sendall(reply)

        server.behaviour = redirect
        with attack.case(f'{hops} redirects'):
            try:
                taken = bool(fetch_url(server.url, SHA1, str(tmp_path / f'hops{hops}')))
            except DownloadError:
                taken = False
            assert taken == (hops <= 10)


def test_the_body_of_a_redirect_is_not_read(attack, server, tmp_path):
    sent = []

    def redirect(connection):
        sent.append(0)
        if len(sent) > 1:
            connection.sendall(whole(GOOD))
            return
        connection.sendall(http(b'', f'{code} Found', Location='/weights.pth.tar', Content_Length=10**9))
        with suppress(OSError):
            for _ in range(1000):
                connection.sendall(bytes(10**6))
                sent[0] += 10**6

    server.behaviour = redirect
    for code in (301, 302, 303, 307, 308):
        sent.clear()
        with attack.case(f'{code}'):
            assert Path(fetch_url(server.url, SHA1, str(tmp_path / f'{code}'), len(GOOD))).read_bytes() == GOOD
            assert sent[0] < 2e7  # what fits into the buffers of two sockets


def test_what_is_in_the_cache(attack, server, tmp_path):
    server.behaviour = sends(whole(GOOD))
    name = f'weights.pth.{SHA1[:8]}.tar'
    user = tmp_path / 'of_the_user'
    user.write_bytes(b'precious')

    def prepared(what):
        folder = tmp_path / what.replace(' ', '_')
        folder.mkdir()
        path = folder / name
        if what == 'damaged':
            path.write_bytes(GOOD[:-1])
        elif what == 'empty':
            path.touch()
        elif what == 'huge':
            with path.open('wb') as f:
                f.truncate(2**20)
        elif what == 'link to a file of the user':
            path.symlink_to(user)
        elif what == 'dangling link':
            path.symlink_to('nowhere')
        elif what == 'link to itself':
            path.symlink_to(name)
        elif what == 'pipe':
            os.mkfifo(path)
        elif what == 'folder':
            path.mkdir()
        return folder, path

    for what in ('nothing', 'damaged', 'empty', 'huge', 'link to a file of the user', 'dangling link', 'link to itself',
                 'pipe'):  # fmt: skip
        with attack.case(what):
            folder, path = prepared(what)
            assert Path(fetch_url(server.url, SHA1, str(folder))).read_bytes() == GOOD
            assert not path.is_symlink()
            assert user.read_bytes() == b'precious'
    with attack.case('folder'):
        folder, path = prepared('folder')
        try:
            fetch_url(server.url, SHA1, str(folder))
        except DownloadError as e:
            assert 'cannot be written' in str(e)  # noqa: PT017
        assert list(folder.iterdir()) == [path]
    for where in ('of_the_user', 'of_the_user/below', 'a' * 300, 'nothing/' + name):
        with attack.case(f'the cache is {where[:20]}'):
            try:
                fetch_url(server.url, SHA1, str(tmp_path / where))
            except DownloadError as e:
                assert 'set TORCH_HOME to a folder that can be written' in str(e)  # noqa: PT017
            else:
                raise AssertionError('it was taken')
    # partial files: only old ones, and only ours
    folder = tmp_path / 'parts'
    folder.mkdir()
    ours = [f'{name}.{"0" * 32}.part', f'other.12345678.pth.{"f" * 32}.part',
            f'{name}.{"0" * 32}.part.{"1" * 32}.partial', f'noext.12345678.{"f" * 32}.part']  # fmt: skip
    others = ['my.part', f'{"0" * 32}.part', 'x.12345678.pth', f'x.pth.{"f" * 32}.partial',
              f'x.1234567.{"f" * 31}.part',
              'model.safetensors', 'x.pth.part', f'{name}.{"0" * 32}.part.bak']  # fmt: skip
    for kept in (0, 1):
        for each in (*ours, *others):
            (folder / each).write_bytes(b'x')
            if not kept:
                os.utime(folder / each, (time.time() - 90_000,) * 2)
        (folder / name).unlink(missing_ok=True)
        with attack.case(f'partial files, {"young" if kept else "old"}'):
            fetch_url(server.url, SHA1, str(folder))
            assert {p.name for p in folder.iterdir()} == {name, *others, *(ours if kept else ())}


def in_a_fork(function):
    """Run a function in a child; its id. A child of torch's process may open sockets and files."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def test_killed_and_two_at_once(attack, server, tmp_path):
    rng = random.Random(2)
    pieces = [http(Content_Length=len(GOOD)), *(GOOD[i : i + 10_000] for i in range(0, len(GOOD), 10_000))]
    for i in range(15):
        folder = tmp_path / f'killed{i}'
        server.behaviour = sends(*pieces, pause=0.01)
        pid = in_a_fork(lambda folder=folder: fetch_url(server.url, SHA1, str(folder)))
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with attack.case(f'killed {i}'):
            final = folder / f'weights.pth.{SHA1[:8]}.tar'
            assert not final.exists() or final.read_bytes() == GOOD
            assert Path(fetch_url(server.url, SHA1, str(folder))).read_bytes() == GOOD
    for i in range(5):
        folder = tmp_path / f'at_once{i}'
        bad = [i % 2 * 3]  # of four transfers, that many are wrong

        def some_bad(connection, bad=bad, lock=threading.Lock()):  # noqa: B008  a lock of each round
            with lock:
                bad[0] -= 1
                is_bad = bad[0] >= 0
            sends(*([whole(GOOD[:-1])] if is_bad else pieces), pause=0.01)(connection)

        server.behaviour = some_bad
        pids = [in_a_fork(lambda folder=folder: fetch_url(server.url, SHA1, str(folder))) for _ in range(4)]
        failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
        with attack.case(f'at once {i}'):
            assert failed == i % 2 * 3
            assert [p.read_bytes() for p in folder.iterdir()] == [GOOD]


# -- the Hub: the real client in a process of its own


@pytest.fixture(scope='module')
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(scope='module')
def client(hub, tmp_path_factory):
    with worker_process(hub, Path(__file__).parents[2], tmp_path_factory.mktemp('home')) as run:
        yield run


def make(name, cache):
    return f"""
from timm_attn.weights.download import explain_hub_failure
with explain_hub_failure({name!r}, pretrained=True, cache_dir={str(cache)!r}):
    timm.create_model({name!r}, pretrained=True, cache_dir={str(cache)!r})
result = 'loaded'
"""


CONFIG = {'architecture': 'csa_resnet20_cifar', 'num_classes': 10, 'pretrained_cfg': {'num_classes': 10}}


@pytest.fixture(scope='module')
def weights_file():
    import timm

    return save(timm.create_model('csa_resnet20_cifar').state_dict())


def broken_configs():
    text = json.dumps(CONFIG).encode()
    for part in range(1, 10):
        yield f'cut at {part}/10', text[: len(text) * part // 10]
    for content in (
        b'', b' ', b'\0', b'null', b'true', b'3', b'"x"', b'[]', b'[[]]', b'{}', b'{"architecture": null}',
        b'{"a": NaN}',
        b'{"architecture": 3}', b'{"architecture": ["x"]}', b'<!doctype html><title>Sign in</title>', b'\xff\xfe{}',
        b'\x1f\x8b\x08', b'[' * 5000, b'{"a":' * 5000, text + text, text.replace(b'"', b"'"), b'\xef\xbb\xbf' + text,
        b'{"architecture": "csa_resnet20_cifar", "pretrained_cfg": []}',
        b'{"architecture": "csa_resnet20_cifar", "pretrained_cfg": null}',
        b'{"architecture": "csa_resnet20_cifar", "pretrained_cfg": {}, "model_args": 3}',
        b'{"architecture": "csa_resnet20_cifar", "pretrained_cfg": {}, "model_args": []}',
        b'{"architecture": "csa_resnet20_cifar", "pretrained_cfg": "x"}',
        b'{"model_type": "vit", "architectures": ["ViTForImageClassification"]}',
        b'version https://git-lfs.github.com/spec/v1\n', text.replace(b'}', b',}'),
    ):  # fmt: skip
        yield repr(content[:60]), content


def test_broken_configs(attack, hub, client, weights_file, tmp_path):
    for i, (name, content) in enumerate(broken_configs()):
        repo = f'bad/config{i}'
        hub.add(repo, config__json=content, model__safetensors=weights_file)
        with attack.case(name):
            error, message = client(make(f'hf-hub:{repo}', tmp_path))
            assert error == 'DownloadError', (error, message)
            assert repo in message
            assert len(message) < 1200
            # and once it is mended, it loads
            hub.add(repo, config__json=json.dumps(CONFIG).encode())
            assert client(make(f'hf-hub:{repo}', tmp_path)) == 'loaded'


def test_broken_transfers_of_the_config(attack, hub, client, weights_file, tmp_path):
    hub.add('good/one', config__json=json.dumps(CONFIG).encode(), model__safetensors=weights_file)
    at = '/good/one/resolve/main/config'
    for name, fault in {
        '401': 401, '403': 403, '404': 404, '400': 400, '418': 418,
        'a page': lambda h: h.send(200, b'<html>', ETag='"x"'),
        'no commit': lambda h: h.send(200, b'{}', ETag='"0123"'),
        'no ETag': lambda h: h.send(200, b'{}', X_Repo_Commit='0' * 40),
        'closed': lambda h: setattr(h, 'close_connection', True), 'wrong size': 'wrong size',
        'loop': lambda h: h.send(302, b'', Location=at + '.json', ETag='"a"', X_Repo_Commit='0' * 40),
        'nowhere': lambda h: h.send(302, b'', Location='http://127.0.0.1:1/x', ETag='"a"', X_Repo_Commit='0' * 40),
        'file': lambda h: h.send(302, b'', Location='file:///etc/passwd', ETag='"a"', X_Repo_Commit='0' * 40),
    }.items():  # fmt: skip
        hub.fault(at, fault)
        with attack.case(name):
            answer = client(make('hf-hub:good/one', tmp_path / name))
            assert answer[0] == 'DownloadError', answer
            assert len(answer[1]) < 1200
            assert 'free some space' not in answer[1]
        hub.faults.clear()
        with attack.case(f'{name}, then well'):
            assert client(make('hf-hub:good/one', tmp_path / name)) == 'loaded'
    (tmp_path / 'file_as_cache').touch()
    for where in ('file_as_cache', 'file_as_cache/below'):
        with attack.case(f'cache in {where}'):
            error, message = client(make('hf-hub:good/one', tmp_path / where))
            assert (error, 'set HF_HOME' in message) == ('DownloadError', True), message
    for name in ('hf-hub:good/absent', 'hf-hub:a b/c', 'hf-hub:a/b/c', 'hf-hub:..', 'hf-hub:../..',
                 'hf-hub:a/b@../../x', 'hf-hub:good/one@' + '0' * 40, 'hf-hub:/', 'hf-hub:--', 'hf-hub:a@b@c',
                 'hf_hub:good/absent'):  # fmt: skip
        with attack.case(name):
            answer = client(make(name, tmp_path / 'names'))
            assert answer[0] in ('DownloadError', 'AssertionError', 'ValueError'), answer


HOSTILE_NAMES = (
    '../../../../escaped', '../escaped', '..', '.', '/tmp/escaped', 'a/b', 'C:\\escaped', '..\\..\\escaped', './x',
    '../../../of_the_user', '.hidden', 'a/../../../../escaped', '/', '//', '/etc/passwd', 'x/', '\\\\host\\share',
)  # fmt: skip


def test_hostile_etags(attack, hub, client, weights_file, tmp_path):
    """A server that chooses the name under which its file is stored cannot choose one outside of the cache."""
    user = tmp_path / 'of_the_user'
    user.write_bytes(b'precious')
    config = json.dumps(CONFIG).encode()
    oid = hub.add('evil/one', config__json=config, model__safetensors=weights_file)
    for path, content in (('config.json', config), ('model.safetensors', weights_file)):
        sha = hashlib.sha256(content).hexdigest()
        hub.lfs[sha] = content
        for what in ('X_Linked_Etag', 'ETag', 'X_Repo_Commit'):
            for name in HOSTILE_NAMES:
                headers = {'X_Repo_Commit': oid, 'ETag': f'"{sha}"', 'X_Linked_Size': str(len(content))}
                headers[what] = f'"{name}"' if 'tag' in what.lower() else name
                hub.fault(f'/evil/one/resolve/main/{path}', lambda h, headers=headers, sha=sha: h.send(
                    302, b'', Location=f'{hub.cdn}/cdn/{sha}', **headers))  # fmt: skip
                cache = tmp_path / 'caches' / f'{attack.tried}' / 'hub'
                with attack.case(f'{path} {what} {name}'):
                    error, message = client(make('hf-hub:evil/one', cache))
                    assert (error, 'is refused' in message) == ('DownloadError', True), message
                    assert user.read_bytes() == b'precious'
                    assert not [p for p in cache.rglob('*') if p.is_symlink() and 'models--' not in str(p.resolve())]
                hub.faults.clear()
    # the first answer is harmless, the next one is not: written, but not used, and nothing of the user's is removed
    for name in ('../../../../escaped', '../escaped', '../../../../of_the_user', str(user)):
        calls = []

        def second(h, name=name, calls=calls):
            calls.append(1)
            etag = f'"{sha}"' if len(calls) == 1 else f'"{name}"'
            h.send(302, b'', Location=f'{hub.cdn}/cdn/{sha}', X_Repo_Commit=oid, X_Linked_Etag=etag,
                   X_Linked_Size=str(len(weights_file)))  # fmt: skip

        hub.fault('HEAD /evil/one/resolve/main/model', second)
        cache = tmp_path / 'cache'
        with attack.case(f'second answer {name}'):
            error, message = client(make('hf-hub:evil/one', cache))
            assert (error, 'outside of the cache' in message) == ('DownloadError', True), message
            assert user.read_bytes() == b'precious'
            assert not list(cache.rglob('snapshots/*/model.safetensors'))
        hub.faults.clear()
    assert {p.name for p in tmp_path.iterdir()} <= {
        'of_the_user', 'cache', 'caches', 'escaped', 'of_the_user.lock'
    }  # fmt: skip


def test_without_a_connection(attack, hub, tmp_path):
    """Ours, timm's, and those of the Hub: one error, at once, and nothing printed."""
    code = """
import sys, time, timm, timm_attn
from timm_attn.weights import DownloadError
from timm_attn.weights.download import explain_hub_failure
for name in sys.argv[1:]:
    begun = time.monotonic()
    try:
        with explain_hub_failure(name, pretrained=True):
            timm.create_model(name, pretrained=True)
    except DownloadError as e:
        print(e.offline, time.monotonic() - begun < 20)
"""
    names = ['csa_resnet18', 'mbv2_ca_050', 'resnet18', 'hf-hub:timm/resnet18.a1_in1k', 'hf-hub:good/one@main']
    extras = {'HF_HUB_OFFLINE': '1'}, {'HF_ENDPOINT': 'http://no.invalid'}
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', code, *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(hub, Path(__file__).parents[2], tmp_path, **extra),
        )
        for extra in extras
    ]  # fmt: skip
    for extra, process in zip(extras, processes, strict=True):
        out, err = process.communicate()
        for name, line in zip(names, [*out.splitlines(), *[''] * 9], strict=False):
            with attack.case(f'{name} {extra}'):
                assert line == 'True True', out + err
        with attack.case(f'nothing printed {extra}'):
            assert not err
