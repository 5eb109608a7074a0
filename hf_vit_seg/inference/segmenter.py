"""From an image to its label map, with any semantic segmentation model that transformers' Auto classes know.

Shapes: B images of equal size, C channels, H W pixels, h w the logits' grid, K classes.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vit_seg.data.images.files import MAX_PIXELS
from hf_vit_seg.drawing.palettes import class_palette
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.image_preparation import Prepared, TimedModel, milliseconds_since, prepare
from hf_vit_seg.inference.dense.pixel_maps import MapSelection, PixelMaps, read_maps
from hf_vit_seg.inference.dense.protocols import Protocol, Sides
from hf_vit_seg.inference.dense.row_logits import Canvas, LogitGrid, Model, mirrored
from hf_vit_seg.inference.dense.sliding_windows import SlidingLogits
from hf_vit_seg.models.label_maps import CHUNK_BYTES

from .loading import chosen_device, float_type, label_names, load_model, load_processor
from .runtimes import RuntimeModel, is_program
from .segmentation import Segmentation

ACCELERATOR_CHUNKS = 8  # how much larger a chunk of rows is there, where each kernel costs the same
WINDOWS_TOGETHER = 8  # how many windows an accelerator sees at a time, unless told


class Segmenter:
    """A model with its image processor and a protocol: call it with an image, get a `Segmentation`.

    By default the whole image goes through the model once, resized as the processor says, and the label map is exact
    at the image's own size. Crops and padding that the processor may ask for are left out: they would lose pixels.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        protocol: Protocol | None = None,
    ):
        """`device` is a GPU by default where there is one."""
        self.device = chosen_device(device)
        self.model = model.eval().to(self.device)
        self.processor = processor
        self.protocol = self.fitting(protocol or Protocol())
        names = label_names(model.config)
        self.names = tuple(names) if len(names) > 1 else ("background", *names)
        self.palette = class_palette(getattr(processor, "palette", None), len(self.names))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        protocol: Protocol | None = None,
    ) -> "Segmenter":
        """Load a local directory, a Hub model, or an exported file such as model.onnx; code of the Hub is never run.

        `dtype` is one of torch's floating-point types or its name; an exported file has its own, and runs on the CPU.
        ModelError when there is no such model, it has no
        segmentation head, or no image processor.
        """
        if is_program(str(name)):
            return cls(RuntimeModel(Path(name)), load_processor(str(Path(name).parent)), device or "cpu", protocol)
        where, kind = chosen_device(device), float_type(dtype)
        return cls(load_model(str(name), kind), load_processor(str(name)), where, protocol)

    def with_protocol(self, protocol: Protocol) -> "Segmenter":
        """The same model with another protocol."""
        other = copy.copy(self)
        other.protocol = self.fitting(protocol)
        return other

    def fitting(self, protocol: Protocol) -> Protocol:
        """A protocol with the only size that an exported program takes, where whole images may have any."""
        sides = self.model.program.sides if isinstance(self.model, RuntimeModel) else None
        if sides is None or protocol.size is not None or protocol.window is not None:
            return protocol
        return protocol.model_copy(update={"size": Sides(height=sides[0], width=sides[1])})

    @property
    def channels(self) -> int:
        """How many bands the model takes."""
        return getattr(self.model.config, "num_channels", 3)

    def prepare(self, image: Any, max_pixels: int = MAX_PIXELS) -> Prepared:
        """Resize and normalize one image: a file, PIL in any mode, an array or tensor (C, H, W) or (H, W, C).

        ImageFileError when a file cannot be read, or has more than `max_pixels` pixels.
        """
        return prepare(image, self.protocol, self.processor, self.channels, max_pixels)

    @torch.inference_mode()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values (B, C, H, W) -> logits (B, K, h, w) on the model's device."""
        return self.model(pixel_values=pixel_values.to(self.device, self.model.dtype)).logits

    def canvases(self, views: Sequence[torch.Tensor], model: Model) -> list[Canvas]:
        """The logits of all views (B, C, H, W), each also in the mirror where the protocol flips."""
        flips = (False, True) if self.protocol.flip else (False,)
        return [self.canvas(view, model, flip) for view in views for flip in flips]

    def canvas(self, view: torch.Tensor, model: Model, flip: bool) -> Canvas:
        """The logits of a view (B, C, H, W), seen whole or in windows, as it is or in the mirror."""
        grid = self.protocol.grid((view.shape[-2], view.shape[-1]), flip)
        model = mirrored(model) if flip else model
        if grid is None:
            return LogitGrid(model(view))
        batch = self.protocol.window_batch or (1 if self.device.type == "cpu" else WINDOWS_TOGETHER)
        windows = max(1, batch // len(view))
        return SlidingLogits(model, lambda rows, columns: view[..., rows, columns], grid, windows)

    @torch.inference_mode()
    def maps(
        self,
        prepared: Sequence[Prepared],
        wanted: MapSelection | None = None,
        size: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.int64,
        model: Model | None = None,
    ) -> PixelMaps:
        """The maps of several images of equal size, at that size or another, on the model's device."""
        if not alike(prepared):
            sizes = ", ".join(sorted({f"{image.size[0]}x{image.size[1]}" for image in prepared}))
            raise HfVitSegError(
                f"Images go through the model together when they have one size, these have {sizes or 'none'}"
            )
        views = [torch.cat(views) for views in zip(*(image.views for image in prepared), strict=True)]
        chunk = CHUNK_BYTES * (1 if self.device.type == "cpu" else ACCELERATOR_CHUNKS) // len(prepared)
        canvases = self.canvases(views, model or self.logits)
        classes = self.model.config.num_labels
        return read_maps(canvases, size or prepared[0].size, classes, wanted, dtype=dtype, chunk_bytes=chunk)

    def label_map(self, image: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The class of every pixel of an image, or of one that is prepared: (H, W) int64 on the model's device.

        `size` is (height, width), by default the image's own.
        """
        prepared = image if isinstance(image, Prepared) else self.prepare(image)
        return self.label_maps([prepared], size)[0]

    def label_maps(self, prepared: Sequence[Prepared], size: tuple[int, int] | None = None) -> torch.Tensor:
        """As `label_map`, of several prepared images of equal size that go through the model together: (B, H, W)."""
        return self.maps(prepared, size=size).labels

    def segment(
        self, prepared: Prepared, scores: bool = False, *, entropy: bool = False, top_k: int = 0
    ) -> Segmentation:
        """Segment a prepared image; see `Segmentation` for what can be asked for."""
        return self.segment_all([prepared], scores, entropy=entropy, top_k=top_k)[0]

    def segment_all(
        self, prepared: Sequence[Prepared], scores: bool = False, *, entropy: bool = False, top_k: int = 0
    ) -> list[Segmentation]:
        """Segment prepared images, together if they are of equal size; times are then those of an image on average."""
        wanted = MapSelection(scores, entropy, top_k)
        if not alike(prepared):
            return [found for image in prepared for found in self.segmented([image], wanted)]
        return self.segmented(prepared, wanted)

    def segmented(self, prepared: Sequence[Prepared], wanted: MapSelection) -> list[Segmentation]:
        """Segment prepared images of equal size together."""
        start = time.perf_counter()
        model = TimedModel(self.logits)
        kind = torch.uint8 if len(self.names) <= 256 else torch.int32
        maps = arrays(self.maps(prepared, wanted, dtype=kind, model=model))
        total = milliseconds_since(start)
        timings = {
            "model": model.milliseconds / len(prepared),
            "label_map": (total - model.milliseconds) / len(prepared),
        }
        return [
            Segmentation(
                image=image.picture,
                label_map=maps["labels"][i],
                names=self.names,
                palette=self.palette,
                protocol=self.describe(image),
                timings={"prepare": image.milliseconds, **timings},
                **{name: found[i] for name, found in maps.items() if name != "labels"},
            )
            for i, image in enumerate(prepared)
        ]

    def describe(self, prepared: Prepared | None = None) -> str:
        """How an image is segmented, for reports: in general, or with the size to which this one was resized."""
        shown = None if prepared is None else (prepared.pixel_values.shape[-2], prepared.pixel_values.shape[-1])
        return self.protocol.describe(shown)

    def __call__(self, image: Any, scores: bool = False, *, entropy: bool = False, top_k: int = 0) -> Segmentation:
        """Segment one image; `scores` adds the probability of each pixel's class, see `Segmentation` for the others."""
        return self.segment(self.prepare(image), scores, entropy=entropy, top_k=top_k)


def alike(prepared: Sequence[Prepared]) -> bool:
    """Whether images can go through the model together."""
    return len({(image.size, *(view.shape[1:] for view in image.views)) for image in prepared}) == 1


def arrays(maps: PixelMaps) -> dict[str, np.ndarray]:
    """Maps as arrays: labels in the smallest unsigned type, everything else in float32."""
    found = {name: tensor for name, tensor in vars(maps).items() if tensor is not None}
    return {name: array_of(tensor) for name, tensor in found.items()}


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """One map as an array."""
    if tensor.is_floating_point():
        return tensor.float().cpu().numpy()
    return tensor.cpu().numpy().astype(np.uint8 if tensor.dtype == torch.uint8 else np.uint16, copy=False)


__all__ = ["Segmenter"]
