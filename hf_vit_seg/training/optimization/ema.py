"""An exponential moving average of a model's weights, on torch's AveragedModel.

Statistics of BatchNorm are averaged like the weights they belong to, so that both are of the same model; buffers of
integers are copied. The average is taken to the model, not the model to the average: for evaluation and saving the
two change places, so that everything that holds the model (wrappers, compilers, pipelines) sees the averaged weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hf_vit_seg.training.model.parameter_names import unwrapped
from hf_vit_seg.training.recipe.schema import EmaRecipe


def decay_at(recipe: EmaRecipe, step: int) -> float:
    """How much of the average stays at a step of the optimizer, counted from 1: less in the beginning."""
    return min(recipe.decay, (1 + step) / (10 + step)) if recipe.warmup else recipe.decay


class WeightAverage:
    """The average of a model's weights and floating-point buffers; with adapters, of those too.

    One copy of the model is held, on its device: build it when the model has been put there. Models whose weights
    lie scattered over processes (FSDP, DeepSpeed's stage 3) are not averaged as a whole: each process would need all.
    """

    def __init__(self, model: nn.Module, recipe: EmaRecipe):
        self.recipe = recipe
        self.live = unwrapped(model)
        self.decay = recipe.decay
        self.average = AveragedModel(self.live, multi_avg_fn=self.blend, use_buffers=True)
        self.average.requires_grad_(False)

    @torch.no_grad()
    def blend(self, averages: Any, values: Any, count: Any) -> None:
        """Move averages a little towards values; tensors of one dtype and device."""
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - self.decay)
        else:
            torch._foreach_copy_(averages, values)

    def update(self, step: int) -> None:
        """Take the model's weights in, after the optimizer's `step`-th step (from 1); the first time, copy them."""
        self.decay = decay_at(self.recipe, step)
        self.average.update_parameters(self.live)

    @contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """The model with the averaged weights, without a copy: inside the block the average holds the trained ones.

        `model` may be a wrapper of the model that is averaged. Nothing may be trained or updated inside the block.
        """
        if model is not None and unwrapped(model) is not self.live:
            raise ValueError("WeightAverage.applied was given another model than the one that it averages")
        self.exchange()
        try:
            yield self.live if model is None else model
        finally:
            self.exchange()

    def exchange(self) -> None:
        """Let every tensor of the model and its average change places."""
        for one, other in zip(tensors(self.live), tensors(self.average.module), strict=True):
            one.data, other.data = other.data, one.data

    def state_dict(self) -> dict[str, Any]:
        """All averages and their count."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, bit for bit."""
        self.average.load_state_dict(state)


def tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """All parameters and buffers."""
    return chain(model.parameters(), model.buffers())
