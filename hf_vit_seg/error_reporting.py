"""Output of commands: error reports and exit codes, `--quiet` and `--json`.

User errors are reported in one sentence, bugs with a traceback.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from .errors import HfVitSegError, error_sentence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DONE = 0
FAILED = 1  # some of the work failed
REFUSED = 2  # the command cannot be executed as given
BUG = 70  # EX_SOFTWARE of sysexits.h
STOPPED = 130  # by Ctrl-C or SIGTERM
GENERAL = "General"  # the panel of the options that every command has
# Options that `report_errors` adds to commands.
ADDED_OPTIONS = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.", rich_help_panel=GENERAL)],
    "traceback": Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of every error.", rich_help_panel=GENERAL)
    ],
}
JSON_OPTION = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON instead of a table.", rich_help_panel=GENERAL)
]

show_tracebacks: ContextVar[bool] = ContextVar("show_tracebacks", default=False)
quiet_mode: ContextVar[bool] = ContextVar("quiet_mode", default=False)
json_stream: ContextVar[TextIO | None] = ContextVar("json_stream", default=None)  # stdout, with --json


def report_error(error: Exception) -> int:
    """Print an error and return its exit code."""
    process = this_process()
    expected = isinstance(error, HfVitSegError)
    if not expected or show_tracebacks.get():
        print(traceback_text(error), end="", file=sys.stderr)
    if expected:
        print(f"hf-vit-seg{process}: {error_sentence(error)}", file=sys.stderr)
        return REFUSED
    print(f"hf-vit-seg{process}: this is a bug, of hf-vit-seg or of a library that it uses", file=sys.stderr)
    return BUG


def traceback_text(error: BaseException) -> str:
    """Format the traceback of an exception and its causes."""
    return "".join(traceback.format_exception(error))


def error_location(error: BaseException) -> tuple[str, str, int]:
    """Return the type, file and line of an exception, which identify a bug."""
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
    return type(error).__name__, file, line


@contextmanager
def log_bugs(path: Path) -> Iterator[None]:
    """Append the traceback of any exception but HfVitSegError to a file, and re-raise it."""
    try:
        yield
    except HfVitSegError:
        raise
    except Exception as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"hf-vit-seg{this_process()}\n{traceback_text(error)}\n")
        raise


def this_process() -> str:
    """Return " (process N)" if there are several processes."""
    return "" if os.environ.get("WORLD_SIZE", "1") == "1" else f" (process {os.environ.get('RANK', '0')})"


def quiet_libraries() -> None:
    """Hide messages and progress bars of libraries that commands replace by their own."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # for loading and saving weights
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged files are reported in sentences


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
    """Return whether the command only reports errors."""
    return quiet_mode.get()


def is_json() -> bool:
    """Return whether the command prints JSON."""
    return json_stream.get() is not None


def print_json(value: Callable[[], Any]) -> None:
    """Print a result with `--json`, for commands whose other output is on stderr."""
    stream = json_stream.get()
    if stream is not None:
        print(json.dumps(value(), indent=2, ensure_ascii=False, allow_nan=False), file=stream, flush=True)


def print_result(view: "RenderableType", value: Callable[[], Any], console: "Console | None" = None) -> None:
    """Print a result as a table, or with `--json` its value, once per command."""
    if is_json():
        print_json(value)
        return
    if console is None:
        from rich.console import Console

        console = Console()
    console.print(view)


def status_console() -> "Console":
    """Return a console on stderr for progress and summaries, which prints nothing with `--quiet`."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=is_quiet())


def report_errors(function: Callable[..., None], *, prints_result: bool = False) -> Callable[..., None]:
    """Decorate a typer command: report its errors, return exit codes, and add the options --quiet and --traceback.

    Commands that call `print_result` have `prints_result`, which adds --json.
    """

    @wraps(function)
    def command(*arguments: Any, traceback: bool, quiet: bool, as_json: bool = False, **options: Any) -> None:
        token = show_tracebacks.set(traceback)
        try:
            quiet_libraries()
            with output_mode(quiet=quiet, as_json=as_json):
                function(*arguments, **options)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the last: of `hf-vit-seg ... | head`, handled by typer
            raise
        except Exception as error:
            raise typer.Exit(report_error(error)) from None
        finally:
            show_tracebacks.reset(token)

    original = signature(function, eval_str=True)
    added = ({"as_json": JSON_OPTION} if prints_result else {}) | ADDED_OPTIONS
    parameters = [
        *original.parameters.values(),
        *(Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind) for name, kind in added.items()),
    ]
    command.__signature__ = original.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


__all__ = [
    "BUG",
    "DONE",
    "FAILED",
    "GENERAL",
    "REFUSED",
    "STOPPED",
    "error_location",
    "is_json",
    "is_quiet",
    "log_bugs",
    "print_json",
    "print_result",
    "report_error",
    "report_errors",
    "show_tracebacks",
    "status_console",
    "this_process",
    "traceback_text",
]
