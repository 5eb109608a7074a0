"""The model card: metadata for the Hub, and a text with a description, usage and metrics.

The text is rendered from the Jinja template `model_card.md`. A card written by the user is kept, and only its metadata
is completed.
"""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelCardData

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.drawing.palettes import class_palette
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.local_paths import is_local_path, publishable
from hf_vit_seg.provenance import CARD, MARK, card_metadata, split_card
from hf_vit_seg.remote_code import packages_needed
from hf_vit_seg.text_files import read_text
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.reports.metrics_report import MetricsReport, about, class_cells, decimal, score_title

from .card_text import (
    environment,
    intended_use,
    limits,
    package_bibtex,
    papers,
    training_data,
    training_procedure,
)
from .evaluation_results import eval_results
from .heads import HEADS
from .model_directory import ADAPTER, ModelDirectory, model_directory

TEMPLATE = files("hf_vit_seg.hub") / "model_card.md"
UNFILLED = "[More Information Needed]"
PROVIDED = {"PIL": "pillow"}  # package names that differ from import names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardOptions:
    """Images of a card: `picture`, a figure with a prediction, and `widget`, an example image for the Hub's widget.

    Both are paths in the repository. `has_code` is false for a local directory, which has no model code.
    """

    picture: str | None = None
    widget: str | None = None
    has_code: bool = True


def model_card(model: ModelDirectory, repo_id: str, options: CardOptions = CardOptions()) -> ModelCard:
    """Create the card of a repository, or of a local directory `repo_id`."""
    data = card_data(model, repo_id, options)
    if has_custom_card(model):
        return ModelCard(f"---\n{data.to_yaml()}\n---\n{split_card(model.path / CARD)[1]}")
    return ModelCard.from_template(data, template_str=TEMPLATE.read_text("utf-8"), **facts(model, repo_id, options))


def write_run_cards(run: RunDirectory) -> None:
    """Replace the short cards of the models in a run directory by complete ones.

    A card that the user has written is kept, and so is the short one of adapters, which cannot be pushed, and of a
    directory with files that cannot be read.
    """
    for path in (run.best, run.last):
        if not path.is_dir() or (path / ADAPTER).is_file():
            continue
        try:
            write_local_card(path)
        except HfVitSegError as error:
            logger.warning("%s: the model card cannot be completed: %s", path, error)


def write_local_card(path: Path) -> None:
    """Write the card of a model directory, unless the user has written one."""
    model = model_directory(path)
    if has_custom_card(model):
        return
    figure = next(iter(model.samples), None)
    picture = None if figure is None else PurePath(os.path.relpath(figure, model.path)).as_posix()
    card = model_card(model, displayed_path(path), CardOptions(picture, has_code=False))
    write_text(path / CARD, str(card))


def displayed_path(path: Path) -> str:
    """Return a path for the examples of a card, which may be published: relative, or a placeholder with its name."""
    relative = os.path.relpath(path)
    return f"path/to/{path.name}" if is_local_path(relative) else PurePath(relative).as_posix()


def is_custom_card(card: str) -> bool:
    """Return whether a user has written the card, and neither this package nor the template of transformers."""
    form = ModelCard.from_template(ModelCardData()).text
    return MARK not in card and card.count(UNFILLED) < form.count(UNFILLED)


def card_data(model: ModelDirectory, repo_id: str, options: CardOptions = CardOptions()) -> ModelCardData:
    """Return the metadata: from the directory's card, completed by the model's."""
    head, scores = HEADS[model.auto_class], [name for report in model.reports for name in report.numbers()]
    written = own_metadata(model)
    derived = {
        "library_name": "transformers",
        "pipeline_tag": head.tag,
        "metrics": list(dict.fromkeys(scores)) or None,
        "model_name": card_name(model, repo_id, options),
        "eval_results": eval_results(model) or None,
        "widget": [{"src": options.widget, "example_title": "Example"}] if options.widget else None,
    }
    tags = ["vision", head.tag, model.config.model_type, *(["hf_vit_seg"] if model.packages else [])]
    tags += ["custom_code"] if model.code and options.has_code else []
    if not has_custom_card(model):
        written = {name: value for name, value in written.items() if name not in derived}
    metadata = derived | model.provenance.metadata() | written
    own = written.get("tags") or []
    metadata["tags"] = list(dict.fromkeys([*([own] if isinstance(own, str) else own), *tags]))
    if derived["eval_results"]:
        metadata.pop("model-index", None)  # from an earlier push
    return ModelCardData(**metadata)


def has_custom_card(model: ModelDirectory) -> bool:
    """Return whether the directory has a card that a user has written."""
    return (model.path / CARD).is_file() and is_custom_card(read_text(model.path / CARD))


def own_metadata(model: ModelDirectory) -> dict[str, Any]:
    """Return the metadata of the directory's card without local paths: models and datasets must be Hub ids."""
    ids = {name: list(getattr(model.provenance, name)) for name in ("base_model", "datasets")}
    written = publishable(card_metadata(model.path))
    return {name: ids.get(name, value) for name, value in written.items() if ids.get(name, True)}


