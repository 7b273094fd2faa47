"""The long proof of the batch job: `make test-scale`. Half an hour of two cores.

    python tests/scale/long.py --num-pictures 2000 --photographs FOLDER --out runs/scale

Every part prints a line that begins with `ok` or `FAILED`; the exit code counts the failures.
Parts: rows (once each, errors named, as the pipeline), kills (ten disturbed runs), disk (a full one), shard (one that
cannot be read), memory (of the driver), speed (against the pipeline). Kills, disk and memory are compared with what
`rows` left in `--out`, in this call or in an earlier one.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maftplus import register_auto_classes
from maftplus.app.models import load_pipeline
from maftplus.scale import read_results
from maftplus.shapes.scenes import CLASSES, scenes

MODEL = Path(__file__).parents[2] / "models" / "shapes"
SIZE = 128
COMMAND = [sys.executable, "-m", "maftplus.app.cli", "batch"]
OPTIONS = ["--model", str(MODEL), "--device", "cpu", "--workers", "2", "--threads", "1"]
OPTIONS += ["--batch-size", "16", "--profile", "--dtype", "float32"]


def say(name: str, is_ok: bool, text: str) -> int:
    """A line of the proof. Returns the failures."""
    print(f"{'ok' if is_ok else 'FAILED'} {name}: {text}", flush=True)
    return int(not is_ok)


# --- Pictures ---


def write_pictures(folder: Path, count: int, photographs: Path | None) -> None:
    """Scenes and photographs in four folders, 1 % of them broken in ten ways, two names twice."""
    for index, scene in enumerate(scenes("test", count, seed=5)):
        path = folder / f"part{index % 4}" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).resize((SIZE, SIZE)).save(path)
    if photographs is not None:
        found = sorted(photographs.rglob("*.jpg"))[: count // 20]
        for index, path in enumerate(found):
            shutil.copy(path, folder / f"part{index % 4}" / f"photo{index:05d}.jpg")
    for index in range(2):
        shutil.copy(folder / "part0" / "00000.png", folder / f"part{index + 1}" / "same.png")
    break_pictures(folder, max(10, count // 100))


def break_pictures(folder: Path, count: int) -> None:
    paths = sorted(folder.rglob("*.png"))
    for index, path in enumerate(random.Random(0).sample(paths, count)):
        BREAKS[index % len(BREAKS)](path)


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flip_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(bytes(content))


def huge_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    path.write_bytes(bytes(content))


def remove_after_listing(path: Path) -> None:
    """A link that leads nowhere."""
    path.unlink()
    path.symlink_to("nowhere.png")


BREAKS = [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"not a picture"),
    lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    lambda path: path.write_text("<html>404</html>"),
    lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
    lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(200)),
    lambda path: path.write_bytes(b"GIF89a" + bytes(3)),
    cut_file,
    huge_header,
    remove_after_listing,
]


# --- Runs ---


def words() -> list[str]:
    return [part for one in CLASSES[:12] for part in ("--labels", one.names[0])]


def start(source: Path, out: Path, *more: str, log: Path) -> subprocess.Popen:
    command = [*COMMAND, str(source), str(out), *words(), *OPTIONS, *more]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def run(source: Path, out: Path, *more: str, log: Path) -> int:
    return start(source, out, *more, log=log).wait()


def rows_of(out: Path) -> dict[str, dict]:
    rows = list(read_results(str(out)))
    assert len({row["key"] for row in rows}) == len(rows), "a key stands twice"
    return {row["key"]: row for row in rows}


def actors_of(driver: int) -> list[int]:
    """Processes below a driver that are its actors: Ray writes the class into their title."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    return [pid for pid, title in titles.items() if b"ShardWorker" in title and driver in ancestors(pid, parents)]


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def num_files(out: Path) -> int:
    return len(list(out.glob("*.parquet")))


