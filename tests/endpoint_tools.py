"""An inference service by its contract, on the loopback: what a handler sees and what its errors become.

As the Hub's inference toolkit does: the body is a picture, or JSON with `inputs`; a query string becomes `parameters`,
digits in it numbers and true and false booleans; an exception of the handler is answered with 400 and its text.
"""

import importlib.util
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from PIL import Image


def load_handler(folder: Path):
    """The folder's `EndpointHandler`, built as the service builds it: by path, the folder itself importable."""
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.EndpointHandler(str(folder))
    finally:
        sys.path.remove(str(folder))


@contextmanager
def serve(handler) -> Iterator[str]:
    """The address of a service that answers with `handler` while the block runs."""

    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                answer, status = handler(_request(self.path, self.headers.get("Content-Type", ""), body)), 200
            except Exception as error:
                answer, status = {"error": str(error)}, 400
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _request(path: str, content_type: str, body: bytes) -> dict:
    request = {"inputs": Image.open(io.BytesIO(body))} if content_type.startswith("image/") else json.loads(body)
    if "inputs" not in request:
        raise ValueError("Body needs to provide a inputs key")
    query = dict(parse_qsl(urlsplit(path).query))
    if query and "parameters" not in request:
        request["parameters"] = {name: _read(text) for name, text in query.items()}
    return request


def _read(text: str):
    if text.isdigit():
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text)
