"""Work that the main process does for all processes of a run: its result, or its failure, reaches all of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hf_vit_seg.directory_lock import locked_directory

Result = TypeVar("Result")


class PreparationError(ValueError):
    """Raised on the other processes when the main process fails."""


def on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Run `work` on the main process and return its result on all processes; if it fails, all of them raise."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:  # any error: the others would wait for the broadcast until it times out
            broadcast_object_list([None, str(error) or type(error).__name__])
            raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise PreparationError(outcome[1])
    return outcome[0]


@contextmanager
def locked_by_main_process(accelerator: Accelerator, directory: Path) -> Iterator[None]:
    """Hold the lock of a directory for all processes; if the main process cannot get it, all of them raise."""
    with ExitStack() as stack:
        on_main_process(accelerator, lambda: stack.enter_context(locked_directory(directory)))
        yield


__all__ = ["PreparationError", "locked_by_main_process", "on_main_process"]
