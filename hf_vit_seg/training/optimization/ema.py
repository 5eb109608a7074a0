"""Exponential moving average of a model's weights, based on torch's AveragedModel.

BatchNorm statistics are averaged like the weights; integer buffers are copied. For evaluation and saving, the weights
of model and average are swapped in place, so that every reference to the model (wrappers, compilers, pipelines) sees
the averaged weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hf_vit_seg.training.model.parameter_names import unwrap_model
from hf_vit_seg.training.recipe.schema import EmaRecipe


def decay_at(recipe: EmaRecipe, step: int) -> float:
    """Return the decay at an optimizer step, counted from 1; with warmup it is smaller in the first steps."""
    return min(recipe.decay, (1 + step) / (10 + step)) if recipe.warmup else recipe.decay


class WeightAverage:
    """The average of a model's weights and floating-point buffers, including adapters.

    It stores one copy of the model on its device, so move the model first. Models with sharded weights (FSDP,
    DeepSpeed stage 3) are not supported: each process would need all weights.
    """

    def __init__(self, model: nn.Module, recipe: EmaRecipe):
        self.recipe = recipe
        self.live = unwrap_model(model)
        self.decay = recipe.decay
        self.average = AveragedModel(self.live, multi_avg_fn=self.blend, use_buffers=True)
        self.average.requires_grad_(False)

    @torch.no_grad()
    def blend(self, averages: Any, values: Any, count: Any) -> None:
        """Update averages by values in place; all tensors have one dtype and device."""
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - self.decay)
        else:
            torch._foreach_copy_(averages, values)

    def update(self, step: int) -> None:
        """Update the average after optimizer step `step` (from 1); the first update copies the weights."""
        self.decay = decay_at(self.recipe, step)
        self.average.update_parameters(self.live)

    @contextmanager
    def apply(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Swap the averaged weights into the model for the duration of the block, without a copy.

        `model` may be a wrapper of the averaged model. Do not train or update inside the block.
        """
        if model is not None and unwrap_model(model) is not self.live:
            raise ValueError("WeightAverage.apply: found another model than the averaged one")
        self.swap()
        try:
            yield self.live if model is None else model
        finally:
            self.swap()

    def swap(self) -> None:
        """Swap the tensors of the model and its average."""
        for one, other in zip(tensors(self.live), tensors(self.average.module), strict=True):
            one.data, other.data = other.data, one.data

    def state_dict(self) -> dict[str, Any]:
        """Return all averages and the number of updates."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load an average saved by `state_dict`."""
        self.average.load_state_dict(state)


def tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Iterate over all parameters and buffers."""
    return chain(model.parameters(), model.buffers())
