"""Objects in images, with any model of AutoModelForUniversalSegmentation.

Shapes: C channels, H W pixels, n objects.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.data.images.files import MAX_PIXELS
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, milliseconds_since
from hf_vit_seg.inference.dense.protocols import PredictionError, Protocol
from hf_vit_seg.inference.image_inputs import load_image
from hf_vit_seg.loading.models import check_options
from hf_vit_seg.models.segment_maps import draw_objects, fuse_segments, objects_of_queries, panoptic_segments

from .found_segments import FoundObject, FoundSegments, objects_of_map
from .image_segmenter import ImageSegmenter, load_model_or_program
from .object_stitching import ObjectStitcher, window_core
from .output_checks import check_outputs

THRESHOLD = 0.5  # score of an object
MASK_THRESHOLD = 0.5
OVERLAP_THRESHOLD = 0.8  # share of its mask that a panoptic segment must win


class InstanceSegmenter(ImageSegmenter):
    """A model that finds objects, with its image processor; calling it with an image returns `FoundSegments`.

    The objects never overlap: the one with the highest score has the pixels. If the processor has `label_ids_to_fuse`,
    results are panoptic, and segments of these classes (stuff) are one segment.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        protocol: Protocol | None = None,
        threshold: float = THRESHOLD,
    ):
        """`device` defaults to a GPU if available; objects with a score below `threshold` are left out."""
        super().__init__(model, processor, device, protocol)
        self.threshold = threshold
        fused = getattr(processor, "label_ids_to_fuse", None)
        self.fused: tuple[int, ...] | None = None if fused is None else tuple(fused)

    def resolve_protocol(self, protocol: Protocol) -> Protocol:
        """Return the protocol for this model. Raises PredictionError for several views of an image, which have no
        average.
        """
        if protocol.views > 1 or protocol.blend != "flat":
            raise PredictionError(
                "scales, flip and blend average the probabilities of classes: remove them for a model that finds "
                "objects"
            )
        return super().resolve_protocol(protocol)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        threshold: float = THRESHOLD,
        protocol: Protocol | None = None,
        *,
        convert: bool = True,
        **hub: Any,
    ) -> "InstanceSegmenter":
        """Load a local directory, a Hub model, or an exported file such as model.onnx, see `Segmenter.from_pretrained`.

        Raises ModelError if it does not find objects.
        """
        check_options(cls.from_pretrained, hub)
        model, processor, where = load_model_or_program(name, "instance", device, dtype, convert=convert, **hub)
        return cls(model, processor, where, protocol, threshold)

    @torch.inference_mode()
    def outputs(self, pixel_values: torch.Tensor) -> Any:
        """Return the model's outputs for pixel values (B, C, H, W)."""
        return self.model(pixel_values=pixel_values.to(self.device, self.model.dtype))

    def checked_outputs(self, pixel_values: torch.Tensor) -> Any:
        """Return `outputs`; raises InvalidOutputError if they contain NaN or infinity."""
        outputs = self.outputs(pixel_values)
        for value in vars(outputs).values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                check_outputs(value, pixel_values)
        return outputs

    @torch.inference_mode()
    def segments(
        self, outputs: Any, image: int, size: tuple[int, int], threshold: float | None = None
    ) -> tuple[torch.Tensor, list[int], list[float]]:
        """Return the segments of an image of a batch at `size`: numbers from 1 (H, W) int32, classes (n) and scores
        (n).

        `threshold` defaults to the segmenter's.
        """
        threshold = self.threshold if threshold is None else threshold
        if getattr(outputs, "class_queries_logits", None) is None:
            numbers, labels, scores = outputs.segments(image, size, threshold=threshold)
            numbers, classes, scores = fuse_segments(numbers, labels, scores, self.fused or ())
            return numbers.to(torch.int32), classes.tolist(), scores.tolist()
        logits = outputs.class_queries_logits[image], outputs.masks_queries_logits[image]
        if self.fused is not None:
            numbers, infos = panoptic_segments(*logits, size, threshold, MASK_THRESHOLD, OVERLAP_THRESHOLD, self.fused)
            return numbers, [info["label_id"] for info in infos], [info["score"] for info in infos]
        objects = list(objects_of_queries(*logits, size, threshold, MASK_THRESHOLD))
        objects.sort(key=lambda each: each.score)  # drawn last, and so on top, is the best
        return (
            draw_objects(objects, size, logits[1].device),
            [each.label_id for each in sorted(objects, key=lambda each: each.id)],
            [each.score for each in sorted(objects, key=lambda each: each.id)],
        )

    def __call__(self, image: Any) -> Any:
        """Find the objects of an image, or of each image of a list; see `Segmenter.prepare` for the kinds of images.

        Raises InvalidOutputError if the outputs of the model contain NaN or infinity.
        """
        if isinstance(image, list | tuple):
            return [self(each) for each in image]
        if self.protocol.window is None:
            return self.segment(self.prepare(image))
        pixels, shown, missing = load_image(image, self.channels, self.processor, MAX_PIXELS)
        return self.segment_pixels(pixels, shown, None if missing is None else missing.numpy())

    def find(self, pixels: torch.Tensor, missing: np.ndarray | None = None) -> list[FoundObject]:
        """Find the objects of pixels (C, H, W) in one forward pass; `missing` pixels (H, W) belong to none."""
        outputs = self.checked_outputs(self.prepare_pixels(pixels).pixel_values)
        numbers, classes, scores = self.segments(outputs, 0, (pixels.shape[1], pixels.shape[2]))
        instance_map = numbers.cpu().numpy()
        return objects_of_map(instance_map if missing is None else np.where(missing, 0, instance_map), classes, scores)

    def find_in_windows(
        self,
        read: Callable[[slice, slice], tuple[torch.Tensor, np.ndarray | None]],
        stitcher: ObjectStitcher,
        earlier: Sequence[Sequence[FoundObject]] = (),
        save: Callable[[Sequence[FoundObject]], None] | None = None,
    ) -> Iterator[int]:
        """Add the objects of an image to a stitcher, window by window; yields the number of windows that are done.

        `read` returns the pixels (C, r, c) of some rows and columns, and the mask (r, c) of those without data, or
        None. See `object_stitching` for objects of several windows. `known` are the objects of the first windows, which
        are not computed; `save` is called with the objects of each other window.
        """
        size = stitcher.size
        grid = self.protocol.grid(size)
        corners = [(0, 0)] if grid is None else list(grid.corners())
        height, width = size if grid is None else grid.window
        for number, (top, left) in enumerate(corners):
            window = (top, left, top + height, left + width)
            if number < len(earlier):
                objects = earlier[number]
            else:
                in_window = self.find(*read(slice(top, window[2]), slice(left, window[3])))
                objects = [found_object.translate(top, left) for found_object in in_window]
                if save is not None:
                    save(objects)
            core = window if grid is None else window_core(window, (grid.tops, grid.lefts), size)
            stitcher.add(window, objects, core)
            yield number + 1

    def segment_pixels(
        self, pixels: torch.Tensor, shown: Image.Image | None = None, missing: np.ndarray | None = None
    ) -> FoundSegments:
        """Find the objects of pixels (C, H, W) that were read with the model's channels, in windows if there are any.

        `shown` is for display, and `missing` (H, W) pixels have no data.
        """
        start, size = time.perf_counter(), (pixels.shape[1], pixels.shape[2])

        def read(rows: slice, columns: slice) -> tuple[torch.Tensor, np.ndarray | None]:
            return pixels[:, rows, columns], None if missing is None else missing[rows, columns]

        stitcher = ObjectStitcher(size, self.fused or ())
        for _ in self.find_in_windows(read, stitcher):
            pass
        return self.result(stitcher, shown, {"segments": milliseconds_since(start)})

    def result(
        self, stitcher: ObjectStitcher, shown: Image.Image | None = None, timings: Mapping[str, float] | None = None
    ) -> FoundSegments:
        """Return the objects of an image."""
        return FoundSegments(
            stitcher.size,
            stitcher.objects(),
            self.names,
            self.palette,
            shown,
            self.describe(),
            timings or {},
            frozenset(self.fused or ()),
        )

    def segment(self, prepared: PreparedImage) -> FoundSegments:
        """Find the objects of a prepared image in one forward pass."""
        start = time.perf_counter()
        outputs = self.checked_outputs(prepared.pixel_values)
        model = milliseconds_since(start)
        numbers, classes, scores = self.segments(outputs, 0, prepared.size)
        if prepared.missing is not None:
            numbers = numbers.masked_fill(prepared.missing.to(numbers.device), 0)
        stitcher, whole = ObjectStitcher(prepared.size, self.fused or ()), (0, 0, *prepared.size)
        stitcher.add(whole, objects_of_map(numbers.cpu().numpy(), classes, scores), whole)
        timings = {"prepare": prepared.milliseconds, "model": model}
        segments = self.result(stitcher, prepared.picture, timings | {"segments": milliseconds_since(start) - model})
        return replace(segments, protocol=self.describe(prepared))

    def describe(self, prepared: PreparedImage | None = None) -> str:
        """Describe how an image is processed, for reports."""
        shown = None if prepared is None else (prepared.pixel_values.shape[-2], prepared.pixel_values.shape[-1])
        return f"{self.protocol.describe(shown)}, objects with a score of at least {self.threshold:g}"


__all__ = ["InstanceSegmenter"]
