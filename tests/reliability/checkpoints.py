"""Hostile checkpoints, configs and recipes: damaged files, and attacks that are built on purpose."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from hf_vit_seg.conversion.convert import convert, export
from hub_models import save_tiny_model
from safetensors.torch import save as save_safetensors

from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.training.recipe_loading import load_recipe

from .mutations import mutate
from .sandbox import Case

TITLE = "Hostile checkpoints, configs and recipes"
ABOUT = (
    "Each case must be read, or refused by one sentence within 5 s and 500 MiB of memory beyond twice the file, "
    "without running code, and without leaving a directory of results. Files are cut, flipped, overwritten, repeated "
    "and inflated at seeded places; attacks are pickles that run code, huge shapes, zip bombs, path traversal, links."
)
FIXED: tuple[str, ...] = (
    "Values of other types in config.json ended with a traceback of StrictDataclassError (63 of 136 configs in a "
    "first run of 3,000 cases).",
    "Names of classes of other types in preprocessor_config.json ended with an AttributeError or TypeError of "
    "transformers (11 of 147).",
    "Label names, out_indices and auto_map of other types ended with a traceback, and configs of billions of layers "
    "took all memory.",
)
MARKER = "CODE_WAS_RUN"
OUT = "out"
Seeds = dict[str, tuple[str, bytes]]


class Payload:
    """Unpickling this object creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


class Checkpoints:
    """Makes cases by number. `folder` gets valid models, `marker` must never exist."""

    def __init__(self, folder: Path, seed: int):
        self.seed, self.marker = seed, folder / MARKER
        self.models = {name: save_tiny_model(folder / name, name) for name in ("segformer", "vit")}
        self.files = self.valid_files(folder)
        self.attacks = attacks(self.marker)
        kinds: list[Callable[[Random], Case]] = [self.damaged_checkpoint] * 6 + [self.attack] * 2
        self.kinds = [*kinds, self.damaged_config, self.damaged_recipe, self.damaged_directory]

    def valid_files(self, folder: Path) -> dict[str, bytes]:
        """Checkpoints of each container format."""
        reference = folder / "reference.pth"
        export(self.models["segformer"], reference, to="nvlabs")
        state: Any = torch.load(reference, weights_only=True)
        tensors = {name: value for name, value in state.get("state_dict", state).items() if torch.is_tensor(value)}
        legacy, npz = io.BytesIO(), io.BytesIO()
        torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
        np.savez(npz, **{name: value.numpy() for name, value in tensors.items()})
        return {
            ".pth": reference.read_bytes(),
            "legacy .pth": legacy.getvalue(),
            ".npz": npz.getvalue(),
            ".safetensors": save_safetensors({name: value.contiguous() for name, value in tensors.items()}),
        }

    def __call__(self, number: int) -> Case:
        random = Random(self.seed * 1_000_003 + number)
        return random.choice(self.kinds)(random)

    def damaged_checkpoint(self, random: Random) -> Case:
        kind, data = random.choice(list(self.files.items()))
        _, damaged = mutate(random, data)
        return Case(kind, len(damaged), lambda folder: convert_bytes(folder, damaged))

    def attack(self, random: Random) -> Case:
        kind, make = random.choice(list(self.attacks.items()))
        return Case(f"attack: {kind}", 2**16, lambda folder: convert_path(make(folder), folder))

    def damaged_config(self, random: Random) -> Case:
        name = random.choice(("config.json", "preprocessor_config.json"))
        model = random.choice(list(self.models.values()))
        text = damaged_json(random, (model / name).read_bytes())
        return Case(name, len(text), lambda folder: load_with(model, folder, name, text))

    def damaged_directory(self, random: Random) -> Case:
        model = random.choice(list(self.models.values()))
        _, damaged = mutate(random, (model / "model.safetensors").read_bytes())
        size = 2 * len(damaged)
        return Case("model.safetensors", size, lambda folder: load_with(model, folder, "model.safetensors", damaged))

    def damaged_recipe(self, random: Random) -> Case:
        text = RECIPE.replace("MARKER", str(self.marker)).encode()
        _, damaged = mutate(random, random.choice((*[text] * 6, *(each.encode() for each in RECIPES))))
        return Case("recipe.yaml", len(damaged), lambda folder: read_recipe(folder, damaged))


def damaged_json(random: Random, data: bytes) -> bytes:
    """Damaged text, or valid JSON with one value of another type or size."""
    if random.random() < 0.4:
        return mutate(random, data)[1]
    settings = json.loads(data)
    name = random.choice(list(settings))
    settings[name] = random.choice(
        (None, -1, 0, 10**12, 1e308, "x" * 1000, [], {}, [[1]], True, [10**9] * 4, {"a": 1}, "../../etc/passwd", [None])
    )
    return json.dumps(settings).encode()


