"""Convert out-of-memory errors into advice on settings."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_vit_seg.errors import OutOfMemory, is_out_of_memory
from hf_vit_seg.training.recipe.schema import Recipe


@contextmanager
def memory_advice(recipe: Recipe) -> Iterator[None]:
    """Convert a memory error in a training step into OutOfMemory with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(training_advice(recipe)) from error


def training_advice(recipe: Recipe) -> str:
    """List settings of a resolved recipe that reduce the memory of a training step."""
    size, accumulation = recipe.loop.batch_size, recipe.loop.accumulation
    ways = []
    if size != "auto" and size > 1:
        lower = max(part for part in range(1, size) if size % part == 0)
        ways.append(
            f"lower loop.batch_size (now {size}) and raise loop.accumulation (now {accumulation}), such as "
            f"loop.batch_size={lower} loop.accumulation={accumulation * size // lower}"
        )
    if not recipe.model.gradient_checkpointing:
        ways.append("set model.gradient_checkpointing=true")
    ways.append("use smaller crops in transforms")
    if recipe.loop.precision == "no" and torch.cuda.is_available():
        ways.append("set loop.precision=bf16")
    return f"out of memory in a training step: {', or '.join(ways)}"


@contextmanager
def evaluation_memory_advice() -> Iterator[None]:
    """Convert a memory error in an evaluation into OutOfMemory with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "out of memory in an evaluation: lower evaluation.batch_size, or use sliding windows for large images, "
            "such as evaluation.protocol.window=[512,512]"
        ) from error
