"""The picture of a segmentation in a browser: photo, colors, legend with bars, and the class under the pointer.

The browser gets a small photo, and a map of the same size whose values are rows of the legend; it draws the rest itself
(view/view.js). gradio's own AnnotatedImage writes a picture of full size for every class, which took ten times as long.

Shapes: H W pixels, h w of the shown picture, K classes.
"""

from importlib.resources import files
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hf_vit_seg.drawing.data_urls import image_url
from hf_vit_seg.drawing.overlays import display_size, nearest_labels, percent, resize_for_display
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.segmentation import Segmentation

from .catalogue import ModelFacts

LONGEST_SIDE = 1280  # of the shown picture
MOST_ROWS = 255  # of the legend; the rarest classes share the last
GRAY = (128, 128, 128)
VIEW = files("hf_vit_seg.demo") / "view"


def segmentation_view() -> gr.HTML:
    """A component that shows what `view_of` returns.

    It is a function, not a subclass: gradio writes a file beside each module that derives from its components.
    """
    html, css, script = ((VIEW / f"view.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js"))
    return gr.HTML(html_template=html, css_template=css, js_on_load=script, apply_default_css=False)


def view_of(result: Segmentation, name: str, caption: str, about: ModelFacts) -> dict[str, Any]:
    """What the browser draws: `photo` and `rows` as data URLs of pictures (h, w), `classes` row by row, and texts."""
    if result.image is None:
        raise HfVitSegError("There is no picture to lay colors over: the input was no RGB or gray image")
    size = display_size(result.image.size, LONGEST_SIDE, enlarge=True)
    rows, classes = legend_rows(result)
    small = rows[nearest_labels(result.label_map, size)]
    return {
        "name": name,
        "caption": caption,
        "about": about.text,
        "card": about.card,
        "classes": classes,
        "photo": image_url(resize_for_display(result.image.convert("RGB"), size), "JPEG", quality=88),
        "rows": image_url(Image.fromarray(small), "PNG", compress_level=1),
    }


def failed_view(message: str) -> dict[str, Any]:
    """What the browser shows instead of a result: why there is none, and what to do."""
    return {"error": message[:1].upper() + message[1:]}


def legend_rows(result: Segmentation) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Each class's row in the legend, (K,) uint8, and the rows, the most frequent class first."""
    counts = result.counts()
    rows = np.full(len(result.names), MOST_ROWS - 1, np.uint8)
    single = counts if len(counts) <= MOST_ROWS else counts[: MOST_ROWS - 1]
    rows[[count.index for count in single]] = np.arange(len(single))
    entries = [(count.name, count.color, count.share, count.pixels) for count in single]
    if len(single) < len(counts):
        rest = counts[len(single) :]
        share, pixels = sum(count.share for count in rest), sum(count.pixels for count in rest)
        entries.append((f"{len(rest)} more", GRAY, share, pixels))
    classes = [
        {"name": name, "color": list(color), "share": round(share, 6), "text": percent(share), "pixels": pixels}
        for name, color, share, pixels in entries
    ]
    return rows, classes


__all__ = ["failed_view", "segmentation_view", "view_of"]
