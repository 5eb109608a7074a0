"""Models with all parameters and buffers random: zeros and ones would hide mistakes."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def randomize_weights(model: M, seed: int = 0) -> M:
    """Randomize everything: norm weights around 1, variances above 0, the rest normal and small."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            noise = (0.4 * noise).exp()
        elif tensor.ndim == 1 and name.endswith("weight"):
            noise = 1 + 0.25 * noise
        else:
            noise = noise * (0.3 if tensor.ndim == 1 else tensor[0].numel() ** -0.5)
        tensor.copy_(noise)
    return model
