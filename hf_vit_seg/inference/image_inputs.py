"""Images of any source as pixels: files, https addresses, bytes, file objects, PIL images, arrays and tensors.

All of them follow one rule for depth, range and transparency, see `models.image_processing_inputs.to_pixels`.

Shapes: C channels, H W pixels.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import get_session
from PIL import Image, ImageOps

from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.images.files import MAX_PIXELS, ImageBytes, ImageFileError
from hf_vit_seg.data.images.nodata import file_nodata, fill_missing
from hf_vit_seg.data.images.pixels import File, pil_pixels, read_pixels
from hf_vit_seg.data.storage.addresses import MAX_DOWNLOAD
from hf_vit_seg.data.transforms.context import TransformContext, processor_white
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.local_paths import installed_path
from hf_vit_seg.models.image_processing_inputs import rgb_image, scale_pixels, to_pixels

ADDRESSES = ("https://", "http://")
TIMEOUT = 30.0  # seconds without data
CHUNK = 2**20


def load_pixels(
    image: Any, channels: int, processor: Any, max_pixels: int = MAX_PIXELS
) -> tuple[torch.Tensor, Image.Image | None]:
    """Load an image as (C, H, W), uint8 or float32, and as an RGB image for display, see `load_image`."""
    return load_image(image, channels, processor, max_pixels)[:2]


def load_image(
    image: Any, channels: int, processor: Any, max_pixels: int = MAX_PIXELS
) -> tuple[torch.Tensor, Image.Image | None, torch.Tensor | None]:
    """Load an image as (C, H, W), uint8 or float32, as an RGB image for display, and the mask of missing pixels.

    The second item is None for arrays that are not RGB. The third is (H, W) bool, and None unless a file declares
    missing pixels. `image` is a path, an http(s) address, bytes, a binary file object, a PIL image, or an array or
    tensor (H, W), (C, H, W) or (H, W, C). Raises ImageFileError for files, and HfVitSegError for other images that
    cannot be used.
    """
    file = as_file(image)
    if file is not None:
        return load_file(file, channels, processor, max_pixels)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)  # as files are, and by transformers' `load_image`
        pixels = scale_pixels(pil_pixels(image, channels, "the image"), processor_white(processor))
        return pixels, rgb_image(image), None
    if not hasattr(image, "shape"):
        raise HfVitSegError(
            f"Found an image of type {type(image).__name__}, expected a path, an https address, bytes, a binary file, "
            "a PIL image, an array or a tensor"
        )
    pixels = array_input(image, channels, processor)
    shown = to_rgb_image(pixels) if pixels.dtype == torch.uint8 and len(pixels) == 3 else None
    return pixels, shown, None


def as_file(image: Any) -> File | None:
    """Return the file of an image given by path or address, downloaded if necessary; None for pixels."""
    if isinstance(image, str) and image.startswith(ADDRESSES):
        return ImageBytes(image, download(image))
    if isinstance(image, str | Path):
        return Path(installed_path(str(image)))
    if isinstance(image, bytes | bytearray | memoryview):
        return ImageBytes("the image", bytes(image))
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        content = image.read()
        name = str(getattr(image, "name", "the image"))
        if not isinstance(content, bytes):
            raise ImageFileError(f"{name}: found a file opened as text, expected one opened with mode 'rb'")
        return ImageBytes(name, content)
    return image if isinstance(image, ImageBytes) else None


def load_file(
    file: File, channels: int, processor: Any, max_pixels: int = MAX_PIXELS, display: bool = True
) -> tuple[torch.Tensor, Image.Image | None, torch.Tensor | None]:
    """Read an image file as pixels (C, H, W), as in training, as an RGB image for display, and where data is missing.

    Without `display`, the second item is None. Pixels that a TIFF declares as missing become the processor's mean, as
    in training and in tiles. The last item is their mask (H, W) bool; None if there are none.
    """
    pixels = read_pixels(file, channels, max_pixels)
    nodata = file_nodata(file)
    context = TransformContext.from_processor
    pixels, missing = fill_missing(pixels, nodata, lambda: context(processor, "segmentation").stored_mean(pixels))
    check_finite(pixels, file)
    shown = to_rgb_image(pixels) if display else None
    return scale_pixels(pixels, processor_white(processor)), shown, missing


def array_input(image: Any, channels: int, processor: Any) -> torch.Tensor:
    """Convert an array or tensor to (C, H, W) with C = `channels`."""
    if len(image.shape) not in (2, 3):
        raise HfVitSegError(
            f"Found an array of shape {tuple(image.shape)}, expected one image (H, W), (C, H, W) or (H, W, C): pass "
            "several images as a list"
        )
    convert = channels == 3
    accepted = [channels, *([1, 4] if convert else [1])]
    pixels = to_pixels(image, accepted, convert, white=processor_white(processor))
    if len(pixels) != channels:
        raise HfVitSegError(f"Found an image of {len(pixels)} channels, expected {channels}, which the model requires")
    check_finite(pixels, "the image")
    return pixels.contiguous()


def check_finite(pixels: torch.Tensor, name: object) -> None:
    """Raise ImageFileError for pixels (C, H, W) that are not finite."""
    if pixels.is_floating_point() and (count := int((~pixels.isfinite()).any(0).sum())):
        raise ImageFileError(
            f"{name}: {count} pixels are not finite: replace missing values, or declare them as nodata of a TIFF"
        )


def download(address: str) -> bytes:
    """Download an image of at most `MAX_DOWNLOAD` bytes. Raises ImageFileError."""
    content = bytearray()
    try:
        with get_session().stream("GET", address, timeout=TIMEOUT, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes(CHUNK):
                content += chunk
                if len(content) > MAX_DOWNLOAD:
                    raise ImageFileError(f"{address}: the file has more than {MAX_DOWNLOAD:,} bytes")
    except ImageFileError:
        raise
    except Exception as error:  # network errors, or an invalid address
        raise ImageFileError(f"{address} cannot be downloaded: {error_sentence(error)}") from None
    return bytes(content)


__all__ = ["check_finite", "load_file", "load_image", "load_pixels"]
