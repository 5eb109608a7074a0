"""Image processors of models that find objects: those of semantic segmentation, with transformers' post-processing.

Shapes: B images, Q queries, K classes, h w the grid of the masks, H W pixels.
"""

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .bilinear import to_working_dtype
from .distance_head import DistanceOutput
from .errors import HfVitSegError
from .image_processing_segmentation import (
    SemanticSegmentationImageProcessor,
    SemanticSegmentationImageProcessorPil,
    SemanticSegmentationKwargs,
)
from .segment_maps import ObjectMask, draw_objects, fuse_segments, objects_of_queries, panoptic_segments

Sizes = Sequence[tuple[int, int]] | torch.Tensor | None


class UniversalSegmentationKwargs(SemanticSegmentationKwargs, total=False):
    """Options in addition to those of semantic segmentation.

    label_ids_to_fuse: the classes whose segments become one in panoptic results (stuff), unless the call sets them.
        None: the model finds objects only.
    """

    label_ids_to_fuse: list[int] | None


def result_sizes(outputs: Any, target_sizes: Sizes) -> list[tuple[int, int]]:
    """Return the (height, width) of the result of each image; by default that of the model's masks. Raises
    HfVitSegError.
    """
    masks = outputs.masks_queries_logits if has_queries(outputs) else outputs.semantic_logits()
    own = (int(masks.shape[-2]), int(masks.shape[-1]))
    if target_sizes is None:
        return [own] * len(masks)
    if len(target_sizes) != len(masks):
        raise HfVitSegError(f"target_sizes has {len(target_sizes)} entries for a batch of {len(masks)} images")
    return [(int(height), int(width)) for height, width in target_sizes]


def with_methods(outputs: Any) -> Any:
    """Return the outputs of a model; those of the distance head with their methods, which transformers' pipelines drop
    when they move the tensors to the CPU.
    """
    maps = [getattr(outputs, name, None) for name in DistanceOutput.exported]
    if hasattr(outputs, "segments") or any(segment_map is None for segment_map in maps):
        return outputs
    return DistanceOutput(**dict(zip(DistanceOutput.exported, maps, strict=True)))


def has_queries(outputs: Any) -> bool:
    """Return whether a model's outputs have class and mask logits of queries. HfVitSegError if they have no objects at
    all.
    """
    if getattr(outputs, "class_queries_logits", None) is not None:
        return True
    if not hasattr(outputs, "segments"):
        raise HfVitSegError(
            "found outputs of a model without objects: load it with AutoModelForUniversalSegmentation, or use "
            "post_process_semantic_segmentation"
        )
    return False


def semantic_scores(outputs: Any) -> torch.Tensor:
    """Return the scores of the classes at each pixel (B, K, h, w): sum over queries of class times mask probability.

    With one class, they are the logits of this sum, which are compared with 0.
    """
    if not has_queries(outputs):
        return outputs.semantic_logits()
    classes = to_working_dtype(outputs.class_queries_logits).softmax(-1)[..., :-1]
    masks = to_working_dtype(outputs.masks_queries_logits).sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
    return scores.logit(eps=torch.finfo(scores.dtype).eps) if scores.shape[1] == 1 else scores


def binary_mask_to_rle(mask: torch.Tensor) -> list[int]:
    """Return the runs of a mask (H, W) as transformers writes them: start (from 1) and length of each, in row-major
    order.
    """
    pixels = torch.nn.functional.pad(mask.flatten().to(torch.int8), (1, 1))
    changes = (pixels[1:] != pixels[:-1]).nonzero()[:, 0] + 1
    changes[1::2] -= changes[::2].clone()
    return changes.tolist()


