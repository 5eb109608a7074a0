"""Reading and writing of videos with PyAV (the extra "video"), and folders of images as videos.

Frame times are preserved, even if irregular. Frames are rotated upright, as in players. Sound is copied without
decoding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hf_vit_seg.data.images.files import ImageFileError, check_regular, files_below, picture_suffixes
from hf_vit_seg.data.images.pixels import read_rgb_image
from hf_vit_seg.errors import error_sentence

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
# The first available codec is used. The numbers are the finest time base of the codec's headers, in ticks per second.
CODECS = (
    ("libx264", {"crf": "20", "preset": "veryfast"}, 90_000),
    ("libopenh264", {}, 90_000),
    ("mpeg4", {"qscale": "4"}, 65_535),
)


class VideoError(ImageFileError):
    """A video that cannot be read or written."""


@dataclass(frozen=True, eq=False)
class Frame:
    """An upright image and its time in seconds, if known."""

    picture: Image.Image
    time: Fraction | None


@dataclass(frozen=True, eq=False)
class Sound:
    """A PyAV packet of sound."""

    packet: Any


class Video(Protocol):
    """A source of frames: frame `rate`, `time_base` of the frames' times, and `total` frames (0 if unknown)."""

    rate: Fraction
    time_base: Fraction
    total: int
    sound: Any

    def parts(self) -> Iterator[Frame | Sound]:
        """Iterate over frames and sound in file order."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class VideoFile:
    """A video file. Raises VideoError if it is not a video."""

    def __init__(self, path: Path):
        check_regular(path)
        av = av_library(path)
        self.path = path
        with video_failures(path, "the video cannot be read"):
            self.container = av.open(os.path.abspath(path))  # FFmpeg interprets a prefix with a colon as a protocol
        try:
            self.read_header()
        except BaseException:
            self.container.close()
            raise

    def read_header(self) -> None:
        """Find the streams, the rate and the number of frames."""
        if not self.container.streams.video:
            raise VideoError(f"{self.path}: the file has no video stream")
        with video_failures(self.path, "the video cannot be read"):
            self.video = self.container.streams.video[0]
            self.video.thread_type = "AUTO"
            self.sound = next(iter(self.container.streams.audio), None)
            self.rate = Fraction(self.video.average_rate or self.video.guessed_rate or 25)
            self.time_base = Fraction(self.video.time_base or 1 / self.rate)
            self.total: int = self.video.frames

    def parts(self) -> Iterator[Frame | Sound]:
        """Iterate over frames and sound in file order."""
        with video_failures(self.path, "the video cannot be read to its end"):  # not those of callers
            for packet in self.container.demux(*filter(None, (self.video, self.sound))):
                if packet.stream is self.video:
                    for frame in packet.decode():
                        time = None if frame.pts is None else Fraction(frame.pts * frame.time_base)
                        yield Frame(upright(frame), time)
                elif packet.dts is not None:
                    yield Sound(packet)

    def close(self) -> None:
        """Close the file."""
        self.container.close()


class FrameFolder:
    """The images in a folder, sorted by name, as a silent video with `rate` frames per second."""

    def __init__(self, path: Path, rate: Fraction):
        self.path, self.rate, self.time_base, self.sound = path, rate, 1 / rate, None
        self.files = [path / file for file in files_below(path, picture_suffixes())]
        self.total = len(self.files)

    def parts(self) -> Iterator[Frame | Sound]:
        """Iterate over the frames."""
        for number, file in enumerate(self.files):
            yield Frame(read_rgb_image(file), number / self.rate)

    def close(self) -> None:
        """Do nothing: no file is kept open."""


@contextmanager
def video_failures(path: Path, what: str) -> Iterator[None]:
    """Convert every exception of PyAV to a VideoError that names the file and `what` failed."""
    try:
        yield
    except ImageFileError:
        raise
    except Exception as error:  # FFmpegError, and for broken headers ValueError, ZeroDivisionError ...
        reason = getattr(error, "strerror", None) or error_sentence(error)
        raise VideoError(f"{path}: {what} ({reason})") from error


def av_library(path: Path) -> Any:
    """Import PyAV. Raises VideoError if it is not installed."""
    try:
        import av
    except ImportError:
        raise VideoError(f"{path}: videos need PyAV: pip install av") from None
    return av


def upright(frame: Any) -> Image.Image:
    """Rotate a frame by the video's rotation (counterclockwise, in degrees)."""
    image: Image.Image = frame.to_image()
    turn = round(frame.rotation) % 360
    return image.rotate(turn, expand=True) if turn else image


