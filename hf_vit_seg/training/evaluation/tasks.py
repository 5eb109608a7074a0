"""Evaluation of each task.

Shapes: B images, K classes or keypoints, C channels, H W pixels, h w of a person's crop, P persons.
"""

import logging
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
from hf_vit_seg.data.list_formatting import format_list
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

from .evaluate import Evaluation, EvaluationContext, InvalidOutputs, in_evaluation, local_batches, sum_over_processes
from .sample_scores import ValidationLoss, gather_scores, update_by_image
from .segment_evaluation import evaluate_segments

logger = logging.getLogger(__name__)


def evaluate(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate on a split; called by all processes, which all get the result. The model's mode is restored."""
    start = time.perf_counter()
    dataset.use_context(TransformContext.from_processor(context.processor, context.recipe.task))
    context = replace(context, invalid_outputs=InvalidOutputs())
    hook = context.model.register_forward_hook(context.invalid_outputs.check)
    try:
        with in_evaluation(context), evaluation_memory_advice():
            evaluation = EVALUATIONS[context.recipe.task](context, dataset)
    finally:
        hook.remove()
    return replace(evaluation, seconds=time.perf_counter() - start, nan_samples=find_nan_samples(context, dataset))


def find_nan_samples(context: EvaluationContext, dataset: RawDataset) -> tuple[str, ...]:
    """Return the names of the samples of all processes with invalid outputs; the main process also warns."""
    indices = context.invalid_outputs.indices()
    if context.accelerator.num_processes > 1:
        indices = gather_object(indices)
    names = tuple(dataset.name(index) for index in sorted(indices))
    if names and context.accelerator.is_main_process:
        logger.warning(
            "the outputs of the model contain NaN or infinity for %d of %d samples, which makes their scores and the "
            "loss meaningless: %s. Look for extreme values in these images; if they mark pixels without data, set "
            "data.nodata",
            len(names),
            len(dataset),
            format_list(names),
        )
    return names


def evaluate_segmentation(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Compare label maps with labels, at the resolution of the labels or of the model's input."""
    settings, table = context.recipe.evaluation, dataset.class_table
    protocol = read_record(Protocol, settings.protocol, "evaluation.protocol")
    segmenter = Segmenter(context.model, context.processor, context.device, protocol)
    classes, ignore_index = max(len(table.names), 2), table.ignore_index
    matrix = ConfusionMatrix(classes, ignore_index, device=context.device)
    boundaries = BoundaryIoU(classes, ignore_index, device=context.device) if settings.boundary_iou else None

    loss = ValidationLoss(context.objective if protocol.is_single_pass else None)
    indices: list[int] = []
    image_means: list[torch.Tensor] = []

    def read(index: int) -> tuple[int, Any, torch.Tensor]:
        sample = dataset.read(index)
        assert isinstance(sample.target, torch.Tensor)
        return index, segmenter.prepare_pixels(sample.image), sample.target

    def shape(item: tuple[int, Any, torch.Tensor]) -> Any:
        return item[2].shape, [view.shape for view in item[1].views]

    for batch in local_batches(context, len(dataset), read, shape):
        images, labels = [image for _, image, _ in batch], torch.stack([label for *_, label in batch])
        labels = labels.to(context.device)
        if settings.resolution == "resized":
            labels = resize_labels(labels, images[0].pixel_values.shape[-2:])

        def logits(pixel_values: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
            logits = segmenter.logits(pixel_values)
            loss.update(logits, resize_labels(labels, pixel_values.shape[-2:]))
            return logits

        maps = segmenter.maps(images, size=(labels.shape[-2], labels.shape[-1]), model=logits).labels
        image_means.append(update_by_image(matrix, maps, labels))
        if boundaries is not None:
            boundaries.update(maps, labels)
        indices += [index for index, *_ in batch]
    resolution = {"original": "the resolution of the labels", "resized": "the resolution of the model's input"}
    metrics = [matrix] if boundaries is None else [matrix, boundaries]
    sum_over_processes(metrics, context.accelerator)
    scores = {name: value for metric in metrics for name, value in metric.scores().items()}
    scores |= loss.scores(context.accelerator)
    description = f"{segmenter.describe()}; evaluated at {resolution[settings.resolution]}"
    ranking = gather_scores(indices, image_means, context.accelerator)
    return Evaluation(scores, len(dataset), description, confusion=matrix.counts.cpu(), sample_scores=ranking)


def resize_labels(labels: torch.Tensor, size: Any) -> torch.Tensor:
    """Resize labels (B, H, W) int64 with nearest-neighbor interpolation."""
    return interpolate(labels[:, None].to(torch.float64), tuple(size), mode="nearest-exact")[:, 0].to(torch.int64)


def evaluate_classification(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate the classes of images, resized and cropped by the processor."""
    if dataset.multi_label:
        return evaluate_multi_label(context, dataset)
    accuracy, calibration = TopKAccuracy(device=context.device), CalibrationError(device=context.device)
    matrix = ConfusionMatrix(len(dataset.class_table.names), None, context.device)
    loss = ValidationLoss(context.objective)
    indices: list[int] = []
    confidences: list[torch.Tensor] = []

    def read(index: int) -> tuple[int, torch.Tensor, Any]:
        sample = dataset.read(index)
        return index, class_input(context.processor, sample.image), sample.target

    for batch in local_batches(context, len(dataset), read, lambda item: item[1].shape):
        labels = torch.tensor([label for *_, label in batch], device=context.device)
        pixels = torch.cat([pixels for _, pixels, _ in batch]).to(context.device)
        logits = context.model(pixel_values=pixels).logits
        probabilities = logits.double().softmax(dim=-1)
        accuracy.update(logits, labels)
        calibration.update(probabilities, labels)
        matrix.update(logits.argmax(dim=-1), labels)
        loss.update(logits, labels)
        indices += [index for index, *_ in batch]
        confidences.append(probabilities.gather(1, labels[:, None])[:, 0])
    sum_over_processes([accuracy, calibration, matrix], context.accelerator)
    return Evaluation(
        scores=accuracy.scores() | calibration.scores() | loss.scores(context.accelerator),
        samples=len(dataset),
        protocol="whole images, resized and cropped by the image processor",
        confusion=matrix.counts.cpu(),
        calibration=calibration.counts.cpu(),
        sample_scores=gather_scores(indices, confidences, context.accelerator),
    )


def evaluate_multi_label(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate images with any number of classes."""
    scores, classes = MultiLabelScores(), len(dataset.class_table.names)
    loss = ValidationLoss(context.objective)

    def read(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = dataset.read(index)
        assert isinstance(sample.target, Labels)
        return class_input(context.processor, sample.image), sample.target.as_vector(classes)

    for batch in local_batches(context, len(dataset), read, lambda pair: pair[0].shape):
        pixels = torch.cat([pixels for pixels, _ in batch]).to(context.device)
        logits = context.model(pixel_values=pixels).logits
        labels = torch.stack([labels for _, labels in batch])
        scores.update(logits.float().sigmoid(), labels)
        loss.update(logits, labels.to(logits.device))
    if context.accelerator.num_processes > 1:
        scores.rows = gather_object(scores.rows)
    protocol = "whole images, resized and cropped by the image processor; classes from a probability of 0.5"
    return Evaluation(scores.scores() | loss.scores(context.accelerator), len(dataset), protocol)


def evaluate_pose(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Evaluate keypoints of persons in their labeled boxes by object keypoint similarity, as pycocotools does.

    The model sees boxes cut by the image border. Predictions are scored against all annotations of the images as they
    are in the file; those that match crowds and persons without keypoints are ignored.
    """
    size = person_size(context.processor)
    samples = list(persons(context, dataset, size))
    gathered = gather_object(samples) if context.accelerator.num_processes > 1 else samples
    predictions = sorted(gathered, key=lambda each: each[0].annotation_id)  # independent of the number of processes
    names = dataset.class_table.names
    scores = oks_average_precision(
        build_predictions(predictions),
        build_labels(labeled_persons(dataset, predictions)),
        oks_sigmas(context.recipe, names),
    )
    protocol = (
        f"persons in their labeled boxes, cut by the image border, resized to {size[0]}x{size[1]} (height x width); "
        "scored against the annotations with uncut boxes, as pycocotools does, "
        f"with {describe_sigmas(context.recipe, names)}"
    )
    return Evaluation(scores, len(dataset), protocol)


# A person, predicted keypoints (K, 2) in the image, and their mean score.
PersonPrediction = tuple[Person, np.ndarray, float]


def persons(context: EvaluationContext, dataset: RawDataset, size: tuple[int, int]) -> Iterator[PersonPrediction]:
    """Yield this process's persons with the predicted keypoints and mean score."""

    def read(index: int) -> tuple[torch.Tensor, PersonCrop, Person]:
        sample = dataset.read(index)
        assert isinstance(sample.target, Person)
        image, crop = crop_person(sample.image, sample.target, size)
        return normalize_images(context.processor, [image]), crop, sample.target

    for batch in local_batches(context, len(dataset), read, lambda item: item[0].shape):
        pixels = torch.cat([pixels for pixels, _, _ in batch]).to(context.device)
        points, scores = keypoints_from_heatmaps(context.model(pixel_values=pixels).heatmaps, size)
        for (_, crop, person), own_points, own_scores in zip(batch, points.cpu(), scores.cpu(), strict=True):
            yield person, crop.to_image(own_points).numpy(), float(own_scores.mean())


def build_predictions(predictions: list[PersonPrediction]) -> PredictedPersons:
    """Collect the predictions of all persons."""
    return PredictedPersons(
        images=np.array([person.image_id for person, _, _ in predictions]),
        keypoints=np.stack([points for _, points, _ in predictions]),
        scores=np.array([score for _, _, score in predictions]),
    )


def labeled_persons(dataset: RawDataset, predictions: list[PersonPrediction]) -> list[Person]:
    """Return all labeled persons of the images; if the source has them, also crowds and persons without keypoints."""
    samples = [person for person, _, _ in predictions]
    find = getattr(dataset.source, "labeled_persons", None)
    return samples if find is None else find({person.image_id for person in samples})


def build_labels(people: list[Person]) -> LabeledPersons:
    """Collect the labels of all persons."""
    return LabeledPersons(
        images=np.array([person.image_id for person in people]),
        keypoints=torch.stack([person.keypoints for person in people]).numpy(),
        areas=np.array([person.area for person in people]),
        boxes=np.array([person.box for person in people]),
        crowds=np.array([person.crowd for person in people]),
    )


EVALUATIONS: dict[Task, Callable[[EvaluationContext, RawDataset], Evaluation]] = {
    "segmentation": evaluate_segmentation,
    "classification": evaluate_classification,
    "pose": evaluate_pose,
    "instance": evaluate_segments,
    "panoptic": evaluate_segments,
}
