"""What commands print: `--quiet` hides everything but errors, `--json` prints the result as JSON instead of a table."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

quiet_mode: ContextVar[bool] = ContextVar("quiet_mode", default=False)
json_stream: ContextVar[TextIO | None] = ContextVar("json_stream", default=None)  # stdout, with --json


@contextmanager
def output_mode(*, quiet: bool = False, as_json: bool = False) -> Iterator[None]:
    """Apply `--quiet` and `--json` to a command: in both modes stdout is hidden, except for `print_result`'s JSON."""
    if not quiet and not as_json:
        yield
        return
    tokens = quiet_mode.set(quiet), json_stream.set(sys.stdout if as_json else None)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
            yield
    finally:
        quiet_mode.reset(tokens[0])
        json_stream.reset(tokens[1])


def is_quiet() -> bool:
    """Whether the command only reports errors."""
    return quiet_mode.get()


def print_result(view: "RenderableType", value: Callable[[], Any], console: "Console | None" = None) -> None:
    """Print a result as a table, or with `--json` its value, once per command."""
    stream = json_stream.get()
    if stream is not None:
        print(json.dumps(value(), indent=2, ensure_ascii=False, allow_nan=False), file=stream)
        return
    if console is None:
        from rich.console import Console

        console = Console()
    console.print(view)


def status_console() -> "Console":
    """Return a console on stderr for progress and summaries, which prints nothing with `--quiet`."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=is_quiet())


__all__ = ["is_quiet", "output_mode", "print_result", "status_console"]
