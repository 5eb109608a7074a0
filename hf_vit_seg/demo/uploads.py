"""What visitors choose and upload: within limits, and refused in words."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

import gradio as gr
from gradio.utils import get_upload_folder

from hf_vit_seg.data.image_files import ImageSizeError

MEGABYTES = 30  # of a file
MOST_PIXELS = 25_000_000  # of an image
MOST_FILES = 20  # of a batch

logger = logging.getLogger(__name__)


def photo_input(label: str, height: int) -> gr.Image:
    """An image from a file, the clipboard or a camera, which functions get as the path of the file as it was sent.

    gradio would decode it, and fail without a word where it is broken; reading it is our own work.
    """
    sources: list[Literal["upload", "webcam", "clipboard"]] = ["upload", "webcam", "clipboard"]
    photo = gr.Image(label=label, height=height, type="filepath", image_mode=None, sources=sources)
    decoded = photo.preprocess
    photo.preprocess = lambda payload: payload.path if payload and payload.path else decoded(payload)
    return photo


def model_choice(titles: list[str]) -> gr.Dropdown:
    """The models of a tab, the first one chosen."""
    return gr.Dropdown(titles, value=titles[0], label="Model", interactive=True)


def in_words(error: Exception, path: Path | None = None) -> str:
    """What is wrong with a file or a setting, without paths of the server and advice for the command line.

    Of an error that nobody foresaw, the log has the traceback.
    """
    if isinstance(error, gr.Error):
        return error.message
    if not isinstance(error, ValueError):
        logger.error("a call of the demo failed", exc_info=error)
        return f"the server failed at this ({type(error).__name__}), its log says where: try another image or model"
    text = error.fact if isinstance(error, ImageSizeError) else str(error)
    return text if path is None else text.replace(str(path), path.name)


@contextmanager
def told(path: Path | None = None) -> Iterator[None]:
    """Show a visitor in a sentence what went wrong."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(in_words(error, path), print_exception=False, duration=None) from error


def cleared_on_failure(event: Any, outputs: list[Any]) -> None:
    """Empty what an event fills when it fails: the former result is of another image or model."""
    event.failure(lambda: [None] * len(outputs), None, outputs, queue=False, api_visibility="private")


def fresh_folder() -> Path:
    """A new folder among gradio's files, which it deletes when they are old."""
    folder = Path(get_upload_folder()) / token_hex(16)
    folder.mkdir(parents=True)
    return folder


__all__ = [
    "MEGABYTES",
    "MOST_FILES",
    "MOST_PIXELS",
    "cleared_on_failure",
    "fresh_folder",
    "in_words",
    "model_choice",
    "photo_input",
    "told",
]
