"""A Hugging Face Hub in miniature on 127.0.0.1, for the real ``huggingface_hub`` client; it can be told to misbehave.

It speaks what the client needs to create a model repository, upload to it (preupload, LFS, commit), and download from
it (resolve with ETag and redirect, revisions, model info). Under ``/files/NAME`` it also serves single files, as any
web server would.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from huggingface_hub.utils.sha import git_hash

LFS_ABOVE = 1000  # bytes; larger files and safetensors are stored as LFS objects, as on the Hub


@dataclass
class Fault:
    """Misbehaviour for requests whose ``METHOD path`` matches, the given number of times.

    It is an HTTP status, ``drop`` (half of the file, then silence), ``wrong size``, ``wrong bytes``, or a
    function of the handler that answers.
    """

    pattern: str
    what: int | str | Callable
    times: int = 10_000


@dataclass
class Repo:
    """A model repository: commits, oldest first, each with all its files."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # id, message, files

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f'{len(self.commits)} {message} {sorted(files)}'.encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == 'main':
            return (self.commits[-1][0], self.commits[-1][2])
        return next(((oid, files) for oid, _, files in self.commits if oid == revision), None)


def is_lfs(path: str, content: bytes) -> bool:
    return path.endswith('.safetensors') or (len(content) > LFS_ABOVE and not path.endswith(('.md', '.json')))


