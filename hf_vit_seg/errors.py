"""Errors that users see as one sentence, and exceptions of any kind as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_vit_seg.models.errors import HfVitSegError

WORKER_TRACEBACK = "Original Traceback"  # torch puts it before the message of an error in a loader process
LONGEST = 400  # characters of a library's message


class WriteError(HfVitSegError):
    """A file or directory that cannot be written, and why."""


def error_sentence(error: BaseException, short: bool = False) -> str:
    """The message of any exception on one line, or its type's name if it has none.

    `short` keeps only the first sentence, for libraries whose messages go on with advice. Messages of HfVitSegError
    are never cut.
    """
    text = str(error).strip()
    if WORKER_TRACEBACK in text:
        text = text.rpartition("\n")[2].partition(": ")[2] or text
    if isinstance(error, HfVitSegError):
        return text or type(error).__name__
    if short:
        text = first_sentence(text)
    return " ".join(text.split())[:LONGEST] or type(error).__name__


def first_sentence(text: str) -> str:
    """The first line of a text up to its first period; a line that ends in a colon continues in the next."""
    kept: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        kept.append(line)
        if not line.endswith(":"):
            break
    return " ".join(kept).split(". ")[0]


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Raise WriteError for an OSError of the operating system while `target` is written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error_sentence(error)
        raise WriteError(f"{target} cannot be written ({reason}): free space, or choose another output") from error


__all__ = ["HfVitSegError", "WriteError", "error_sentence", "write_errors"]
