"""Clips of the shapes world: things move, turn, cross, leave and come back; every pixel's identity is known.

A clip is a list of scenes (`shapes/scenes.py`) whose segment ids last: the same id is the same thing in every frame,
whether it was hidden or outside in between. Nearer things cover farther ones, as far as they do: unlike in single
scenes a thing may be hidden altogether. The ground stands still, or passes under a moving camera.

    python shapes/clips.py --out runs/clips --num_clips 3        # clip_000.mp4, ... (needs the extra [video])

Shapes: T frames, S side of a frame in pixels.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maftplus.shapes.scenes import (
    CLASSES,
    COLOURS,
    KINDS,
    MIN_SIZE,
    PATTERNS,
    SPLIT_SEEDS,
    Scene,
    as_scene,
    class_ids,
    clip_window,
    draw_coverage,
    draw_pattern,
    paint_stuff,
)

MOTIONS = ("drift", "swing", "stay")
MOTION_SHARES = (0.4, 0.35, 0.25)
LARGEST_STEP = 5.0  # pixels a frame, of things: about half of a small thing's radius
SWING_FRAMES = 24  # out of the picture and back, at most
CAMERA_STEP = 1.5  # pixels a frame, of the ground under a moving camera


@dataclass
class MovingThing:
    """A thing of a clip: what it looks like, where it is and how it is turned in every frame."""

    class_id: int
    pattern: str
    colour: np.ndarray
    radius: float
    shading: np.ndarray
    centres: np.ndarray
    angles: np.ndarray


def draw_clip(
    rng: np.random.Generator,
    allowed: list[int],
    num_frames: int = 20,
    size: int = 128,
    num_things: tuple[int, int] = (3, 6),
    num_regions: tuple[int, int] = (2, 3),
    num_thing_classes: int | None = None,
    moving_ground: bool | None = None,
) -> list[Scene]:
    """
    Draws one clip.

    Args:
        rng: The source of all chance; equal states give equal clips.
        allowed: Class ids of the things that may occur.
        num_frames: T.
        size: Side S in pixels.
        num_things, num_regions: Least and most of each.
        num_thing_classes: Of how many classes the things may be, chosen among `allowed`; `None`: of all. Few
            make clips of twins, which nothing but their place tells apart.
        moving_ground: Whether the camera moves over the ground; `None`: in half of the clips.

    Returns:
        T scenes. `segments_info` lists what is visible in the frame; ids last through the clip.

    Raises:
        ValueError: if there is no frame, or `size` is below 48.
    """
    if num_frames < 1 or size < MIN_SIZE:
        raise ValueError(f"A clip needs a frame and {MIN_SIZE} pixels a side, got {num_frames} and {size}.")
    if moving_ground is None:
        moving_ground = bool(rng.random() < 0.5)
    path = _camera_path(num_frames, rng) if moving_ground else np.zeros((num_frames, 2), int)
    image, region, stuff = paint_stuff(
        size + int(path.max()), int(rng.integers(num_regions[0], num_regions[1] + 1)), rng
    )
    if num_thing_classes is not None:
        allowed = rng.choice(allowed, num_thing_classes, replace=False).tolist()
    count = int(rng.integers(num_things[0], num_things[1] + 1))
    things = [_move(class_id, num_frames, size, rng) for class_id in rng.choice(allowed, count).tolist()]
    light = rng.uniform(0.88, 1.1)
    frames = []
    for index, (top, left) in enumerate(path):
        ground = np.s_[top : top + size, left : left + size]
        picture, owner = _paint_frame(image[ground].copy(), things, index)
        picture = picture * light + rng.standard_normal(picture.shape, np.float32) * 3
        frames.append(as_scene(np.clip(picture, 0, 255).astype(np.uint8), owner, things, region[ground], stuff))
    return frames


def _camera_path(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Top and left of the picture on the ground in every frame, (T, 2) int, not negative."""
    angle = rng.uniform(0, 2 * math.pi)
    step = CAMERA_STEP * np.array([math.sin(angle), math.cos(angle)])
    path = np.arange(num_frames)[:, None] * step
    return np.rint(path - path.min(axis=0)).astype(int)


def _move(class_id: int, num_frames: int, size: int, rng: np.random.Generator) -> MovingThing:
    radius, pattern = rng.uniform(11, 22), PATTERNS[rng.choice(3, p=(0.5, 0.25, 0.25))]
    stamp = 2 * int(math.ceil(radius * 1.25))
    motion = rng.choice(MOTIONS, p=MOTION_SHARES)
    turn = rng.uniform(-0.12, 0.12)  # radians a frame
    return MovingThing(
        class_id,
        pattern,
        np.array(COLOURS[CLASSES[class_id].colour][0]) + rng.uniform(-14, 14, 3),
        radius,
        draw_pattern(pattern, stamp, rng.uniform(0, math.pi), rng),
        _centres(motion, radius, num_frames, size, rng),
        rng.uniform(0, 2 * math.pi) + turn * np.arange(num_frames),
    )


