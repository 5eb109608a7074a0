"""`hf-vit-seg push`: model, image processor, code, card and scores of a directory become a repository on the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitInfo
from PIL import Image

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.local_paths import publishable
from hf_vit_seg.models.registered_heads import REGISTERED_HEADS
from hf_vit_seg.plugins import architectures
from hf_vit_seg.provenance import CARD
from hf_vit_seg.remote_code import code_files, file_of, is_of_transformers, obstacle
from hf_vit_seg.training.checkpoints.run_directory import RECIPE
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS

from .card import model_card
from .evaluation_results import FOLDER, eval_results_files
from .model_directory import PROCESSOR, ModelDirectory, json_object, model_directory
from .privacy import check_private
from .repository import PushError, Target, commit, settled

CONFIG, PICTURE = "config.json", "sample_image.png"
# What of a directory is pushed as it is. Anything else is left where it is, and named.
KEPT = ("model*.safetensors", "model.safetensors.index*.json", RECIPE, METRICS, "LICENSE*")
# What an earlier push may have written, of another model. Licences stay, as nobody knows whose they are.
WRITTEN = (*KEPT[:-1], CONFIG, PROCESSOR, PICTURE)
SCORES = f"{FOLDER}/*__*.yaml"


@dataclass(frozen=True)
class Pushed:
    """What was done: the commit, the model, the paths that are in the repository now, and what was left out of it."""

    commit: CommitInfo
    model: ModelDirectory
    files: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be pushed: its files by their path in the repository, and what is left out of them."""

    target: Target
    model: ModelDirectory
    content: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]

    def commit(self) -> Pushed:
        """Publish it. PushError when that is not possible."""
        done = commit(self.target, self.content, is_replaced)
        return Pushed(done, self.model, tuple(self.content), self.left_out)


def push(directory: str | Path, target: Target, *, sample_image: bool = False) -> Pushed:
    """Publish the model of a directory, or of a run's directory the best one. PushError when that is not possible.

    `sample_image` publishes a picture of what the model finds in one of the images that it was evaluated on, too.
    """
    return prepare(directory, target, sample_image=sample_image).commit()


def prepare(directory: str | Path, target: Target, *, sample_image: bool = False, dry_run: bool = False) -> Prepared:
    """All that `push` would publish, checked for paths of this machine and for tokens, and not sent yet. PushError.

    In a `dry_run` the Hub is not asked whether the target can be pushed to.
    """
    model = model_directory(Path(directory))
    target = target if dry_run else settled(target)
    content = contents(model, target.repo_id, sample_image)
    check_private(content, target.message, model.path)
    reported = {path.name for path in model.evaluations}
    left_out = [path.name for path in sorted(model.path.iterdir()) if path.name not in {*content, *reported}]
    return Prepared(target, model, content, tuple(left_out))


def contents(model: ModelDirectory, repo_id: str, sample_image: bool = False) -> dict[str, Path | bytes]:
    """The files of a repository by their path in it, without paths of this machine."""
    kept = [path for path in sorted(model.path.iterdir()) if any(fnmatch(path.name, each) for each in KEPT)]
    found: dict[str, Path | bytes] = {path.name: path for path in [*kept, *model.code]}
    if model.recipe_text is not None:
        found[RECIPE] = model.recipe_text.encode()
    if METRICS in found:
        found[METRICS] = publishable_json(model.path / METRICS)
    found[CONFIG] = with_auto_map(model.path / CONFIG, model.auto_map)
    if model.processor is not None:
        found[PROCESSOR] = with_auto_map(model.path / PROCESSOR, model.processor_map)
    if sample_image:
        found[PICTURE] = sample_picture(model)
    found |= eval_results_files(model)
    card = model_card(model, repo_id, picture=PICTURE if sample_image else None)
    return found | {CARD: str(card).encode()}


def sample_picture(model: ModelDirectory) -> bytes:
    """The first picture of a model's samples as a PNG file without any metadata. PushError when there is none."""
    if not model.pictures:
        raise PushError(
            f"{model.path} has no sample images to publish: leave --sample-image out, or write some with "
            "hf-vit-seg evaluate"
        )
    buffer = BytesIO()
    with Image.open(model.pictures[0]) as picture:
        Image.fromarray(np.asarray(picture.convert("RGB"))).save(buffer, "PNG")
    return buffer.getvalue()


def publishable_json(path: Path) -> Path | bytes:
    """A JSON file without paths of this machine; the file itself where it has none."""
    settings = json_object(path)
    published = publishable(settings)
    return path if published == settings else json_text(published, indent=2).encode()


def is_replaced(path: str) -> bool:
    """Whether a path in a repository is of those that a push writes."""
    if "/" in path:
        return fnmatch(path, SCORES)
    return path in code_names() or any(fnmatch(path, each) for each in WRITTEN)


@cache
def code_names() -> frozenset[str]:
    """The names of the files of code that travel with models of any installed architecture, or with any head."""
    kinds = [
        kind
        for each in architectures().values()
        for kind in (each.config, *each.models.values(), *each.image_processor.values())
    ]
    own = {file_of(kind) for kind in [*kinds, *REGISTERED_HEADS.values()] if not is_of_transformers(kind)}
    return frozenset(file.name for source in own if obstacle(source) is None for file in code_files(source))


def with_auto_map(path: Path, auto_map: Mapping[str, Any]) -> bytes:
    """A JSON file of settings with the map from Auto classes to classes in the repository, or without one."""
    known: dict[str, Any] = publishable(json_object(path))
    settings = {key: value for key, value in known.items() if key != "auto_map"}
    return json_text(settings | ({"auto_map": dict(auto_map)} if auto_map else {}), indent=2).encode()


__all__ = ["Prepared", "PushError", "Pushed", "Target", "contents", "prepare", "push"]
