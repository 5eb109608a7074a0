"""`hf-vit-seg push`: publish model, image processor, code, card and scores of a directory on the Hub."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitInfo
from PIL import Image

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.local_paths import publishable
from hf_vit_seg.models.external_heads import EXTERNAL_HEADS
from hf_vit_seg.plugins import architectures
from hf_vit_seg.provenance import CARD
from hf_vit_seg.remote_code import code_files, copy_obstacle, is_from_transformers, source_file
from hf_vit_seg.text_files import read_json_object
from hf_vit_seg.training.checkpoints.run_directory import RECIPE
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS

from . import handler as endpoint
from .card import CardOptions, model_card
from .evaluation_results import FOLDER, eval_results_files
from .formats import OWN, directory_in_format
from .heads import HEADS
from .model_directory import PROCESSOR, ModelDirectory
from .privacy import check_private
from .repository import PushError, Target, commit, resolve_target

CONFIG, PICTURE, WIDGET, HANDLER = "config.json", "sample_image.png", "widget_image.png", "handler.py"
# Files that are pushed unchanged. Others are not pushed, but listed.
UNCHANGED = ("model*.safetensors", "model.safetensors.index*.json", RECIPE, METRICS, "LICENSE*")
# Files of an earlier push, which may belong to another model. License files are kept, because they may be the user's.
WRITTEN = (*UNCHANGED[:-1], CONFIG, PROCESSOR, PICTURE, WIDGET, HANDLER)
SCORES = f"{FOLDER}/*__*.yaml"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushResult:
    """The commit, the model, the pushed paths, and the names of files that were not pushed."""

    commit: CommitInfo
    model: ModelDirectory
    files: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class PushPlan:
    """A model to push: files by their path in the repository, and the names of files that are not pushed."""

    target: Target
    model: ModelDirectory
    content: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()
    temporary: ExitStack = field(default_factory=ExitStack)  # folders that exist until the commit

    def commit(self) -> PushResult:
        """Publish the model. Raises PushError."""
        with self.temporary:
            done = commit(self.target, self.content, is_replaced)
        return PushResult(done, self.model, tuple(self.content), self.left_out)


def push(
    directory: str | Path,
    target: Target,
    *,
    sample_image: bool = False,
    model_format: str = OWN,
    handler: bool = True,
) -> PushResult:
    """Publish the model of a directory, or the best model of a run directory. Raises PushError.

    `sample_image` also publishes one evaluated image with its prediction and label. `model_format` is "own", or
    "transformers" for a model that its users load without this package and without remote code. `handler` adds
    `handler.py` for Inference Endpoints. A checkpoint in another format (a directory, file or Hub id) is converted
    first.
    """
    return prepare_push(
        directory, target, sample_image=sample_image, model_format=model_format, handler=handler
    ).commit()


def prepare_push(
    directory: str | Path,
    target: Target,
    *,
    sample_image: bool = False,
    dry_run: bool = False,
    model_format: str = OWN,
    handler: bool = True,
) -> PushPlan:
    """Collect the files that `push` would publish, and check these for local paths and tokens. Raises PushError.

    In a `dry_run` the target is not checked on the Hub.
    """
    with ExitStack() as temporary:
        model, notes = directory_in_format(directory, model_format, temporary)
        plan = plan_push(model, target, sample_image, dry_run, handler)
        return replace(plan, notes=tuple(notes), temporary=temporary.pop_all())


def plan_push(model: ModelDirectory, target: Target, sample_image: bool, dry_run: bool, handler: bool) -> PushPlan:
    """Collect and check the files of a model directory."""
    target = target if dry_run else resolve_target(target)
    content = contents(model, target.repo_id, sample_image, handler)
    check_private(content, target.message, model.path)
    evaluations = {path.name for path in model.evaluations}
    left_out = [path.name for path in sorted(model.path.iterdir()) if path.name not in {*content, *evaluations}]
    return PushPlan(target, model, content, tuple(left_out))


def contents(
    model: ModelDirectory, repo_id: str, sample_image: bool = False, handler: bool = False
) -> dict[str, Path | bytes]:
    """Return the files of a repository by their path, without local paths in their contents."""
    unchanged = [
        path for path in sorted(model.path.iterdir()) if any(fnmatch(path.name, pattern) for pattern in UNCHANGED)
    ]
    files: dict[str, Path | bytes] = {path.name: path for path in [*unchanged, *model.code]}
    if model.recipe_text is not None:
        files[RECIPE] = model.recipe_text.encode()
    if METRICS in files:
        files[METRICS] = publishable_json(model.path / METRICS)
    files[CONFIG] = with_auto_map(model.path / CONFIG, model.auto_map)
    if model.processor is not None:
        files[PROCESSOR] = with_auto_map(model.path / PROCESSOR, model.processor_map)
    if handler and (file := handler_file(model)) is not None:
        files[HANDLER] = file
    if sample_image:
        files[PICTURE] = sample_figure(model)
    files |= eval_results_files(model)
    image = widget_image(model) if sample_image else None
    if image is not None:
        files[WIDGET] = image
    options = CardOptions(PICTURE if sample_image else None, None if image is None else WIDGET)
    card = model_card(model, repo_id, options)
    return files | {CARD: str(card).encode()}


def handler_file(model: ModelDirectory) -> Path | None:
    """Return the `handler.py` of a directory, or that of this package if it serves the model; None otherwise.

    Models of transformers are served without one, and others need their code in the same repository.
    """
    own = model.path / HANDLER
    if own.is_file():
        return own
    return Path(endpoint.__file__) if model.code and model.auto_class in endpoint.AUTO_CLASSES else None


def sample_figure(model: ModelDirectory) -> bytes:
    """Return the first sample figure of a model as PNG without metadata. PushError if there is none."""
    if not model.samples:
        raise PushError(
            f"{model.path} has no sample images to publish; omit --sample-image, or write some with hf-vit-seg evaluate"
        )
    buffer = BytesIO()
    with Image.open(model.samples[0]) as figure:
        Image.fromarray(np.asarray(figure.convert("RGB"))).save(buffer, "PNG")
    return buffer.getvalue()


def widget_image(model: ModelDirectory) -> bytes | None:
    """Return the first image of the evaluated split as PNG; None if the Hub has no widget for the model, or no data."""
    if model.recipe is None or not HEADS[model.auto_class].pipeline or model.recipe.data.channels != 3:
        return None
    try:
        dataset = open_split(model.recipe, "validation" if model.recipe.data.test is None else "test")
        if dataset is None:
            return None
        image: Any = dataset.read(0).image
    except (HfVitSegError, OSError):
        logger.warning("the data of %s cannot be read, so that its card has no example for the widget", model.path)
        return None
    buffer = BytesIO()
    to_rgb_image(image).save(buffer, "PNG")
    return buffer.getvalue()


def publishable_json(path: Path) -> Path | bytes:
    """Remove local paths from a JSON file; return its path if it has none."""
    settings = read_json_object(path)
    published = publishable(settings)
    return path if published == settings else json_text(published, indent=2).encode()


def is_replaced(path: str) -> bool:
    """Return whether a path in a repository may have been written by an earlier push."""
    if "/" in path:
        return fnmatch(path, SCORES)
    return path in code_names() or any(fnmatch(path, pattern) for pattern in WRITTEN)


@cache
def code_names() -> frozenset[str]:
    """Return the names of code files that are saved with models of installed architectures and heads."""
    kinds = [
        kind
        for architecture in architectures().values()
        for kind in (architecture.config, *architecture.models.values(), *architecture.all_processors())
    ]
    own = {source_file(kind) for kind in [*kinds, *EXTERNAL_HEADS.values()] if not is_from_transformers(kind)}
    return frozenset(file.name for source in own if copy_obstacle(source) is None for file in code_files(source))


def with_auto_map(path: Path, auto_map: Mapping[str, Any]) -> bytes:
    """Set the auto map of a JSON file, or remove it if it is empty."""
    known: dict[str, Any] = publishable(read_json_object(path))
    settings = {key: value for key, value in known.items() if key != "auto_map"}
    return json_text(settings | ({"auto_map": dict(auto_map)} if auto_map else {}), indent=2).encode()


__all__ = ["PushError", "PushPlan", "PushResult", "Target", "contents", "prepare_push", "push"]
