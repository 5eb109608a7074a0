"""Prediction of videos: an overlay of every frame.

Shapes: H W a frame, K classes.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hf_vit_seg.atomic_io import json_text, partial_path, write_files
from hf_vit_seg.errors import write_errors
from hf_vit_seg.inference.files.prediction import FRAMES, REPORT, VIDEO, Job, PredictOptions, class_rows
from hf_vit_seg.inference.segmentation import Segmentation, class_counts
from hf_vit_seg.inference.segmenter import Segmenter

from .frames import VIDEO_SUFFIXES, Frame, FrameFolder, Video, VideoError, VideoFile, VideoWriter


@dataclass(frozen=True)
class VideoProgress:
    """The number of frames that are done, the total (0 if unknown), and the frames per second."""

    done: int
    total: int
    frames_per_second: float
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """Pixel counts and other totals of a video."""

    pixels: np.ndarray  # (K,) of each class
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    protocol: str = ""
    start: float = field(default_factory=time.perf_counter)

    def add(self, result: Segmentation) -> None:
        """Add the result of a frame."""
        height, width = result.label_map.shape
        self.pixels += result.pixels_per_class
        self.frames, self.size, self.protocol = self.frames + 1, (height, width), result.protocol

    @property
    def frames_per_second(self) -> float:
        """The throughput, including reading and writing."""
        return self.frames / max(time.perf_counter() - self.start, 1e-9)


def is_video(job: Job) -> bool:
    """Whether a job is a video file (by its suffix) or a folder of frames."""
    return job.image.path.suffix.lower() in VIDEO_SUFFIXES or os.path.isdir(job.image.path)


def open_video(path: Path, rate: float | None) -> Video:
    """Open a video file, or a folder of frames with `rate` frames per second."""
    if path.is_dir():
        return FrameFolder(path, Fraction(rate or 25).limit_denominator(1001))
    return VideoFile(path)


def predict_video(segmenter: Segmenter, job: Job, options: PredictOptions) -> Iterator[VideoProgress]:
    """Segment every frame of a video and write its results, yielding the progress after each frame.

    NAME.overlay.mp4, NAME.json with the shares of classes over all frames, and with `options.frames` NAME.frames/ with
    a label map for each frame, by number. Raises VideoError or ImageFileError; a video is complete or not written.
    """
    target = job.result(VIDEO)
    unfinished = partial_path(target)
    with ExitStack() as stack:
        video = open_video(job.image.path, options.frame_rate)
        stack.callback(video.close)
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        stack.callback(unfinished.unlink, missing_ok=True)
        writer = stack.enter_context(closing(VideoWriter(unfinished, video, job.image.path)))
        tally = Tally(np.zeros(len(segmenter.names), np.int64))
        progress = VideoProgress(0, video.total, 0.0)
        for part in video.parts():
            if not isinstance(part, Frame):
                writer.copy(part)
                continue
            result = segmenter(part.picture)
            overlay = result.overlay(options.opacity, legend=False, longest_side=None)
            with write_errors(target):
                writer.write(overlay, part.time)
            if options.frames:
                save_labels(job, tally.frames, result)
            tally.add(result)
            progress = VideoProgress(tally.frames, video.total, tally.frames_per_second)
            yield progress
        with write_errors(target):
            writer.finish()
        text = json_text(report(segmenter, job, options, video, tally, writer.notes), indent=2)
        write_files({target: unfinished.replace, job.result(REPORT): lambda path: path.write_text(text, "utf-8")})
        yield replace(progress, notes=tuple(writer.notes))


def save_labels(job: Job, number: int, result: Segmentation) -> None:
    """Write a frame's label map."""
    path = job.result(FRAMES) / f"{number:06d}.png"
    write_files({path: lambda file: result.label_image().save(file)})


def report(
    segmenter: Segmenter, job: Job, options: PredictOptions, video: Video, tally: Tally, notes: list[str]
) -> dict[str, Any]:
    """The report of a video for JSON; class shares are over the pixels of all frames."""
    return {
        "video": str(job.image.path),
        "height": tally.size[0],
        "width": tally.size[1],
        "frames": tally.frames,
        "frame_rate": round(float(video.rate), 4),
        "model": options.model,
        "protocol": tally.protocol,
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "frames_per_second": round(tally.frames_per_second, 3),
        "notes": notes,
        "classes": class_rows(class_counts(tally.pixels, segmenter.names, segmenter.palette)),
    }


__all__ = ["VideoError", "VideoProgress", "is_video", "predict_video"]
