"""`predict` for films: every frame under the colours of its classes.

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

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.errors import write_errors
from hf_vit_seg.inference.files.prediction import FILM, FRAMES, REPORT, Job, Wishes, class_rows
from hf_vit_seg.inference.segmentation import Segmentation, class_counts
from hf_vit_seg.inference.segmenter import Segmenter

from .frames import FILM_SUFFIXES, Film, FilmFile, FilmWriter, Frame, FrameFolder, VideoError


@dataclass(frozen=True)
class FilmProgress:
    """How many frames are done, of how many as the film says (0 where it does not), and how many in a second."""

    done: int
    total: int
    frames_per_second: float
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """What has been seen of a film."""

    pixels: np.ndarray  # (K,) of each class
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    protocol: str = ""
    start: float = field(default_factory=time.perf_counter)

    def add(self, result: Segmentation) -> None:
        """One more frame."""
        height, width = result.label_map.shape
        self.pixels += result.pixels_per_class
        self.frames, self.size, self.protocol = self.frames + 1, (height, width), result.protocol

    @property
    def frames_per_second(self) -> float:
        """From the first frame's reading to the last one's writing."""
        return self.frames / max(time.perf_counter() - self.start, 1e-9)


def is_film(job: Job) -> bool:
    """Whether a job is a film, by its file's suffix, or a folder of frames."""
    return job.image.path.suffix.lower() in FILM_SUFFIXES or os.path.isdir(job.image.path)


def open_film(path: Path, rate: float | None) -> Film:
    """A film, or a folder of frames with `rate` of them a second."""
    if path.is_dir():
        return FrameFolder(path, Fraction(rate or 25).limit_denominator(1001))
    return FilmFile(path)


def predict_film(segmenter: Segmenter, job: Job, wishes: Wishes) -> Iterator[FilmProgress]:
    """Segment every frame of a film and write its results, telling how far it is after each frame.

    NAME.overlay.mp4, NAME.json with the shares of classes over all frames, and where `wishes.frames` NAME.frames/ with
    a label map for each frame, by number. VideoError or ImageFileError in one sentence; films are written whole or not.
    """
    target = job.result(FILM)
    unfinished = target.with_name(f".{target.name}.part")
    with ExitStack() as stack:
        film = open_film(job.image.path, wishes.frame_rate)
        stack.callback(film.close)
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        stack.callback(unfinished.unlink, missing_ok=True)
        writer = stack.enter_context(closing(FilmWriter(unfinished, film, job.image.path)))
        tally = Tally(np.zeros(len(segmenter.names), np.int64))
        progress = FilmProgress(0, film.total, 0.0)
        for part in film.parts():
            if not isinstance(part, Frame):
                writer.copy(part)
                continue
            result = segmenter(part.picture)
            writer.write(result.overlay(wishes.opacity, legend=False, longest_side=None), part.time)
            if wishes.frames:
                save_labels(job, tally.frames, result)
            tally.add(result)
            progress = FilmProgress(tally.frames, film.total, tally.frames_per_second)
            yield progress
        writer.finish()
        text = json_text(report(segmenter, job, wishes, film, tally, writer.notes), indent=2)
        write_files({target: unfinished.replace, job.result(REPORT): lambda path: path.write_text(text, "utf-8")})
        yield replace(progress, notes=tuple(writer.notes))


def save_labels(job: Job, number: int, result: Segmentation) -> None:
    """Write a frame's label map."""
    path = job.result(FRAMES) / f"{number:06d}.png"
    write_files({path: lambda file: result.label_image().save(file)})


def report(
    segmenter: Segmenter, job: Job, wishes: Wishes, film: Film, tally: Tally, notes: list[str]
) -> dict[str, Any]:
    """What is known of a film, for JSON: shares of classes are of all frames' pixels together."""
    return {
        "film": str(job.image.path),
        "height": tally.size[0],
        "width": tally.size[1],
        "frames": tally.frames,
        "frame_rate": round(float(film.rate), 4),
        "model": wishes.model,
        "protocol": tally.protocol,
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "frames_per_second": round(tally.frames_per_second, 3),
        "notes": notes,
        "classes": class_rows(class_counts(tally.pixels, segmenter.names, segmenter.palette)),
    }


__all__ = ["FilmProgress", "VideoError", "is_film", "predict_film"]
