"""Semantic segmentation of images with any model of transformers' Auto classes.

Shapes: B images of equal size, C channels, H W pixels, h w the logits' grid, K classes.
"""

import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, TimedModel, milliseconds_since
from hf_vit_seg.inference.dense.pixel_maps import MapSelection, PixelMaps, read_maps
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.dense.row_logits import LogitGrid, Model, RowLogits, flip_outputs
from hf_vit_seg.inference.dense.sliding_windows import SlidingLogits
from hf_vit_seg.loading.models import check_options
from hf_vit_seg.models.label_maps import CHUNK_BYTES

from .image_segmenter import ImageSegmenter, load_model_or_program
from .output_checks import check_outputs
from .segmentation import Segmentation

ACCELERATOR_CHUNKS = 8  # factor of chunk sizes on accelerators, where kernel launches dominate
WINDOWS_TOGETHER = 8  # default number of windows per forward pass on accelerators


class Segmenter(ImageSegmenter):
    """A model with its image processor and a protocol; calling it with an image returns a `Segmentation`.

    By default the model processes the whole image once, resized by the processor, and the label map is exact at the
    image's size. Center crops and padding of the processor are skipped, so that every pixel is labeled.
    """

    def result_names(self, labels: list[str]) -> tuple[str, ...]:
        """Return the names of the classes; models with one label also have the background."""
        return tuple(labels) if len(labels) > 1 else ("background", *labels)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        protocol: Protocol | None = None,
        *,
        convert: bool = True,
        **hub: Any,
    ) -> "Segmenter":
        """Load a local directory, a Hub model, or an exported file such as model.onnx; Hub code is never executed.

        Checkpoints in other formats are converted in memory unless `convert` is false, see `load`, which also describes
        the options `hub`. `dtype` is a floating-point type of torch or its name; exported files have a fixed dtype and
        run on the CPU. Raises ModelError if the model does not exist, or has no segmentation head or no image
        processor.
        """
        check_options(cls.from_pretrained, hub)
        model, processor, where = load_model_or_program(name, "segmentation", device, dtype, convert=convert, **hub)
        return cls(model, processor, where, protocol)

    @torch.inference_mode()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map pixel values (B, C, H, W) to logits (B, K, h, w) on the model's device."""
        return self.model(pixel_values=pixel_values.to(self.device, self.model.dtype)).logits

    def checked_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return `logits`. Raises InvalidOutputError for NaN or infinity, which have no label."""
        logits = self.logits(pixel_values)
        check_outputs(logits, pixel_values)
        return logits

    @torch.inference_mode()
    def maps(
        self,
        prepared: Sequence[PreparedImage],
        selection: MapSelection | None = None,
        size: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.int64,
        model: Model | None = None,
    ) -> PixelMaps:
        """Return the maps of images of equal size, at `size` (default: theirs), on the model's device."""
        row_logits = self.view_logits(stack_views(prepared), model or self.checked_logits)
        chunk, classes = self.chunk_bytes // len(prepared), self.model.config.num_labels
        return read_maps(row_logits, size or prepared[0].size, classes, selection, dtype=dtype, chunk_bytes=chunk)

    def view_logits(self, views: Sequence[torch.Tensor], model: Model) -> list[RowLogits]:
        """Return the logits of each view (B, C, H, W), and of its mirror image if the protocol has one.

        The model runs at once on whole views, and on windows when their rows are read.
        """
        batch = self.protocol.window_batch or (1 if self.device.type == "cpu" else WINDOWS_TOGETHER)
        view_logits: list[RowLogits] = []
        for view, flip in product(views, (False, True) if self.protocol.flip else (False,)):
            grid = self.protocol.grid((view.shape[-2], view.shape[-1]), flip)
            forward = flip_outputs(model) if flip else model
            if grid is None:
                view_logits.append(LogitGrid(forward(view)))
            else:
                view_logits.append(SlidingLogits(forward, partial(crop, view), grid, max(1, batch // len(view))))
        return view_logits

    @property
    def chunk_bytes(self) -> int:
        """The working memory for label maps."""
        return CHUNK_BYTES * (1 if self.device.type == "cpu" else ACCELERATOR_CHUNKS)

    def label_map(self, image: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return the label map (H, W) int64 of an image or a `PreparedImage`, on the model's device.

        `size` is (height, width); it defaults to the image's size.
        """
        prepared = image if isinstance(image, PreparedImage) else self.prepare(image)
        return self.label_maps([prepared], size)[0]

    def label_maps(self, prepared: Sequence[PreparedImage], size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return the label maps (B, H, W) of prepared images of equal size, computed in one batch."""
        return self.maps(prepared, size=size).labels

    def __call__(self, image: Any, scores: bool = False, *, entropy: bool = False, top_k: int = 0) -> Any:
        """Segment an image, or each image of a list; see `prepare` for the kinds of images.

        Pixels that a TIFF declares as nodata have the `nodata_label`.
        Raises InvalidOutputError if the outputs of the model contain NaN or infinity.
        `scores` adds the probability of each pixel's class, see `Segmentation` for the others.
        """
        if isinstance(image, list | tuple):
            return [self(each, scores, entropy=entropy, top_k=top_k) for each in image]
        return self.segment_batch([self.prepare(image)], MapSelection(scores, entropy, top_k))[0]

    def segment(
        self, prepared: PreparedImage, scores: bool = False, *, entropy: bool = False, top_k: int = 0
    ) -> Segmentation:
        """Segment a prepared image; see `Segmentation` for the optional maps."""
        return self.segment_batch([prepared], MapSelection(scores, entropy, top_k))[0]

    def segment_all(
        self, prepared: Sequence[PreparedImage], scores: bool = False, *, entropy: bool = False, top_k: int = 0
    ) -> list[Segmentation]:
        """Segment prepared images, in one batch if their sizes are equal; timings are then averages per image."""
        batches = [prepared] if have_equal_sizes(prepared) else [[image] for image in prepared]
        selection = MapSelection(scores, entropy, top_k)
        return [segmentation for batch in batches for segmentation in self.segment_batch(batch, selection)]

    @torch.inference_mode()
    def segment_batch(self, prepared: Sequence[PreparedImage], selection: MapSelection) -> list[Segmentation]:
        """Segment prepared images with equal views in one batch; with windows, their sizes must be equal too."""
        start = time.perf_counter()
        model = TimedModel(self.checked_logits)
        row_logits = self.view_logits(stack_views(prepared, any_size=True), model)
        maps = self.image_maps(row_logits, prepared, selection)
        total = milliseconds_since(start)
        timings = {
            "model": model.milliseconds / len(prepared),
            "label_map": (total - model.milliseconds) / len(prepared),
        }
        segmentations = [
            Segmentation(
                image=image.picture,
                label_map=maps[i]["labels"],
                names=self.names,
                palette=self.palette,
                protocol=self.describe(image),
                timings={"prepare": image.milliseconds, **timings},
                **{name: segmentations for name, segmentations in maps[i].items() if name != "labels"},
            )
            for i, image in enumerate(prepared)
        ]
        return [
            each if image.missing is None else each.hide(image.missing.numpy())
            for each, image in zip(segmentations, prepared, strict=True)
        ]

    def image_maps(
        self, row_logits: Sequence[RowLogits], prepared: Sequence[PreparedImage], selection: MapSelection
    ) -> list[dict[str, np.ndarray]]:
        """Return the maps (H, W) of each image at its size, from the logits of their views.

        HfVitSegError for images of different sizes in several windows.
        """
        classes, dtype = self.model.config.num_labels, torch.uint8 if len(self.names) <= 256 else torch.int32
        if have_equal_sizes(prepared):
            chunk = self.chunk_bytes // len(prepared)
            maps = read_maps(row_logits, prepared[0].size, classes, selection, dtype=dtype, chunk_bytes=chunk)
            arrays = to_arrays(maps)
            return [{name: array[i] for name, array in arrays.items()} for i in range(len(prepared))]
        grids = [logits.logits for logits in row_logits if isinstance(logits, LogitGrid)]
        if len(grids) < len(row_logits):
            raise HfVitSegError("Images of different sizes in one batch need a protocol without windows")
        results = []
        for i, image in enumerate(prepared):
            own = [LogitGrid(logits[i : i + 1]) for logits in grids]
            maps = read_maps(own, image.size, classes, selection, dtype=dtype, chunk_bytes=self.chunk_bytes)
            results.append({name: array[0] for name, array in to_arrays(maps).items()})
        return results

    def describe(self, prepared: PreparedImage | None = None) -> str:
        """Describe the inference for reports; for a prepared image, with the size to which it was resized."""
        shown = None if prepared is None else (prepared.pixel_values.shape[-2], prepared.pixel_values.shape[-1])
        return self.protocol.describe(shown)


def have_equal_sizes(prepared: Sequence[PreparedImage]) -> bool:
    """Return whether images can be stacked to one batch, and their label maps too."""
    return len({(image.size, *view_sizes(image)) for image in prepared}) == 1


def view_sizes(image: PreparedImage) -> tuple[tuple[int, ...], ...]:
    """Return the shapes (C, H, W) of the views of an image."""
    return tuple(tuple(view.shape[1:]) for view in image.views)


def stack_views(prepared: Sequence[PreparedImage], any_size: bool = False) -> list[torch.Tensor]:
    """Return the views (B, C, H, W) of a batch of images, one for each scale of the protocol.

    HfVitSegError if they differ, or unless `any_size`, if the sizes of the images do.
    """
    equal = len(set(map(view_sizes, prepared))) == 1 if any_size else have_equal_sizes(prepared)
    if not equal:
        sizes = ", ".join(sorted({f"{image.size[0]}x{image.size[1]}" for image in prepared}))
        raise HfVitSegError(f"Images of a batch must have one size, found {sizes or 'no images'}")
    return [torch.cat(views) for views in zip(*(image.views for image in prepared), strict=True)]


def crop(view: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """Return a window of a view (B, C, H, W)."""
    return view[..., rows, columns]


def to_arrays(maps: PixelMaps) -> dict[str, np.ndarray]:
    """Convert maps to arrays: labels in the smallest unsigned dtype, others in float32."""
    return {name: to_array(tensor) for name, tensor in vars(maps).items() if tensor is not None}


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Convert one map to an array."""
    if tensor.is_floating_point():
        return tensor.float().cpu().numpy()
    return tensor.cpu().numpy().astype(np.uint8 if tensor.dtype == torch.uint8 else np.uint16, copy=False)


__all__ = ["Segmenter"]
