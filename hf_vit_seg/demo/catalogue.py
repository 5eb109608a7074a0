"""The models of a demo: found out by their configs, loaded when they are asked for."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.loading import AUTO_CLASSES, ModelError, first_sentence
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.inference.runtimes import is_program
from hf_vit_seg.inference.segmenter import Segmenter

ENVIRONMENT = "HF_VIT_SEG_MODELS"
NUCLEI = "nuclei"  # the name of the model that is built in
# Of the images in examples/nuclei, those that are installed with the package.
EXAMPLES = ("709e094e39629a9c", "43cf6b2ec0b0745a", "0c2550a23b8a0f29", "c1afe66cd139f996", "3477024fd843e460")
KEPT = 3  # models that stay in memory
LOADERS: Mapping[str, Callable[[str], Any]] = {
    "segmentation": Segmenter.from_pretrained,
    "classification": Classifier.from_pretrained,
    "pose": PoseEstimator.from_pretrained,
}


@dataclass(frozen=True)
class Entry:
    """A model: where it is, what people call it, and its task."""

    place: str
    title: str
    task: str


class Catalogue:
    """The models that a demo offers. ModelError when none can be used; `failures` has a sentence for each that cannot.

    The last three that were used stay in memory, or all of them with `keep_all`, which loads them at once.
    """

    def __init__(self, names: Sequence[str], keep_all: bool = False):
        self.entries: dict[str, Entry] = {}
        self.failures: list[str] = []
        for name in dict.fromkeys(names):
            try:
                entry = entry_of(name)
                self.entries[entry.title] = entry
            except ModelError as error:
                self.failures.append(str(error))
        if not self.entries:
            raise ModelError("; ".join(self.failures) or "no model is given")
        self.load = lru_cache(None if keep_all else KEPT)(self.loaded)
        for title in self.entries if keep_all else ():
            self.load(title)

    def titles(self, task: str) -> list[str]:
        """What the models of a task are called."""
        return [entry.title for entry in self.entries.values() if entry.task == task]

    def loaded(self, title: str) -> Any:
        """A model, ready to be called with an image. ModelError when it cannot be loaded after all."""
        entry = self.entries[title]
        try:
            return LOADERS[entry.task](entry.place)
        except ModelError as error:
            raise ModelError(str(error).replace(entry.place, title)) from error


def entry_of(name: str) -> Entry:
    """A model by its name. ModelError when there is none, or its task is not among those of a demo."""
    if name == NUCLEI:
        return Entry(str(files("hf_vit_seg.nuclei") / "model"), NUCLEI, "segmentation")
    path = Path(name)
    title = "/".join(path.resolve().parts[-2:]) if path.exists() else name
    return Entry(name, title, "segmentation" if is_program(name) else task_of(name))


def task_of(name: str) -> str:
    """The task of a model, by the class that its config names."""
    try:
        saved = AutoConfig.from_pretrained(name).architectures or []
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name} cannot be loaded: {first_sentence(error)}") from error
    for task, auto_class in AUTO_CLASSES.items():
        if any(auto_class.removeprefix("AutoModel") in architecture for architecture in saved):
            return task
    found = ", ".join(saved) or "a model without a head"
    raise ModelError(f"{name} is {found}: the demo shows models for {', '.join(AUTO_CLASSES)}")


def default_models() -> list[str]:
    """Those that the environment names, and the built-in one."""
    return [*filter(None, re.split(r"[,\s]+", os.environ.get(ENVIRONMENT, ""))), NUCLEI]


def example_images() -> list[str]:
    """Paths of images for the built-in model."""
    folder = files("hf_vit_seg.nuclei") / "data" / "test" / "images"
    return [str(folder / f"{name}.webp") for name in EXAMPLES]


__all__ = ["ENVIRONMENT", "Catalogue", "default_models", "example_images"]
