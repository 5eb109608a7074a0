"""Uploaded files, their limits, and error messages for visitors."""

import logging
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.utils import get_upload_folder

from hf_vit_seg.data.images.files import ImageSizeError
from hf_vit_seg.errors import HfVitSegError

from .accelerator import CALLS

FAILED = "the server did not answer; try again, or choose a smaller image"
MEGABYTES = 30  # size of one file
MAX_UPLOAD_PIXELS = 25_000_000  # pixels of one image
MAX_FILES = 20  # files per batch
SUBFOLDER = re.compile("[0-9a-f]{64}")  # gradio's salted hash for uploads, random for results

logger = logging.getLogger(__name__)


class ForeignFileError(HfVitSegError):
    """A file that was not uploaded to this server; the sentence is the same whether it exists or not."""

    def __init__(self) -> None:
        super().__init__("the file was not uploaded to this server, or has been deleted since: upload it again")


def resolve_upload(payload: Any) -> Path:
    """Return the file of a payload that gradio's client made of an upload: {"path": ...}.

    ForeignFileError for everything but a regular file in one of the subfolders of the upload folder, whose names cannot
    be guessed. Nothing outside the upload folder is looked at.
    """
    folder = Path(get_upload_folder()).resolve()
    path = payload.get("path") if isinstance(payload, Mapping) else None
    try:
        if not isinstance(path, str) or not path.startswith(str(folder)):
            raise ForeignFileError
        own, name = Path(path).relative_to(folder).parts
        place = folder / own / name
        if (
            not SUBFOLDER.fullmatch(own)
            or place.resolve(strict=True) != place
            or not stat.S_ISREG(place.lstat().st_mode)
        ):
            raise ForeignFileError
    except (OSError, ValueError):
        raise ForeignFileError from None
    return place


def photo_input(label: str, height: int) -> gr.Image:
    """Create an input for an image from a file, the clipboard or a camera; functions get the path of the file.

    gradio would decode it, and fail without a message where it is broken; reading it is our own work.
    """
    sources: list[Literal["upload", "webcam", "clipboard"]] = ["upload", "webcam", "clipboard"]
    photo = gr.Image(label=label, height=height, type="filepath", image_mode=None, sources=sources)
    photo.preprocess = lambda payload: payload and payload.path
    return photo


def files_input(label: str) -> gr.File:
    """Several files, which functions get as paths. gradio would leave an empty temporary file for each."""
    files = gr.File(file_count="multiple", label=label)
    files.preprocess = upload_paths
    return files


def upload_paths(payload: Any) -> list[str] | None:
    """Return the paths of gradio's files."""
    return None if payload is None else [file.path for file in payload]


def model_choice(titles: list[str]) -> gr.Dropdown:
    """Return the dropdown of a tab's models; the first is selected."""
    return gr.Dropdown(titles, value=titles[0], label="Model", interactive=True)


def failure_text(error: Exception) -> str:
    """Return the message for a visitor after an unexpected exception."""
    return f"the server failed ({type(error).__name__}); its log has the details: try another image or model"


def error_message(error: Exception, path: Path | None = None) -> str:
    """Return the message of an error, without paths of the server and advice for the command line.

    Unexpected exceptions are logged with their traceback.
    """
    if isinstance(error, gr.Error):
        return error.message
    if not isinstance(error, HfVitSegError):
        logger.error("a call of the demo failed", exc_info=error)
        return failure_text(error)
    text = error.fact if isinstance(error, ImageSizeError) else str(error)
    return text if path is None else text.replace(str(path), path.name)


@contextmanager
def report_failures(path: Path | None = None) -> Iterator[None]:
    """Show exceptions to the visitor as one sentence."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(error_message(error, path), print_exception=False, duration=None) from error


def clear_on_failure(event: Any, outputs: list[Any]) -> None:
    """Clear the outputs of an event that fails, because they belong to another image or model."""
    event.failure(lambda: [None] * len(outputs), None, outputs, queue=False, api_visibility="private")


def show_results(
    triggers: Sequence[Any], compute: Callable[..., Sequence[Any]], inputs: list[Any], outputs: list[Any]
) -> None:
    """Show the results of a function of an image's path and further inputs on the page.

    An error is shown in a text below the outputs, which are cleared, until the next result.
    """
    message = gr.Textbox(label="Error", interactive=False, visible=False, elem_classes="error")
    cleared = [None] * len(outputs)

    def show(image: str | None, *choices: Any) -> tuple[Any, ...]:
        try:
            results = compute(image, *choices)
        except Exception as error:
            text = error_message(error, None if image is None else Path(image))
            return *cleared, gr.update(value=text, visible=True)
        return *results, gr.update(value="", visible=False)

    shown = [*outputs, message]
    event = gr.on(triggers, show, inputs, shown, api_visibility="private", trigger_mode="always_last", **CALLS)
    failure = *cleared, gr.update(value=FAILED, visible=True)
    event.failure(lambda: failure, None, shown, queue=False, api_visibility="private")


__all__ = [
    "FAILED",
    "MAX_FILES",
    "MAX_UPLOAD_PIXELS",
    "MEGABYTES",
    "ForeignFileError",
    "clear_on_failure",
    "error_message",
    "failure_text",
    "files_input",
    "model_choice",
    "photo_input",
    "report_failures",
    "resolve_upload",
    "show_results",
]
