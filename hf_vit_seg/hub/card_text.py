"""Sentences of the model card: intended use, limits, training and citation."""

import re
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np

from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.local_paths import publishable_path
from hf_vit_seg.text_files import read_text
from hf_vit_seg.training.recipe.schema import Recipe

from .heads import HEADS
from .model_directory import ModelDirectory

PAPER = re.compile(r"([\w ]+?) \(arXiv (\d{4}\.\d{5})\)")  # in the first line of a modeling module
WEAK = 0.5  # IoU of classes that the card names
MAX_CLASSES = 5
TITLE = "hf_vit_seg: vision transformers for segmentation in the Hugging Face ecosystem"
AUTHORS = "The hf_vit_seg authors"


def intended_use(model: ModelDirectory) -> str:
    """Describe what the model is for."""
    purpose = HEADS[model.auto_class].purpose
    subject = model.recipe.data.description if model.recipe else None
    images = f" Use it for images like those it was trained on: {to_phrase(subject)}." if subject else ""
    return f"The model {purpose}.{images}"


def limits(model: ModelDirectory) -> Iterator[str]:
    """Yield sentences about what the model cannot do, and what is unknown about it."""
    if limit := HEADS[model.auto_class].limit:
        yield limit
    if not model.reports:
        yield "There are no scores: evaluate the model on your own images before you rely on it."
        return
    yield (
        "The scores below are for images of the dataset it was trained on. Images from other sources (camera, site, "
        "season, preparation) have not been evaluated."
    )
    report = model.reports[0]
    scores = report.class_columns().get("iou", np.array([]))
    weak = [(float(scores[index]), report.names[index]) for index in np.flatnonzero(scores < WEAK)]
    if weak:
        shown = ", ".join(f"{to_phrase(name)} ({score:.2f})" for score, name in sorted(weak)[:MAX_CLASSES])
        more = f", and {len(weak) - MAX_CLASSES} more" if len(weak) > MAX_CLASSES else ""
        yield f"Classes with an IoU below {WEAK} on the {report.split} split: {shown}{more}."


def training_data(model: ModelDirectory) -> str:
    """Describe the training data with its license; empty for a model without a recipe and a known dataset."""
    datasets = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in model.provenance.datasets)
    data = None if model.recipe is None else model.recipe.data
    if data is None:
        return f"{datasets}." if datasets else ""
    count = model.details.get("training_samples")
    images = f"{count:,} samples" if isinstance(count, int) else ""
    described = to_phrase(data.description) if data.description else ""
    parts = [part for part in (described, datasets, images) if part] or ["local files"]
    license = (
        f"License of the data: {to_phrase(data.license)}" if data.license else "The license of the data is unknown"
    )
    return f"{'; '.join(parts)}. {license}."


def training_procedure(model: ModelDirectory) -> list[str]:
    """Describe how the model was trained, a line per topic."""
    if model.recipe is None:
        return []
    recipe, details = model.recipe, model.details
    trained, seconds = details.get("parameters"), details.get("training_seconds")
    lines = [f"Initialization: {initialization(recipe)}.", f"Optimization: {optimization(recipe)}."]
    if recipe.loss:
        lines.append(f"Loss: {' + '.join(name.replace('_', ' ') for name in recipe.loss)}.")
    names = [next(iter(entry)) for entry in (*recipe.transforms, *recipe.batch_transforms) if isinstance(entry, dict)]
    lines.append(f"Augmentation: {', '.join(name.replace('_', ' ') for name in names) or 'none'}.")
    if isinstance(trained, dict) and isinstance(trained.get("frozen"), int) and trained["frozen"]:
        lines.append(f"Trained parameters: {trained['trainable']:,}; frozen: {trained['frozen']:,}.")
    if isinstance(seconds, int | float) and seconds:
        lines.append(f"Duration: {seconds:,.0f} s.")
    return lines


def initialization(recipe: Recipe) -> str:
    """Describe the initial weights."""
    start = publishable_path(recipe.model.from_pretrained or "")
    return start or f"random ({recipe.model.architecture} {recipe.model.variant})"


def optimization(recipe: Recipe) -> str:
    """Describe length, batches, optimizer and schedule."""
    loop = recipe.loop
    length = f"{loop.steps} steps" if loop.steps else f"{loop.epochs:g} epochs"
    batch = f"{loop.batch_size} x {loop.accumulation}" if loop.accumulation > 1 else f"{loop.batch_size}"
    return (
        f"{length} of {batch} images per process, {recipe.optimizer.name}, learning rate "
        f"{recipe.optimizer.learning_rate:g} ({recipe.schedule.name} schedule), seed {recipe.seed}"
    )


def environment(model: ModelDirectory) -> str:
    """List the versions of the packages that the model was trained with; empty if they are unknown."""
    versions = model.details.get("versions")
    return ", ".join(f"{name} {found}" for name, found in versions.items()) if isinstance(versions, dict) else ""


def papers(model: ModelDirectory) -> list[tuple[str, str]]:
    """Return the names and arXiv ids of the papers that the model's code cites, such as ("SegFormer", "2105.15203")."""
    lines = [read_text(path).partition("\n")[0] for path in model.code if path.name.startswith("modeling_")]
    matches = [PAPER.search(line) for line in lines]
    return list(dict.fromkeys((match[1].removeprefix("The ").strip(), match[2]) for match in matches if match))


def package_bibtex() -> str:
    """Return the BibTeX entry of this package."""
    return "\n".join(
        [
            f"@software{{{PACKAGE},",
            f"  title = {{{TITLE}}},",
            f"  author = {{{{{AUTHORS}}}}},",
            f"  version = {{{version(PACKAGE)}}},",
            "}",
        ]
    )


def to_phrase(text: str) -> str:
    """Return a text without line breaks and final period, for a sentence."""
    return " ".join(text.split()).rstrip(".")


__all__ = ["environment", "intended_use", "limits", "package_bibtex", "papers", "training_data", "training_procedure"]
