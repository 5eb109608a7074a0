"""`hf-vit-seg push-space`: the demo in spaces/segmentation as a Space on the Hub, with a model of one's own.

The Space carries this package as files beside its app.py, with the metadata by which its plugins are found. So it runs
what was tested here, whether or not the package is published anywhere; the packages it needs are pinned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, SpaceCard
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_vit_seg.demo import ENVIRONMENT, GRADIO, NUCLEI
from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.provenance import CARD, Provenance, short_card

from .model_directory import ModelDirectory, model_directory
from .pins import SDK, installed, pins, python_version
from .privacy import check_private
from .push import contents
from .repository import PushError, Target, commit, settled

PINS = "requirements.txt"
PLACEHOLDER = "USER/SPACE"  # in its README
MODEL = "model"  # folder of a model that is carried along
BESIDE = ("configs", "conversion", "nuclei")  # sub-packages that lie elsewhere in a repository than when installed
LEFT_OUT = {"__pycache__", "train", "masks"}  # folders
METADATA = ("METADATA", "PKG-INFO"), ("entry_points.txt",)  # of an installation, by either of their names


@dataclass(frozen=True)
class PreparedSpace:
    """A Space that is ready to be pushed: its files by their path in it, and the model that it will show."""

    target: Target
    content: Mapping[str, Path | bytes]
    model: str

    def commit(self) -> CommitInfo:
        """Publish it. PushError when that is not possible."""
        done = commit(self.target, self.content, is_replaced, repo_type="space", space_sdk="gradio")
        if not self.target.create_pr:  # whose files the running Space does not have yet
            name_model(self.target.repo_id, self.model)
        return done


def push_space(model: str, target: Target) -> CommitInfo:
    """Publish a Space that shows a model: a local directory, which is carried along, a Hub id, or the built-in nuclei.

    PushError, in one sentence, when that is not possible.
    """
    return prepare_space(model, target).commit()


def prepare_space(model: str, target: Target, *, dry_run: bool = False) -> PreparedSpace:
    """All that `push_space` would publish, checked for paths of this machine and for tokens, and not sent yet.

    In a `dry_run` the Hub is not asked whether the target can be pushed to. PushError.
    """
    directory = model_directory(Path(model)) if Path(model).exists() else None
    linked = [] if directory or model == NUCLEI else [on_the_hub(model)]
    target = target if dry_run else settled(target, "space")
    content = space_files() | carried(directory, target.repo_id)
    known = None if directory is None else directory.provenance
    content[CARD] = front_page(folder(f"{PACKAGE}.space") / CARD, target.repo_id, linked, known)
    content[PINS] = "".join(f"{line}\n" for line in pins(directory.distributions if directory else ())).encode()
    check_private(content, target.message, None if directory is None else directory.path)
    return PreparedSpace(target, content, model if directory is None else MODEL)


def on_the_hub(model: str) -> str:
    """A Hub id for which there is a model. PushError for anything else."""
    try:
        validate_repo_id(model)
        HfApi(library_name=PACKAGE).model_info(model)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise PushError(f"{model} is no directory here, and no model on the Hub that you can see") from error
    except (HTTPError, OSError) as error:
        reason = error_sentence(error, short=True)
        raise PushError(f"{model} is no directory here, and whether it is on the Hub is not known: {reason}") from error
    return model


def carried(directory: ModelDirectory | None, repo_id: str) -> dict[str, Path | bytes]:
    """The files of a model that lies in the Space."""
    if directory is None:
        return {}
    found = contents(directory, repo_id) | {CARD: str(short_card(directory.provenance, directory.path.name)).encode()}
    return {f"{MODEL}/{path}": file for path, file in found.items()}


def is_replaced(path: str) -> bool:
    """Whether a path in a Space is of the package, its installation's metadata or the model that are carried along."""
    return any(fnmatch(path, each) for each in (f"{PACKAGE}/*", f"{PACKAGE}-*.dist-info/*", f"{MODEL}/*"))


def name_model(repo_id: str, model: str) -> None:
    """Tell the Space which model to show beside the built-in one."""
    try:
        HfApi(library_name=PACKAGE).add_space_variable(repo_id, ENVIRONMENT, model)
    except (HTTPError, OSError) as error:
        raise PushError(
            f"{repo_id} is pushed, but does not know its model: set {ENVIRONMENT} to {model} in its settings ({error})"
        ) from error


def space_files() -> dict[str, Path | bytes]:
    """The app and this package, by their paths in the Space."""
    places = [path for path in folder(f"{PACKAGE}.space").iterdir() if path.is_file()]
    own = {path.name: path for path in places if not path.name.startswith(".")}
    own.pop("__init__.py")
    found: dict[str, Path | bytes] = {**own, **dict(tree(folder(PACKAGE), PACKAGE))}
    for name in BESIDE:
        found |= dict(tree(folder(f"{PACKAGE}.{name}"), f"{PACKAGE}/{name}"))
    here = distribution(PACKAGE)
    for names in METADATA:
        text = next(text for name in names if (text := here.read_text(name)))
        found[f"{PACKAGE}-{here.version}.dist-info/{names[0]}"] = text.encode()
    return found


def folder(package: str) -> Path:
    """Where an installed package lies."""
    place = files(package)
    if not isinstance(place, Path):
        raise PushError(f"{package} is installed as an archive: install it as files, with pip")
    return place


def tree(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """All files below a folder by their paths below `name`."""
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        hidden = any(part.startswith(".") for part in place.parts)  # settings and backups of editors
        if path.is_file() and not hidden and not LEFT_OUT & set(place.parts):
            yield f"{name}/{place.as_posix()}", path


def front_page(readme: Path, repo_id: str, models: list[str], carried: Provenance | None) -> bytes:
    """The Space's README: its name, the versions installed here, its models on the Hub, the carried one's licence."""
    card, sdk = SpaceCard(readme.read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id)), installed(SDK)
    if sdk is None:
        raise PushError(f"the Space gets the {SDK} that is installed, and there is none: pip install '{GRADIO}'")
    data: Any = card.data
    data.sdk_version, data.python_version, data.models = sdk, python_version(), models or None
    if carried is not None:
        data.license, data.license_name, data.license_link = carried.license, carried.license_name, carried.license_link
        card.text += f"\n\nThe code is under Apache-2.0. Licence of the weights in `{MODEL}/`: {carried.licence()}\n"
    return str(card).encode()


__all__ = ["PreparedSpace", "prepare_space", "push_space", "space_files"]
