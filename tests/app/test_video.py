"""Clips in and out: frames, times, turned pictures, sound, broken files, and what `maftplus segment` makes of them."""

import json
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_tools import save_tiny
from typer.testing import CliRunner

from maftplus.app.cli import app
from maftplus.app.clips import ClipReader, ClipWriter
from maftplus.app.models import load_pipeline
from maftplus.app.video import is_video, is_video_result, segment_video

EVERYTHING = ("--task", "instance", "--threshold", 0)
RED, BLUE = (220, 30, 30), (30, 30, 220)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), ["cat, kitten", "grass"], stuff=["grass"])


@pytest.fixture(scope="module")
def segmenter(folder):
    return load_pipeline(str(folder), "cpu")


def write_clip(path, times=None, num_frames=12, size=(64, 48), sound=None, options=None):
    """Noise at 10 frames a second or at `times`, optionally with a tone in codec `sound`."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(sound, rate=16_000) if sound else None
        for index in range(num_frames):
            pixels = rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[index] if times else index / 10)), Fraction(1, 1000)
            container.mux(video.encode(frame))
            if audio:
                container.mux(audio.encode(tone(index)))
        container.mux(video.encode())
        if audio:
            container.mux(audio.encode())
    return path


def tone(index, samples=1600):
    wave = 8000 * np.sin(np.arange(index * samples, (index + 1) * samples) / 5)
    frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16_000, index * samples, Fraction(1, 16_000)
    return frame


def read(path, **span):
    with ClipReader(path, **span) as reader:
        return list(reader), reader.error


def times_of(path):
    with av.open(str(path)) as container:
        return [round(frame.time, 3) for frame in container.decode(video=0)]


def sound_of(path):
    with av.open(str(path)) as container:
        packets = [one for one in container.demux(audio=0) if one.pts is not None]
        return [(round(float(one.pts * one.time_base), 4), bytes(one)) for one in packets]


def run(*arguments):
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


def test_frames_come_with_their_own_times(tmp_path):
    times = [0, 0.04, 0.4, 0.5, 1.7]
    frames, error = read(write_clip(tmp_path / "clip.mp4", times, len(times)))
    assert [round(frame.time, 3) for frame in frames] == times
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert error is None


def test_every_start_and_end_choose_frames(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    assert [round(frame.time, 3) for frame in read(path, start=0.3, end=0.7)[0]] == [0.3, 0.4, 0.5, 0.6]
    frames, error = read(path, every=5, start=0.1)
    assert [(frame.index, round(frame.time, 3)) for frame in frames] == [(0, 0.1), (5, 0.6), (10, 1.1)]
    assert error is None


def test_a_turned_clip_is_upright(tmp_path):
    """Phones write the matrix (0 1 0, -1 0 0, 0 0 1): a point (x, y) is shown at (-y, x), a quarter turn clockwise."""
    path = tmp_path / "clip.mp4"
    writer = ClipWriter(path, (64, 48))
    picture = Image.new("RGB", (64, 48), BLUE)
    picture.paste(RED, (0, 0, 32, 48))  # the left half, which will be the upper one
    writer.write(picture, 0)
    writer.close()
    content = bytearray(path.read_bytes())
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = matrix
    path.write_bytes(content)
    (frame,), _ = read(path)
    assert frame.picture.size == (48, 64)
    np.testing.assert_allclose(frame.picture.getpixel((24, 10)), RED, atol=25)
    np.testing.assert_allclose(frame.picture.getpixel((24, 54)), BLUE, atol=25)


def test_an_odd_edge_loses_its_last_line(tmp_path):
    writer = ClipWriter(tmp_path / "clip.mp4", (65, 49))
    writer.write(Image.new("RGB", (65, 49), RED), 0)
    writer.close()
    (frame,), _ = read(tmp_path / "clip.mp4")
    assert frame.picture.size == (64, 48)


def test_a_clip_becomes_an_overlay_and_a_line_for_each_segment(segmenter, tmp_path):
    times = [0, 0.04, 0.4, 0.5, 1.7]
    path = write_clip(tmp_path / "clip.mp4", times, len(times))
    result = segment_video(path, tmp_path / "out" / "clip", segmenter, subtask="instance", batch_size=2, threshold=0.0)
    assert (result.num_frames, result.error) == (5, None)
    assert times_of(result.overlay) == times
    lines = [json.loads(line) for line in result.tracks.read_text().splitlines()]
    assert {line["frame"] for line in lines} == set(range(5))
    for line in lines:
        assert list(line) == ["frame", "time", "id", "word", "score", "box", "rle"]
        mask = coco_mask.decode(line["rle"])
        x, y, width, height = line["box"]
        assert mask.shape == (48, 64)
        assert mask.sum() == mask[y : y + height, x : x + width].sum() > 0
        assert round(line["time"], 3) == times[line["frame"]]
    for one in result.summaries:
        seen = [line["frame"] for line in lines if line["id"] == one.id]
        assert (one.first_frame, one.last_frame, one.num_frames) == (min(seen), max(seen), len(seen))


def test_the_masks_of_the_lines_are_columns_first(segmenter, tmp_path):
    from maftplus.app.clips import ClipFrame
    from maftplus.app.video import _track_lines
    from maftplus.pictures.segments import Segment

    mask = np.zeros((3, 4), bool)
    mask[:, 1] = True
    frame = ClipFrame(0, 0.0, Image.new("RGB", (4, 3)))
    (line,) = _track_lines([Segment(1, "cat", 0, True, 0.5, mask)], frame)
    assert json.loads(line)["rle"] == {"size": [3, 4], "counts": "336"}  # 3 zeros, 3 ones, 6 zeros


def test_sound_is_kept_packet_by_packet(segmenter, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", sound="aac")
    result = segment_video(path, tmp_path / "out", segmenter)
    assert sound_of(result.overlay) == sound_of(path)


def test_sound_of_a_part_begins_and_ends_with_it(segmenter, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", sound="aac", num_frames=20)
    result = segment_video(path, tmp_path / "out", segmenter, start=0.5, end=1.0)
    assert times_of(result.overlay) == [0.0, 0.1, 0.2, 0.3, 0.4]
    expected = [(round(time - 0.5, 4), packet) for time, packet in sound_of(path) if 0.5 <= time <= 1.0]
    assert [packet for _, packet in sound_of(result.overlay)] == [packet for _, packet in expected]
    np.testing.assert_allclose([t for t, _ in sound_of(result.overlay)], [t for t, _ in expected], atol=1e-3)


def test_sound_that_mp4_does_not_hold_is_left_out(segmenter, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", sound="pcm_s16le")
    result = segment_video(path, tmp_path / "out", segmenter)
    with av.open(str(result.overlay)) as container:
        assert not container.streams.audio
    assert result.num_frames == 12


def test_a_clip_that_breaks_off_ends_with_what_was_done(segmenter, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", num_frames=30, options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    result = segment_video(path, tmp_path / "out", segmenter)
    assert 0 < result.num_frames < 30
    assert f"frame {result.num_frames} " in result.error
    assert len(times_of(result.overlay)) == result.num_frames
    assert {json.loads(line)["frame"] for line in result.tracks.open()} <= set(range(result.num_frames))


def test_a_clip_with_a_hole_ends_before_it(segmenter, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", num_frames=30)
    content = bytearray(path.read_bytes())
    middle, length = len(content) // 2, len(content) // 8
    content[middle : middle + length] = bytes(length)
    path.write_bytes(content)
    result = segment_video(path, tmp_path / "out", segmenter)
    assert f"broken at frame {result.num_frames} " in result.error
    assert len(times_of(result.overlay)) == result.num_frames > 0


def test_what_is_no_clip_is_named_and_nothing_is_written(segmenter, tmp_path):
    (tmp_path / "text.mp4").write_text("no clip")
    for path, span, message in (
        (tmp_path / "text.mp4", {}, "text.mp4: cannot be read as a clip"),
        (tmp_path / "missing.mp4", {}, "missing.mp4"),
        (write_clip(tmp_path / "clip.mp4"), {"start": 100.0}, "no frame"),
        (tmp_path / "clip.mp4", {"start": 2.0, "end": 1.0}, "`end` later"),
        (tmp_path / "clip.mp4", {"every": 0}, "`every`"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_video(path, tmp_path / "out" / "name", segmenter, **span)
    assert not (tmp_path / "out").exists()


def test_the_missing_extra_is_one_line(folder, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    result = run(path, "--model", folder, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert 'pip install "maftplus[video]"' in result.output
    assert "Traceback" not in result.output


def test_the_command_writes_clips_and_prints_a_table_of_tracks(folder, tmp_path):
    path, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "out"
    result = run(path, "--model", folder, "--out", out, "--every", 3, "--end", "0.9", *EVERYTHING)
    assert result.exit_code == 0, result.output
    assert sorted(one.name for one in out.iterdir()) == ["clip_overlay.mp4", "clip_tracks.jsonl"]
    assert times_of(out / "clip_overlay.mp4") == [0.0, 0.3, 0.6]
    assert "first frame" in result.output


def test_a_broken_clip_is_named_the_rest_go_on_and_the_exit_code_is_1(folder, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    good = write_clip(tmp_path / "good.mp4", num_frames=2)
    result = run(tmp_path / "broken.mp4", good, "--model", folder, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    assert "broken.mp4" in result.output
    assert (tmp_path / "out" / "good_overlay.mp4").is_file()


def test_results_of_others_are_not_replaced_and_ours_are(folder, tmp_path):
    path, out = write_clip(tmp_path / "clip.mp4", num_frames=2), tmp_path / "out"
    out.mkdir()
    write_clip(out / "clip_overlay.mp4", num_frames=2)
    assert not is_video_result(out / "clip_overlay.mp4")
    arguments = (path, "--model", folder, "--out", out, "--quiet")
    refused = run(*arguments)
    assert (refused.exit_code, "--overwrite" in refused.output) == (2, True)
    assert run(*arguments, "--overwrite").exit_code == 0
    assert is_video_result(out / "clip_overlay.mp4")
    assert run(*arguments).exit_code == 0


def test_a_span_without_frames_is_refused_before_the_model_is_loaded(tmp_path):
    result = run(tmp_path / "clip.mp4", "--start", 5, "--end", 2, "--model", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "`end` later" in result.output


def test_clips_are_known_by_their_ending():
    assert is_video("a/CLIP.MOV")
    assert not is_video("a/clip.png")
