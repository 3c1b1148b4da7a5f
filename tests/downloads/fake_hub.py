"""A hub on this machine: Hugging Face's protocol and ModelScope's, with the troubles of real ones.

Laws of this file:
- What it answers is what the hubs' clients read (huggingface_hub 2.4: `hf_api.model_info`,
  `hf_raise_for_status`, `file_download.http_get`; modelscope's `hub/api.py`): large files are moved
  to another address, as LFS files are, and both know ranges.
- Its troubles are counted down, so that a test says how often something goes wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000
"""From this size on a file is one of LFS."""


@dataclass
class Repository:
    """What the hub has under one name."""

    files: dict[str, bytes]
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False
    private: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that are lied about."""
    digests: dict[str, str] = field(default_factory=dict)
    """Checksums that are lied about."""
    paths: list[str] = field(default_factory=list)
    """Files that the listing names besides."""


@dataclass
class Hub:
    """The hub's contents, its troubles, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_secret"
    break_after: int | None = None
    """Connections for large files break after so many bytes …"""
    breaks: int = 0
    """… so often."""
    fail: list[int] = field(default_factory=list)
    """Statuses that the next requests for large files are answered with."""
    pause_s: float = 0.0
    """Between two pieces of a large file."""
    piece: int = 64 * 1024
    ignore_ranges: bool = False
    garbage: object = None
    """Answered in place of what is known of a repository."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths with the Range of each request."""
    sent: int = 0
    authorizations: set[str | None] = field(default_factory=set)
    url: str = ""
    cdn: str = ""

    def ranges(self) -> list[str]:
        return [asked for _, asked in self.requests if asked is not None]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers within the block, and its storage at another address."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = hub
    port = server.server_address[1]
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="hub", daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what half of the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.requests.append((path, self.headers.get("Range")))
        hub.authorizations.add(self.headers.get("Authorization"))
        if path == "/api/models":
            self._search(query)
        elif path.startswith("/api/v1/models/"):
            self._modelscope(path.removeprefix("/api/v1/models/"), query)
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"), "blobs" in query)
        elif path.startswith("/storage/"):
            self._storage(path)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        else:
            self._json(404, {"error": "no such page"})

    # ---------------------------------------------------------------------------- Hugging Face

    def _search(self, query: dict[str, list[str]]) -> None:
        word, author = query.get("search", [""])[0], query.get("author", [""])[0]
        names = [
            name
            for name in self.server.hub.repositories
            if word.lower() in name.lower() and name.startswith(author)
        ]
        self._json(200, [{"id": name, "modelId": name, "tags": []} for name in names])

    def _repository(self, name: str) -> Repository | None:
        """The repository if it may be seen; else the hub's answer to those who may not."""
        hub = self.server.hub
        found = hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if found is None or (found.private and not known):
            status = 404 if known else 401
            message = "Repository not found" if known else "Invalid username or password."
            self._json(
                status, {"error": message}, {"X-Error-Code": "RepoNotFound"} if known else {}
            )
            return None
        return found

    def _info(self, rest: str, blobs: bool) -> None:
        name, _, revision = rest.partition("/revision/")
        repository = self._repository(name)
        if repository is None:
            return
        commit = _commit(repository, revision or "main")
        if commit is None:
            text = f"Invalid rev id: {revision}"
            self._json(404, {"error": text}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [_sibling(repository, path, blobs) for path in repository.files]
        if self.server.hub.garbage is not None:
            self._json(200, self.server.hub.garbage)
            return
        siblings += [
            {"rfilename": path, "size": 1, "blobId": "0" * 40} for path in repository.paths
        ]
        gated = "manual" if repository.gated else False
        about = {"id": name, "modelId": name, "sha": commit, "private": repository.private}
        self._json(200, about | {"gated": gated, "tags": [], "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        hub = self.server.hub
        repository = self._repository(name)
        if repository is None:
            return
        if repository.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            self._json(401 if "Authorization" not in self.headers else 403, {}, headers)
            return
        content = repository.files.get(path)
        if content is None or _commit(repository, revision) is None:
            self._json(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        head = {"X-Repo-Commit": _commit(repository, revision) or "", "Accept-Ranges": "bytes"}
        if len(content) < LARGE:
            self._content(content, head | {"ETag": f'"{_git_sha1(content)}"'})
            return
        digest = hashlib.sha256(content).hexdigest()
        size = repository.sizes.get(path, len(content))
        head |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest}"'}
        self._json(302, {}, head | {"Location": f"{hub.cdn}/storage/{name}/{path}?sign=1"})

    def _storage(self, path: str) -> None:
        organisation, name, file = path.removeprefix("/storage/").split("/", 2)
        repository = self.server.hub.repositories[f"{organisation}/{name}"]
        self._content(repository.files[file], {"ETag": '"x"'}, is_large=True)

    # ------------------------------------------------------------------------------- ModelScope

    def _modelscope(self, rest: str, query: dict[str, list[str]]) -> None:
        name, _, what = rest.partition("/repo")
        repository = self.server.hub.repositories.get(name)
        revision = query.get("Revision", ["master"])[0]
        if repository is None or revision not in ("master", *repository.commits):
            body = {"Code": 10010205001, "Message": "record not found", "Success": False}
            self._json(404, body)
        elif what == "/files":
            files = [
                {
                    "Path": path,
                    "Name": path.rpartition("/")[2],
                    "Type": "blob",
                    "Size": repository.sizes.get(path, len(content)),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                }
                for path, content in repository.files.items()
            ]
            files.append({"Path": "assets", "Name": "assets", "Type": "tree", "Size": 0})
            self._json(200, {"Code": 200, "Success": True, "Data": {"Files": files}})
        else:
            content = repository.files[query["FilePath"][0]]
            self._content(content, {"ETag": '"x"'}, is_large=len(content) >= LARGE)

    # ----------------------------------------------------------------------------------- bytes

    def _content(self, content: bytes, headers: dict[str, str], *, is_large: bool = False) -> None:
        hub = self.server.hub
        if is_large and hub.fail:
            self._json(hub.fail.pop(0), {"error": "try again"})
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and not hub.ignore_ranges else 0
        if start and start >= len(content):
            self._json(416, {}, {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command != "HEAD":
            self._pieces(content[start:], is_large)

    def _pieces(self, content: bytes, is_large: bool) -> None:
        hub = self.server.hub
        bound = len(content)
        if is_large and hub.breaks and hub.break_after is not None:
            hub.breaks -= 1
            bound = min(bound, hub.break_after)
        for at in range(0, bound, hub.piece):
            piece = content[at : min(at + hub.piece, bound)]
            self.wfile.write(piece)
            hub.sent += len(piece)
            if is_large and hub.pause_s:
                time.sleep(hub.pause_s)
        if bound < len(content):
            self.close_connection = True

    def _json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _commit(repository: Repository, revision: str) -> str | None:
    if revision in repository.commits.values():
        return revision
    return repository.commits.get(revision)


def _sibling(repository: Repository, path: str, blobs: bool) -> dict[str, object]:
    content = repository.files[path]
    told: dict[str, object] = {"rfilename": path}
    if not blobs:
        return told
    size = repository.sizes.get(path, len(content))
    told |= {"size": size, "blobId": repository.digests.get(path, _git_sha1(content))}
    if len(content) >= LARGE:
        digest = repository.digests.get(path, hashlib.sha256(content).hexdigest())
        told["lfs"] = {"size": size, "sha256": digest, "pointerSize": 134}
    return told


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
