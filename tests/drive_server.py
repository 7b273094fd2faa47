"""A stand-in for Google Drive on the loopback: confirmation page, ranges, transfers that are cut, wrong answers.

with serve(checkpoint) as drive, routed(drive.address):
    gdown.download(id="any")                   # everything for google.com goes to the server
"""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import requests

CONFIRMATION = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="0-1-2"></form></body></html>"""
CONFIRMATION = CONFIRMATION.replace("\n", "")  # all of the form on one line, as Drive writes it
QUOTA = """<!DOCTYPE html><html><body><p class="uc-error-subcaption">Too many users have viewed or downloaded this file
recently.</p></body></html>""".replace("\n", " ")


class Handler(BaseHTTPRequestHandler):
    """`/uc` shows the page that asks whether the file is wanted all the same; `/download` is the file."""

    def do_GET(self):
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        if self.server.has_quota_exceeded:
            self._page(QUOTA)
        elif address.path != "/download" or query.get("confirm") != ["t"]:
            self._page(CONFIRMATION.format(id=query["id"][0]))
        else:
            self._file()

    def _page(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _file(self) -> None:
        size, start = self.server.path.stat().st_size, self._range_start()
        self.server.starts.append(start)
        if start >= size:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", f'attachment; filename="{self.server.path.name}"')
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", '"1"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        self._send(start)

    def _range_start(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def _send(self, start: int) -> None:
        with self.server.path.open("rb") as file:
            file.seek(start)
            if self.server.cuts:
                self.wfile.write(file.read(self.server.cuts.pop(0)))
                self.close_connection = True
            else:
                shutil.copyfileobj(file, self.wfile, 1 << 20)

    def log_message(self, *arguments):
        pass


class Drive(ThreadingHTTPServer):
    """Serves the file `path`; `cuts`: bytes after which the next transfers end; `starts`: where each began."""

    daemon_threads = True

    def __init__(self, path: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.path, self.cuts, self.starts, self.has_quota_exceeded = path, [], [], False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(path: Path) -> Iterator[Drive]:
    server = Drive(path)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def routed(address: str) -> Iterator[None]:
    """Requests to hosts of google.com go to `address` instead."""
    request = requests.Session.request

    def elsewhere(self, method, url, *args, **kwargs):
        parts = urlsplit(url)
        if (parts.hostname or "").endswith("google.com"):
            url = f"{address}{parts.path}?{parts.query}"
        return request(self, method, url, *args, **kwargs)

    requests.Session.request = elsewhere
    try:
        yield
    finally:
        requests.Session.request = request
