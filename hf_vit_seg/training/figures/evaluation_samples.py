"""Pictures of what a model makes of samples of a split, spread evenly over it.

Shapes: C bands, H W pixels, K classes or keypoints.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.samples import Person
from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.records import read_record
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, in_evaluation
from hf_vit_seg.training.recipe.schema import Recipe, Task

from .poses import pose_picture
from .samples import ClassifiedImage, classification_picture, picture_paths, segmentation_picture, write_pictures

Pictures = dict[str, Image.Image]


def write_sample_images(context: EvaluationContext, dataset: RawDataset, folder: Path) -> list[Path]:
    """Write as many pictures as the recipe asks for; for one process alone. Their paths."""
    chosen = chosen_samples(context.recipe, dataset)
    if not chosen:
        return []
    with in_evaluation(context):
        return write_pictures(folder, PICTURES[context.recipe.task](context, dataset, chosen))


def chosen_samples(recipe: Recipe, dataset: RawDataset) -> list[int]:
    """Indexes of the samples that are shown."""
    count = min(recipe.evaluation.samples, len(dataset))
    return [place * len(dataset) // count for place in range(count)]


def have_sample_images(recipe: Recipe, dataset: RawDataset, folder: Path) -> bool:
    """Whether all the pictures that `write_sample_images` writes are there."""
    chosen = chosen_samples(recipe, dataset)
    names = dict.fromkeys(["predictions"] if recipe.task == "classification" else map(dataset.name, chosen))
    return not chosen or all(path.exists() for path in picture_paths(folder, names))


def segmentation_pictures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Pictures:
    """Photo, truth, prediction and errors of each sample."""
    protocol = read_record(Protocol, context.recipe.evaluation.protocol, "evaluation.protocol")
    segmenter = Segmenter(context.model, context.processor, context.device, protocol)
    pictures = {}
    for sample in map(dataset.read, chosen):
        labels = segmenter.label_map(sample.image)
        pictures[sample.name] = segmentation_picture(
            sample.image,
            sample.target,
            labels,
            segmenter.names,
            segmenter.palette,
            dataset.class_table.ignore_index,
        )
    return pictures


def classification_pictures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Pictures:
    """All samples in one picture, each under its class and the predicted one."""
    classifier, images = Classifier(context.model, context.processor, context.device), []
    for sample in map(dataset.read, chosen):
        assert isinstance(sample.target, int)
        probability, found = classifier.probabilities(sample.image).max(dim=-1)
        images.append(ClassifiedImage(sample.image, sample.target, int(found), float(probability)))
    return {"predictions": classification_picture(images, dataset.class_table.names)}


def pose_pictures(context: EvaluationContext, dataset: RawDataset, chosen: Sequence[int]) -> Pictures:
    """Labelled and predicted keypoints of each person."""
    estimator, pictures = PoseEstimator(context.model, context.processor, context.device), {}
    for sample in map(dataset.read, chosen):
        assert isinstance(sample.target, Person)
        found = estimator(sample.image, sample.target.box)
        pictures[sample.name] = pose_picture(sample.image, sample.target.keypoints, found)
    return pictures


PICTURES: dict[Task, Callable[[EvaluationContext, RawDataset, Sequence[int]], Pictures]] = {
    "segmentation": segmentation_pictures,
    "classification": classification_pictures,
    "pose": pose_pictures,
}
