"""Run work on the main process, and share its result or error with all processes of a run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hf_vit_seg.directory_lock import lock_directory
from hf_vit_seg.errors import HfVitSegError, error_sentence

Result = TypeVar("Result")


class PreparationError(HfVitSegError):
    """Raised on the other processes when the main process raises HfVitSegError."""


def on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Run `work` on the main process and return its result on all processes; if it fails, all of them raise."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:  # on any error: the other processes would wait for the broadcast until it times out
            broadcast_object_list([None, (error_sentence(error), isinstance(error, HfVitSegError))])
            raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        sentence, expected = outcome[1]
        if expected:
            raise PreparationError(sentence)
        raise RuntimeError(f"the main process failed: {sentence}")
    return outcome[0]


@contextmanager
def lock_on_main_process(accelerator: Accelerator, directory: Path) -> Iterator[None]:
    """Hold the lock of a directory for all processes; if the main process cannot get it, all of them raise."""
    with ExitStack() as stack:
        on_main_process(accelerator, lambda: stack.enter_context(lock_directory(directory)))
        yield


__all__ = ["PreparationError", "lock_on_main_process", "on_main_process"]