class UniversalProcessing:
    """Post-processing with transformers' names and formats; must come before the image processor in the bases.

    A result is a dict of `segmentation` (H, W) int32, the number of the segment of each pixel from 1, 0 for none; and
    `segments_info`, a list of dicts of `id`, `label_id`, `was_fused` and `score`. Without segments the list is empty.
    """

    valid_kwargs = UniversalSegmentationKwargs
    label_ids_to_fuse: list[int] | None = None

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sizes = None, return_segmentation_scores: bool = False
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps (H, W) int64 of `outputs`, the arg-max of the resized scores of all classes.

        With `return_segmentation_scores`, each result has `segmentation` and `segmentation_scores` (K, H, W).
        """
        if getattr(outputs, "logits", None) is None:
            outputs = SimpleNamespace(logits=semantic_scores(with_methods(outputs)))
        parent: Any = super()
        return parent.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sizes = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the objects of `outputs`, one per query, with a score of at least `threshold`.

        Where objects overlap, the later query covers the earlier one. `segmentation` is the run lengths of each object
        with `return_coco_annotation`, and the complete masks (n, H, W) float32 with `return_binary_maps`.
        `overlap_mask_area_threshold` has no effect, as in transformers.
        """
        if return_coco_annotation and return_binary_maps:
            raise HfVitSegError("set either return_coco_annotation or return_binary_maps")
        outputs, results = with_methods(outputs), []
        for image, size in enumerate(result_sizes(outputs, target_sizes)):
            if not has_queries(outputs):
                result = dense_segments(outputs, image, size, threshold)
                masks = [result["segmentation"] == info["id"] for info in result["segments_info"]]
            else:
                logits = outputs.class_queries_logits[image], outputs.masks_queries_logits[image]
                objects = list(objects_of_queries(*logits, size, threshold, mask_threshold))
                segmentation = draw_objects(objects, size, logits[1].device)
                result = {"segmentation": segmentation, "segments_info": [instance.info() for instance in objects]}
                masks = [full_mask(instance, size) for instance in objects] if return_binary_maps else []
            if return_coco_annotation:
                numbers = [info["id"] for info in result["segments_info"]]
                result["segmentation"] = [binary_mask_to_rle(result["segmentation"] == number) for number in numbers]
            if return_binary_maps:
                result["segmentation"] = torch.stack(masks).float() if masks else torch.zeros(0, *size)
            results.append(result)
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sizes = None,
    ) -> list[dict[str, Any]]:
        """Return segments of `outputs` that do not overlap, and whose class has a probability above `threshold`.

        A segment is left out if it wins at most the share `overlap_mask_area_threshold` of its mask. Segments of a
        class in `label_ids_to_fuse` (stuff; by default those of the processor) become one; no others are fused.
        """
        fused = self.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
        outputs, results = with_methods(outputs), []
        for image, size in enumerate(result_sizes(outputs, target_sizes)):
            if not has_queries(outputs):
                results.append(dense_segments(outputs, image, size, threshold, fused or ()))
                continue
            segmentation, infos = panoptic_segments(
                outputs.class_queries_logits[image],
                outputs.masks_queries_logits[image],
                size,
                threshold,
                mask_threshold,
                overlap_mask_area_threshold,
                fused or (),
            )
            results.append({"segmentation": segmentation, "segments_info": infos})
        return results


def full_mask(instance: ObjectMask, size: tuple[int, int]) -> torch.Tensor:
    """Return the mask of an object at the size of the image (H, W) bool."""
    mask = torch.zeros(size, dtype=torch.bool, device=instance.mask.device)
    mask[instance.slices] = instance.mask
    return mask


def dense_segments(
    outputs: Any, image: int, size: tuple[int, int], threshold: float, label_ids_to_fuse: Collection[int] = ()
) -> dict[str, Any]:
    """Return the segments of an image from the outputs of a head without queries, which finds objects itself.

    Segments of a class in `label_ids_to_fuse` become one.
    """
    numbers, labels, scores = outputs.segments(image, size, threshold=threshold)
    numbers, classes, scores = fuse_segments(numbers, labels, scores, label_ids_to_fuse)
    infos = [
        {"id": number, "label_id": label, "was_fused": label in label_ids_to_fuse, "score": round(score, 6)}
        for number, (label, score) in enumerate(zip(classes.tolist(), scores.tolist(), strict=True), 1)
    ]
    return {"segmentation": numbers.to(torch.int32), "segments_info": infos}


class UniversalSegmentationImageProcessor(UniversalProcessing, SemanticSegmentationImageProcessor):
    """Resizes images with torchvision and antialiasing, on any device."""


class UniversalSegmentationImageProcessorPil(UniversalProcessing, SemanticSegmentationImageProcessorPil):
    """Resizes images with PIL, channel by channel."""


__all__ = ["UniversalSegmentationImageProcessor", "UniversalSegmentationImageProcessorPil"]
