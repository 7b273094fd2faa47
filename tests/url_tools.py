"""A server on the loopback that answers well, slowly, endlessly, or with redirects."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = bytes(1 << 16)


class Handler(BaseHTTPRequestHandler):
    """`/picture`, `/moved`, `/loop` (to itself), `/file`, `/drip` (a byte now and then), `/endless`, `/huge`, ..."""

    def do_GET(self):
        name = self.path.strip("/").partition("?")[0]
        with suppress(BrokenPipeError, ConnectionResetError):  # the reader has had enough
            getattr(self, f"answer_{name}", self.answer_missing)()

    def answer_picture(self):
        self._head(200)
        self.wfile.write(self.server.content)

    def answer_missing(self):
        self._head(404)

    def answer_moved(self):
        self._head(302, Location="/picture")

    def answer_loop(self):
        self._head(302, Location=f"/loop?{time.monotonic_ns()}")

    def answer_file(self):
        self._head(302, Location="file:///etc/hostname")

    def answer_drip(self):
        self._head(200)
        self._drip(b"x")

    def answer_drip_headers(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Name: ")
        self._drip(b"x")

    def answer_endless(self):
        self._head(200)
        for _ in range(10 << 14):  # ten gigabytes
            self.wfile.write(CHUNK)
            self.server.bytes_sent += len(CHUNK)

    def answer_huge(self):
        self._head(200, **{"Content-Length": str(10 << 30)})

    def log_message(self, *arguments):
        pass

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _drip(self, piece: bytes) -> None:
        while not self.server.is_closing.wait(0.02):
            self.wfile.write(piece)


@contextmanager
def serve(content: bytes) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """The server's address and the server (`bytes_sent`); `/picture` holds `content`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.content, server.bytes_sent = True, content, 0
    server.is_closing = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()
