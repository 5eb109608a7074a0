"""The application, and what its commands share: their registration, panels of --help and options.

Only the commands themselves import torch and transformers: help, completion and errors of usage are immediate.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hf_vit_seg import __version__
from hf_vit_seg.error_reporting import GENERAL, report_errors

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Panels that group the options in --help of several commands.
DATA, FILES, FORMAT, MODEL, REPOSITORY = "Data", "Files", "Format", "Model", "Repository"


class Command(TyperCommand):
    """A command whose --help is listed with the options that every command has."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option, in the panel of the general options."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = GENERAL
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; the error for an unknown choice suggests the nearest one."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = usage_message(error.message)
            raise


def usage_message(message: str) -> str:
    """Return the message of an invalid option without pydantic's prefix, and with the nearest choice."""
    from hf_vit_seg.records import QUOTED, suggestion

    message = message.removeprefix("Value error, ")
    value, is_choice, choices = message.partition(" is not one of ")
    if not is_choice:
        return message
    return message.rstrip(".") + (suggestion(value.strip("'"), QUOTED.findall(choices)) or ".")


def command(
    name: str | None = None, *, example: str, prints_result: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command that reports its errors; `example` is shown at the end of its help."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        known = app.command(name, cls=Command, epilog=f"Example: `{example}`")
        return known(report_errors(function, prints_result=prints_result))

    return register


class FloatType(StrEnum):
    """Number formats for computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Split(StrEnum):
    """Splits of a recipe's data."""

    train = "train"
    validation = "validation"
    test = "test"


ConvertOption = Annotated[
    bool,
    typer.Option(
        "--convert/--no-convert",
        help="Convert checkpoints in other formats in memory, or load them with transformers' classes.",
        rich_help_panel=MODEL,
    ),
]


def show_version(shown: bool) -> None:
    """Print the version of the package, and exit."""
    if shown:
        typer.echo(f"hf-vit-seg {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Vision transformers for segmentation in the Hugging Face ecosystem."""
