"""Mean IoU of a segmenter on a recipe's data, to compare exports of a model. Shapes: H W pixels."""

from collections.abc import Callable

import torch

from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import Recipe


def mean_iou_on(recipe: Recipe, split: str) -> Callable[[Segmenter], float]:
    """Return a function that computes the mean IoU on a split, at the resolution of the labels.

    RecordError if the recipe has no masks for the split.
    """
    dataset = open_split(recipe, split)  # pyright: ignore[reportArgumentType]
    if dataset is None or recipe.task != "segmentation":
        raise RecordError(f"the recipe has no masks in data.{split}, which the mean IoU needs")

    def mean_iou(segmenter: Segmenter) -> float:
        classes = len(dataset.class_table.names)
        if len(segmenter.names) != max(classes, 2):
            raise RecordError(f"the model has {len(segmenter.names)} classes and the recipe's data {classes}")
        matrix = ConfusionMatrix(max(classes, 2), dataset.class_table.ignore_index)
        for index in range(len(dataset)):
            sample = dataset.read(index)
            assert isinstance(sample.target, torch.Tensor)
            height, width = sample.target.shape
            matrix.update(segmenter.label_map(sample.image, (height, width)).cpu()[None], sample.target[None])
        return float(matrix.scores()["mean_iou"])

    return mean_iou


__all__ = ["mean_iou_on"]
