"""Predict the classes or the keypoints of many image files, and write a report for each.

Shapes: C channels, H W pixels, P persons, K keypoints.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.drawing.overlays import save_overlay
from hf_vit_seg.drawing.skeletons import MIN_SCORE, Skeleton, draw_skeletons
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.dense.image_preparation import milliseconds_since
from hf_vit_seg.inference.image_inputs import load_file
from hf_vit_seg.inference.output_checks import check_outputs
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.loading.models import label_names

from .boxes import Boxes, PersonBox, read_boxes
from .prediction import Job, Outcome, PredictOptions, run_jobs, write_results
from .suffixes import OVERLAY

TOP_CLASSES = 5  # in reports, unless --top-k is given


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image (C, H, W), as RGB for display, and the milliseconds for reading the file."""

    pixels: torch.Tensor
    shown: Image.Image
    milliseconds: float


@dataclass(frozen=True, eq=False)
class ImageOutput:
    """The output of a model for an image, and the milliseconds of the model; `persons` are the boxes of a pose."""

    image: LoadedImage
    output: torch.Tensor
    milliseconds: float
    persons: Sequence[PersonBox] = ()


def load_image(model: Classifier | PoseEstimator, job: Job, options: PredictOptions) -> LoadedImage:
    """Read the image of a job."""
    start = time.perf_counter()
    pixels, shown, _ = load_file(job.image.path, model.channels, model.processor, options.max_pixels)
    assert shown is not None
    return LoadedImage(pixels, shown, milliseconds_since(start))


def image_report(
    model: Classifier | PoseEstimator, job: Job, output: ImageOutput, options: PredictOptions
) -> dict[str, Any]:
    """Return the part of a report that all tasks share; timings are in milliseconds."""
    return {
        "image": str(job.image.path),
        "height": output.image.pixels.shape[1],
        "width": output.image.pixels.shape[2],
        "model": options.model,
        "device": str(model.device),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "timings_ms": {"read": round(output.image.milliseconds, 2), "model": round(output.milliseconds, 2)},
    }


def classify(classifier: Classifier, jobs: Sequence[Job], options: PredictOptions) -> Iterator[Outcome]:
    """Classify the images of jobs, and write a report of the most likely classes of each."""
    names, count = label_names(classifier.model.config), options.top_k or TOP_CLASSES

    def compute(image: LoadedImage) -> ImageOutput:
        start = time.perf_counter()
        probabilities = classifier.pixel_probabilities(image.pixels)
        check_outputs(probabilities, image.pixels)
        return ImageOutput(image, probabilities, milliseconds_since(start))

    def write(job: Job, output: ImageOutput) -> Outcome:
        order = output.output.argsort(descending=True, stable=True)[:count].tolist()
        classes = [{"id": k, "name": names[k], "score": round(float(output.output[k]), 6)} for k in order]
        return write_results(job, {}, image_report(classifier, job, output, options) | {"top_classes": classes})

    return run_jobs(jobs, lambda job: load_image(classifier, job, options), compute, write)


def estimate_poses(estimator: PoseEstimator, jobs: Sequence[Job], options: PredictOptions) -> Iterator[Outcome]:
    """Find the keypoints of the persons of each image, write a report, and draw them."""
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    if boxes is not None and jobs and not any(boxes.image_id(job.image) is not None for job in jobs):
        raise HfVitSegError(
            f"--boxes {boxes.path} lists none of the {len(jobs)} images: its file names, or the image ids of results "
            "as integers, must be those of the files"
        )
    skeleton = Skeleton.of(
        estimator.names, boxes and boxes.bones, getattr(estimator.model.config, "pose_flip_pairs", None)
    )

    def load(job: Job) -> tuple[LoadedImage, list[PersonBox]]:
        image = load_image(estimator, job, options)
        height, width = image.pixels.shape[1:]
        return image, find_persons(boxes, job, height, width)

    def compute(loaded: tuple[LoadedImage, list[PersonBox]]) -> ImageOutput:
        image, persons = loaded
        start = time.perf_counter()
        keypoints = estimator.estimate(image.pixels, [person.box for person in persons])
        check_outputs(keypoints, image.pixels)
        return ImageOutput(image, keypoints, milliseconds_since(start), persons)

    def write(job: Job, output: ImageOutput) -> Outcome:
        content = image_report(estimator, job, output, options) | {
            "image_id": None if boxes is None else boxes.image_id(job.image),
            "category_id": 1 if boxes is None else boxes.category,
            "keypoint_names": estimator.names,
            "persons": person_rows(output),
        }
        savers: dict[str, Callable[[Path], Any]] = {}
        if options.overlay:
            savers[OVERLAY] = lambda path: save_overlay(draw_persons(output, skeleton), path)
        return write_results(job, savers, content)

    return run_jobs(jobs, load, compute, write)


def find_persons(boxes: Boxes | None, job: Job, height: int, width: int) -> list[PersonBox]:
    """Return the boxes of an image; without a file of boxes, the whole image is one person."""
    return [PersonBox((0, 0, width, height))] if boxes is None else boxes.find(job.image, height, width)


def person_rows(output: ImageOutput) -> list[dict[str, Any]]:
    """Convert persons for JSON; the score is the mean of the keypoints' scores times that of the detection."""
    return [
        {
            "box": list(person.box),
            "score": round(float(points[:, 2].mean()) * person.score, 6),
            "keypoints": [[round(value, 3) for value in point] for point in points.tolist()],
        }
        for person, points in zip(output.persons, output.output, strict=True)
    ]


def draw_persons(output: ImageOutput, skeleton: Skeleton) -> Image.Image:
    """Draw the keypoints of all persons on the image."""
    people = np.asarray(output.output, dtype=float)
    return draw_skeletons(
        output.image.shown, people, people[..., 2] >= MIN_SCORE, (1.0, 1.0), skeleton, show_uncertain=True
    )


__all__ = ["classify", "estimate_poses"]
