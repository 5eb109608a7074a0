"""`hf-vit-seg push-space`: the demo in spaces/segmentation as a Space on the Hub, with a model of one's own.

The Space carries this package as files beside its app.py, with the metadata by which its plugins are found. So it runs
what was tested here, whether or not the package is published anywhere; the packages it needs are pinned.
"""

from collections.abc import Iterator
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, SpaceCard
from huggingface_hub.errors import HTTPError

from hf_vit_seg.demo import GRADIO
from hf_vit_seg.demo.catalogue import ENVIRONMENT
from hf_vit_seg.entry_points import PACKAGE
from hf_vit_seg.provenance import CARD, short_card

from .model_directory import model_directory
from .pins import SDK, installed, pins, python_version
from .push import contents
from .repository import PushError, Target, commit

PINS = "requirements.txt"
PLACEHOLDER = "USER/SPACE"  # in its README
MODEL = "model"  # folder of a model that is carried along
BESIDE = ("configs", "conversion", "nuclei")  # sub-packages that lie elsewhere in a repository than when installed
LEFT_OUT = {"__pycache__", "train", "masks"}  # folders
METADATA = ("METADATA", "PKG-INFO"), ("entry_points.txt",)  # of an installation, by either of their names


def push_space(model: str, target: Target) -> CommitInfo:
    """Publish a Space that shows a model: a local directory, which is carried along, or a Hub id.

    PushError, in one sentence, when that is not possible.
    """
    directory = model_directory(Path(model)) if Path(model).exists() else None
    content, offered, package = space_files(), model, PACKAGE
    if directory is not None:
        offered, package = MODEL, (directory.package or PACKAGE).partition(" ")[0]
        content |= {f"{MODEL}/{path}": file for path, file in contents(directory, target.repo_id).items()}
        content[f"{MODEL}/{CARD}"] = str(short_card(directory.provenance, directory.path.name)).encode()
    content[CARD] = front_page(folder(f"{PACKAGE}.space") / CARD, target.repo_id, [] if directory else [model])
    content[PINS] = "".join(f"{line}\n" for line in pins([package])).encode()
    done = commit(target, content, replaced=(f"{PACKAGE}/*", f"{MODEL}/*"), repo_type="space", space_sdk="gradio")
    if not target.create_pr:  # whose files the running Space does not have yet
        name_model(target.repo_id, offered)
    return done


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
    own = {path.name: path for path in folder(f"{PACKAGE}.space").iterdir() if path.is_file()}
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
        if path.is_file() and not LEFT_OUT & set(place.parts):
            yield f"{name}/{place.as_posix()}", path


def front_page(readme: Path, repo_id: str, models: list[str]) -> bytes:
    """The Space's README: it is told its name, the versions installed here, and its models on the Hub."""
    card, sdk = SpaceCard(readme.read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id)), installed(SDK)
    if sdk is None:
        raise PushError(f"the Space gets the {SDK} that is installed, and there is none: pip install '{GRADIO}'")
    data: Any = card.data
    data.sdk_version, data.python_version, data.models = sdk, python_version(), models or None
    return str(card).encode()


__all__ = ["push_space", "space_files"]
