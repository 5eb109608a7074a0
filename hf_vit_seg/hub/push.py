"""`hf-vit-seg push`: model, image processor, code, card and scores of a directory become a repository on the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from hf_vit_seg.inference.prediction import json_text
from hf_vit_seg.models.registered_heads import REGISTERED_HEADS
from hf_vit_seg.plugins import architectures
from hf_vit_seg.provenance import CARD
from hf_vit_seg.remote_code import code_files, file_of, is_of_transformers, obstacle

from .card import model_card
from .evaluation_results import FOLDER, eval_results_files
from .model_directory import PROCESSOR, ModelDirectory, json_object, model_directory
from .repository import PushError, Target, commit, settled

CONFIG, PICTURE = "config.json", "picture.png"
# What of a directory is pushed as it is. Anything else is left where it is, and named.
KEPT = ("model*.safetensors", "model.safetensors.index*.json", "recipe.yaml", "metrics.json", "LICENSE*")
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


def push(directory: str | Path, target: Target) -> Pushed:
    """Publish the model of a directory, or of a run's directory the best one. PushError when that is not possible."""
    model, target = model_directory(Path(directory)), settled(target)
    content = contents(model, target.repo_id)
    done = commit(target, content, is_replaced)
    told = {path.name for path in model.evaluations}
    left_out = tuple(path.name for path in sorted(model.path.iterdir()) if path.name not in {*content, *told})
    return Pushed(done, model, tuple(content), left_out)


def contents(model: ModelDirectory, repo_id: str) -> dict[str, Path | bytes]:
    """The files of a repository by their path in it."""
    kept = [path for path in sorted(model.path.iterdir()) if any(fnmatch(path.name, each) for each in KEPT)]
    found: dict[str, Path | bytes] = {path.name: path for path in [*kept, *model.code]}
    found[CONFIG] = with_auto_map(model.path / CONFIG, model.auto_map)
    if model.processor is not None:
        found[PROCESSOR] = with_auto_map(model.path / PROCESSOR, model.processor_map)
    if model.pictures:
        found[PICTURE] = model.pictures[0]
    found |= eval_results_files(model)
    card = model_card(model, repo_id, picture=PICTURE if model.pictures else None)
    return found | {CARD: str(card).encode()}


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
    settings: dict[str, Any] = {key: value for key, value in json_object(path).items() if key != "auto_map"}
    return json_text(settings | ({"auto_map": dict(auto_map)} if auto_map else {}), indent=2).encode()


__all__ = ["PushError", "Pushed", "Target", "contents", "push"]
