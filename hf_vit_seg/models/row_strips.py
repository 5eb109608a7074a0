"""Working through a feature map in strips of rows, so that no large temporary ever exists.

On a CPU a large temporary costs more than the arithmetic on it: the allocator maps fresh pages for it, and the
kernel clears them one by one. SegFormer-B0's first Mix-FFN at 512x512 takes 16.0 ms with its 8 MB temporaries and
2.1 ms in strips of half that (2 cores of an EPYC, float32). Strips change no number beyond rounding.
"""

from itertools import pairwise

import torch
from torch import nn

from .fast_paths import runs_eagerly, unhooked
from .grid_sizes import ceil_div


def strips_pay(tensor: torch.Tensor) -> bool:
    """Whether a loop over strips helps: on a CPU, without autograd, with nobody looking on."""
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and runs_eagerly()


def strips_pay_in(layer: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether it helps to let a layer work in strips: unhooked, and in evaluation, as each draws its own dropout."""
    return not layer.training and strips_pay(tensor) and unhooked(layer)


def row_strips(height: int, row_bytes: int, budget: int) -> list[tuple[int, int]]:
    """Cut `height` rows into equal strips (first, last + 1) of at most `budget` bytes, but of at least one row."""
    count = ceil_div(height, max(budget // max(row_bytes, 1), 1))
    edges = [height * i // count for i in range(count + 1)]
    return list(pairwise(edges))


__all__ = ["row_strips", "strips_pay", "strips_pay_in"]