def disturb(source: Path, out: Path, kill_driver: bool, when: int, total: int, log: Path) -> bool:
    """A run with a kill after `when` files; resumed until it ends with 0. Whether the kill counts."""
    process, counts = start(source, out, log=log), False
    while process.poll() is None and num_files(out) < when:
        time.sleep(0.05)
    victims = [process.pid] if kill_driver else actors_of(process.pid)[:1]
    if process.poll() is None and victims:
        os.kill(victims[0], signal.SIGKILL)
        counts = 0 < num_files(out) < total
    code = process.wait()
    for _ in range(3):
        if code == 0:
            break
        code = run(source, out, "--resume", log=log)
    return counts and code == 0


# --- Parts ---


def prove_rows(source: Path, out: Path, log: Path, dtype: str = "float32") -> int:
    code, rows = run(source, out, log=log), rows_of(out)
    files = {str(path.relative_to(source)) for path in source.rglob("*") if not path.is_dir()}
    errors = [row["error"] for row in rows.values() if row["error"] is not None]
    failed = say("rows", code == 0 and rows.keys() == files, f"{len(rows)} rows of {len(files)} files, exit {code}")
    failed += say("errors", len(errors) >= 10, f"{len(errors)} named: {sorted({e.split(':')[0] for e in errors})}")
    pipe = load_pipeline(str(MODEL), "cpu", dtype)
    good = sorted(key for key, row in rows.items() if row["error"] is None)
    differences = []
    for key in random.Random(2).sample(good, min(50, len(good))):
        result = pipe(str(source / key), candidate_labels=words()[1::2], subtask="panoptic")
        differences.append(difference(result, read_results(str(out)).segments(rows[key])))
    text = f"50 pictures, largest difference of a score {max(d[0] for d in differences):.1e}, of pixels "
    text += f"{max(d[1] for d in differences)}"
    return failed + say("as the pipeline", max(d[0] for d in differences) < 1e-4, text)


def difference(result: list[dict], segments: list) -> tuple[float, int]:
    """Of scores, and the most pixels in which a mask differs; infinite if the labels differ."""
    if [one["label"] for one in result] != [one.label for one in segments]:
        return float("inf"), 0
    scores = [abs(one["score"] - other.score) for one, other in zip(result, segments)]
    pixels = [int(((np.asarray(one["mask"]) > 0) != other.mask).sum()) for one, other in zip(result, segments)]
    return max(scores, default=0.0), max(pixels, default=0)


def prove_kills(source: Path, truth: dict, folder: Path, runs: int, log: Path) -> int:
    total, done, lost, attempt = num_files(folder / "rows"), 0, 0, 0
    while done < runs and attempt < 3 * runs:
        kill_driver, out = attempt % 2 == 1, folder / f"kill{attempt}"
        when = 1 + (done * 7919) % (total - 1)
        if disturb(source, out, kill_driver, when, total, log):
            done += 1
            same = rows_of(out) == truth
            lost += not same
            print(f"  kill {done}: {'driver' if kill_driver else 'actor'} after {when} of {total}: {same}", flush=True)
        shutil.rmtree(out, ignore_errors=True)
        attempt += 1
    return say("kills", done == runs and not lost, f"{done} disturbed runs that count, {lost} of them differ")


