"""The page: a tab for each task that a model was given for."""

import sys
from collections.abc import Sequence
from typing import Any

import gradio as gr

from . import NUCLEI
from .accelerator import zero_gpu
from .batch_tab import BatchTab
from .catalogue import Catalogue, default_models, example_images
from .classification_tab import ClassificationTab
from .pose_tab import PoseTab
from .segmentation_tab import SegmentationTab
from .uploads import MEGABYTES

WAITING = 20  # visitors in the queue, at most
SECONDS_KEPT = 3600  # of uploads and results
CSS = ".gradio-container { max-width: 1480px !important; } .intro p { opacity: 0.75; }"
# Fonts of the visitor's own system: nothing is fetched from elsewhere.
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED = ("ui-monospace", "Consolas", "monospace")
INTRODUCTION = """# What is where in a picture

Give an image, and point at what was found in it. All of it can also be called from a program: see API below.
"""


def build(catalogue: Catalogue) -> gr.Blocks:
    """The page for some models."""
    with gr.Blocks(
        title="hf_vit_seg", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT), fill_width=True
    ) as page:
        gr.Markdown(INTRODUCTION, elem_classes="intro")
        for failure in catalogue.failures:
            gr.Markdown(f"Not available: {failure}")
        tasks = {entry.task for entry in catalogue.entries.values()}
        examples = example_images() if NUCLEI in catalogue.entries else []
        with gr.Tabs():
            if "segmentation" in tasks:
                with gr.Tab("Segmentation"):
                    SegmentationTab(catalogue, examples)
                with gr.Tab("Many files"):
                    BatchTab(catalogue)
            if "classification" in tasks:
                with gr.Tab("Classification"):
                    ClassificationTab(catalogue)
            if "pose" in tasks:
                with gr.Tab("Pose"):
                    PoseTab(catalogue)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def start(models: Sequence[str], port: int | None = None, share: bool = False, **options: Any) -> Any:
    """See `hf_vit_seg.demo.launch`."""
    catalogue = Catalogue(models or default_models(), keep_all=zero_gpu())
    for failure in catalogue.failures:
        print(f"hf-vit-seg: {failure}", file=sys.stderr)
    settings = {
        "server_port": port,
        "share": share,
        "max_file_size": f"{MEGABYTES}mb",
        "theme": gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=MONOSPACED),
        "css": CSS,
        "ssr_mode": False,
        "footer_links": ["api"],
    }
    return build(catalogue).launch(**(settings | options))


__all__ = ["build", "start"]
