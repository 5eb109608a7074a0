"""Errors for processes of a run that were killed: a worker of the loader, or another of several processes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from torch.multiprocessing import reductions

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training.recipe.schema import Recipe

# torch's messages for a worker that was killed, but not for one that crashed, such as by "Segmentation fault".
KILLED_WORKER = re.compile(r"DataLoader worker \(pid\S* .+?\) (is killed by signal: Killed|exited unexpectedly$)")
# Messages of gloo and NCCL in the processes that remain.
LOST_PROCESS = re.compile(r"gloo.*Connection (closed|reset) by peer|ncclRemoteError", re.DOTALL)


class KilledProcessError(HfVitSegError):
    """A process that the run needs was killed."""


def is_killed_worker(error: BaseException) -> bool:
    """Return whether an error means that a worker of a DataLoader was killed.

    torch raises a RuntimeError with a message, or the connection fails by which a tensor of the worker is received.
    """
    if isinstance(error, OSError | EOFError):
        return any(frame.f_code.co_filename == reductions.__file__ for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, RuntimeError) and KILLED_WORKER.search(str(error)) is not None


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error of torch.distributed means that another process has ended."""
    return isinstance(error, RuntimeError) and LOST_PROCESS.search(str(error)) is not None


@contextmanager
def report_killed_processes(recipe: Recipe) -> Iterator[None]:
    """Convert torch's errors for killed processes into KilledProcessError with advice."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if not (is_killed_worker(error) or is_lost_process(error)):
            raise
        if is_lost_process(error):
            raise KilledProcessError(
                "another process of this run has ended: see its message; if it has none, it was killed, probably "
                "because memory ran out"
            ) from error
        raise KilledProcessError(
            "a process that reads images was killed, probably because memory ran out: lower data.workers (now "
            f"{recipe.data.workers}), or use smaller images"
        ) from error


__all__ = ["KilledProcessError", "is_killed_worker", "is_lost_process", "report_killed_processes"]
