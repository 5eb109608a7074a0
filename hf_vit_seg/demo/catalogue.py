"""The models of a demo, which are loaded when they are first used."""

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.dense.image_preparation import PreparedImage
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.found_segments import FoundSegments
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.inference.runtimes import task_of_model
from hf_vit_seg.inference.segmentation import Segmentation
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.loading.errors import ModelError
from hf_vit_seg.provenance import CARD, find_provenance, split_card

from . import ENVIRONMENT, NUCLEI
from .accelerator import on_gpu
from .image_reading import TimeLimitError
from .uploads import report_failures

# The images of examples/nuclei that are installed with the package.
EXAMPLES = ("709e094e39629a9c", "43cf6b2ec0b0745a", "0c2550a23b8a0f29", "c1afe66cd139f996", "3477024fd843e460")
MAX_RUN_EXAMPLES = 3  # example images of a run
KEPT = 3  # models that stay in memory
LOADERS: Mapping[str, Callable[[str], Any]] = {
    "segmentation": Segmenter.from_pretrained,
    "instance": InstanceSegmenter.from_pretrained,  # and panoptic
    "classification": Classifier.from_pretrained,
    "pose": PoseEstimator.from_pretrained,
}
CARD_TITLE = re.compile(r"^# .*$", re.MULTILINE)
CARD_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")  # the page does not serve the other files of a card's repository
# Of ZeroGPU, for any call and for a million pixels that a model sees: more than large models take.
SECONDS, SECONDS_PER_MILLION = 10, 1
SECONDS_COMPUTING = 120  # time limit for one image
SECONDS_WAITING = 300  # limit of the wait for other users' images


@dataclass(frozen=True)
class Entry:
    """A model: where it is, its name in parts, from the general to the particular, and its task."""

    place: str
    name: tuple[str, ...]
    task: str


@dataclass(frozen=True)
class ModelFacts:
    """A line about a model, and the address of its card if it is on the Hub."""

    text: str
    card: str | None = None


class FairLock:
    """A lock that is granted in the order of requests.

    `threading.Lock` lets the thread that releases it take it again before one that waits, and a large image would keep
    the model until its last window.
    """

    def __init__(self) -> None:
        self.guard = Lock()
        self.waiting: deque[Lock] = deque()  # the first one belongs to the holder

    @contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        """Hold the lock. TimeLimitError after `timeout` seconds of waiting."""
        turn = Lock()
        turn.acquire()
        with self.guard:
            self.waiting.append(turn)
            if len(self.waiting) == 1:
                turn.release()
        try:
            if not turn.acquire(timeout=timeout):
                raise TimeLimitError("the server is busy with other images: try again later")
            yield
        finally:
            self.leave(turn)

    def leave(self, turn: Lock) -> None:
        """Remove a holder or a waiting thread, and wake the next one."""
        with self.guard:
            was_first = self.waiting[0] is turn
            self.waiting.remove(turn)
            if was_first and self.waiting:
                self.waiting[0].release()


