"""The model as it is measured and saved: whole on every process, with averaged weights where there is an average."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast
from torch import nn

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.model.parameter_names import unwrapped
from hf_vit_seg.training.recipe.schema import Recipe

from .ema import WeightAverage

SCATTERING = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # weights may lie scattered over the processes


def refuse_scattered_average(recipe: Recipe, accelerator: Accelerator) -> None:
    """RecordError for an average of weights that no process has whole."""
    if recipe.loop.ema is not None and accelerator.distributed_type in SCATTERING:
        raise RecordError(
            f"loop.ema: weights are not averaged under {accelerator.distributed_type.value}, where no process has them "
            "whole; leave it out, or train with DDP"
        )


@contextmanager
def whole_model(accelerator: Accelerator, model: Any, average: WeightAverage | None, copy: Any | None) -> Iterator[Any]:
    """The model without accelerate's wrapper; called by all processes. Nothing may be trained inside the block.

    `copy` is the model as it was before accelerate prepared it, needed where weights are scattered: it is given them.
    """
    if accelerator.distributed_type in SCATTERING:
        yield gathered(accelerator, model, copy)
        return
    plain = unwrapped(model)
    with nullcontext(plain) if average is None else average.applied(plain) as whole:
        share_buffers(whole)
        yield whole


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main one's running statistics of BatchNorm, where each has those of its own batches."""
    for buffer in model.buffers():
        broadcast(buffer, from_process=0)


@torch.no_grad()
def gathered(accelerator: Accelerator, model: Any, copy: Any) -> Any:
    """The copy, with the weights that are scattered over the processes."""
    state = accelerator.get_state_dict(model)  # whole on the main process only
    copy.to(accelerator.device)
    for name, tensor in copy.state_dict().items():
        if accelerator.is_main_process:
            tensor.copy_(state[name])
        broadcast(tensor, from_process=0)
    return copy
