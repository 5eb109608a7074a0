"""The tab that segments one image, and code shared with the tabs for objects and for many images."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

import gradio as gr

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.inference.segmentation import Segmentation

from .accelerator import CALLS
from .catalogue import Catalogue, ModelFacts
from .file_segmentation import (
    DEFAULT_WINDOW,
    MAX_WINDOW,
    MIN_WINDOW,
    SLIDING,
    VIEWS,
    WHOLE,
    Result,
    SegmentedFile,
    segment_file,
    selected_protocol,
)
from .segmentation_view import failed_view, segmentation_view, view_data
from .upload_folder import fresh_folder
from .uploads import FAILED, error_message, model_choice, photo_input, report_failures


@dataclass(frozen=True)
class Choices:
    """The components that select a model and its inference settings."""

    model: gr.Dropdown
    view: gr.Radio
    window: gr.Slider
    flip: gr.Checkbox | None  # objects have no average over mirror images

    @classmethod
    def render(cls, titles: list[str], has_flip: bool = True) -> "Choices":
        """Create the components on the page."""
        model = model_choice(titles)
        view = gr.Radio([(view.capitalize(), view) for view in VIEWS], value=WHOLE, label="Inference")
        window = gr.Slider(MIN_WINDOW, MAX_WINDOW, DEFAULT_WINDOW, step=64, label="Window size (pixels)", visible=False)
        flip = gr.Checkbox(False, label="Flip test-time augmentation") if has_flip else None
        view.change(
            lambda view: gr.update(visible=view == SLIDING), view, window, queue=False, api_visibility="private"
        )
        return cls(model, view, window, flip)

    @property
    def components(self) -> list[Any]:
        """All components, in the order of the arguments of `show`."""
        return [self.model, self.view, self.window, *([] if self.flip is None else [self.flip])]

    @property
    def changes(self) -> list[Any]:
        """The events after which the result is another one."""
        flip = [] if self.flip is None else [self.flip.change]
        return [self.model.change, self.view.change, self.window.release, *flip]


class ImageTab(Generic[Result]):
    """Process one image: show the result, and files to download. Subclasses compute and describe it."""

    task: ClassVar[str]
    has_flip: ClassVar[bool]
    downloads: ClassVar[tuple[str, ...]]  # labels of the buttons
    columns: ClassVar[Mapping[str, str]]  # of the table for API clients: the type of each

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.examples = catalogue, catalogue.examples(self.task)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = photo_input("Upload an image", height=260)
                choices = Choices.render(catalogue.titles(self.task), self.has_flip)
                if self.examples:
                    offered = gr.Gallery(
                        [path for path, _ in self.examples],
                        label="Examples",
                        columns=4,
                        height="auto",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_classes="examples",
                    )
                    offered.select(
                        self.choose_selected, None, [photo, choices.model], queue=False, api_visibility="private"
                    )
            with gr.Column(scale=3, min_width=480):
                view = segmentation_view()
                with gr.Row():
                    files = [gr.DownloadButton(label, size="md", interactive=False) for label in self.downloads]
                self.render_card(choices.model)
                # For API clients; the page shows the legend.
                types: Any = list(self.columns.values())
                table = gr.Dataframe(headers=list(self.columns), datatype=types, label="Table", visible=False)
        self.photo, self.model = photo, choices.model
        shown = [view, *files]
        showing = gr.on(
            [photo.change, *choices.changes],
            self.show,
            [photo, *choices.components],
            shown,
            api_visibility="private",
            trigger_mode="always_last",
            show_progress_on=[view],
            **CALLS,
        )
        failure = self.no_result(FAILED)
        showing.failure(lambda: failure, None, shown, queue=False, api_visibility="private")
        # For API clients, which do not need the view.
        gr.on(
            [],
            self.function(),
            [photo, *choices.components],
            [table, *files],
            api_name=self.function().__name__,
            **CALLS,
        )

    def render_card(self, model: gr.Dropdown) -> None:
        """Create the folded card of the chosen model; models on the Hub have a link instead."""
        text = self.catalogue.card_text(model.value)
        with gr.Accordion("Model card", open=False, visible=bool(text)) as panel:
            card = gr.Markdown(text, elem_classes="model-card")

        def show_card(title: str) -> tuple[Any, str]:
            text = self.catalogue.card_text(title)
            return gr.update(visible=bool(text)), text

        model.change(show_card, model, [panel, card], queue=False, api_visibility="private")

    def function(self) -> Callable[..., Any]:
        """Register the function for API clients."""
        raise NotImplementedError

    def process(self, image: Path, *choices: Any) -> SegmentedFile[Result]:
        """Process an uploaded image."""
        raise NotImplementedError

    def view(self, segmented: SegmentedFile[Result], about: ModelFacts) -> dict[str, Any]:
        """Return the properties of the HTML view: image, classes or objects, and caption."""
        raise NotImplementedError

    def rows(self, segmented: SegmentedFile[Result]) -> list[list[Any]]:
        """Return the table for API clients."""
        raise NotImplementedError

    def save(self, segmented: SegmentedFile[Result], folder: Path) -> list[Path]:
        """Write the files that can be downloaded, one for each of `downloads`."""
        raise NotImplementedError

    def answer(self, image: str | None, *choices: Any) -> tuple[Any, ...]:
        """Return the table and the files of an image, for API clients."""
        if image is None:
            raise gr.Error("no image was uploaded", print_exception=False)
        with report_failures(Path(image)):
            segmented = self.process(Path(image), *choices)
            return self.rows(segmented), *map(str, self.save(segmented, fresh_folder()))

    def open_with_example(self, opening: Any) -> None:
        """Show the result of the first example at an event, such as `page.load`, unless an image was chosen before."""
        if self.examples:
            opening(
                lambda image: gr.skip() if image else self.choose_example(0),
                self.photo,
                [self.photo, self.model],
                queue=False,
                api_visibility="private",
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
        """Process an image for the page: the view and the files; an empty view without an image.

        An error is shown in place of the result, until the next one.
        """
        if image is None:
            return self.no_result()
        try:
            segmented = self.process(Path(image), *choices)
            view = self.view(segmented, self.catalogue.describe(segmented.title))
            files = self.save(segmented, fresh_folder())
        except Exception as error:
            return self.no_result(error_message(error, Path(image)))
        return view, *(gr.update(value=str(path), interactive=True) for path in files)

    def no_result(self, error: str | None = None) -> tuple[Any, ...]:
        """Return an empty view, or one with an error, and disabled downloads."""
        disabled = [gr.update(value=None, interactive=False)] * len(self.downloads)
        return None if error is None else failed_view(error), *disabled


class SegmentationTab(ImageTab[Segmentation]):
    """Segment one image: show its classes with their areas, and files to download."""

    task = "segmentation"
    has_flip = True
    downloads = ("Label map (PNG)", "Report (JSON)")
    columns: ClassVar[Mapping[str, str]] = {"class": "str", "pixels": "number", "share in %": "number"}

    def function(self) -> Callable[..., Any]:
        """Segmentation."""
        return self.segment

    def process(self, image: Path, *choices: Any) -> SegmentedFile[Segmentation]:
        """Segment an uploaded image."""
        model, *settings = choices
        return segment_file(self.catalogue, model, selected_protocol(*settings), image)

    def view(self, segmented: SegmentedFile[Segmentation], about: ModelFacts) -> dict[str, Any]:
        """Create the view of a label map."""
        return view_data(segmented.result, segmented.stem, segmented.caption, about)

    def rows(self, segmented: SegmentedFile[Segmentation]) -> list[list[Any]]:
        """Return the area of each class, the most frequent class first."""
        return [[count.name, count.pixels, round(100 * count.share, 3)] for count in segmented.result.counts()]

    def save(self, segmented: SegmentedFile[Segmentation], folder: Path) -> list[Path]:
        """Label map and report."""
        labels, text = folder / f"{segmented.stem}.labels.png", folder / f"{segmented.stem}.json"
        segmented.result.label_image().save(labels, compress_level=1)
        text.write_text(json_text(segmented.report, indent=2), encoding="utf-8")
        return [labels, text]

    def segment(
        self, image: str | None, model: str, view: str = WHOLE, window: float = DEFAULT_WINDOW, flip: bool = False
    ) -> tuple[Any, ...]:
        """Segment an image: the area of each class, the label map as a PNG with its palette, and a JSON report."""
        return self.answer(image, model, view, window, flip)


__all__ = ["Choices", "ImageTab", "SegmentationTab"]
