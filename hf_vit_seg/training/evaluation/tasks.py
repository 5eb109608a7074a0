"""Evaluation of each task.

Shapes: B images, K classes or keypoints, C channels, H W pixels, h w of a person's crop, P persons.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.functional import interpolate

from hf_vit_seg.data.collation import normalize_images
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.samples import Labels, Person
from hf_vit_seg.data.transforms.context import TransformContext
from hf_vit_seg.data.transforms.person_crops import PersonCrop, crop_person, person_size
from hf_vit_seg.inference.classifier import class_input
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.metrics.accuracy import TopKAccuracy
from hf_vit_seg.metrics.boundary import BoundaryIoU
from hf_vit_seg.metrics.calibration import CalibrationError
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.metrics.keypoint_similarity import LabeledPersons, PredictedPersons, oks_average_precision
from hf_vit_seg.metrics.multi_label import MultiLabelScores
from hf_vit_seg.models.heatmaps import keypoints_from_heatmaps
from hf_vit_seg.records import read_record
from hf_vit_seg.training.recipe.keypoints import describe_sigmas, oks_sigmas
from hf_vit_seg.training.recipe.schema import Task
from hf_vit_seg.training.reports.memory_advice import evaluation_memory_advice

from .evaluate import Evaluation, EvaluationContext, in_evaluation, own_batches, sum_over_processes
from .segments import evaluate_segments


def evaluate(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate on a split; called by all processes, which all get the result. The model's mode is restored."""
    start = time.perf_counter()
    dataset.fill = TransformContext.from_processor(context.processor, context.recipe.task).mean
    with in_evaluation(context), evaluation_memory_advice():
        found = EVALUATIONS[context.recipe.task](context, dataset)
    return replace(found, seconds=time.perf_counter() - start)


