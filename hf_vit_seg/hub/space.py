"""`hf-vit-seg push-space`: publish the demo in spaces/segmentation as a Space on the Hub, with a model.

The Space contains the files of this package next to app.py, with the installation metadata of its plugins, so that it
runs the same code even if the package is not published. Its dependencies are pinned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, SpaceCard
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from hf_vit_seg.conversion.files.download import is_repository
from hf_vit_seg.demo import ENVIRONMENT, GRADIO, NUCLEI
from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.local_paths import installed_path
from hf_vit_seg.provenance import CARD, Provenance, short_card

from .model_directory import ModelDirectory, model_directory
from .pins import SDK, installed_version, pins, python_version
from .privacy import check_private
from .push import contents
from .repository import PushError, Target, commit, resolve_target

PINS = "requirements.txt"
PLACEHOLDER = "USER/SPACE"  # in its README
MODEL = "model"  # folder of a local model in the Space
BESIDE = ("configs", "conversion", "nuclei")  # subpackages that are outside of the package folder in the repository
LEFT_OUT = {"__pycache__", "train", "masks"}  # folders
METADATA = ("METADATA", "PKG-INFO"), ("entry_points.txt",)  # files of an installation, with alternative names


@dataclass(frozen=True)
class SpacePlan:
    """A Space to push: files by their path, and the model that it shows."""

    target: Target
    content: Mapping[str, Path | bytes]
    model: str

    def commit(self) -> CommitInfo:
        """Publish the Space. Raises PushError."""
        done = commit(self.target, self.content, is_replaced, repo_type="space", space_sdk="gradio")
        if not self.target.create_pr:  # the running Space does not have the files of a pull request
            set_model(self.target.repo_id, self.model)
        return done


def push_space(model: str, target: Target) -> CommitInfo:
    """Publish a Space that shows a model: a local directory, which is carried along, a Hub id, or the built-in nuclei.

    PushError, in one sentence, when that is not possible.
    """
    return prepare_space(model, target).commit()


def prepare_space(model: str, target: Target, *, dry_run: bool = False) -> SpacePlan:
    """Collect the files that `push_space` would publish, and check these for local paths and tokens.

    In a `dry_run` the target is not checked on the Hub. Raises PushError.
    """
    model = model if model == NUCLEI else installed_path(model)
    directory = model_directory(Path(model)) if Path(model).exists() else None
    linked = [] if directory or model == NUCLEI else [check_hub_model(model)]
    target = target if dry_run else resolve_target(target, "space")
    content = space_files() | model_files(directory, target.repo_id)
    known = None if directory is None else directory.provenance
    content[CARD] = space_card(folder(f"{PACKAGE}.space") / CARD, target.repo_id, linked, known)
    content[PINS] = "".join(f"{line}\n" for line in pins(directory.distributions if directory else ())).encode()
    check_private(content, target.message, None if directory is None else directory.path)
    return SpacePlan(target, content, model if directory is None else MODEL)


def check_hub_model(model: str) -> str:
    """Return a Hub id if the model exists. Raises PushError."""
    missing = f"{model} is neither a local directory nor an accessible model on the Hub"
    if not is_repository(model):
        raise PushError(missing)
    try:
        HfApi(library_name=PACKAGE).model_info(model)
    except RepositoryNotFoundError as error:
        raise PushError(missing) from error
    except (HTTPError, OSError) as error:
        reason = error_sentence(error, short=True)
        raise PushError(f"{model} is not a local directory, and the Hub cannot be reached: {reason}") from error
    return model


def model_files(directory: ModelDirectory | None, repo_id: str) -> dict[str, Path | bytes]:
    """Return the files of a local model by their path in the Space."""
    if directory is None:
        return {}
    files = contents(directory, repo_id) | {CARD: str(short_card(directory.provenance, directory.path.name)).encode()}
    return {f"{MODEL}/{path}": file for path, file in files.items()}


def is_replaced(path: str) -> bool:
    """Return whether a path in a Space belongs to the package, its metadata or the local model."""
    return any(fnmatch(path, pattern) for pattern in (f"{PACKAGE}/*", f"{PACKAGE}-*.dist-info/*", f"{MODEL}/*"))


def set_model(repo_id: str, model: str) -> None:
    """Set the Space's variable for the model that it shows in addition to the built-in one."""
    try:
        HfApi(library_name=PACKAGE).add_space_variable(repo_id, ENVIRONMENT, model)
    except (HTTPError, OSError) as error:
        raise PushError(
            f"{repo_id} is pushed, but its model is not set; set {ENVIRONMENT} to {model} in its settings ({error})"
        ) from error


def space_files() -> dict[str, Path | bytes]:
    """Return the files of the app and this package by their paths in the Space."""
    places = [path for path in folder(f"{PACKAGE}.space").iterdir() if path.is_file()]
    own = {path.name: path for path in places if not path.name.startswith(".")}
    own.pop("__init__.py")
    files: dict[str, Path | bytes] = {**own, **dict(tree(folder(PACKAGE), PACKAGE))}
    for name in BESIDE:
        files |= dict(tree(folder(f"{PACKAGE}.{name}"), f"{PACKAGE}/{name}"))
    here = distribution(PACKAGE)
    for names in METADATA:
        text = next(text for name in names if (text := here.read_text(name)))
        files[f"{PACKAGE}-{here.version}.dist-info/{names[0]}"] = text.encode()
    return files


def folder(package: str) -> Path:
    """Return the folder of an installed package."""
    place = files(package)
    if not isinstance(place, Path):
        raise PushError(f"{package} is installed as an archive; install it with pip")
    return place


def tree(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield all files in a folder with their paths under `name`."""
    for path in sorted(root.rglob("*")):
        relative_path = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative_path.parts)  # such as files of editors
        if path.is_file() and not hidden and not LEFT_OUT & set(relative_path.parts):
            yield f"{name}/{relative_path.as_posix()}", path


def space_card(readme: Path, repo_id: str, models: list[str], provenance: Provenance | None) -> bytes:
    """Return the Space's README with its name, installed versions, models on the Hub, and the local model's license."""
    card, sdk = SpaceCard(readme.read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id)), installed_version(SDK)
    if sdk is None:
        raise PushError(f"{SDK} is not installed, so its version cannot be pinned: pip install '{GRADIO}'")
    data: Any = card.data
    data.sdk_version, data.python_version, data.models = sdk, python_version(), models or None
    if provenance is not None:
        data.license, data.license_name = provenance.license, provenance.license_name
        data.license_link = provenance.license_link
        license_text = provenance.describe_license()
        card.text += f"\n\nThe code is under Apache-2.0. License of the weights in `{MODEL}/`: {license_text}\n"
    return str(card).encode()


__all__ = ["SpacePlan", "prepare_space", "push_space", "space_files"]
