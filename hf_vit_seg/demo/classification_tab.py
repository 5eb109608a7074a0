"""The tab for classification models."""

from pathlib import Path

import gradio as gr

from .accelerator import CALLS
from .catalogue import Catalogue
from .image_reading import READERS
from .uploads import model_choice, photo_input, report_failures, show_results

TOP = 5  # classes that are named


class ClassificationTab:
    """An image in, its most likely classes out."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                photo = photo_input("Image", height=360)
                model = model_choice(catalogue.titles("classification"))
            with gr.Column(scale=2, min_width=360):
                label = gr.Label(label="Classes", num_top_classes=TOP)
                show_results([photo.change, model.change], self.show, [photo, model], [label])
        gr.on([], self.classify, [photo, model], [label], api_name="classify", **CALLS)

    def show(self, image: str | None, model: str) -> tuple[dict[str, float] | None]:
        """Classify an image for the page."""
        return (self.classify(image, model),)

    def classify(self, image: str | None, model: str) -> dict[str, float] | None:
        """Classify an image: the five most likely classes and their probabilities."""
        if image is None:
            return None
        with report_failures(Path(image)):
            pixels = READERS.read(Path(image), self.catalogue.load(model).channels)
            return dict(self.catalogue.call(model, pixels, TOP))


__all__ = ["ClassificationTab"]
