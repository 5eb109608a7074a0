"""Reading and writing videos with PyAV (the extra "video"), and folders of pictures as videos.

Times of frames are kept as they are, also where they are irregular. Frames are turned upright as players show them.
Sound is copied, never decoded.
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
# The first that this PyAV has is taken; with the finest time base that the codec's headers hold, ticks per second.
CODECS = (
    ("libx264", {"crf": "20", "preset": "veryfast"}, 90_000),
    ("libopenh264", {}, 90_000),
    ("mpeg4", {"qscale": "4"}, 65_535),
)


class VideoError(ImageFileError):
    """A video that cannot be read or written, and why, in one sentence."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture, upright, and its time in seconds where it has one."""

    picture: Image.Image
    time: Fraction | None


@dataclass(frozen=True, eq=False)
class Sound:
    """A packet of sound, as PyAV has it."""

    packet: Any


class Video(Protocol):
    """What is read: its frame `rate`, the `time_base` its frames' times are multiples of, how many frames it says."""

    rate: Fraction
    time_base: Fraction
    total: int
    sound: Any

    def parts(self) -> Iterator[Frame | Sound]:
        """Frames and sound in the order in which they lie in the file."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class VideoFile:
    """A video in a file. VideoError where it is none."""

    def __init__(self, path: Path):
        check_regular(path)
        av = av_library(path)
        self.path = path
        with video_failures(path, "the video cannot be read"):
            self.container = av.open(os.path.abspath(path))  # FFmpeg takes what is before a colon for a protocol
        try:
            self.read_header()
        except BaseException:
            self.container.close()
            raise

    def read_header(self) -> None:
        """Find the streams, the rate and the number of frames."""
        if not self.container.streams.video:
            raise VideoError(f"{self.path}: there are no pictures in this file")
        with video_failures(self.path, "the video cannot be read"):
            self.video = self.container.streams.video[0]
            self.video.thread_type = "AUTO"
            self.sound = next(iter(self.container.streams.audio), None)
            self.rate = Fraction(self.video.average_rate or self.video.guessed_rate or 25)
            self.time_base = Fraction(self.video.time_base or 1 / self.rate)
            self.total: int = self.video.frames

    def parts(self) -> Iterator[Frame | Sound]:
        """Frames and sound in the order in which they lie in the file."""
        with video_failures(self.path, "the video cannot be read to its end"):  # what callers raise does not come here
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
    """The pictures below a folder in order of name, `rate` of them a second, as a silent video."""

    def __init__(self, path: Path, rate: Fraction):
        self.path, self.rate, self.time_base, self.sound = path, rate, 1 / rate, None
        self.files = [path / place for place in files_below(path, picture_suffixes())]
        self.total = len(self.files)

    def parts(self) -> Iterator[Frame | Sound]:
        """The pictures."""
        for number, file in enumerate(self.files):
            yield Frame(read_rgb_image(file), number / self.rate)

    def close(self) -> None:
        """Nothing is open."""


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
    """PyAV. VideoError where it is not installed."""
    try:
        import av
    except ImportError:
        raise VideoError(f"{path}: videos need PyAV: pip install av") from None
    return av


def upright(frame: Any) -> Image.Image:
    """A frame as players show it: turned as the video says (counter-clockwise, in degrees)."""
    image: Image.Image = frame.to_image()
    turn = round(frame.rotation) % 360
    return image.rotate(turn, expand=True) if turn else image


class VideoWriter:
    """An MP4 with frames at the times of a `video`, and its sound where MP4 takes it; `notes` tell what was left out.

    Sound that comes before the first frame waits for it, as nothing can be written before the frames' size is known.
    """

    def __init__(self, path: Path, video: Video, source: Path):
        self.av, self.video, self.source = av_library(source), video, source
        self.container = self.av.open(str(path), "w", format="mp4")
        self.notes: list[str] = []
        self.waiting: list[Any] = []
        self.out: Any = None
        self.last: int | None = None
        self.size = (0, 0)
        self.sound = None if video.sound is None else self.copied(video.sound)

    def copied(self, track: Any) -> Any:
        """A copy of a sound track, None where it cannot be made."""
        try:
            return self.container.add_stream_from_template(track)
        except (ValueError, self.av.FFmpegError):
            self.notes.append(f"its sound ({track.codec_context.name}) cannot be copied to mp4 and was left out")
            return None

    def write(self, picture: Image.Image, time: Fraction | None) -> None:
        """Add a picture at a time. Odd sides are made even by a repeated edge, as codecs ask for."""
        if self.out is None:
            self.size = picture.size
            self.out = self.encoder(picture.width + picture.width % 2, picture.height + picture.height % 2)
        if picture.size != self.size:
            sizes = " to ".join(f"{width}x{height}" for width, height in (self.size, picture.size))
            raise VideoError(f"{self.source}: the size of the frames changes from {sizes} pixels, a video has one size")
        padding = ((0, picture.height % 2), (0, picture.width % 2), (0, 0))
        frame = self.av.VideoFrame.from_ndarray(np.pad(np.asarray(picture), padding, mode="edge"), format="rgb24")
        frame.time_base = self.out.codec_context.time_base
        frame.pts = self.last = self.moment(time)
        self.container.mux(self.out.encode(frame))
        self.flush()

    def moment(self, time: Fraction | None) -> int:
        """A time in ticks of the encoder, after the last one; where there is none, one frame after it."""
        base = self.out.codec_context.time_base
        following = 0 if self.last is None else self.last + max(1, round(1 / (self.video.rate * base)))
        ticks = following if time is None else round(time / base)
        return ticks if self.last is None else max(ticks, self.last + 1)

    def encoder(self, width: int, height: int) -> Any:
        """A stream for frames of this size."""
        known = self.av.codecs_available
        name, options, finest = next(row for row in CODECS if row[0] in known)
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
        """Write what the encoder still holds, and close the file."""
        if self.out is None:
            raise VideoError(f"{self.source}: there are no frames in it")
        self.container.mux(self.out.encode(None))
        self.container.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self.container.close()


__all__ = ["VIDEO_SUFFIXES", "Frame", "FrameFolder", "Sound", "Video", "VideoError", "VideoFile", "VideoWriter"]