class Catalogue:
    """The models of a demo. ModelError if none can be loaded; `failures` has a sentence for each that cannot.

    The three used last stay in memory, or all of them with `keep_all`, which loads them at the start.
    """

    def __init__(self, names: Sequence[str], keep_all: bool = False):
        self.failures: list[str] = []
        self.keep_all = keep_all
        entries: dict[tuple[str, ...], Entry] = {}
        for name in names:
            try:
                entry = load_entry(name)
                entries[entry.name] = entry
            except ModelError as error:
                self.failures.append(str(error))
        self.entries = dict(zip(short_titles(list(entries)), entries.values(), strict=True))
        self.cached_model = lru_cache(None if keep_all else KEPT)(self.load_uncached)
        self.loading, self.computing = Lock(), FairLock()
        self.run_on_device = on_gpu(self.run_model, seconds)
        if keep_all:
            self.load_all()
        if not self.entries:
            raise ModelError("; ".join(self.failures) or "no model is given")

    def load_all(self) -> None:
        """Load all models, and remove those that cannot be loaded."""
        for title in list(self.entries):
            try:
                self.load(title)
            except ModelError as error:
                self.failures.append(str(error))
                del self.entries[title]

    def load(self, title: str) -> Any:
        """Return a model that is ready to be called. Raises ModelError if it cannot be loaded."""
        if self.keep_all:  # loaded at the start; a lock has no effect in ZeroGPU's processes
            return self.cached_model(title)
        with self.loading:
            return self.cached_model(title)

    def call(self, title: str, *inputs: Any, pixels: int = 0) -> Any:
        """`run_model`, on a GPU of ZeroGPU where there is one."""
        return self.run_on_device(title, *inputs, pixels=pixels)

    def titles(self, task: str) -> list[str]:
        """Return the names of the models of a task."""
        return [title for title, entry in self.entries.items() if entry.task == task]

    def describe(self, title: str) -> ModelFacts:
        """Return the class of a model, how many classes it has, and its license and card."""
        entry, segmenter = self.entries[title], self.load(title)
        count = len(segmenter.names)
        facts = [type(segmenter.model).__name__, f"{count} classes" if count > 1 else "1 class"]
        if not Path(entry.place).exists():
            return ModelFacts(", ".join(facts), f"https://huggingface.co/{entry.place}")
        return ModelFacts(", ".join([*facts, f"license: {find_provenance(entry.place).license or 'unknown'}"]))

    def card_text(self, title: str) -> str:
        """Return the Markdown of a local model's card, without images and title (the page has one); empty if there is
        none that can be read.
        """
        entry = self.entries.get(title)
        path = None if entry is None else Path(entry.place, CARD)
        try:
            text = split_card(path)[1] if path and path.is_file() else ""
            return CARD_IMAGE.sub("", CARD_TITLE.sub("", text, count=1))
        except HfVitSegError:
            return ""

    def examples(self, task: str) -> list[tuple[str, str]]:
        """Paths of example images with the title of their model: the built-in ones, and those of the models' runs."""
        examples = [(path, NUCLEI) for path in example_images()] if NUCLEI in self.titles(task) else []
        for title, entry in self.entries.items():
            if entry.task == task and entry.name != (NUCLEI,):
                examples += [(path, title) for path in run_images(Path(entry.place))]
        return examples

    def load_uncached(self, title: str) -> Any:
        """Load a model. The cached variant is `load`."""
        entry = self.entries[title]
        try:
            return LOADERS[entry.task](entry.place)
        except ModelError as error:
            raise ModelError(str(error).replace(entry.place, title)) from error

    def run_model(self, title: str, *inputs: Any, pixels: int = 0) -> Any:
        """Return the output of a model; segmenters have a protocol as input, and a prepared image or pixels.

        `pixels` is how many it sees where that depends on them. Several images are segmented at the same time, and
        their forward passes alternate. TimeLimitError when others keep the processor busy for too long.
        """
        with report_failures():
            model = self.load(title)
            if isinstance(model, Segmenter):
                return self.segment(model, *inputs)
            if isinstance(model, InstanceSegmenter):
                return self.find_objects(model, *inputs)
            with self.computing.hold(SECONDS_WAITING):
                return model(*inputs)

    def segment(self, segmenter: Segmenter, protocol: Protocol, prepared: PreparedImage) -> Segmentation:
        """Segment a prepared image; see `limit_time`."""
        segmenter = segmenter.with_protocol(protocol)
        segmenter.logits = self.limit_time(segmenter.logits)
        return segmenter.segment(prepared)

    def find_objects(
        self, segmenter: InstanceSegmenter, protocol: Protocol, pixels: torch.Tensor, shown: Image.Image
    ) -> FoundSegments:
        """Find the objects in pixels (C, H, W); see `limit_time`."""
        segmenter = segmenter.with_protocol(protocol)
        segmenter.outputs = self.limit_time(segmenter.outputs)
        return segmenter.segment_pixels(pixels, shown)

    def limit_time(self, forward: Callable[[torch.Tensor], Any]) -> Any:
        """Wrap a forward pass so that images of several visitors take turns.

        Raises TimeLimitError before a window if the previous ones have taken too long.
        """
        spent = 0.0

        def limited(pixel_values: torch.Tensor) -> Any:
            nonlocal spent
            if spent > SECONDS_COMPUTING:
                raise TimeLimitError(f"the model takes longer than {SECONDS_COMPUTING} s: choose a smaller image")
            with self.computing.hold(SECONDS_WAITING):
                start = time.monotonic()
                outputs = forward(pixel_values)
                spent += time.monotonic() - start
            return outputs

        return limited


def seconds(title: str, *inputs: Any, pixels: int = 0) -> int:
    """Return the seconds to request of ZeroGPU, for the same arguments as `Catalogue.run_model`."""
    return SECONDS + math.ceil(pixels / 1e6 * SECONDS_PER_MILLION)


def load_entry(name: str) -> Entry:
    """Load a model by its name. Raises ModelError if it does not exist or has no head."""
    if name == NUCLEI:
        return Entry(str(files("hf_vit_seg.nuclei") / "model"), (NUCLEI,), "segmentation")
    return Entry(name, name_parts(name), task_of_model(name))


def name_parts(name: str) -> tuple[str, ...]:
    """Return a Hub id or the path of a file or directory, in parts.

    In a Space, the id of the Space replaces its folder, whose name is always `app`.
    """
    path, here, space = Path(name), Path.cwd(), os.environ.get("SPACE_ID")
    if not path.exists():
        return tuple(name.split("/"))
    path = path.resolve()
    if space and path.is_relative_to(here):
        return (*space.split("/"), *path.relative_to(here).parts)
    return path.parts[1:]


def short_titles(names: Sequence[tuple[str, ...]]) -> list[str]:
    """Return short names of models: the last two parts of their names, or more where these are equal."""

    def alone(name: tuple[str, ...], length: int) -> bool:
        return sum(other[-length:] == name[-length:] for other in names) == 1

    lengths = [next((n for n in range(2, len(name)) if alone(name, n)), len(name)) for name in names]
    return ["/".join(name[-length:]) for name, length in zip(names, lengths, strict=True)]


def default_models() -> list[str]:
    """Return the examples that the environment names, and the built-in one."""
    return [*filter(None, re.split(r"[,\s]+", os.environ.get(ENVIRONMENT, ""))), NUCLEI]


def run_images(model: Path) -> list[str]:
    """Paths of the images in the samples of the run that has trained a model, at most `MAX_RUN_EXAMPLES`."""
    folder = model.resolve().parent / "samples" / "images"
    return [str(path) for path in sorted(folder.glob("*.png"))[:MAX_RUN_EXAMPLES]] if model.is_dir() else []


def example_images() -> list[str]:
    """Paths of images for the built-in model."""
    folder = files("hf_vit_seg.nuclei") / "data" / "test" / "images"
    return [str(folder / f"{name}.webp") for name in EXAMPLES]


__all__ = ["Catalogue", "ModelFacts", "default_models", "example_images"]
