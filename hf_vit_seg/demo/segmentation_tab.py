"""The tab that segments one image, and the choices that it shares with the tab for many."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hf_vit_seg.atomic_io import json_text

from .accelerator import CALLS
from .catalogue import Catalogue
from .file_segmentation import (
    LARGEST_WINDOW,
    SLIDING,
    SMALLEST_WINDOW,
    USUAL_WINDOW,
    VIEWS,
    WHOLE,
    SegmentedFile,
    protocol_of,
    segment_file,
)
from .segmentation_view import failed_view, segmentation_view, view_of
from .upload_folder import fresh_folder
from .uploads import error_message, model_choice, photo_input, report_failures

FAILED = "the server did not answer; try again, or choose a smaller image"
AREAS = ("class", "pixels", "share in %")


@dataclass(frozen=True)
class Choices:
    """The components that select a model and its inference settings."""

    model: gr.Dropdown
    view: gr.Radio
    window: gr.Slider
    flip: gr.Checkbox

    @classmethod
    def render(cls, titles: list[str]) -> "Choices":
        """Create the components on the page."""
        model = model_choice(titles)
        view = gr.Radio([(view.capitalize(), view) for view in VIEWS], value=WHOLE, label="Inference")
        window = gr.Slider(
            SMALLEST_WINDOW, LARGEST_WINDOW, USUAL_WINDOW, step=64, label="Window size (pixels)", visible=False
        )
        flip = gr.Checkbox(False, label="Flip test-time augmentation")
        view.change(
            lambda view: gr.update(visible=view == SLIDING), view, window, queue=False, api_visibility="private"
        )
        return cls(model, view, window, flip)

    @property
    def components(self) -> list[Any]:
        """All components, in the order of the arguments of `segment_file`."""
        return [self.model, self.view, self.window, self.flip]


class SegmentationTab:
    """Segment one image: show its classes with their areas, and files to download."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.examples = catalogue, catalogue.examples()
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = photo_input("Upload an image", height=260)
                choices = Choices.render(catalogue.titles("segmentation"))
                if self.examples:
                    offered = gr.Gallery(
                        [path for path, _ in self.examples],
                        label="Examples",
                        columns=4,
                        height="auto",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                    )
                    offered.select(
                        self.choose_selected, None, [photo, choices.model], queue=False, api_visibility="private"
                    )
            with gr.Column(scale=3, min_width=480):
                view = segmentation_view()
                with gr.Row():
                    labels = gr.DownloadButton("Label map (PNG)", size="md", interactive=False)
                    text = gr.DownloadButton("Report (JSON)", size="md", interactive=False)
                # For API clients; the page shows the areas in the legend.
                table = gr.Dataframe(
                    headers=list(AREAS), datatype=["str", "number", "number"], label="Areas", visible=False
                )
        self.photo, self.model = photo, choices.model
        shown = [view, labels, text]
        showing = gr.on(
            [photo.change, choices.model.change, choices.view.change, choices.window.release, choices.flip.change],
            self.show,
            [photo, *choices.components],
            shown,
            api_visibility="private",
            trigger_mode="always_last",
            show_progress_on=[view],
            **CALLS,
        )
        showing.failure(lambda: no_result(FAILED), None, shown, queue=False, api_visibility="private")
        # For API clients, which do not need the view.
        gr.on(
            [],
            self.segment,
            [photo, *choices.components],
            [table, labels, text],
            api_name="segment",
            **CALLS,
        )

    def segment_file(self, image: str, model: str, view: str, window: float, flip: bool) -> SegmentedFile:
        """Segment an uploaded image."""
        return segment_file(self.catalogue, model, protocol_of(view, window, flip), Path(image))

    def open_with_example(self, page: gr.Blocks) -> None:
        """Show the result of the first example when the page is opened."""
        if self.examples:
            page.load(
                lambda: self.choose_example(0), None, [self.photo, self.model], queue=False, api_visibility="private"
            )

    def choose_selected(self, selected: gr.SelectData) -> tuple[str, str]:
        """Choose the example that was clicked. gr.Error for another number, which only a crafted call can have."""
        number: Any = selected.index
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.examples):
            raise gr.Error(f"examples are chosen by number, from 0 to {len(self.examples) - 1}", print_exception=False)
        return self.choose_example(number)

    def choose_example(self, number: int) -> tuple[str, str]:
        """Copy an example into the upload folder, and return its path and model."""
        path, title = self.examples[number]
        return str(shutil.copy(path, fresh_folder())), title

    def show(self, image: str | None, *choices: Any) -> tuple[Any, ...]:
        """Segment an image for the page: the view and the files; an empty view without an image.

        An error is shown in place of the result, until the next one.
        """
        if image is None:
            return no_result()
        try:
            found = self.segment_file(image, *choices)
            view = view_of(found.result, Path(image).stem, found.caption, self.catalogue.describe(found.title))
        except Exception as error:
            return no_result(error_message(error, Path(image)))
        _, labels, text = answer(found)
        return view, *(gr.update(value=path, interactive=True) for path in (labels, text))

    def segment(
        self, image: str | None, model: str, view: str = WHOLE, window: float = USUAL_WINDOW, flip: bool = False
    ) -> tuple[Any, ...]:
        """Segment an image: the area of each class, the label map as a PNG with its palette, and a JSON report."""
        if image is None:
            raise gr.Error("no image was uploaded", print_exception=False)
        with report_failures(Path(image)):
            return answer(self.segment_file(image, model, view, window, flip))


def no_result(error: str | None = None) -> tuple[Any, ...]:
    """An empty view, or one with an error, and disabled downloads."""
    disabled = gr.update(value=None, interactive=False)
    return None if error is None else failed_view(error), disabled, disabled


def answer(found: SegmentedFile) -> tuple[list[list[Any]], str, str]:
    """The rows of the table, the most frequent class first, and the files that can be downloaded."""
    rows = [[count.name, count.pixels, round(100 * count.share, 3)] for count in found.result.counts()]
    folder = fresh_folder()
    labels, text = folder / f"{found.stem}.labels.png", folder / f"{found.stem}.json"
    found.result.label_image().save(labels, compress_level=1)
    text.write_text(json_text(found.report, indent=2), encoding="utf-8")
    return rows, str(labels), str(text)


__all__ = ["Choices", "SegmentationTab"]
