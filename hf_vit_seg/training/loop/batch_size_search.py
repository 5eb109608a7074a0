"""Trial steps on a copy of the model: find the largest batch size, and parameters without a gradient.

Shapes: B images.
"""

import copy
import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from hf_vit_seg.errors import OutOfMemory, is_out_of_memory
from hf_vit_seg.training.losses.objectives import Batch, Objective
from hf_vit_seg.training.model.normalization import BatchNormError, batchnorm_advice

# Largest batch sizes to try. On a CPU larger ones are not faster, and the system may kill the process.
MAX_BATCH_SIZE = {"cpu": 16}
DEFAULT_MAX_BATCH_SIZE = 1024
ADAM_STATES = 2  # tensors per trained parameter


def largest_batch_size(fits: Callable[[int], bool], max_size: int) -> int:
    """Return the largest power of two up to `max_size` that fits.

    OutOfMemory if none does. `fits` may raise BatchNormError for 1, and then 2 is the smallest size.
    """
    try:
        smallest = 1 if fits(1) else 0
    except BatchNormError:
        if max_size < 2:
            raise
        smallest = 2 if fits(2) else 0
    if not smallest:
        raise OutOfMemory(
            "loop.batch_size: auto found that the smallest batch does not fit into memory; use smaller crops in "
            "transforms, set model.gradient_checkpointing=true, or train a smaller model"
        )
    size = smallest
    while 2 * size <= max_size and fits(2 * size):
        size *= 2
    return size


def find_batch_size(
    model: nn.Module,
    objective: Objective,
    sample: Batch,
    device: torch.device,
    autocast: Callable[[], Any],
    max_size: int,
) -> int:
    """Find the largest power of two, up to `max_size`, with which a training step fits on the device.

    Runs steps on a copy of the model, with one collated `sample` (B = 1) repeated, while memory for Adam's states is
    allocated.
    """
    trial = copy.deepcopy(model).to(device).train()
    states = [torch.empty_like(p) for p in trial.parameters() if p.requires_grad for _ in range(ADAM_STATES)]

    def fits(size: int) -> bool:
        try:
            with batchnorm_advice():
                one_step(trial, objective, repeat_sample(sample, size, device), autocast)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            trial.zero_grad(set_to_none=True)
            free_memory(device)
        return True

    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        batch_size = largest_batch_size(fits, min(max_size, MAX_BATCH_SIZE.get(device.type, DEFAULT_MAX_BATCH_SIZE)))
    states.clear()
    return batch_size


def parameters_without_gradient(model: nn.Module, objective: Objective, sample: Batch) -> list[str]:
    """Return the names of trainable parameters that get no gradient, from a step with `sample` (B = 1) repeated twice.

    For example, the last layer of a CvT with a class token has an unused query convolution.
    """
    trial = copy.deepcopy(model).train()
    device = next(trial.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        one_step(trial, objective, repeat_sample(sample, 2, device), nullcontext)
    return [name for name, p in trial.named_parameters() if p.requires_grad and p.grad is None]


def one_step(model: nn.Module, objective: Objective, batch: Batch, autocast: Callable[[], Any]) -> None:
    """Run a forward and a backward pass."""
    units = objective.units(batch)
    with autocast():
        totals = objective.totals(model, batch)
    objective.combine(totals, units).backward()


def repeat_sample(sample: Batch, size: int, device: torch.device) -> Batch:
    """Repeat a batch of one image to a batch of `size`; lists have one tensor per image."""
    tensors = {name: value for name, value in sample.items() if isinstance(value, torch.Tensor)}
    lists = {name: value for name, value in sample.items() if isinstance(value, list)}
    repeated = {name: value.to(device).repeat(size, *[1] * (value.dim() - 1)) for name, value in tensors.items()}
    return repeated | {name: [value.to(device) for value in values] * size for name, values in lists.items()}


def free_memory(device: torch.device) -> None:
    """Free unused memory of the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