def facts(model: ModelDirectory, repo_id: str, options: CardOptions) -> dict[str, Any]:
    """Return the variables of the template."""
    head, known = HEADS[model.auto_class], model.provenance
    labels = [] if model.auto_class in ("AutoModel", "AutoBackbone") else list(label_rows(model))
    return {
        "mark": MARK,
        "name": card_name(model, repo_id, options),
        "repo_id": repo_id,
        "kind": (model.config.architectures or ["A model"])[0],
        "head": head,
        "parameters": model.parameters,
        "source": known.source,
        "base_model": known.base_model,
        "license": known.describe_license(),
        "picture": options.picture,
        "intended": intended_use(model),
        "limits": list(limits(model)),
        "packages": model.packages,
        "code": bool(model.code) and options.has_code,
        "requirements": requirements(model),
        "usage": lambda trust: usage(model, repo_id, trust),
        "processor": model.processor is not None,
        "pipeline": model.processor is not None
        and head.pipeline
        and not is_binary(model),  # transformers' pipeline fails for these
        "preparation": preparation(model),
        "reports": [report_facts(report) for report in model.reports],
        "labels": labels,
        "column": (label_column(model) if labels and len(labels[0]) == 3 else ""),
        "recipe": None if model.recipe_text is None else model.recipe_text.rstrip(),
        "data": training_data(model),
        "procedure": training_procedure(model),
        "environment": environment(model),
        "papers": papers(model),
        "bibtex": package_bibtex(),
    }


def card_name(model: ModelDirectory, repo_id: str, options: CardOptions) -> str:
    """Return the title: the name of the repository, or of the recipe of a local directory."""
    return repo_id.rpartition("/")[2] if options.has_code or model.recipe is None else model.recipe.name


def requirements(model: ModelDirectory) -> list[str]:
    """Return the pip names of the packages that the code needs."""
    named = {PROVIDED.get(name, name) for name in packages_needed(model.code)}
    named |= {"torchvision"} if model.processor is not None else set()  # for transformers' image processors
    return sorted(named.union(model.backends))


def usage(model: ModelDirectory, repo_id: str, trust: str) -> str:
    """Return Python code that loads and runs the model; `trust` is a further argument of from_pretrained."""
    auto, place = model.auto_class, f'"{repo_id}"{trust}'
    if model.processor is None:
        return f"from transformers import {auto}\n\nmodel = {auto}.from_pretrained({place})"
    return "\n".join(
        [
            "import torch",
            "from PIL import Image",
            f"from transformers import AutoImageProcessor, {auto}",
            "",
            f"processor = AutoImageProcessor.from_pretrained({place})",
            f"model = {auto}.from_pretrained({place}).eval()",
            'image = Image.open("image.jpg")',
            "with torch.no_grad():",
            '    outputs = model(**processor(image, return_tensors="pt"))',
            HEADS[auto].use,
        ]
    )


def label_rows(model: ModelDirectory) -> Iterator[list[str]]:
    """Yield the index and name of each class, and its color if the processor has a palette.

    For keypoints, also the name that each has in a flipped image.
    """
    own = getattr(model.processor, "palette", None)
    labels = {int(index): name for index, name in (model.config.id2label or {}).items()}
    if is_binary(model):
        labels = {0: "background", 1: labels[0]}
    is_pose = HEADS[model.auto_class].tag == "keypoint-detection"
    pairs = getattr(model.config, "pose_flip_pairs", ()) if is_pose else ()
    mirrored = {end: other for pair in pairs for end, other in (pair, pair[::-1])}
    palette = class_palette(own, max(labels, default=0) + 1)
    for index, name in labels.items():
        color = ["#{:02x}{:02x}{:02x}".format(*palette[index])] if own else []
        partner = [escape_cell(labels.get(mirrored.get(index, index), ""))] if mirrored else []
        yield [str(index), escape_cell(name), *(partner or color)]


def label_column(model: ModelDirectory) -> str:
    """Return the title of the third column of the labels."""
    return "in a flipped image" if HEADS[model.auto_class].tag == "keypoint-detection" else "color"


def is_binary(model: ModelDirectory) -> bool:
    """Return whether a segmentation model has a single output, for foreground and background."""
    return HEADS[model.auto_class].tag == "image-segmentation" and model.config.num_labels == 1


def preparation(model: ModelDirectory) -> str:
    """Describe the preprocessing steps of the image processor."""
    settings = {} if model.processor is None else model.processor.to_dict()
    steps = []
    if settings.get("do_resize"):
        sides = ", ".join(f"{name} {value}" for name, value in dict(settings["size"]).items() if value)
        steps.append(f"resized to {sides}")
    if settings.get("do_center_crop"):
        crop = dict(settings["crop_size"])
        steps.append(f"center-cropped to {', '.join(f'{name} {value}' for name, value in crop.items() if value)}")
    if settings.get("do_rescale"):
        steps.append(f"rescaled by {fraction(settings['rescale_factor'])}")
    if settings.get("do_normalize"):
        mean, std = settings["image_mean"], settings["image_std"]
        steps.append(f"normalized with mean {mean} and standard deviation {std}")
    return ", ".join(steps) or "none"


def fraction(factor: float) -> str:
    """Format a rescale factor as 1/n if it is the reciprocal of an integer."""
    count = round(1 / factor) if factor else 0
    return f"1/{count}" if count > 1 and math.isclose(count * factor, 1) else f"{factor:.6g}"


def report_facts(report: MetricsReport) -> dict[str, Any]:
    """Convert a report to tables of text."""
    columns = report.class_columns()
    header, rows = class_cells(report)
    has_scores = not all(np.isnan(values).all() for values in columns.values())
    return {
        "split": report.split,
        "about": about_data(report),
        "scores": [(score_title(name), decimal(value)) for name, value in report.numbers().items()],
        "columns": header[1:],
        "rows": [[escape_cell(name), *cells] for name, *cells in rows] if has_scores else [],
    }


def about_data(report: MetricsReport) -> str:
    """Describe an evaluation in a sentence, without its speed, which is that of another machine."""
    text = about(replace(report, seconds_per_image=float("nan")))
    return f"{text[:1].upper()}{text[1:]}."


def escape_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


__all__ = ["CardOptions", "card_data", "model_card", "write_run_cards"]
