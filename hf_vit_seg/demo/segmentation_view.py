"""The picture of a segmentation in a browser: photo, colors, legend with bars, and the class under the pointer.

The browser gets a small photo, and a map of the same size whose values are rows of the legend, or numbers of objects;
it draws the rest itself (view/view.js). gradio's own AnnotatedImage writes a picture of full size for every class,
which took ten times as long.

Shapes: H W pixels, h w of the shown picture, K classes, n objects.
"""

from importlib.resources import files
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hf_vit_seg.drawing.data_urls import image_url
from hf_vit_seg.drawing.object_overlays import object_colors
from hf_vit_seg.drawing.overlays import display_size, nearest_labels, percent, resize_for_display
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.files.object_files import class_rows
from hf_vit_seg.inference.found_segments import FoundSegments
from hf_vit_seg.inference.segmentation import Segmentation

from .catalogue import ModelFacts

MAX_SIDE = 1280  # longest side of the shown picture
MAX_ROWS = 255  # rows of the legend; the rarest classes share the last
GRAY = (128, 128, 128)
VIEW = files("hf_vit_seg.demo") / "view"


def segmentation_view() -> gr.HTML:
    """Create a component that shows what `view_data` returns.

    It is a function, not a subclass: gradio writes a file next to each module that derives from its components.
    """
    html, css, script = ((VIEW / f"view.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js"))
    return gr.HTML(html_template=html, css_template=css, js_on_load=script, apply_default_css=False)


def view_data(result: Segmentation, name: str, caption: str, about: ModelFacts) -> dict[str, Any]:
    """Return the view that the browser draws: `photo` and `rows` as data URLs of images (h, w), `classes` and texts."""
    size, scene = scene_data(result.image, name, caption, about)
    rows, classes = legend_rows(result)
    small = rows[nearest_labels(result.label_map, size)]
    return scene | {
        "heading": "Classes by share of the image",
        "classes": classes,
        "rows": image_url(Image.fromarray(small), "PNG", compress_level=1),
    }


def view_of_objects(result: FoundSegments, name: str, caption: str, about: ModelFacts) -> dict[str, Any]:
    """Return the view of objects: the entries of `view_data`, and the row, texts and color of each object.

    The values of the map `rows` are numbers of objects from 1, 0 for none, with the low byte in red.
    """
    size, scene = scene_data(result.image, name, caption, about)
    numbers = nearest_labels(result.instance_map(), size).astype(np.uint32)
    small = np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], axis=-1).astype(np.uint8)
    classes, things = object_rows(result), sum(instance.label not in result.stuff for instance in result.objects)
    rows = {entry["name"]: row for row, entry in enumerate(classes)}
    colors = object_colors(len(result.objects)).tolist()
    return scene | {
        "heading": "1 object" if things == 1 else f"{things:,} objects" if things else "No objects found",
        "classes": classes,
        "objects": [
            {
                "row": rows[result.names[instance.label]],
                "text": f"score {instance.score:.2f}, {instance.area:,} pixels",
                "color": None if instance.label in result.stuff else color,
            }
            for instance, color in zip(result.objects, colors, strict=True)
        ],
        "rows": image_url(Image.fromarray(small), "PNG", compress_level=1),
    }


def scene_data(
    image: Image.Image | None, name: str, caption: str, about: ModelFacts
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the (width, height) of the shown picture, and the entries of a view that all results have."""
    if image is None:
        raise HfVitSegError("An overlay requires an RGB or gray image, and the input was not one")
    size = display_size(image.size, MAX_SIDE, enlarge=True)
    photo = image_url(resize_for_display(image.convert("RGB"), size), "JPEG", quality=88)
    return size, {"name": name, "caption": caption, "about": about.text, "card": about.card, "photo": photo}


def failed_view(message: str) -> dict[str, Any]:
    """Return the view of an error: what failed, and what to do."""
    first = message.partition(" ")[0]
    return {"error": message[:1].upper() + message[1:] if first.isalpha() else message}  # not the name of a file


def legend_rows(result: Segmentation) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return each class's row in the legend, (K,) uint8, and the rows, the most frequent class first."""
    counts = result.counts()
    rows = np.full(len(result.names), MAX_ROWS - 1, np.uint8)
    single = counts if len(counts) <= MAX_ROWS else counts[: MAX_ROWS - 1]
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


def object_rows(result: FoundSegments) -> list[dict[str, Any]]:
    """Return the rows of the legend: classes by their number of objects, then stuff, with their areas."""
    entries = []
    for row in class_rows(result):
        stuff = row["id"] in result.stuff
        text = percent(row["share"]) if stuff else f"{row['objects']:,}"
        entry = {"name": row["name"], "color": row["color"], "share": row["share"], "text": text}
        entries.append((stuff, entry | {"pixels": row["pixels"], "count": None if stuff else row["objects"]}))
    return [entry for _, entry in sorted(entries, key=lambda each: each[0])]


__all__ = ["failed_view", "segmentation_view", "view_data", "view_of_objects"]
