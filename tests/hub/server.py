"""A Hub on localhost: what `huggingface_hub` needs to push and pull models, over real HTTP.

As on the Hub, small files are committed as text, large ones go to an object store on another host
by presigned addresses (in one piece, or in parts above `part_size`), and a commit that names an
object which is not there in full is refused, so that commits are all or nothing. Private
repositories cannot be told from missing ones without their owner's token.

Not here: Xet (clients set `HF_HUB_DISABLE_XET`), pull requests, gates, datasets and Spaces. One
thing differs: a missing repository is always said with `X-Error-Code`, since the client guesses it
from the status only over https.

Tests make it fail: after `die_after` more bytes of uploaded content, counted from when
`spared_commits` more commits were made, it dies in the middle of a request; the next
`cut_downloads` downloads from the object store break off half-way.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.hub.repositories import Repository, Storage, StorageError, StoredFile

_LARGE = (".safetensors", ".bin", ".pt", ".model", ".png")
_LARGE_SIZE = 10_000_000
_BLOCK = 1 << 14


class HubServer(ThreadingHTTPServer):
    """Serves a storage until it is closed or dies.

    Attributes:
        url: address for `HF_ENDPOINT`.
        users: token -> name of its owner.
        log: `"METHOD path"` of every request answered.
    """

    daemon_threads = True
    request_queue_size = 128  # or bursts of connections wait for the kernel's second, third .. try

    def __init__(self, storage: Storage, users: dict[str, str], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.storage, self.users = storage, users
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.store_url = f"http://localhost:{self.port}/store"  # to the client another host
        self.part_size: int | None = None
        self.die_after: int | None = None
        self.spared_commits = 0
        self.cut_downloads = 0
        self.log: list[str] = []
        self.dead = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; connections that are open get no more answers."""
        self.dead.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.dead.is_set():
            self.close()


class _Died(Exception):
    """The server is no more; nothing must be answered."""


