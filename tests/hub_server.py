"""A small Hub on the loopback (`HF_ENDPOINT`): repositories in memory, with what pushing and loading a model call.

Creating a repository, committing files (all of them inline), its description, its tree, and files with the headers
that the Hub's client reads (ETag, X-Repo-Commit). One revision, no accounts, no large-file storage.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"


class Handler(BaseHTTPRequestHandler):
    """One route a method `_answer_*`; `ROUTES` says which."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._route("GET")

    def do_HEAD(self):
        self._route("HEAD")

    def do_POST(self):
        self._route("POST")

    def _route(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        for methods, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if method in methods and match:
                return answer(self, **match.groupdict())
        return self._missing("RepoNotFound")

    def _answer_create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        self.server.repositories.setdefault(name, {})
        self._json({"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def _answer_validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _answer_preupload(self, name: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _answer_commit(self, name: str) -> None:
        files = self.server.repositories[name]
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = self._commit(name)
        url = f"{self.server.address}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _answer_info(self, name: str) -> None:
        if name not in self.server.repositories:
            return self._missing("RepoNotFound")
        siblings = [{"rfilename": path} for path in self.server.repositories[name]]
        info = {"_id": name, "id": name, "modelId": name, "sha": self._commit(name), "siblings": siblings}
        return self._json({**info, "private": False, "disabled": False, "gated": False, "tags": [], "downloads": 0})

    def _answer_tree(self, name: str, folder: str | None = None) -> None:
        files = self.server.repositories.get(name)
        prefix = f"{folder}/" if folder else ""
        if files is None or not any(path.startswith(prefix) for path in files):
            return self._missing("RepoNotFound" if files is None else "EntryNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
            for path, content in files.items()
            if path.startswith(prefix)
        ]
        return self._json(entries)

    def _answer_file(self, name: str, path: str) -> None:
        files = self.server.repositories.get(name)
        if files is None or path not in files:
            return self._missing("RepoNotFound" if files is None else "EntryNotFound", name)
        content = files[path]
        self.server.asked.append((self.command, name, path))
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("X-Repo-Commit", self._commit(name))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self._send(content[start:])
        return None

    def _send(self, content: bytes) -> None:
        if self.server.cuts:
            content = content[: self.server.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(content)

    def _json(self, content) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if self.command != "HEAD" else b"")

    def _missing(self, code: str, name: str | None = None) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        if name in self.server.repositories:
            self.send_header("X-Repo-Commit", self._commit(name))
        self.end_headers()

    def _commit(self, name: str) -> str:
        files = self.server.repositories[name]
        return _digest(json.dumps({path: _digest(content) for path, content in sorted(files.items())}).encode())

    def log_message(self, *arguments):
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


ROUTES = (
    ("POST", "/api/repos/create", Handler._answer_create),
    ("POST", "/api/validate-yaml", Handler._answer_validate),
    ("POST", f"/api/models/{REPOSITORY}/preupload/[^/]+", Handler._answer_preupload),
    ("POST", f"/api/models/{REPOSITORY}/commit/[^/]+", Handler._answer_commit),
    ("GET", f"/api/models/{REPOSITORY}/tree/[^/]+(/(?P<folder>.+))?", Handler._answer_tree),
    ("GET", f"/api/models/{REPOSITORY}(/revision/[^/]+)?", Handler._answer_info),
    ("GET HEAD", f"/{REPOSITORY}/resolve/[^/]+/(?P<path>.+)", Handler._answer_file),
)


class Hub(ThreadingHTTPServer):
    """`repositories`: {"user/name": {path: content}}; `cuts` as `drive_server.Drive`; `asked`: which files were."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.cuts: list[int] = []
        self.asked: list[tuple[str, str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def point_at(hub: Hub, monkeypatch) -> None:
    """Whoever asks the Hub asks `hub`."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