class VideoWriter:
    """Writes an MP4 with the frame times of a `video`, and its sound if MP4 supports it; `notes` lists omissions.

    Sound before the first frame is delayed, as nothing can be written before the size of the frames is known.
    """

    def __init__(self, path: Path, video: Video, source: Path):
        self.av, self.video, self.source = av_library(source), video, source
        self.container = self.av.open(str(path), "w", format="mp4")
        self.notes: list[str] = []
        self.waiting: list[Any] = []
        self.out: Any = None
        self.last: int | None = None
        self.size = (0, 0)
        self.sound = None if video.sound is None else self.add_sound(video.sound)

    def add_sound(self, track: Any) -> Any:
        """Add a copy of a sound track, or return None if MP4 does not support it."""
        try:
            return self.container.add_stream_from_template(track)
        except (ValueError, self.av.FFmpegError):
            self.notes.append(f"its sound ({track.codec_context.name}) cannot be added to MP4 and was left out")
            return None

    def write(self, picture: Image.Image, time: Fraction | None) -> None:
        """Add an image at a time. Odd sides are padded to even ones by repeating the edge, as codecs require."""
        if self.out is None:
            self.size = picture.size
            self.out = self.encoder(picture.width + picture.width % 2, picture.height + picture.height % 2)
        if picture.size != self.size:
            sizes = " to ".join(f"{width}x{height}" for width, height in (self.size, picture.size))
            raise VideoError(f"{self.source}: the size of the frames changes from {sizes} pixels, a video has one size")
        padding = ((0, picture.height % 2), (0, picture.width % 2), (0, 0))
        frame = self.av.VideoFrame.from_ndarray(np.pad(np.asarray(picture), padding, mode="edge"), format="rgb24")
        frame.time_base = self.out.codec_context.time_base
        frame.pts = self.last = self.timestamp(time)
        self.container.mux(self.out.encode(frame))
        self.flush()

    def timestamp(self, time: Fraction | None) -> int:
        """Convert a time to ticks of the encoder, after the last frame; None is one frame after it."""
        base = self.out.codec_context.time_base
        following = 0 if self.last is None else self.last + max(1, round(1 / (self.video.rate * base)))
        ticks = following if time is None else round(time / base)
        return ticks if self.last is None else max(ticks, self.last + 1)

    def encoder(self, width: int, height: int) -> Any:
        """Return a stream for frames of this size."""
        codecs = self.av.codecs_available
        name, options, finest = next(row for row in CODECS if row[0] in codecs)
        out = self.container.add_stream(name, rate=self.video.rate, options=dict(options))
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        base = self.video.time_base
        out.codec_context.time_base = base if base.denominator <= finest else Fraction(1, finest)
        return out

    def copy(self, sound: Sound) -> None:
        """Add a packet of sound."""
        if self.sound is not None:
            sound.packet.stream = self.sound
            self.waiting.append(sound.packet)
            self.flush()

    def flush(self) -> None:
        """Write the sound that has waited, once there are frames."""
        if self.out is not None:
            for packet in self.waiting:
                self.container.mux(packet)
            self.waiting.clear()

    def finish(self) -> None:
        """Write the remaining frames of the encoder, and close the file."""
        if self.out is None:
            raise VideoError(f"{self.source}: the video has no frames")
        self.container.mux(self.out.encode(None))
        self.container.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self.container.close()


__all__ = ["VIDEO_SUFFIXES", "Frame", "FrameFolder", "Sound", "Video", "VideoError", "VideoFile", "VideoWriter"]
