"""Prediction of videos: an overlay of every frame, with its classes or its objects.

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
from PIL import Image

from hf_vit_seg.atomic_io import json_text, partial_path, write_files
from hf_vit_seg.errors import write_errors
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, class_rows
from hf_vit_seg.inference.files.suffixes import FRAMES, REPORT, VIDEO
from hf_vit_seg.inference.found_segments import FoundSegments
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.segmentation import Segmentation, class_counts
from hf_vit_seg.inference.segmenter import Segmenter

from .frames import VIDEO_SUFFIXES, Frame, FrameFolder, Video, VideoError, VideoFile, VideoWriter
from .object_colors import ObjectColors


@dataclass(frozen=True)
class VideoProgress:
    """The number of frames that are done, the total (0 if unknown), and the frames per second."""

    done: int
    total: int
    frames_per_second: float
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """The totals of a video, and the image to write for each frame."""

    names: tuple[str, ...]
    palette: np.ndarray
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    protocol: str = ""
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.names), np.int64)

    def add(self, result: Any) -> None:
        """Add the result of a frame."""
        self.frames, self.protocol = self.frames + 1, result.protocol

    def overlay(self, result: Any, opacity: float) -> Image.Image:
        """Return the frame with the colors of its result."""
        raise NotImplementedError

    def image(self, result: Any) -> Image.Image:
        """Return the label map or instance map of a frame."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return the entries of the report."""
        raise NotImplementedError

    @property
    def frames_per_second(self) -> float:
        """The throughput, including reading and writing."""
        return self.frames / max(time.perf_counter() - self.start, 1e-9)


class ClassTally(Tally):
    """The pixels of classes."""

    def add(self, result: Segmentation) -> None:
        """Count pixels."""
        super().add(result)
        height, width = result.label_map.shape
        self.size = (height, width)
        self.pixels += result.pixels_per_class

    def overlay(self, result: Segmentation, opacity: float) -> Image.Image:
        """Return the colors of classes."""
        return result.overlay(opacity, legend=False, longest_side=None)

    def image(self, result: Segmentation) -> Image.Image:
        """Return the label map."""
        return result.label_image()

    def facts(self) -> dict[str, Any]:
        """Return the shares of classes in the pixels of all frames."""
        return {"classes": class_rows(class_counts(self.pixels, self.names, self.palette))}


class ObjectTally(Tally):
    """The numbers of objects."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.colors = ObjectColors()
        self.counts: list[np.ndarray] = []  # pixels per class of each frame, (K,)

    def add(self, result: FoundSegments) -> None:
        """Count objects and their pixels."""
        super().add(result)
        self.size = result.size
        labels = np.array([instance.label for instance in result.objects], np.int64)
        self.counts.append(np.bincount(labels, minlength=len(self.names)))
        np.add.at(self.pixels, labels, [instance.area for instance in result.objects])

    def overlay(self, result: FoundSegments, opacity: float) -> Image.Image:
        """Return a color for each object, which it keeps in the next frames."""
        return result.overlay(opacity, longest_side=None, colors=self.colors.assign(result))

    def image(self, result: FoundSegments) -> Image.Image:
        """Return the instance map."""
        return result.instance_image()

    def facts(self) -> dict[str, Any]:
        """Return the numbers of objects of each class that occurs: the mean over frames, and the largest."""
        counts = np.stack(self.counts)
        rows = class_rows(class_counts(self.pixels, self.names, self.palette))
        total = self.frames * self.size[0] * self.size[1]
        for row in rows:
            own = counts[:, row["id"]]
            row |= {"share": round(row["pixels"] / total, 6)}
            row |= {"objects_per_frame": round(float(own.mean()), 3), "most_objects": int(own.max())}
        return {"classes": rows}


def is_video(job: Job) -> bool:
    """Return whether a job is a video file (by its suffix) or a folder of frames."""
    return job.image.path.suffix.lower() in VIDEO_SUFFIXES or os.path.isdir(job.image.path)


def open_video(path: Path, rate: float | None) -> Video:
    """Open a video file, or a folder of frames with `rate` frames per second."""
    if path.is_dir():
        return FrameFolder(path, Fraction(rate or 25).limit_denominator(1001))
    return VideoFile(path)


def predict_video(
    segmenter: Segmenter | InstanceSegmenter, job: Job, options: PredictOptions
) -> Iterator[VideoProgress]:
    """Segment every frame of a video and write its results, yielding the progress after each frame.

    NAME.overlay.mp4, NAME.json with the shares of classes over all frames or their numbers of objects, and with
    `options.frames` NAME.frames/ with a label map or instance map for each frame, by number. Raises VideoError or
    ImageFileError; a video is complete or not written.
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
        kind = ObjectTally if isinstance(segmenter, InstanceSegmenter) else ClassTally
        tally = kind(segmenter.names, segmenter.palette)
        progress = VideoProgress(0, video.total, 0.0)
        for part in video.parts():
            if not isinstance(part, Frame):
                writer.copy(part)
                continue
            result = segmenter(part.picture)
            overlay = tally.overlay(result, options.opacity)
            with write_errors(target):
                writer.write(overlay, part.time)
            if options.frames:
                save_frame(job, tally.frames, tally.image(result))
            tally.add(result)
            progress = VideoProgress(tally.frames, video.total, tally.frames_per_second)
            yield progress
        with write_errors(target):
            writer.finish()
        text = json_text(video_report(segmenter, job, options, video, tally, writer.notes), indent=2)
        write_files({target: unfinished.replace, job.result(REPORT): lambda path: path.write_text(text, "utf-8")})
        yield replace(progress, notes=tuple(writer.notes))


def save_frame(job: Job, number: int, image: Image.Image) -> None:
    """Write a frame's label map or instance map."""
    write_files({job.result(FRAMES) / f"{number:06d}.png": lambda file: image.save(file)})


def video_report(
    segmenter: Segmenter | InstanceSegmenter,
    job: Job,
    options: PredictOptions,
    video: Video,
    tally: Tally,
    notes: list[str],
) -> dict[str, Any]:
    """Return the report of a video for JSON; shares are over the pixels of all frames."""
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
        **tally.facts(),
    }


__all__ = ["VideoError", "VideoProgress", "is_video", "predict_video"]
