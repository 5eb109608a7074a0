"""The page: one tab per task of the models."""

import sys
from collections.abc import Sequence
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from hf_vit_seg.errors import HfVitSegError, error_sentence

from .accelerator import zero_gpu
from .batch_tab import BatchTab
from .catalogue import Catalogue, default_models
from .classification_tab import ClassificationTab
from .component_inputs import GuardedPage
from .image_reading import READERS
from .object_tab import ObjectTab
from .pose_tab import PoseTab
from .request_limits import RequestLimits, answer_invalid_request
from .segmentation_tab import SegmentationTab
from .upload_folder import SECONDS_KEPT, private_folder, sweep_regularly
from .uploads import MEGABYTES

WAITING = 20  # visitors in the queue, at most
CSS = """
.gradio-container { max-width: 1480px !important; }
footer button, footer a { color: var(--body-text-color) !important; opacity: 0.85; }
.dark { --color-accent: var(--primary-300) !important; }
.examples .grid-wrap { min-height: 0 !important; }
.examples .grid-container {
  grid-template-columns: repeat(4, minmax(0, 1fr)) !important;
  grid-auto-rows: auto !important;
  align-items: start;
}
.examples .gallery-item, .examples .thumbnail-item { width: 100% !important; height: auto !important; }
.examples .thumbnail-item { aspect-ratio: 1; }
/* enough contrast for text, and nothing that only a mouse can scroll */
.or { color: var(--body-text-color) !important; }
.model-card .token { color: inherit !important; background: none !important; opacity: 1 !important; }
.model-card pre, .model-card pre code { white-space: pre-wrap !important; overflow-wrap: anywhere; }
/* gradio hides the API link on phones */
@media (max-width: 640px) { .api-hint { display: none !important; } }
"""
# Fonts of the visitor's own system: nothing is fetched from elsewhere.
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED = ("ui-monospace", "Consolas", "monospace")
# The placeholder of gradio's empty components has a label, which only elements with a role may have.
PLACEHOLDER_ROLES = """() => {
  const placeholders = '[aria-label="Empty value"]:not([role])';
  const label = () => document.querySelectorAll(placeholders).forEach((found) => found.setAttribute("role", "img"));
  label();
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
}"""
INTRODUCTION = """# Image segmentation

Upload an image, then point at it (or tap it) to see each class or object.
"""
API_HINT = "For use from a program, see the API link below."


def build_page(catalogue: Catalogue) -> GuardedPage:
    """Build the page for some models."""
    with GuardedPage(
        title="hf_vit_seg", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT), fill_width=True
    ) as page:
        gr.Markdown(INTRODUCTION, elem_classes="intro")
        gr.Markdown(API_HINT, elem_classes="api-hint")
        for failure in catalogue.failures:
            gr.Markdown(f"Not available: {failure}")
        tasks = {entry.task for entry in catalogue.entries.values()}
        with gr.Tabs():
            if "segmentation" in tasks:
                with gr.Tab("Segmentation"):
                    SegmentationTab(catalogue).open_with_example(page.load)
            if "instance" in tasks:
                with gr.Tab("Objects") as tab:
                    opening = tab.select if "segmentation" in tasks else page.load
                    ObjectTab(catalogue).open_with_example(opening)
            if "segmentation" in tasks:
                with gr.Tab("Many files"):
                    BatchTab(catalogue)
            if "classification" in tasks:
                with gr.Tab("Classification"):
                    ClassificationTab(catalogue)
            if "pose" in tasks:
                with gr.Tab("Pose"):
                    PoseTab(catalogue)
        page.load(None, js=PLACEHOLDER_ROLES, api_visibility="private")
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def start(models: Sequence[str], port: int | None = None, share: bool = False, **options: Any) -> Any:
    """See `hf_vit_seg.demo.launch`."""
    catalogue = Catalogue(models or default_models(), keep_all=zero_gpu())
    folder = private_folder()  # before the page is built: its components remember it
    for failure in catalogue.failures:
        print(f"hf-vit-seg: {failure}", file=sys.stderr)
    settings = {
        "server_port": port,
        "share": share,
        "max_file_size": f"{MEGABYTES}mb",
        "theme": gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=MONOSPACED).set(
            # enough contrast for text
            color_accent="*primary_700",
            button_primary_background_fill="*primary_600",
            button_primary_background_fill_hover="*primary_700",
        ),
        "css": CSS,
        "ssr_mode": False,
        "footer_links": ["api"],
    }
    page = build_page(catalogue)
    app_settings = dict(options.pop("app_kwargs", None) or {})
    app_settings["middleware"] = [Middleware(RequestLimits, page=page), *app_settings.get("middleware", ())]
    handlers: dict[Any, Any] = {RequestValidationError: answer_invalid_request}
    app_settings["exception_handlers"] = handlers | app_settings.get("exception_handlers", {})
    READERS.start()
    sweep_regularly(folder, lambda: cached_files(page), page.closed)
    try:
        return page.launch(**(settings | options), app_kwargs=app_settings)
    except OSError as error:
        raise HfVitSegError(f"the demo cannot be served ({error_sentence(error)}): choose another --port") from error


def cached_files(page: gr.Blocks) -> list[str]:
    """Files of the page itself, such as its examples."""
    return [path for block in list(page.blocks.values()) for path in getattr(block, "keep_in_cache", ())]


__all__ = ["build_page", "start"]