def _centres(motion: str, radius: float, num_frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """
    Where a thing is, (T, 2): it drifts along a line through the picture, swings out of the picture and back, or moves
    little.
    """
    time = np.arange(num_frames)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.sin(angle), math.cos(angle)])
    inside = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
    if motion == "drift":
        return inside + (time - rng.uniform(0, num_frames)) * rng.uniform(0.25, 1) * LARGEST_STEP * direction
    if motion == "stay":
        return inside + 2 * np.sin(time * rng.uniform(0.1, 0.5)) * direction
    return _swing(radius, num_frames, size, rng)


def _swing(radius: float, num_frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Over an edge of the picture, a few frames altogether outside, and back; again and again in a long clip."""
    period = min(num_frames, SWING_FRAMES)
    from_turn = np.arange(num_frames) - rng.uniform(0.35, 0.65) * period
    from_turn = np.abs((from_turn + period / 2) % period - period / 2)  # frames to or since the farthest point
    step, frames_away = rng.uniform(0.8, 1.2) * LARGEST_STEP, rng.uniform(3, 6)
    depth = step * (from_turn - frames_away / 2) - 1.3 * radius  # of the centre inside of the edge
    centres = np.empty((num_frames, 2))
    side = int(rng.integers(2))
    centres[:, side] = depth if rng.random() < 0.5 else size - depth
    centres[:, 1 - side] = rng.uniform(0.2, 0.8) * size
    return centres


def _paint_frame(image: np.ndarray, things: list[MovingThing], index: int) -> tuple[np.ndarray, np.ndarray]:
    """The things over the ground (S, S, 3), in place, later ones nearer; and whose every pixel is: 0 ground, i + 1."""
    owner = np.zeros(image.shape[:2], np.uint8)
    for number, thing in enumerate(things, start=1):
        coverage = draw_coverage(CLASSES[thing.class_id].shape, thing.radius, thing.angles[index])
        top, left = np.rint(thing.centres[index] - len(coverage) / 2).astype(int)
        rows, stamp_rows = clip_window(top, len(coverage), len(image))
        columns, stamp_columns = clip_window(left, len(coverage), len(image))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        coverage, shading = (stamp[stamp_rows, stamp_columns] for stamp in (coverage, thing.shading))
        below = image[rows, columns]
        image[rows, columns] = below + coverage[..., None] * (thing.colour * shading[..., None] - below)
        owner[rows, columns][coverage >= 0.5] = number
    return image, owner


def clips(
    split: str, num_clips: int, kinds: tuple[str, ...] = KINDS, seed: int = 0, **layout
) -> Iterator[list[Scene]]:
    """
    Yields clips; the i-th depends on (split, seed, i) alone, and the splits share none.

    Args:
        split: "train", "validation" or "test".
        kinds: Which kinds of pairs may occur.
        layout: Passed to `draw_clip`.

    Raises:
        ValueError: if `split` or a kind is unknown.
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"`split` must be one of {', '.join(SPLIT_SEEDS)}, got {split!r}.")
    allowed = class_ids(*kinds, things_only=True)
    for index in range(num_clips):
        yield draw_clip(np.random.default_rng((SPLIT_SEEDS[split], 7, seed, index)), allowed, **layout)


def write_clip(path: Path, clip: list[Scene], rate: int = 10) -> None:
    """The pictures of a clip as an mp4 file, `rate` frames a second. Raises ValueError without PyAV ([video])."""
    from maftplus.app.clips import ClipWriter

    height, width = clip[0].image.shape[:2]
    writer = ClipWriter(path, (width, height), rate)
    for index, scene in enumerate(clip):
        writer.write(Image.fromarray(scene.image), index / rate)
    writer.close()


def main(arguments: list[str] | None = None) -> None:
    """Writes clips to a folder, as mp4 files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_clips", type=int, default=3)
    parser.add_argument("--num_frames", type=int, default=20)
    parser.add_argument("--split", default="validation", choices=sorted(SPLIT_SEEDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=int, default=10, help="Frames a second.")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    found = clips(options.split, options.num_clips, seed=options.seed, num_frames=options.num_frames)
    for index, clip in enumerate(found):
        write_clip(options.out / f"clip_{index:03d}.mp4", clip, options.rate)


if __name__ == "__main__":
    main()