def _is_large(path: str, size: int, sample: bytes) -> bool:
    return path.endswith(_LARGE) or size > _LARGE_SIZE or b"\0" in sample


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    # ---- requests and answers ----

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        if self.server.dead.is_set():
            self.close_connection = True
            return
        self.path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        try:
            self.body = self._read_body()
            self.server.log.append(f"{self.command} {unquote(self.path)}")
            with self.server.storage.lock:
                self._route()
        except StorageError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            self._json({"error": error.message}, error.status, headers)
        except (_Died, ConnectionError):
            self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        return self._read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> list[bytes]:
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self._read(size))
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            block = self.rfile.read(min(_BLOCK, size - len(content)))
            if not block:
                raise ConnectionError("the client went away")
            content += block
            if self.server.dead.is_set():
                raise _Died
            if self.command == "PUT":
                self._count_upload(len(block))
        return content

    def _count_upload(self, size: int) -> None:
        if self.server.die_after is None or self.server.spared_commits > 0:
            return
        self.server.die_after -= size
        if self.server.die_after <= 0:
            self.server.die_after = None
            # Closing with a linger of zero resets the connection, as a machine that is gone.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.close()
            raise _Died

    def _send(
        self, content: bytes, status: int, headers: dict[str, str], cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def _json(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json", **(headers or {})}
        self._send(json.dumps(answer).encode(), status, headers)

    def _download(self, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
        """The whole content, or the range that was asked for."""
        headers["Accept-Ranges"] = "bytes"
        status, size = 200, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
            if first > last:
                headers["Content-Range"] = f"bytes */{size}"
                self._send(b"", 416, headers)
                return
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(content, status, headers, cut)

    # ---- who asks ----

    @property
    def _user(self) -> str | None:
        """The owner of the token that came with the request; `None` without one."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.server.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise StorageError(401, "", "Invalid credentials in Authorization header")
        return user

    def _repository(self, name: str, write: bool = False) -> Repository:
        user, found = self._user, self.server.storage.repositories.get(name)
        if found is None or (found.private and user != found.owner):
            status = 401 if user is None else 404
            raise StorageError(status, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise StorageError(401, "", "Invalid username or password.")
        if write and user != found.owner:
            raise StorageError(403, "", "You don't have the rights to write to this repository")
        return found

    # ---- addresses ----

    def _route(self) -> None:
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, self.path)
            if found and self.command in method:
                answer(self, *(unquote(group or "") for group in found.groups()))
                return
        raise StorageError(404, "", f"no such address: {self.command} {self.path}")

    def _whoami(self) -> None:
        user = self._user
        if user is None:
            raise StorageError(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def _validate_card(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _create(self) -> None:
        request = json.loads(self.body)
        user = self._user
        if user is None:
            raise StorageError(401, "", "Invalid username or password.")
        owner = request.get("organization") or user
        if owner != user:
            raise StorageError(403, "", f"You don't have the rights to create under {owner}")
        name = f"{owner}/{request['name']}"
        address = {"url": f"{self.server.url}/{name}", "name": name}
        try:
            self.server.storage.create(name, request.get("visibility") == "private")
        except StorageError as error:
            self._json({**address, "error": error.message}, error.status)
            return
        self._json(address)

    def _info(self, name: str, revision: str = "") -> None:
        repository = self._repository(name)
        commit = repository.commit_at(revision or "main")
        self._json(
            {
                "id": name,
                "sha": commit.oid,
                "private": repository.private,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _tree(self, name: str, revision: str, folder: str) -> None:
        commit = self._repository(name).commit_at(revision)
        prefix = f"{folder}/" if folder else ""
        entries: list[dict[str, Any]] = []
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            inner = path[len(prefix) :]
            if "/" in inner and self.query.get("recursive", ["false"])[0].lower() != "true":
                top = prefix + inner.split("/")[0]
                if not entries or entries[-1]["path"] != top:
                    entries.append({"type": "directory", "oid": commit.oid, "path": top})
                continue
            entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size}
            if file.content is None:
                entry["lfs"] = {"oid": file.oid, "size": file.size, "pointerSize": 130}
            entries.append({**entry, "path": path})
        if folder and not entries:
            raise StorageError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self._json(entries)

    def _refs(self, name: str) -> None:
        repository = self._repository(name)

        def entries(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": oid}
                for ref, oid in refs.items()
            ]

        branches, tags = entries("heads", repository.branches), entries("tags", repository.tags)
        self._json({"branches": branches, "tags": tags, "converts": []})

    def _branch(self, name: str, branch: str) -> None:
        repository = self._repository(name, write=True)
        if branch in repository.branches:
            raise StorageError(409, "", f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.commit_at(start).oid
        self._json({})

    def _tag(self, name: str, revision: str) -> None:
        repository, tag = self._repository(name, write=True), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise StorageError(409, "", f"Tag already exists: {tag}")
        repository.tags[tag] = repository.commit_at(revision).oid
        self._json({})

    # ---- pushing ----

    def _preupload(self, name: str, revision: str) -> None:
        files = self._repository(name, write=True).commit_at(revision).files
        answer = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            large = _is_large(path, wanted["size"], base64.b64decode(wanted["sample"]))
            present = {"oid": files[path].oid} if path in files else {}
            mode = "lfs" if large else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **present})
        self._json({"files": answer})

    def _batch(self, name: str) -> None:
        self._repository(name, write=True)
        answer = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.server.storage.objects:
                entry["actions"] = self._upload_actions(name, oid, size)
            answer.append(entry)
        self._json({"transfer": "basic", "objects": answer})

    def _upload_actions(self, name: str, oid: str, size: int) -> dict[str, Any]:
        target, part_size = f"{self.server.store_url}/{oid}", self.server.part_size
        upload: dict[str, Any] = {"href": target}
        if part_size is not None and size > part_size:
            parts = {str(n + 1): f"{target}/{n + 1}" for n in range(-(-size // part_size))}
            upload = {"href": f"{target}/complete", "header": {"chunk_size": part_size, **parts}}
        verify = f"{self.server.url}/{name}.git/info/lfs/objects/verify"
        return {"upload": upload, "verify": {"href": verify}}

    def _verify(self, name: str) -> None:
        self._repository(name, write=True)
        request = json.loads(self.body)
        self.server.storage.large_file(request["oid"], request["size"])
        self._json({})

    def _put(self, oid: str, part: str = "") -> None:
        self._presigned()
        storage = self.server.storage
        if part:
            self._send(b"", 200, {"ETag": f'"{storage.put_part(oid, int(part), self.body)}"'})
        else:
            storage.put_object(oid, self.body)
            self._send(b"", 200, {})

    def _complete(self, oid: str) -> None:
        self._presigned()
        parts = sorted(json.loads(self.body)["parts"], key=lambda part: part["partNumber"])
        self.server.storage.join_parts(oid, [part["etag"].strip('"') for part in parts])
        self._json({})

    def _presigned(self) -> None:
        """An object store refuses tokens of the Hub next to the signature in its address."""
        if "Authorization" in self.headers:
            raise StorageError(400, "", "only one way to authorize is allowed")

    def _commit(self, name: str, branch: str) -> None:
        repository, storage = self._repository(name, write=True), self.server.storage
        parent = repository.commit_at(branch)
        files, title = dict(parent.files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", parent.oid) != parent.oid:
                    raise StorageError(412, "", "A commit has happened since. Please refresh")
            elif key == "file":
                files[value["path"]] = StoredFile.regular(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                files[value["path"]] = storage.large_file(value["oid"], value["size"])
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise StorageError(404, "EntryNotFound", "A file with this name doesn't exist")
            elif key == "deletedFolder":
                files = {p: f for p, f in files.items() if not p.startswith(value["path"])}
            else:
                raise StorageError(400, "", f"unknown operation {key!r}")
        commit = repository.add(branch, title, files)
        self.server.spared_commits = max(0, self.server.spared_commits - 1)
        address = f"{self.server.url}/{name}/commit/{commit.oid}"
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": address})

    # ---- pulling ----

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit = self._repository(name).commit_at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        file = commit.files.get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(b"Entry not found", 404, headers)
        elif file.content is None:
            headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
            headers["Location"] = f"{self.server.store_url}/{file.oid}"
            self._send(b"", 302, headers)
        else:
            self._download(file.content, {**headers, "ETag": f'"{file.oid}"'})

    def _get_object(self, oid: str) -> None:
        self._presigned()
        if oid not in self.server.storage.objects:
            raise StorageError(404, "", "NoSuchKey")
        cut = self.command == "GET" and self.server.cut_downloads > 0
        self.server.cut_downloads -= cut
        self._download(self.server.storage.objects[oid], {"ETag": f'"{oid}"'}, cut)


_NAME = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[tuple[str, ...], str, Callable[..., None]], ...] = (
    (("GET",), r"/api/whoami-v2", _Handler._whoami),
    (("POST",), r"/api/validate-yaml", _Handler._validate_card),
    (("POST",), r"/api/repos/create", _Handler._create),
    (("GET",), rf"/api/models/{_NAME}", _Handler._info),
    (("GET",), rf"/api/models/{_NAME}/revision/([^/]+)", _Handler._info),
    (("GET",), rf"/api/models/{_NAME}/tree/([^/]+)(?:/(.+))?", _Handler._tree),
    (("GET",), rf"/api/models/{_NAME}/refs", _Handler._refs),
    (("POST",), rf"/api/models/{_NAME}/branch/([^/]+)", _Handler._branch),
    (("POST",), rf"/api/models/{_NAME}/tag/([^/]+)", _Handler._tag),
    (("POST",), rf"/api/models/{_NAME}/preupload/([^/]+)", _Handler._preupload),
    (("POST",), rf"/api/models/{_NAME}/commit/([^/]+)", _Handler._commit),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/verify", _Handler._verify),
    (("PUT",), r"/store/(\w+)(?:/(\d+))?", _Handler._put),
    (("POST",), r"/store/(\w+)/complete", _Handler._complete),
    (("GET", "HEAD"), r"/store/(\w+)", _Handler._get_object),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler._resolve),
)
