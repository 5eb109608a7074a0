"""Convert out-of-memory errors, and the death of a loader's worker, into advice on settings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_vit_seg.errors import HfVitSegError, OutOfMemory, is_out_of_memory
from hf_vit_seg.training.recipe.schema import Recipe

# torch's messages for a worker that was killed, but not for one that crashed, such as by "Segmentation fault".
KILLED_WORKER = re.compile(r"DataLoader worker \(pid\S* .+?\) (is killed by signal: Killed|exited unexpectedly$)")


class WorkerKilledError(HfVitSegError):
    """A process that reads images was killed."""


def is_killed_worker(error: BaseException) -> bool:
    """Return whether an error of torch means that a worker of a DataLoader was killed."""
    return isinstance(error, RuntimeError) and KILLED_WORKER.search(str(error)) is not None


@contextmanager
def worker_advice(recipe: Recipe) -> Iterator[None]:
    """Convert the error for a killed worker into WorkerKilledError with advice."""
    try:
        yield
    except RuntimeError as error:
        if not is_killed_worker(error):
            raise
        raise WorkerKilledError(
            "a process that reads images was killed, probably because memory ran out: lower data.workers (now "
            f"{recipe.data.workers}), or use smaller images"
        ) from error


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
