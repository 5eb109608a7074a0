"""Errors with one-sentence messages, and one-sentence messages of any exception."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_vit_seg.models.errors import HfVitSegError

WORKER_TRACEBACK = "Original Traceback"  # torch puts it before the message of an error in a loader process
MAX_MESSAGE_LENGTH = 400  # maximum length of a library's message

# torch's messages on a CPU, where it raises a plain RuntimeError.
CPU_MESSAGES = (
    "defaultcpuallocator: can't allocate",
    "defaultcpuallocator: not enough memory",
    "cannot allocate memory",
)


class WriteError(HfVitSegError):
    """A file or directory that cannot be written."""


class OutOfMemory(HfVitSegError):
    """Out of memory; the message names settings to change."""


def error_sentence(error: BaseException, short: bool = False) -> str:
    """Return the message of any exception on one line, or the name of its type if it has none.

    `short` keeps only the first sentence, for libraries with long messages. Messages of HfVitSegError are not
    shortened.
    """
    if isinstance(error.__cause__, HfVitSegError) and not isinstance(error, HfVitSegError):
        return error_sentence(error.__cause__)  # wrapped by a library
    text = str(error).strip()
    if WORKER_TRACEBACK in text:
        text = text.rpartition("\n")[2].partition(": ")[2] or text
    if isinstance(error, HfVitSegError):
        return text or type(error).__name__
    if short:
        text = first_sentence(text)
    return " ".join(text.split())[:MAX_MESSAGE_LENGTH] or type(error).__name__


def first_sentence(text: str) -> str:
    """Return the first line of a text up to its first period; a line that ends in a colon continues in the next."""
    kept: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        kept.append(line)
        if not line.endswith(":"):
            break
    return " ".join(kept).split(". ")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, on any device, or of Python means that memory ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in CPU_MESSAGES)


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Convert an OSError while `target` is written into a WriteError."""
    try:
        yield
    except OSError as error:
        raise write_error(target, error) from error


def write_error(target: Path, error: Exception) -> WriteError:
    """Describe a failure to write `target`."""
    reason = getattr(error, "strerror", None) or error_sentence(error)
    return WriteError(f"{target} cannot be written ({reason}); free disk space, or choose another output")


__all__ = [
    "HfVitSegError",
    "OutOfMemory",
    "WriteError",
    "error_sentence",
    "is_out_of_memory",
    "write_error",
    "write_errors",
]
