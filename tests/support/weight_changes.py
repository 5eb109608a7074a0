"""Ways to change the weights of a module, after which values that were computed from them must not be reused."""

import copy
import io
from collections.abc import Callable
from typing import TypeVar

import torch
from random_weights import randomize_weights
from torch import nn

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
