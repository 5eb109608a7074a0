"""Images of any number of bands and any depth as pictures for eyes.

Shapes: C bands, H W pixels.
"""

import numpy as np
import torch
from PIL import Image

RGB = 3
DARKEST, BRIGHTEST = 0.02, 0.98  # quantiles that become black and white
MOST_SAMPLES = 2**20  # pixels per band that quantiles are taken of


def picture(image: torch.Tensor) -> Image.Image:
    """An image (C, H, W) as RGB: its first three bands, or its first one as gray where it has fewer.

    uint8 is shown as it is. Other values are stretched band by band: the 2nd percentile becomes black, the 98th white;
    pixels that are not finite become black.
    """
    bands = image[:RGB] if len(image) >= RGB else image[:1].expand(RGB, -1, -1)
    if bands.dtype != torch.uint8:
        bands = torch.stack([stretched(band) for band in bands])
    return Image.fromarray(np.ascontiguousarray(bands.permute(1, 2, 0).cpu().numpy()))


def stretched(band: torch.Tensor) -> torch.Tensor:
    """Values (H, W) of any range as uint8."""
    values = band.to(torch.float64)
    finite = values[values.isfinite()]
    if not len(finite):
        return torch.zeros_like(values, dtype=torch.uint8)
    sparse = finite[:: max(len(finite) // MOST_SAMPLES, 1)]
    low, high = (float(sparse.quantile(share)) for share in (DARKEST, BRIGHTEST))
    shares = ((values - low) / max(high - low, torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return (torch.where(values.isfinite(), shares, 0.0) * 255).round().to(torch.uint8)


__all__ = ["picture"]