RECIPE = """task: segmentation
model: {architecture: segformer, variant: tiny}
data:
  train: {kind: folders, images: images, masks: masks}
  classes: [background, {name: cell, values: [1, 255], color: [255, 0, 0]}]
  validation_share: 0.2
transforms: [{random_crop: {size: 64}}, random_flip]
loss: {cross_entropy: {}}
optimizer: {learning_rate: 1.0e-4}
loop: {steps: 10, batch_size: 2}
"""
RECIPES = (
    "task: !!python/object/apply:pathlib.Path.touch [MARKER]\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
    "? [1, 2]\n: {x: !!binary aGVsbG8=}\n",
    "task: segmentation\nmodel: {from_pretrained: ../../../etc/passwd}\n",
)


def convert_bytes(folder: Path, data: bytes) -> None:
    (folder / "file").write_bytes(data)
    convert_path(folder / "file", folder)


def convert_path(file: Path, folder: Path) -> None:
    convert(file, folder / OUT)


def load_with(model: Path, folder: Path, name: str, data: bytes) -> None:
    """Load a model directory with one file replaced."""
    place = folder / "model"
    shutil.copytree(model, place)
    (place / name).write_bytes(data)
    Segmenter.from_pretrained(str(place))


def read_recipe(folder: Path, data: bytes) -> None:
    (folder / "recipe.yaml").write_bytes(data)
    load_recipe(folder / "recipe.yaml")


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    """Write a file of an attack."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def attacks(marker: Path) -> dict[str, Callable[[Path], Path]]:
    """Functions that write a hostile file to a folder and return its path."""
    code, legacy, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(2), "x": Payload(marker)}, code)
    torch.save({"x": Payload(marker)}, legacy, _use_new_zipfile_serialization=False)
    np.savez(objects, x=np.array([Payload(marker)], dtype=object))
    found = {"code in .pth": code, "code in legacy .pth": legacy, "code in .npz": objects}
    made = {name: written("attack", buffer.getvalue()) for name, buffer in found.items()}
    for protocol in (0, 2, 4, 5):
        made[f"bare pickle, protocol {protocol}"] = written("attack.pkl", pickle.dumps(Payload(marker), protocol))
    made |= {
        "zip bomb": written("bomb.npz", zipped({"a.npy": npy_head(2**31) + bytes(2**26)})),
        "zip of many files": written("many.npz", zipped({f"{i}.npy": npy_head(1) + bytes(4) for i in range(3000)})),
        "huge .npy shape": written("huge.npz", zipped({"a.npy": npy_head(2**50)})),
        "negative .npy shape": written("negative.npz", zipped({"a.npy": npy_head(-5)})),
        "path traversal": written("up.npz", zipped({"../../up.npy": npy_head(4) + bytes(16), "/a.npy": npy_head(0)})),
        "huge header of safetensors": written("h.safetensors", struct.pack("<Q", 2**62) + b'{"a":'),
        "huge shape of safetensors": written("s.safetensors", safetensors({"a": shape_entry([2**31, 2**31], 0, 8)})),
        "overlapping safetensors": written(
            "o.safetensors", safetensors({"a": shape_entry([2], 0, 8), "b": shape_entry([2], 4, 12)}, 12)
        ),
        "deep JSON in safetensors": written("d.safetensors", struct.pack("<Q", 40_001) + b"{" + b"[" * 40_000),
    }
    return made | {"link to /dev/zero": linked("/dev/zero"), "link to itself": linked("attack")} | traversing_indices()


def linked(target: str) -> Callable[[Path], Path]:
    def link(folder: Path) -> Path:
        (folder / "attack").symlink_to(target)
        return folder / "attack"

    return link


def traversing_indices() -> dict[str, Callable[[Path], Path]]:
    """Directories whose index of shards names files elsewhere."""

    def make(name: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            place = folder / "model"
            place.mkdir()
            (place / "config.json").write_text(json.dumps({"model_type": "segformer"}))
            (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name, "b": name}}))
            return place

        return write

    names: Sequence[str] = ("../../../../etc/passwd", "/dev/zero", "", ".", "a\0b")
    return {f"shard {name!r}": make(name) for name in names}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy_head(count: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},)}}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def shape_entry(shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


def safetensors(entries: dict[str, Any], size: int = 8) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def left_behind(marker: Path) -> Callable[[Path], str | None]:
    """Check that no code ran and that no results of a refused file exist; removes the folder of the case."""

    def check(folder: Path) -> str | None:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        whole = (folder / OUT / "config.json").is_file() and (folder / OUT / "model.safetensors").is_file()
        shutil.rmtree(folder, ignore_errors=True)
        if marker.exists():
            marker.unlink()
            return "code of the file was run"
        if OUT in names and not whole:
            return "a half-written directory"
        others = [name for name in names if name.startswith(f".{OUT}")]
        return f"temporary files {others}" if others else None

    return check
