"""Overlay videos: timestamps, size, rotation and audio are kept, and errors are one sentence."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_segmenters import save_segmenter, segmenter
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.inference.files.prediction import Job, PredictOptions
from hf_vit_seg.inference.video.video_prediction import VideoError, is_video, predict_video

av = pytest.importorskip("av")

SIZE = (64, 96)
TICKS = (0, 1, 2, 4, 8, 9, 10, 15)  # timestamps of an irregular video
BASE = Fraction(1, 10)


def draw_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A gray background with a bright square that moves to the right."""
    array = np.full((*size, 3), 60, np.uint8)
    array[16:48, number * 8 : number * 8 + 32] = (230, 180, 40)
    return array


def video(
    path: Path, ticks: tuple[int, ...] = tuple(range(8)), size: tuple[int, int] = SIZE, sound: bool = False
) -> Path:
    with av.open(str(path), "w") as sink:
        out = sink.add_stream("mpeg4", rate=10)
        out.height, out.width, out.pix_fmt = *size, "yuv420p"
        out.codec_context.time_base = BASE
        track = sink.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(draw_frame(number, size), format="rgb24")
            frame.pts, frame.time_base = tick, BASE
            sink.mux(out.encode(frame))
        sink.mux(out.encode(None))
        if track is not None:
            wave = np.sin(np.arange(12800) / 16, dtype=np.float32)[None]
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            heard.sample_rate = 16000
            sink.mux(track.encode(heard))
            sink.mux(track.encode(None))
    return path


def mark_as_rotated(source: Path, target: Path) -> Path:
    """The same video marked as rotated by a quarter turn: a matrix in the track header."""
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    matrix = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    target.write_bytes(data)
    return target


def job(path: Path, out: Path) -> Job:
    return Job(ImageFile(path, Path(path.name)), out / path.stem)


def segment_video(path: Path, out: Path, **options: object) -> Path:
    for _ in predict_video(segmenter(), job(path, out), PredictOptions(**options)):
        pass
    return out / f"{path.stem}.overlay.mp4"


def frames_of(path: Path) -> list:
    with av.open(str(path)) as source:
        return list(source.decode(video=0))


def test_every_frame_gets_an_overlay(tmp_path):
    path = video(tmp_path / "clip.mp4")
    found = frames_of(segment_video(path, tmp_path / "out", opacity=0.0, frames=True))
    given = frames_of(path)
    assert len(found) == len(given) == 8
    for one, other in zip(found, given, strict=True):
        assert (one.width, one.height) == (96, 64)
        assert one.time == pytest.approx(other.time, abs=1e-3)
        difference = one.to_ndarray(format="rgb24").astype(int) - other.to_ndarray(format="rgb24")
        assert np.abs(difference).mean() < 4  # without colors only codec loss remains
    report = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert (report["frames"], report["frame_rate"]) == (8, 10)
    assert sum(row["pixels"] for row in report["classes"]) == 8 * 64 * 96
    maps = sorted((tmp_path / "out" / "clip.frames").iterdir())
    assert [file.name for file in maps] == [f"{i:06d}.png" for i in range(8)]
    expected = segmenter()(given[3].to_image()).label_map
    np.testing.assert_array_equal(np.asarray(Image.open(maps[3])), expected)


def test_overlay_uses_class_colors(tmp_path):
    path = video(tmp_path / "clip.mp4")
    found = frames_of(segment_video(path, tmp_path / "out", opacity=1.0))[2].to_ndarray(format="rgb24")
    model = segmenter()
    labels = model(frames_of(path)[2].to_image()).label_map
    inside = np.ones(labels.shape, bool)  # away from borders, where the codec blurs colors
    for shift in range(-4, 5):
        inside &= (np.roll(labels, shift, 0) == labels) & (np.roll(labels, shift, 1) == labels)
    difference = found[inside].astype(int) - model.palette[labels][inside]
    assert np.abs(difference).mean() < 12


def test_irregular_timestamps_are_preserved(tmp_path):
    path = video(tmp_path / "clip.mkv", TICKS)
    times = [frame.time for frame in frames_of(segment_video(path, tmp_path / "out"))]
    assert times == pytest.approx([frame.time for frame in frames_of(path)], abs=2e-3)


