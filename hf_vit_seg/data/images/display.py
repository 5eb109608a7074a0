"""Conversion of images of any number of channels and any depth to RGB for display.

Shapes: C channels, H W pixels.
"""

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.models.image_processing_inputs import reduce_gray

RGB = 3
DARK = 64  # gray level (of 256) of 14-bit white
DARKEST, BRIGHTEST = 0.02, 0.98  # quantiles that are mapped to black and white
MAX_SAMPLES = 2**20  # pixels per channel that the quantiles are computed from


def to_rgb_image(image: torch.Tensor) -> Image.Image:
    """Convert an image (C, H, W) to RGB: the first three channels, or the first one as gray if there are fewer.

    uint8 values are unchanged, and uint16 values reduced to 8 bits unless they would be almost black. Other values are
    stretched for each channel from the 2nd percentile (black) to the 98th (white); pixels that are not finite become
    black.
    """
    channels = image[:RGB] if len(image) >= RGB else image[:1].expand(RGB, -1, -1)
    if channels.dtype == torch.uint16 and channels.numel():
        reduced = reduce_gray(channels)
        channels = reduced if reduced.max() >= DARK else channels
    if channels.dtype != torch.uint8:
        channels = torch.stack([stretch_to_uint8(channel) for channel in channels])
    return Image.fromarray(np.ascontiguousarray(channels.permute(1, 2, 0).cpu().numpy()))


def stretch_to_uint8(channel: torch.Tensor) -> torch.Tensor:
    """Stretch values (H, W) of any range to uint8."""
    values = channel.to(torch.float64)
    finite = values[values.isfinite()]
    if not len(finite):
        return torch.zeros_like(values, dtype=torch.uint8)
    sparse = finite[:: max(len(finite) // MAX_SAMPLES, 1)]
    low, high = (float(sparse.quantile(share)) for share in (DARKEST, BRIGHTEST))
    shares = ((values - low) / max(high - low, torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return (torch.where(values.isfinite(), shares, 0.0) * 255).round().to(torch.uint8)


__all__ = ["RGB", "to_rgb_image"]
