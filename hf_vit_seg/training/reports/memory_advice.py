"""When memory runs out: which settings to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training.recipe.schema import Recipe

# What torch says on a CPU, where no exception of its own tells.
CPU_WORDS = ("defaultcpuallocator: can't allocate", "defaultcpuallocator: not enough memory", "cannot allocate memory")


class OutOfMemory(HfVitSegError):
    """Memory ran out: what for, and which settings to lower."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, or Python could not get memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in CPU_WORDS)


@contextmanager
def memory_advice(recipe: Recipe) -> Iterator[None]:
    """Turn an error about memory in a step of training into OutOfMemory, a sentence that helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(training_advice(recipe)) from error


def training_advice(recipe: Recipe) -> str:
    """Which settings of a resolved recipe make a step of training need less memory."""
    size, accumulation = recipe.loop.batch_size, recipe.loop.accumulation
    ways = []
    if size != "auto" and size > 1:
        lower = max(part for part in range(1, size) if size % part == 0)
        ways.append(
            f"lower loop.batch_size (now {size}) and make up for it by loop.accumulation (now {accumulation}), such as "
            f"loop.batch_size={lower} loop.accumulation={accumulation * size // lower}"
        )
    if not recipe.model.gradient_checkpointing:
        ways.append("set model.gradient_checkpointing=true")
    ways.append("take smaller crops in transforms")
    if recipe.loop.precision == "no" and torch.cuda.is_available():
        ways.append("compute in loop.precision=bf16")
    return f"memory ran out in a step of training: {', or '.join(ways)}"


@contextmanager
def evaluation_memory_advice() -> Iterator[None]:
    """Turn an error about memory in an evaluation into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "memory ran out in an evaluation: lower evaluation.batch_size, or let evaluation.protocol go over large "
            "images in windows, such as evaluation.protocol.window=[512,512]"
        ) from error