def test_rotated_videos_are_upright(tmp_path):
    path = mark_as_rotated(video(tmp_path / "flat.mp4"), tmp_path / "clip.mp4")
    given = frames_of(path)[0]
    assert abs(given.rotation) == 90
    found = frames_of(segment_video(path, tmp_path / "out", opacity=0.0))[0]
    assert (found.height, found.width, round(found.rotation)) == (96, 64, 0)
    # A matrix of (0, 1, -1, 0) shows the video rotated clockwise: its left side is at the top.
    expected = np.rot90(given.to_ndarray(format="rgb24"), -1)
    assert np.abs(found.to_ndarray(format="rgb24").astype(int) - expected).mean() < 4


def test_audio_is_copied(tmp_path):
    path = video(tmp_path / "clip.mp4", sound=True)
    with av.open(str(segment_video(path, tmp_path / "out"))) as made, av.open(str(path)) as given:
        assert [stream.codec_context.name for stream in made.streams.audio] == ["aac"]
        heard = [[bytes(packet) for packet in each.demux(audio=0) if packet.size] for each in (made, given)]
        assert heard[0] == heard[1] != []


def test_odd_frame_sizes_become_even(tmp_path):
    frames = frames_of(segment_video(odd(tmp_path / "clip.mkv"), tmp_path / "out"))
    assert (frames[0].width, frames[0].height) == (66, 64)
    assert json.loads((tmp_path / "out" / "clip.json").read_text())["width"] == 65


def odd(path: Path) -> Path:
    with av.open(str(path), "w") as sink:
        out = sink.add_stream("ffv1", rate=10)
        out.width, out.height, out.pix_fmt = 65, 63, "bgr0"
        frame = av.VideoFrame.from_ndarray(draw_frame(0, (63, 65)), format="rgb24")
        sink.mux(out.encode(frame))
        sink.mux(out.encode(None))
    return path


def test_folder_of_frames_is_a_video(tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(draw_frame(number)).save(folder / f"{number:03d}.png")
    call = [
        "predict",
        save_segmenter(tmp_path / "model"),
        folder,
        "--out",
        tmp_path / "out",
        "--frame-rate",
        12.5,
        "--opacity",
        0,
    ]
    result = CliRunner().invoke(app, [*map(str, call)])
    assert result.exit_code == 0, result.output
    found = frames_of(tmp_path / "out" / "shots.overlay.mp4")
    assert [frame.time for frame in found] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32])
    for number, frame in enumerate(found):
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - draw_frame(number)).mean() < 4
    Image.fromarray(draw_frame(0)).resize((50, 50)).save(folder / "005.png")
    again = CliRunner().invoke(app, [*map(str, call), "--overwrite"])
    assert "the size of the frames changes from 96x64 to 50x50" in " ".join(again.output.split())
    assert again.exit_code == 1


def test_invalid_video_raises(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 50)
    assert is_video(job(broken, tmp_path))
    with pytest.raises(VideoError, match=r"broken\.mp4: the video cannot be read"):
        segment_video(broken, tmp_path / "out")
    deaf = tmp_path / "sound.mp4"
    with av.open(str(deaf), "w") as sink:
        track = sink.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        sink.mux(track.encode(frame))
        sink.mux(track.encode(None))
    with pytest.raises(VideoError, match="the file has no video stream"):
        segment_video(deaf, tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(VideoError, match="the video has no frames"):
        segment_video(empty, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == []


def test_predict_accepts_videos_and_images(tmp_path):
    model = save_segmenter(tmp_path / "model")
    video(tmp_path / "clip.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    Image.fromarray(draw_frame(0)).save(tmp_path / "photo.png")
    inputs = [tmp_path / name for name in ("clip.mp4", "photo.png", "broken.mp4")]
    result = CliRunner().invoke(app, ["predict", *map(str, [model, *inputs, "--out", tmp_path / "out"])])
    text = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "8 frames, " in text and "per second" in text
    assert "2 of 3 files segmented" in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"clip.overlay.mp4", "clip.json", "photo.png", "photo.overlay.png", "photo.json"}
