"""An endpoint under load: answers, memory and latency of 1,000 requests, on the loopback.

    python benchmarks/endpoint.py [--model models/shapes] [--requests 1000] [--clients 8]

Every tenth request is bad (no picture, an unknown parameter, a damaged picture) and must be answered with 400; the
others alternate between pictures of three sizes and three vocabularies, and must be answered as the handler answered
before the load. Memory is what the process holds after the first quarter and at the end. The exit code is 1 for a
wrong answer, or if memory grew by more than 5 %.
"""

import argparse
import base64
import io
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from maftplus.deploy.endpoint import write_endpoint

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from endpoint_tools import load_handler, serve
from postprocess import status_gigabytes

MOST_GROWTH = 0.05
WORDS = (["red circle", "blue square"], ["circle, ball", "wall", "sky"], ["star"])
SIZES = ((128, 128), (96, 160), (200, 120))


def main() -> int:
    """Serve, ask, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_endpoint(arguments.model, Path(folder) / "endpoint")
        handler = load_handler(Path(folder) / "endpoint")
        with serve(handler) as address:
            return measure(handler, address, arguments)


def measure(handler, address: str, arguments: argparse.Namespace) -> int:
    """The load, its table and the verdict."""
    requests = [good_request(index) for index in range(len(WORDS) * len(SIZES))]
    expected = [post(address, json.dumps(request).encode())[1] for request in requests]
    memory, results = [], []
    with ThreadPoolExecutor(arguments.clients) as clients:
        quarter = arguments.requests // 4
        for first in range(0, arguments.requests, quarter):
            numbers = range(first, min(first + quarter, arguments.requests))
            results += clients.map(lambda number: ask(address, number, requests, expected), numbers)
            memory.append(status_gigabytes("VmRSS"))
    wrong = sum(not is_right for _, _, is_right in results)
    for kind in ("good", "bad"):
        seconds = sorted(1000 * each[1] for each in results if each[0] == kind)
        cuts = [statistics.median(seconds), *(seconds[int(share * (len(seconds) - 1))] for share in (0.9, 0.99, 1.0))]
        shown = ", ".join(f"{cut:.0f}" for cut in cuts)
        print(f"{kind:<5}{len(seconds):>6} requests; ms at 50, 90, 99 and 100 %: {shown}")
    growth = memory[-1] / memory[0] - 1
    print(f"wrong answers {wrong}; memory {memory[0]:.2f} to {memory[-1]:.2f} GB, {100 * growth:+.1f} %")
    return int(wrong > 0 or growth > MOST_GROWTH)


def good_request(index: int) -> dict:
    """One of nine: a picture of its own and words."""
    height, width = SIZES[index % len(SIZES)]
    blocks = np.random.default_rng(index).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    content = io.BytesIO()
    picture.save(content, "PNG")
    parameters = {"candidate_labels": WORDS[index // len(SIZES)], "subtask": "semantic", "mask_format": "rle"}
    return {"inputs": base64.b64encode(content.getvalue()).decode(), "parameters": parameters}


def bad_request(number: int, good: dict) -> dict:
    """No picture, an unknown parameter, or half a picture."""
    kinds = (
        {**good, "inputs": "no picture"},
        {**good, "parameters": {"labels": ["cat"]}},
        {**good, "inputs": good["inputs"][: len(good["inputs"]) // 8 * 4]},
    )
    return kinds[number // 10 % len(kinds)]


def ask(address: str, number: int, requests: list[dict], expected: list) -> tuple[str, float, bool]:
    """Kind of a request, seconds to its answer, and whether that was right."""
    which = number % len(requests)
    is_bad = number % 10 == 0
    request = bad_request(number, requests[which]) if is_bad else requests[which]
    start = time.perf_counter()
    status, answer = post(address, json.dumps(request).encode())
    seconds = time.perf_counter() - start
    is_right = status == 400 and "error" in answer if is_bad else (status, answer) == (200, expected[which])
    return "bad" if is_bad else "good", seconds, is_right


def post(address: str, body: bytes) -> tuple[int, object]:
    try:
        with urlopen(Request(address, data=body, headers={"Content-Type": "application/json"}), timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


if __name__ == "__main__":
    sys.exit(main())