class Hub:
    """The server and what it stores.

    Attributes:
        url: For ``HF_ENDPOINT``.
        repos: Repositories by ``owner/name``.
        files: Single files by name.
        lfs: Uploaded LFS objects by SHA-256.
        faults: What it is told to do wrong.
        requests: ``METHOD path`` of every request so far, with their number.
        sent: Bytes of every piece of a file so far.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.sent: list[int] = []
        self.token = 'hf_test'
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self.cdn = self.url.replace('127.0.0.1', 'localhost')  # another host, as on the Hub: the client treats it apart
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, **files: bytes) -> str:
        """Commit files to a repository, created if necessary; in their names ``__`` means a dot."""
        repo = self.repos.setdefault(repo_id, Repo())
        kept = repo.commits[-1][2] if repo.commits else {}
        return repo.commit('added', {**kept, **{name.replace('__', '.'): data for name, data in files.items()}})

    def fault(self, pattern: str, what: int | str | Callable, times: int = 10_000) -> None:
        self.faults.append(Fault(pattern, what, times))

    def find_fault(self, request: str) -> int | str | Callable | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.what
        return None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def do_PUT(self):
            self.answer()

        def answer(self) -> None:
            self.path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            request = f'{self.command} {self.path}'
            with hub.lock:
                hub.requests[request] += 1
            self.fault = hub.find_fault(request)
            if callable(self.fault):
                return self.fault(self)
            if isinstance(self.fault, int):
                return self.send(self.fault, b'told to', retry_after='0')
            if self.path.startswith('/files/'):
                return self.file(hub.files.get(self.path.removeprefix('/files/')))
            if self.path.startswith('/cdn/'):
                return self.file(hub.lfs.get(self.path.removeprefix('/cdn/')))
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, self.path)
                if match and self.command in method.split():
                    writes = self.command != 'GET' and self.command != 'HEAD'
                    known = self.headers.get('Authorization') == f'Bearer {hub.token}' or 'upload' in pattern
                    if writes and not known:
                        return self.send(401, b'no token')
                    return action(self, body, *match.groups())
            self.send(404, b'no such page')

        def send(self, status: int, content: bytes = b'', **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace('_', '-'), value)
            if 'Content_Length' not in headers:
                self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(content)

        def json(self, data, status: int = 200) -> None:
            self.send(status, json.dumps(data).encode(), Content_Type='application/json')

        def file(self, content: bytes | None, **headers: str) -> None:
            """Serve a file, all of it or from an offset; faults of transfers happen here."""
            if content is None:
                return self.send(404, b'no such file', X_Error_Code='EntryNotFound')
            if self.fault == 'wrong bytes':
                content = content[:-8] + bytes(b ^ 255 for b in content[-8:])
            if self.fault == 'wrong size':
                content = content[:-8]
            start = re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')
            first = int(start[1]) if start else 0
            status = 206 if start else 200
            if start:
                headers['Content_Range'] = f'bytes {first}-{len(content) - 1}/{len(content)}'
            if self.fault == 'drop' and self.command == 'GET':
                half = content[first : first + (len(content) - first) // 2]
                hub.sent.append(len(half))
                self.send(status, half, Content_Length=str(len(content) - first), **headers)
                self.wfile.flush()
                self.close_connection = True
                return
            if self.command == 'GET':
                hub.sent.append(len(content) - first)
            self.send(status, content[first:], Accept_Ranges='bytes', **headers)

        def create(self, body: bytes) -> None:
            data = json.loads(body)
            repo_id = f'{data.get("organization") or "me"}/{data["name"]}'
            if repo_id in hub.repos:
                return self.json({'error': 'exists', 'url': f'{hub.url}/{repo_id}'}, 409)
            hub.repos[repo_id] = Repo(private=bool(data.get('private') or data.get('visibility') == 'private'))
            hub.repos[repo_id].commit('initial commit', {'.gitattributes': b'*.safetensors filter=lfs\n'})
            self.json({'url': f'{hub.url}/{repo_id}', 'name': repo_id})

        def validate(self, body: bytes) -> None:
            self.json({'errors': [], 'warnings': []})

        def find(self, repo_id: str, revision: str):
            """Commit and files of a revision; otherwise answers and returns None."""
            repo = hub.repos.get(repo_id)
            if repo is None or (repo.private and self.headers.get('Authorization') != f'Bearer {hub.token}'):
                # the Hub does not tell a private repository from one that does not exist
                self.send(401, b'', X_Error_Code='RepoNotFound', X_Error_Message='Repository not found')
            elif repo.at(revision) is None:
                self.send(404, b'', X_Error_Code='RevisionNotFound', X_Error_Message='Revision not found')
            else:
                return repo.at(revision)

        def info(self, body: bytes, repo_id: str, revision: str | None = None) -> None:
            found = self.find(repo_id, revision or 'main')
            if found:
                oid, files = found
                siblings = []
                for name, content in files.items():
                    entry = {'rfilename': name, 'size': len(content), 'blobId': git_hash(content)}
                    if is_lfs(name, content):
                        sha = hashlib.sha256(content).hexdigest()
                        entry['lfs'] = {'sha256': sha, 'size': len(content), 'pointerSize': 130}
                    siblings.append(entry)
                private = hub.repos[repo_id].private
                self.json({'id': repo_id, 'modelId': repo_id, 'sha': oid, 'private': private, 'siblings': siblings,
                           'tags': [], 'downloads': 0, 'likes': 0})  # fmt: skip

        def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
            found = self.find(repo_id, revision)
            if found:
                modes = []
                for f in json.loads(body)['files']:
                    lfs = is_lfs(f['path'], b'x' * f['size'])
                    known = found[1].get(f['path'])
                    oid = None
                    if known is not None:
                        oid = hashlib.sha256(known).hexdigest() if lfs else git_hash(known)
                    mode = 'lfs' if lfs else 'regular'
                    modes.append({'path': f['path'], 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
                self.json({'files': modes})

        def batch(self, body: bytes, repo_id: str) -> None:
            objects = []
            for o in json.loads(body)['objects']:
                entry = {'oid': o['oid'], 'size': o['size']}
                if o['oid'] not in hub.lfs:  # else it is there already: nothing to do
                    entry['actions'] = {'upload': {'href': f'{hub.url}/upload/{o["oid"]}', 'header': {}}}
                objects.append(entry)
            self.json({'transfer': 'basic', 'objects': objects})

        def upload(self, body: bytes, sha: str) -> None:
            if self.fault == 'drop':
                self.close_connection = True
                return self.connection.close()
            if hashlib.sha256(body).hexdigest() != sha:
                return self.send(400, b'other bytes than announced')
            hub.lfs[sha] = body
            self.send(200)

        def commit(self, body: bytes, repo_id: str, revision: str) -> None:
            found = self.find(repo_id, revision)
            if found:
                files, message = dict(found[1]), ''
                for line in body.splitlines():
                    item = json.loads(line)
                    value = item['value']
                    if item['key'] == 'header':
                        message = value['summary']
                    elif item['key'] == 'file':
                        files[value['path']] = base64.b64decode(value['content'])
                    elif item['key'] == 'lfsFile':
                        if value['oid'] not in hub.lfs:
                            return self.send(400, b'LFS object was not uploaded')
                        files[value['path']] = hub.lfs[value['oid']]
                    elif item['key'] == 'deletedFile':
                        files.pop(value['path'])
                oid = hub.repos[repo_id].commit(message, files)
                self.json({'success': True, 'commitOid': oid, 'commitUrl': f'{hub.url}/{repo_id}/commit/{oid}'})

        def resolve(self, body: bytes, repo_id: str, revision: str, path: str) -> None:
            found = self.find(repo_id, revision)
            if not found:
                return
            oid, files = found
            if path not in files:
                return self.send(404, b'', X_Error_Code='EntryNotFound', X_Repo_Commit=oid)
            content = files[path]
            if not is_lfs(path, content):
                return self.file(content, ETag=f'"{git_hash(content)}"', X_Repo_Commit=oid)
            sha = hashlib.sha256(content).hexdigest()
            hub.lfs[sha] = content
            linked = dict(X_Repo_Commit=oid, X_Linked_Etag=f'"{sha}"', X_Linked_Size=str(len(content)))
            self.send(302, b'', Location=f'{hub.cdn}/cdn/{sha}', ETag='"pointer"', **linked)

    repo_id = '([^/]+/[^/]+)'
    ROUTES = (
        ('POST', '/api/repos/create', Handler.create),
        ('POST', '/api/validate-yaml', Handler.validate),
        ('GET', f'/api/models/{repo_id}/revision/(.+)', Handler.info),
        ('GET', f'/api/models/{repo_id}', Handler.info),
        ('POST', f'/api/models/{repo_id}/preupload/(.+)', Handler.preupload),
        ('POST', f'/{repo_id}.git/info/lfs/objects/batch', Handler.batch),
        ('PUT', '/upload/([0-9a-f]{64})', Handler.upload),
        ('POST', f'/api/models/{repo_id}/commit/(.+)', Handler.commit),
        ('GET HEAD', f'/{repo_id}/resolve/([^/]+)/(.+)', Handler.resolve),
    )
    return Handler