def pages(folder: Path, pattern: str) -> int:
    """Blocks of 4 KiB that files take."""
    return sum(-(-path.stat().st_size // 4096) for path in folder.glob(pattern) if path.is_file())


def prove_disk(source: Path, truth: dict, folder: Path, log: Path) -> int:
    """A file system that holds half of the results, then a larger one."""
    out = folder / "disk"
    out.mkdir()
    results, rest = pages(folder / "rows", "*.parquet"), pages(folder / "rows" / "_job", "**/*.*")
    size = 4 * (rest + results // 2)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(out)]
    if subprocess.run(mount, capture_output=True).returncode:
        print("skipped disk: no file system can be mounted here", flush=True)
        return 0
    try:
        code = run(source, out, log=log)
        part = num_files(out)
        subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
        again = run(source, out, "--resume", log=log)
        is_ok = code == 2 or code == 1
        is_ok = is_ok and again == 0 and rows_of(out) == truth
        return say("disk", is_ok, f"full after {part} shards (exit {code}), resumed with exit {again}")
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def prove_shard(source: Path, folder: Path, log: Path) -> int:
    """Tar files of which one is cut off, then whole again."""
    tars, out, whole = folder / "tars", folder / "shard", folder / "shard_whole"
    tars.mkdir()
    for part in sorted(source.iterdir()):
        names = sorted(path.name for path in part.iterdir() if path.is_file())[:25]
        subprocess.run(["tar", "-cf", str(tars / f"{part.name}.tar"), "-C", str(part), *names], check=True)
    run(tars, whole, log=log)
    victim = tars / "part1.tar"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    code, part = run(tars, out, log=log), num_files(out)
    victim.write_bytes(content)
    again = run(tars, out, "--resume", log=log)
    is_ok = code == 1 and part == 3 and again == 0 and rows_of(out) == rows_of(whole)
    return say("shard", is_ok, f"one of 4 cut off: exit {code}, {part} files; whole again: exit {again}")


def last_number(log: Path, pattern: str) -> float:
    return float(re.findall(pattern, log.read_text())[-1])


def prove_memory(source: Path, folder: Path, log: Path) -> int:
    pattern = r"most memory of this process: (\d+) MiB"
    large = last_number(folder / "rows.log", pattern)
    small_source = folder / "tenth"
    for path in sorted(source.rglob("*.png"))[::10]:
        target = small_source / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target, follow_symlinks=False)
    run(small_source, folder / "memory", log=log)
    small = last_number(log, pattern)
    return say("memory", large < 1.05 * small, f"the driver's most: {large:.0f} MiB, with a tenth {small:.0f} MiB")


def prove_speed(count: int, folder: Path, log: Path) -> int:
    """The pipeline is measured before and after the job, as other work on the machine comes and goes."""
    source = folder / "scenes"
    source.mkdir(exist_ok=True)
    for index, scene in enumerate(scenes("test", count, seed=6)):
        Image.fromarray(scene.image).resize((SIZE, SIZE)).save(source / f"{index:05d}.png")
    torch.set_num_threads(2)
    pipe = load_pipeline(str(MODEL), "cpu", "float32")
    paths = [str(path) for path in sorted(source.iterdir())]
    rates = {size: pipeline_rate(pipe, paths[: max(64, count // 16)], size) for size in (1, 4, 8, 16, 32)}
    size = max(rates, key=rates.get)
    before = pipeline_rate(pipe, paths[: count // 2], size)
    shutil.rmtree(folder / "speed", ignore_errors=True)
    code = run(source, folder / "speed", log=log)
    job = last_number(log, r"pictures a second after the first shard: ([\d.]+)")
    after = pipeline_rate(pipe, paths[count // 2 :], size)
    plain = 2 / (1 / before + 1 / after)
    text = f"job {job:.1f} pictures/s, pipeline {before:.1f} before and {after:.1f} after it (two threads, batches of "
    return say("speed", code == 0 and job >= 1.3 * plain, f"{text}{size}): {job / plain:.2f} times")


def pipeline_rate(pipe, paths: list[str], batch_size: int) -> float:
    started = time.perf_counter()
    pipe(paths, candidate_labels=words()[1::2], batch_size=batch_size)
    return len(paths) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-pictures", type=int, default=2000)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--parts", nargs="*", default=["rows", "kills", "disk", "shard", "memory", "speed"])
    args = parser.parse_args()
    register_auto_classes()
    OPTIONS.extend(["--shard-size", str(args.shard_size)])
    source, log, undisturbed = args.out / "pictures", args.out / "log.txt", args.out / "rows"
    if "rows" in args.parts:
        shutil.rmtree(args.out, ignore_errors=True)
        write_pictures(source, args.num_pictures, args.photographs)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "rows": lambda: prove_rows(source, undisturbed, args.out / "rows.log"),
        "kills": lambda: prove_kills(source, rows_of(undisturbed), args.out, args.kills, log),
        "disk": lambda: prove_disk(source, rows_of(undisturbed), args.out, log),
        "shard": lambda: prove_shard(source, args.out, log),
        "memory": lambda: prove_memory(source, args.out, log),
        "speed": lambda: prove_speed(args.num_pictures, args.out, log),
    }
    failed = sum(parts[name]() for name in args.parts)
    print(f"{failed} parts failed", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
