"""Figures of a model's predictions on samples of a split, evenly spaced.

Shapes: C channels, H W pixels, K classes or keypoints.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.images.display import RGB, to_rgb_image
from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import Labels, Person, Segments
from hf_vit_seg.drawing.overlays import percent
from hf_vit_seg.drawing.skeletons import Skeleton
from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.metrics.multi_label import THRESHOLD
from hf_vit_seg.records import read_record
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, in_evaluation
from hf_vit_seg.training.evaluation.sample_scores import SampleScores
from hf_vit_seg.training.evaluation.segment_evaluation import build_segmenter
from hf_vit_seg.training.recipe.schema import Recipe, Task

from .layout import add_caption
from .poses import pose_figure
from .sample_figures import ClassifiedImage, classification_figure, figure_paths, segmentation_figure, write_figures
from .segment_figures import segment_figure

MAX_NAMES = 3  # classes in a caption
IMAGES, MAX_IMAGES = "images", 4  # a folder of the samples, and how many images it has
MAX_EXTREME_SAMPLES = 3  # samples with the lowest scores, and with the highest
SCORE_TITLES: dict[Task, str] = {
    "segmentation": "mIoU",
    "classification": "probability of the label",
    "instance": "panoptic quality",
    "panoptic": "panoptic quality",
}
Figures = dict[str, Image.Image]


def write_sample_images(context: EvaluationContext, dataset: RawDataset, folder: Path) -> list[Path]:
    """Write the number of figures set by the recipe and return their paths; called by one process only."""
    chosen = select_samples(context.recipe, dataset)
    if not chosen:
        return []
    if context.recipe.task in ("segmentation", *SEGMENT_TASKS):
        write_images(dataset, chosen[:MAX_IMAGES], folder / IMAGES)
    with in_evaluation(context):
        return write_figures(folder, DRAW[context.recipe.task](context, dataset, chosen))


def write_images(dataset: RawDataset, chosen: Sequence[int], folder: Path) -> None:
    """Write the unprocessed RGB images of samples for the demo of the trained model; none for other images."""
    samples = [dataset.read(index) for index in chosen]
    images = {sample.name: to_rgb_image(sample.image) for sample in samples if is_rgb(sample.image)}
    if images:
        write_figures(folder, images)


def is_rgb(image: torch.Tensor) -> bool:
    """Return whether an image (C, H, W) is RGB of 8 or 16 bits."""
    return image.dtype in (torch.uint8, torch.uint16) and len(image) == RGB


def write_extreme_samples(
    context: EvaluationContext, dataset: RawDataset, scores: SampleScores, folder: Path
) -> list[Path]:
    """Draw the samples with the lowest and highest scores as worst_1.png, ..., best_1.png, ... and return their paths.

    Empty if the task has no sample scores, or if the recipe draws no samples. Called by one process.
    """
    count = min(MAX_EXTREME_SAMPLES, context.recipe.evaluation.samples, len(scores) // 2)
    if not count:
        return []
    title = SCORE_TITLES[context.recipe.task]
    figures: Figures = {}
    with in_evaluation(context):
        for kind, chosen in (("worst", scores[:count]), ("best", scores[::-1][:count])):
            for rank, (index, score) in enumerate(chosen, start=1):
                (figure,) = DRAW[context.recipe.task](context, dataset, [index]).values()
                figures[f"{kind}_{rank}"] = add_caption(figure, f"  {dataset.name(index)}, {title} {percent(score)}")
    return write_figures(folder, figures)


def select_samples(recipe: Recipe, dataset: RawDataset) -> list[int]:
    """Return the indices of the samples to draw."""
    count = min(recipe.evaluation.samples, len(dataset))
    return [index * len(dataset) // count for index in range(count)]


def have_sample_images(recipe: Recipe, dataset: RawDataset, folder: Path) -> bool:
    """Return whether all figures of `write_sample_images` exist."""
    chosen = select_samples(recipe, dataset)
    names = dict.fromkeys(["predictions"] if recipe.task == "classification" else map(dataset.name, chosen))
    return not chosen or all(path.exists() for path in figure_paths(folder, names))


def segmentation_figures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Figures:
    """Draw image, truth, prediction and errors of each sample."""
    protocol = read_record(Protocol, context.recipe.evaluation.protocol, "evaluation.protocol")
    segmenter = Segmenter(context.model, context.processor, context.device, protocol)
    figures = {}
    for sample in map(dataset.read, chosen):
        labels = segmenter.maps([segmenter.prepare(sample.image)], model=segmenter.logits).labels[0]
        figures[sample.name] = segmentation_figure(
            sample.image,
            sample.target,
            labels,
            segmenter.names,
            segmenter.palette,
            dataset.class_table.ignore_index,
        )
    return figures


def classification_figures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Figures:
    """Draw all samples in one figure with true and predicted classes."""
    classifier, images = Classifier(context.model, context.processor, context.device), []
    names = dataset.class_table.names
    for sample in map(dataset.read, chosen):
        probabilities = classifier.probabilities(sample.image)
        if isinstance(sample.target, Labels):
            truth, found = list(sample.target.indices), (probabilities >= THRESHOLD).nonzero()[:, 0].tolist()
        else:
            assert isinstance(sample.target, int)
            truth, found = [sample.target], [int(probabilities.argmax())]
        texts = [f"{percent(float(probabilities[index]))} {names[index]}" for index in found]
        true_names = format_list((names[index] for index in truth), MAX_NAMES)
        images.append(
            ClassifiedImage(sample.image, true_names or "-", format_list(texts, MAX_NAMES) or "-", truth == found)
        )
    return {"predictions": classification_figure(images)}


def pose_figures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Figures:
    """Draw labeled and predicted keypoints of each person."""
    estimator, figures = PoseEstimator(context.model, context.processor, context.device), {}
    pairs = getattr(context.model.config, "pose_flip_pairs", None)
    skeleton = Skeleton.of(dataset.class_table.names, getattr(dataset.source, "bones", None), pairs)
    for sample in map(dataset.read, chosen):
        assert isinstance(sample.target, Person)
        keypoints = estimator.estimate(sample.image, [sample.target.box])[0]
        figures[sample.name] = pose_figure(sample.image, sample.target.keypoints, keypoints, skeleton)
    return figures


def segment_figures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Figures:
    """Draw image, labeled and predicted segments of each sample."""
    stuff, figures = dataset.class_table.stuff, {}
    segmenter = build_segmenter(context, sorted(stuff) if context.recipe.task == "panoptic" else None)
    for sample in map(dataset.read, chosen):
        assert isinstance(sample.target, Segments)
        size = (sample.target.ids.shape[0], sample.target.ids.shape[1])
        outputs = segmenter.outputs(segmenter.prepare_pixels(sample.image).pixel_values)
        numbers, classes, _ = segmenter.segments(outputs, 0, size)
        figures[sample.name] = segment_figure(
            sample.image, sample.target, numbers.cpu().numpy(), classes, stuff, segmenter.palette
        )
    return figures


DRAW: dict[Task, Callable[[EvaluationContext, RawDataset, Sequence[int]], Figures]] = {
    "segmentation": segmentation_figures,
    "classification": classification_figures,
    "pose": pose_figures,
    "instance": segment_figures,
    "panoptic": segment_figures,
}