def evaluate_segmentation(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Compare label maps with labels, at the resolution of the labels or of the model's input."""
    settings, table = context.recipe.evaluation, dataset.class_table
    protocol = read_record(Protocol, settings.protocol, "evaluation.protocol")
    segmenter = Segmenter(context.model, context.processor, context.device, protocol)
    kinds = (ConfusionMatrix, BoundaryIoU) if settings.boundary_iou else (ConfusionMatrix,)
    metrics = [kind(max(len(table.names), 2), table.ignore_index, device=context.device) for kind in kinds]

    def read(index: int) -> tuple[Any, torch.Tensor]:
        sample = dataset.read(index)
        assert isinstance(sample.target, torch.Tensor)
        return segmenter.prepare_pixels(sample.image), sample.target

    def shape(pair: tuple[Any, torch.Tensor]) -> Any:
        return pair[1].shape, [view.shape for view in pair[0].views]

    for batch in own_batches(context, len(dataset), read, shape):
        images, labels = [image for image, _ in batch], torch.stack([label for _, label in batch]).to(context.device)
        if settings.resolution == "resized":
            labels = resize_labels(labels, images[0].pixel_values.shape[-2:])
        maps = segmenter.label_maps(images, (labels.shape[-2], labels.shape[-1]))
        for metric in metrics:
            metric.update(maps, labels)
    resolution = {"original": "the resolution of the labels", "resized": "the resolution of the model's input"}
    sum_over_processes(metrics, context.accelerator)
    scores = {name: value for metric in metrics for name, value in metric.scores().items()}
    description = f"{segmenter.describe()}; evaluated at {resolution[settings.resolution]}"
    return Evaluation(scores, len(dataset), description, confusion=metrics[0].counts.cpu())


def resize_labels(labels: torch.Tensor, size: Any) -> torch.Tensor:
    """Resize labels (B, H, W) int64 with nearest-neighbor interpolation."""
    return interpolate(labels[:, None].to(torch.float64), tuple(size), mode="nearest-exact")[:, 0].to(torch.int64)


def evaluate_classification(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate the classes of images, resized and cropped by the processor."""
    if dataset.multi_label:
        return evaluate_multi_label(context, dataset)
    accuracy, calibration = TopKAccuracy(device=context.device), CalibrationError(device=context.device)
    matrix = ConfusionMatrix(len(dataset.class_table.names), None, context.device)

    def read(index: int) -> tuple[torch.Tensor, Any]:
        sample = dataset.read(index)
        return class_input(context.processor, sample.image), sample.target

    for batch in own_batches(context, len(dataset), read, lambda pair: pair[0].shape):
        labels = torch.tensor([label for _, label in batch], device=context.device)
        pixels = torch.cat([pixels for pixels, _ in batch]).to(context.device)
        logits = context.model(pixel_values=pixels).logits
        accuracy.update(logits, labels)
        calibration.update(logits.double().softmax(dim=-1), labels)
        matrix.update(logits.argmax(dim=-1), labels)
    sum_over_processes([accuracy, calibration, matrix], context.accelerator)
    return Evaluation(
        scores=accuracy.scores() | calibration.scores(),
        samples=len(dataset),
        protocol="whole images, resized and cropped by the image processor",
        confusion=matrix.counts.cpu(),
        calibration=calibration.counts.cpu(),
    )


def evaluate_multi_label(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate images with any number of classes."""
    scores, classes = MultiLabelScores(), len(dataset.class_table.names)

    def read(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = dataset.read(index)
        assert isinstance(sample.target, Labels)
        return class_input(context.processor, sample.image), sample.target.as_vector(classes)

    for batch in own_batches(context, len(dataset), read, lambda pair: pair[0].shape):
        pixels = torch.cat([pixels for pixels, _ in batch]).to(context.device)
        logits = context.model(pixel_values=pixels).logits
        scores.update(logits.float().sigmoid(), torch.stack([labels for _, labels in batch]))
    if context.accelerator.num_processes > 1:
        scores.rows = gather_object(scores.rows)
    protocol = "whole images, resized and cropped by the image processor; classes from a probability of 0.5"
    return Evaluation(scores.scores(), len(dataset), protocol)


def evaluate_pose(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate keypoints of persons in their labeled boxes by object keypoint similarity, as pycocotools does.

    The model sees boxes cut by the image border. Predictions are scored against all annotations of the images as they
    are in the file; those that match crowds and persons without keypoints are ignored.
    """
    size = person_size(context.processor)
    found = list(persons(context, dataset, size))
    everyone = gather_object(found) if context.accelerator.num_processes > 1 else found
    everyone = sorted(everyone, key=lambda each: each[0].annotation_id)  # independent of the number of processes
    names = dataset.class_table.names
    scores = oks_average_precision(
        build_predictions(everyone),
        build_labels(labeled_persons(dataset, everyone)),
        oks_sigmas(context.recipe, names),
    )
    protocol = (
        f"persons in their labeled boxes, cut by the image border, resized to {size[0]}x{size[1]} (height x width); "
        "scored against the annotations with uncut boxes, as pycocotools does, "
        f"with {describe_sigmas(context.recipe, names)}"
    )
    return Evaluation(scores, len(dataset), protocol)


Found = tuple[Person, np.ndarray, float]  # a person, predicted keypoints (K, 2) in the image, and their mean score


def persons(context: EvaluationContext, dataset: RawDataset, size: tuple[int, int]) -> Iterator[Found]:
    """Yield this process's persons with the predicted keypoints and mean score."""

    def read(index: int) -> tuple[torch.Tensor, PersonCrop, Person]:
        sample = dataset.read(index)
        assert isinstance(sample.target, Person)
        image, crop = crop_person(sample.image, sample.target, size)
        return normalize_images(context.processor, [image]), crop, sample.target

    for batch in own_batches(context, len(dataset), read, lambda item: item[0].shape):
        pixels = torch.cat([pixels for pixels, _, _ in batch]).to(context.device)
        points, scores = keypoints_from_heatmaps(context.model(pixel_values=pixels).heatmaps, size)
        for (_, crop, person), own_points, own_scores in zip(batch, points.cpu(), scores.cpu(), strict=True):
            yield person, crop.to_image(own_points).numpy(), float(own_scores.mean())


def build_predictions(found: list[Found]) -> PredictedPersons:
    """Collect the predictions of all persons."""
    return PredictedPersons(
        images=np.array([person.image_id for person, _, _ in found]),
        keypoints=np.stack([points for _, points, _ in found]),
        scores=np.array([score for _, _, score in found]),
    )


def labeled_persons(dataset: RawDataset, found: list[Found]) -> list[Person]:
    """All labeled persons of the images, with crowds and others that are no samples, if the source knows them."""
    everyone = [person for person, _, _ in found]
    find = getattr(dataset.source, "labeled_persons", None)
    return everyone if find is None else find({person.image_id for person in everyone})


def build_labels(everyone: list[Person]) -> LabeledPersons:
    """Collect the labels of all persons."""
    return LabeledPersons(
        images=np.array([person.image_id for person in everyone]),
        keypoints=torch.stack([person.keypoints for person in everyone]).numpy(),
        areas=np.array([person.area for person in everyone]),
        boxes=np.array([person.box for person in everyone]),
        crowds=np.array([person.crowd for person in everyone]),
    )


EVALUATIONS: dict[Task, Callable[[EvaluationContext, RawDataset], Evaluation]] = {
    "segmentation": evaluate_segmentation,
    "classification": evaluate_classification,
    "pose": evaluate_pose,
    "instance": evaluate_segments,
    "panoptic": evaluate_segments,
}
