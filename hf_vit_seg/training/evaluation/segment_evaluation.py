"""Evaluation of instance and panoptic segmentation, at the resolution of the labels.

Shapes: H W pixels.
"""

from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch.nn.functional import interpolate

from hf_vit_seg.data.collation import segment_labels
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.labels.segment_classes import remove_empty
from hf_vit_seg.data.samples import Segments
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.metrics.mask_ap import MaskAveragePrecision
from hf_vit_seg.metrics.object_scores import ObjectScores
from hf_vit_seg.metrics.panoptic_quality import PanopticQuality
from hf_vit_seg.metrics.segment_overlaps import Overlaps, SegmentMap, find_overlaps
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.recipe.schema import Recipe

from .evaluate import Evaluation, EvaluationContext, local_batches, sum_over_processes
from .sample_scores import ValidationLoss, gather_scores

MIN_SCORE = 0.05  # minimum score for average precision; other metrics use the segmenter's threshold


def evaluate_segments(context: EvaluationContext, dataset: RawDataset) -> Evaluation:
    """Compare segments with labels: panoptic quality, and for instances mask AP, F1 at IoU 0.5, AJI and counts.

    Instances also have the mean IoU of the classes of pixels, with the background as an additional class.

    Average precision needs all objects with their scores, also uncertain ones; the other scores are those of the
    objects that predictions contain.
    """
    table, recipe = dataset.class_table, context.recipe
    segmenter = build_segmenter(context, sorted(table.stuff) if recipe.task == "panoptic" else None)
    quality = PanopticQuality(len(table.names), sorted(table.stuff), context.device)
    objects, precision = ObjectScores(context.device), MaskAveragePrecision(len(table.names), max_detections=None)
    of_instances, background = recipe.task == "instance", len(table.names)
    pixels = ConfusionMatrix(background + 1, -1, context.device)
    loss, indices, image_scores = ValidationLoss(context.objective), list[int](), list[torch.Tensor]()

    def read(index: int) -> tuple[int, Any, Segments]:
        sample = dataset.read(index)
        assert isinstance(sample.target, Segments)
        return index, segmenter.prepare_pixels(sample.image), sample.target

    for batch in local_batches(context, len(dataset), read, lambda item: item[1].pixel_values.shape):
        outputs = segmenter.outputs(torch.cat([image.pixel_values for _, image, _ in batch]))
        size = batch[0][1].pixel_values.shape[-2:]
        labels = segment_labels([resize_segments(target, size) for *_, target in batch])
        loss.update_objects(segmenter.model, outputs, send_to_device(labels, context.device))
        for row, (index, _, target) in enumerate(batch):
            labeled = SegmentMap(target.ids.to(context.device), target.classes, crowds=target.crowds)
            size = (target.ids.shape[0], target.ids.shape[1])
            predicted = segmenter.segments(outputs, row, size)
            overlaps = find_overlaps(SegmentMap(*predicted), labeled)
            quality.update(overlaps)
            indices.append(index)
            image_scores.append(image_quality(overlaps, len(table.names)))
            if of_instances:
                objects.update(overlaps)
                classes = Segments(predicted[0].cpu(), tuple(predicted[1])).label_map(background, background)
                pixels.update(classes.to(context.device), target.label_map(background, -1).to(context.device))
                every = segmenter.segments(outputs, row, size, threshold=MIN_SCORE)
                precision.update(find_overlaps(SegmentMap(*every), labeled))
    sum_over_processes([quality, objects, pixels], context.accelerator)
    if context.accelerator.num_processes > 1:
        precision.rows = gather_object(precision.rows)
    scores = quality.scores() | (precision.scores() | objects.scores() if of_instances else {})
    if of_instances:
        scores = {name: value for name, value in scores.items() if not name.endswith(("_stuff", "_things"))}
        scores["mean_iou"] = pixels.scores()["mean_iou"]
    scores |= loss.scores(context.accelerator)
    description = f"{segmenter.describe()}; evaluated at the resolution of the labels"
    ranking = gather_scores(indices, image_scores, context.accelerator)
    return Evaluation(scores, len(dataset), description, sample_scores=ranking)


def image_quality(overlaps: Overlaps, classes: int) -> torch.Tensor:
    """Return the panoptic quality (1,) of an image; NaN without segments in labels and prediction."""
    quality = PanopticQuality(classes)
    quality.update(overlaps)
    return torch.tensor([quality.scores()["pq"]], dtype=torch.float64)


def resize_segments(target: Segments, size: Any) -> Segments:
    """Resize segments to the size (height, width) of the model's input by nearest neighbors, and remove empty ones."""
    ids = interpolate(target.ids[None, None].double(), tuple(size), mode="nearest-exact")[0, 0]
    return remove_empty(Segments(ids.to(target.ids.dtype), target.classes))


def build_segmenter(context: EvaluationContext, fused: list[int] | None) -> InstanceSegmenter:
    """Return the segmenter of the recipe's protocol; `fused` are the stuff classes. RecordError for other protocols."""
    protocol = read_record(Protocol, context.recipe.evaluation.protocol, "evaluation.protocol")
    check_protocol(context.recipe, protocol)
    segmenter = InstanceSegmenter(context.model, context.processor, context.device, protocol)
    segmenter.fused = None if fused is None else tuple(fused)
    return segmenter


def check_protocol(recipe: Recipe, protocol: Protocol) -> None:
    """Raise RecordError for settings that average or join label maps, which objects do not have."""
    if protocol.window is not None or protocol.flip or len(protocol.scales) > 1:
        raise RecordError(
            f"evaluation.protocol: windows, scales and flips are for segmentation, found the task {recipe.task}: "
            "remove them, and set size"
        )
    if recipe.evaluation.resolution != "original":
        raise RecordError(f"evaluation.resolution must be original for {recipe.task}: segments are not resized")


__all__ = ["build_segmenter", "evaluate_segments"]
