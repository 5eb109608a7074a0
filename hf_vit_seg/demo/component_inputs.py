"""Checks of the values of calls, by component; invalid values are refused before gradio or a model uses them.

Calls come from anyone, with any JSON, to any event of the page. gradio itself checks a file only where the payload says
that it is one, and fetches addresses.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from hf_vit_seg.errors import HfVitSegError

from .uploads import MAX_FILES, error_message, failure_text, resolve_upload

logger = logging.getLogger(__name__)

MAX_TEXT_LENGTH = 200  # characters


class InputError(HfVitSegError):
    """A value that a component does not accept."""


def file_payload(value: Any) -> dict[str, Any]:
    """Return the payload of an uploaded file with the fields of gradio only, and without an address."""
    path = resolve_upload(value)
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def photo(component: gr.Image, value: Any) -> dict[str, Any] | None:
    """Validate an uploaded file, or none."""
    return None if value is None else file_payload(value)


def files(component: gr.File, value: Any) -> list[dict[str, Any]] | None:
    """Validate a list of uploaded files, or none."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_FILES:
        content = f"these are {len(value)}" if isinstance(value, list) else "the value is not a list"
        raise InputError(f"choose 1 to {MAX_FILES} files, {content}")
    return [file_payload(item) for item in value]


def choice(component: gr.Dropdown | gr.Radio, value: Any) -> str:
    """Validate one of the offered choices."""
    offered = [choices for _, choices in component.choices]
    if not isinstance(value, str) or value not in offered:
        raise InputError(f"{component.label}: expected one of {', '.join(map(str, offered))}")
    return value


def number(component: gr.Slider, value: Any) -> float:
    """Validate a number in the slider's range."""
    low, high = component.minimum, component.maximum
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{component.label}: expected a number from {low} to {high}, found {shorten(value)}")
    return value


def switch(component: gr.Checkbox, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InputError(f"{component.label}: expected true or false, found {shorten(value)}")
    return value


def text(component: gr.Textbox, value: Any) -> str:
    """Validate a short text."""
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH):
        raise InputError(f"{component.label}: expected a text of at most {MAX_TEXT_LENGTH} characters")
    return value or ""


def shorten(value: Any) -> str:
    """Format a value for messages."""
    plain = isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < 10**9)
    shown = repr(value) if plain else type(value).__name__
    return shown if len(shown) <= 30 else f"{shown[:30]}..."


CHECKS: Mapping[type[Any], Callable[[Any, Any], Any]] = {
    gr.Image: photo,
    gr.File: files,
    gr.Dropdown: choice,
    gr.Radio: choice,
    gr.Slider: number,
    gr.Checkbox: switch,
    gr.Textbox: text,
}


def check_value(component: Any, value: Any) -> Any:
    """Check the value of a component; InputError if the component does not accept it."""
    check = CHECKS.get(type(component))
    if check is None:
        raise InputError(f"{component.get_block_name()}: the server accepts no values for this component")
    return check(component, value)


def check_values(components: list[Any], values: Any) -> list[Any]:
    """Check the values of a call, one for each component."""
    if not isinstance(values, list) or len(values) != len(components):
        count = len(values) if isinstance(values, list) else type(values).__name__
        raise InputError(f"expected {len(components)} values, found {count}")
    return [check_value(component, value) for component, value in zip(components, values, strict=True)]


class GuardedPage(gr.Blocks):
    """A page whose events can be called by anyone.

    Every call goes through `preprocess_data`, whether it comes from the page, by name or by index, with or without the
    queue, so this is where its values are checked, before gradio moves, fetches or opens a file.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.closed = threading.Event()

    def close(self, verbose: bool = True) -> None:
        """End the server."""
        self.closed.set()
        super().close(verbose)

    async def preprocess_data(self, block_fn: Any, inputs: Any, state: Any, explicit_call: bool = False) -> Any:
        """Check the values first; gr.Error for invalid ones."""
        try:
            values = check_values(block_fn.inputs, inputs)
        except HfVitSegError as error:
            raise gr.Error(error_message(error), print_exception=False, duration=None) from error
        return await super().preprocess_data(block_fn, values, state, explicit_call)

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Log unexpected exceptions and report them to the visitor in one sentence."""
        try:
            return await super().process_api(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            logger.error("a call of the demo failed", exc_info=error)
            raise gr.Error(failure_text(error), print_exception=False, duration=None) from error


__all__ = ["CHECKS", "GuardedPage", "InputError", "check_value", "check_values"]
