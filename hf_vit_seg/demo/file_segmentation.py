"""Segment one uploaded file with the visitor's settings."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, milliseconds_since
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.object_files import object_report
from hf_vit_seg.inference.files.prediction import FileFacts, Job, PredictOptions, rounded_timings, segmentation_report
from hf_vit_seg.inference.found_segments import FoundSegments
from hf_vit_seg.inference.image_inputs import check_finite
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.segmentation import Segmentation
from hf_vit_seg.inference.segmenter import Segmenter

from .catalogue import Catalogue
from .image_reading import READERS
from .uploads import MAX_UPLOAD_PIXELS

WHOLE, SLIDING = "whole image", "sliding window"
VIEWS = (WHOLE, SLIDING)
Result = TypeVar("Result", Segmentation, FoundSegments)
AnySegmenter = TypeVar("AnySegmenter", Segmenter, InstanceSegmenter)
MIN_WINDOW, DEFAULT_WINDOW, MAX_WINDOW = 128, 512, 1024
MAX_PIXELS_PER_PASS = 2_000_000  # pixels per forward pass; larger images are segmented in windows
MAX_PIXELS_PER_CALL = 3 * MAX_UPLOAD_PIXELS  # pixels per call; the largest image in windows has 2.4 times its own


@dataclass(frozen=True)
class SegmentedFile(Generic[Result]):
    """The result of the model `title` for the file `name`, and its JSON report.

    `seen` is the number of pixels that the model processed.
    """

    name: str
    title: str
    result: Result
    report: dict[str, Any]
    seen: int

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return Path(self.name).stem

    @property
    def caption(self) -> str:
        """Model, protocol and time, in a line."""
        timings = self.result.timings
        return f"{self.title}: {self.result.protocol}; {timings.get('model', sum(timings.values())):.0f} ms"


def selected_protocol(view: str, window: float, flip: bool = False, *, objects: bool = False) -> Protocol:
    """Build the protocol for a visitor's choices; `window` is the side of the windows in pixels."""
    return windows(int(window), flip, objects=objects) if view == SLIDING else Protocol(flip=flip)


def windows(side: int, flip: bool = False, *, objects: bool = False) -> Protocol:
    """Return a protocol with square windows.

    They are blended with Gaussian weights to avoid visible borders, except for objects, which are joined.
    """
    return Protocol(window=(side, side), blend="flat" if objects else "gaussian", flip=flip)


def pixels_seen(protocol: Protocol, prepared: PreparedImage) -> int:
    """Return the number of pixels that the model processes, with overlaps of windows and flips."""
    height, width = prepared.pixel_values.shape[-2:]
    grid = protocol.grid((height, width))
    once = height * width if grid is None else len(grid) * grid.window[0] * grid.window[1]
    return protocol.views * once


def check_resized(segmenter: Segmenter | InstanceSegmenter, name: Path, size: tuple[int, int]) -> None:
    """Refuse an image of `size` that the protocol would resize to more pixels than a model sees for a call."""
    protocol = segmenter.protocol.model_copy(update={"divisor": segmenter.protocol.divisor or 1})
    height, width = protocol.sides(size, 1, segmenter.processor) or size
    if height * width > MAX_PIXELS_PER_CALL:
        raise HfVitSegError(
            f"{name}: the image of {size[1]}x{size[0]} pixels would be resized to {width}x{height}, "
            f"{height * width / 1e6:.1f} million pixels of at most {MAX_PIXELS_PER_CALL / 1e6:g} million: crop it"
        )


@dataclass(frozen=True, eq=False)
class ReadFile(Generic[AnySegmenter]):
    """A visitor's image (C, H, W) and its prepared form, with the segmenter and the pixels that its model will see."""

    segmenter: AnySegmenter
    job: Job
    facts: FileFacts
    pixels: torch.Tensor
    prepared: PreparedImage
    seen: int


def read_file(segmenter: AnySegmenter, path: Path, left: int = MAX_PIXELS_PER_CALL) -> ReadFile[AnySegmenter]:
    """Read an image file, and choose windows if it is too large to be processed at once.

    ImageFileError if it is not an image, damaged or too large; HfVitSegError if the model would process more than
    `left` pixels.
    """
    name = Path(path.name)  # the path on the server is not published
    start = time.perf_counter()
    pixels = READERS.read(path, segmenter.channels)
    milliseconds = milliseconds_since(start)
    check_finite(pixels, name)
    check_resized(segmenter, name, (pixels.shape[1], pixels.shape[2]))
    prepared = segmenter.prepare_pixels(pixels, to_rgb_image(pixels))
    height, width = prepared.pixel_values.shape[-2:]
    if segmenter.protocol.window is None and height * width > MAX_PIXELS_PER_PASS:
        objects = isinstance(segmenter, InstanceSegmenter)
        segmenter = segmenter.with_protocol(windows(MAX_WINDOW, segmenter.protocol.flip, objects=objects))
    seen = pixels_seen(segmenter.protocol, prepared)
    if seen > left:
        raise HfVitSegError(
            f"{name}: the model would process {seen / 1e6:.1f} million pixels, with overlaps of windows and flips, and "
            f"{left / 1e6:.1f} million are left of the {MAX_PIXELS_PER_CALL / 1e6:g} million of a call: use fewer or "
            "smaller images, or turn flip augmentation off"
        )
    return ReadFile(segmenter, Job(ImageFile(name, name), name), FileFacts(milliseconds), pixels, prepared, seen)


def segment_file(
    catalogue: Catalogue, title: str, protocol: Protocol, path: Path, left: int = MAX_PIXELS_PER_CALL
) -> SegmentedFile[Segmentation]:
    """Segment an image file; see `read_file` for errors."""
    segmenter: Segmenter = catalogue.load(title).with_protocol(protocol)
    file = read_file(segmenter, path, left)
    result = catalogue.call(title, file.segmenter.protocol, file.prepared, pixels=file.seen)
    content = segmentation_report(file.segmenter, file.job, result, file.facts, PredictOptions(model=title))
    return SegmentedFile(path.name, title, result, content, file.seen)


def find_objects_in_file(
    catalogue: Catalogue, title: str, protocol: Protocol, path: Path
) -> SegmentedFile[FoundSegments]:
    """Find the objects of an image file; see `read_file` for errors."""
    segmenter: InstanceSegmenter = catalogue.load(title).with_protocol(protocol)
    file = read_file(segmenter, path)
    picture = file.prepared.picture
    result = catalogue.call(title, file.segmenter.protocol, file.pixels, picture, pixels=file.seen)
    content = object_report(file.segmenter, file.job, result, PredictOptions(model=title), None)
    content["timings_ms"] = rounded_timings(file.facts, result.timings)
    return SegmentedFile(path.name, title, result, content, file.seen)


__all__ = [
    "DEFAULT_WINDOW",
    "MAX_PIXELS_PER_CALL",
    "MAX_WINDOW",
    "MIN_WINDOW",
    "SLIDING",
    "VIEWS",
    "WHOLE",
    "SegmentedFile",
    "find_objects_in_file",
    "pixels_seen",
    "segment_file",
    "selected_protocol",
]
