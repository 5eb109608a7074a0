"""The complete model for evaluation and saving, on every process, with averaged weights if there is an average."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast
from torch import nn

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.model.parameter_names import unwrap_model
from hf_vit_seg.training.recipe.schema import Recipe

from .ema import WeightAverage

SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # weights may be sharded over the processes


def check_average_is_not_sharded(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise RecordError for EMA with sharded weights."""
    if recipe.loop.ema is not None and accelerator.distributed_type in SHARDING:
        raise RecordError(
            f"loop.ema is not supported with {accelerator.distributed_type.value}, because weights are sharded; remove "
            "the setting, or train with DDP"
        )


@contextmanager
def gathered_model(
    accelerator: Accelerator, model: Any, average: WeightAverage | None, copy: Any | None
) -> Iterator[Any]:
    """Return the model without accelerate's wrapper; called by all processes. Do not train inside the block.

    `copy` is a copy of the model before `Accelerator.prepare`; sharded weights are gathered into it.
    """
    if accelerator.distributed_type in SHARDING:
        yield gather_weights(accelerator, model, copy)
        return
    plain = unwrap_model(model)
    with nullcontext(plain) if average is None else average.apply(plain) as whole:
        share_buffers(whole)
        yield whole


def share_buffers(model: nn.Module) -> None:
    """Broadcast the main process's BatchNorm statistics, which otherwise differ between processes."""
    for buffer in model.buffers():
        broadcast(buffer, from_process=0)


@torch.no_grad()
def gather_weights(accelerator: Accelerator, model: Any, copy: Any) -> Any:
    """Gather sharded weights into the copy on every process, and return it."""
    state = accelerator.get_state_dict(model)  # complete on the main process only
    copy.to(accelerator.device)
    for name, tensor in copy.state_dict().items():
        if accelerator.is_main_process:
            tensor.copy_(state[name])
        broadcast(tensor, from_process=0)
    return copy
