"""Models with random parameters and buffers (zeros and ones would hide mistakes), and ways to change the weights."""

import copy
import io
from collections.abc import Callable
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


M = TypeVar("M", bound=nn.Module)


def change_by_loading(module: M) -> M:
    module.load_state_dict(randomize_weights(copy.deepcopy(module), seed=1).state_dict())
    return module


def change_by_assignment(module: M) -> M:
    module.load_state_dict(randomize_weights(copy.deepcopy(module), seed=1).state_dict(), assign=True)
    return module


def change_through_data(module: M) -> M:
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module


def change_by_pickle(module: M) -> M:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return change_through_data(torch.load(file, weights_only=False))


def change_a_copy(module: M) -> M:
    return change_through_data(copy.deepcopy(module))


CHANGES: tuple[Callable, ...] = (
    change_by_loading,
    change_by_assignment,
    change_through_data,
    change_by_pickle,
    change_a_copy,
)
