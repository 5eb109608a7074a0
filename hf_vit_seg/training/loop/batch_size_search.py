"""Steps tried on a copy of the model before the first one: what fits into memory, which parameters are never reached.

Shapes: B images.
"""

import copy
import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from hf_vit_seg.training.reports.memory_advice import OutOfMemory, is_out_of_memory

from .gradient_accumulation import Batch, Objective

# Larger batches are not tried. On a CPU they bring no speed, and the system may kill a process that takes too much.
MOST = {"cpu": 16}
MOST_ELSEWHERE = 1024
ADAM_STATES = 2  # tensors in the size of each trained parameter


def largest_batch_size(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to `most` that fits; OutOfMemory if 1 does not."""
    size = 0
    while max(2 * size, 1) <= most and fits(max(2 * size, 1)):
        size = max(2 * size, 1)
    if size == 0:
        raise OutOfMemory(
            "loop.batch_size: auto finds that not even one image fits into memory: take smaller crops in transforms, "
            "set model.gradient_checkpointing=true, or train a smaller model"
        )
    return size


def measured_batch_size(
    model: nn.Module,
    objective: Objective,
    sample: Batch,
    device: torch.device,
    autocast: Callable[[], Any],
    most: int,
) -> int:
    """The largest power of two, up to `most`, with which a step of training fits on the device.

    It is tried on a copy of the model with one collated `sample` (B = 1) repeated. What Adam keeps is held as well
    meanwhile.
    """
    trial = copy.deepcopy(model).to(device).train()
    states = [torch.empty_like(p) for p in trial.parameters() if p.requires_grad for _ in range(ADAM_STATES)]

    def fits(size: int) -> bool:
        try:
            one_step(trial, objective, repeated(sample, size, device), autocast)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            trial.zero_grad(set_to_none=True)
            freed(device)
        return True

    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        found = largest_batch_size(fits, min(most, MOST.get(device.type, MOST_ELSEWHERE)))
    states.clear()
    return found


def unreached_parameters(model: nn.Module, objective: Objective, sample: Batch) -> list[str]:
    """Names of trained parameters that a step gives no gradient; tried with one collated `sample` (B = 1) twice.

    The last layer of a CvT that ends in a class token, say, has a convolution of queries that nobody asks for.
    """
    trial = copy.deepcopy(model).train()
    device = next(trial.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        one_step(trial, objective, repeated(sample, 2, device), nullcontext)
    return [name for name, p in trial.named_parameters() if p.requires_grad and p.grad is None]


def one_step(model: nn.Module, objective: Objective, batch: Batch, autocast: Callable[[], Any]) -> None:
    """Forward and backward."""
    units = objective.units(batch)
    with autocast():
        totals = objective.totals(model, batch)
    objective.combine(totals, units).backward()


def repeated(sample: Batch, size: int, device: torch.device) -> Batch:
    """A batch of one image as a batch of `size`."""
    tensors = {name: value for name, value in sample.items() if isinstance(value, torch.Tensor)}
    return {name: value.to(device).repeat(size, *[1] * (value.dim() - 1)) for name, value in tensors.items()}


def freed(device: torch.device) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
