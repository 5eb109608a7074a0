"""Read checkpoints, as files, shards or directories, with the config, image processor and card next to them."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.provenance import card_metadata
from hf_vit_seg.text_files import read_json_object

from .errors import ConversionError, first_few
from .files import file_formats
from .files.file_formats import EXPECTED, read_file
from .files.state_dicts import StateDict, copy_shared, find_state_dict
from .settings.preprocessing import check_processor, complete_settings, timm_processor

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
PROCESSORS = "processor_config.json"  # holds several processors; its image processor takes precedence over PROCESSOR
LICENSE = "LICENSE"  # begins the names of license files
SUFFIXES = (".pth", ".pt", ".bin", ".npz", ".safetensors")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, `meta` of a training framework, and contents of JSON files and model card in the directory.

    `repository` is the Hub id of a downloaded checkpoint.
    `weights` describes which of several sets of weights was chosen; `dropped` are tensors that belong to none.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    dropped: Mapping[str, str] = field(default_factory=dict)
    repository: str | None = None


def read_checkpoint(path: Path, weights: str | None = None) -> Checkpoint:
    """Read a checkpoint: a file, the index of a sharded checkpoint, or a directory with either.

    `weights` is the entry or prefix of the weights in a file that has several, such as `state_dict_ema`.
    """
    if not path.exists():
        raise ConversionError(f"'{path}' does not exist; pass the path of a checkpoint file or directory")
    file = weight_file(path) if path.is_dir() else path
    if file.name.endswith(".index.json"):
        if weights:
            raise ConversionError(f"'{file}' is a sharded checkpoint with one set of weights; omit --weights")
        tensors = read_shards(file)
    else:
        tensors = find_state_dict(file, read_file(file), weights)
    if not tensors.tensors:
        raise ConversionError(f"'{file}' contains no tensors, {EXPECTED}")
    config = read_json(file.parent / CONFIG)
    return Checkpoint(
        path=path,
        tensors=copy_shared(tensors.tensors),
        meta=tensors.meta,
        config=config,
        processor=read_processor(file.parent, config),
        card=read_card(file.parent),
        weights=tensors.describe(),
        dropped=tensors.dropped,
    )


def read_shapes(path: Path, weights: str | None = None) -> Checkpoint | None:
    """Read a checkpoint like `read`, with tensors on the meta device.

    None if the format can only be read as a whole, and for invalid paths, for which `read` raises the error.
    """
    if not path.exists():
        return None
    file = weight_file(path) if path.is_dir() else path
    if not file.is_file():
        return None
    try:
        if file.name.endswith(".index.json"):
            shapes = read_shards(file, read_file_shapes)
        else:
            shapes = find_state_dict(file, read_file_shapes(file), weights)
    except WholeFileError:
        return None
    if not shapes.tensors:
        return None
    tensors = {name: tensor.detach().to("meta") for name, tensor in shapes.tensors.items()}
    config = read_json(file.parent / CONFIG)
    return Checkpoint(path, tensors, shapes.meta, config, read_processor(file.parent, config), read_card(file.parent))


class WholeFileError(ConversionError):
    """A file without shapes that can be read before its data."""


def read_file_shapes(file: Path) -> Mapping[Any, Any]:
    """Read the shapes of a file; WholeFileError if its format does not allow it."""
    shapes = file_formats.read_shapes(file) if file.is_file() else None
    if not isinstance(shapes, Mapping):
        raise WholeFileError
    return shapes


def read_card(folder: Path) -> dict[str, Any]:
    """Read the metadata of a model card; empty if there is none."""
    try:
        return card_metadata(folder)
    except HfVitSegError as error:
        raise ConversionError(f"{error}; fix or remove it") from None


def weight_file(folder: Path) -> Path:
    """Find a directory's weights: an index, a file with a standard name, or the only checkpoint."""
    return folder / choose_weights([file.name for file in folder.iterdir() if file.is_file()], f"directory '{folder}'")


def choose_weights(names: Iterable[str], where: str) -> str:
    """Choose the weights from the names of files; `where` is their place, for the error message."""
    names = sorted(names)
    for name in INDEX_FILES + WEIGHT_FILES:
        if name in names:
            return name
    others = [name for name in names if name.endswith(SUFFIXES)]
    if len(others) != 1:
        description = f"{len(others)} other checkpoints ({first_few(others)})" if others else "no other one"
        raise ConversionError(
            f"{where} has no {' or '.join(WEIGHT_FILES)}, found {description}; pass the path of the file"
        )
    return others[0]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist."""
    if not os.path.lexists(path):
        return {}
    try:
        return read_json_object(path)
    except HfVitSegError as error:
        raise ConversionError(str(error)) from None


def read_processor(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read, check and complete the settings of a model's image processor; empty if there are none."""
    path, processor = folder / PROCESSORS, read_json(folder / PROCESSORS).get("image_processor")
    if not isinstance(processor, dict):
        path = folder / PROCESSOR
        processor = read_json(path)
    check_processor(processor, path)
    return complete_settings(processor, config, path) or timm_processor(config, folder / CONFIG)


def shard_names(index: Path) -> list[str]:
    """Return the file names of a sharded checkpoint's shards."""
    return sorted(set(shards_of_tensors(index).values()))


def shards_of_tensors(index: Path) -> dict[str, str]:
    """Read the shard of each tensor from the index of a sharded checkpoint."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ConversionError(
            f"'{index}' has no 'weight_map' of file names, expected the index of a sharded checkpoint"
        )
    for shard in shards.values():
        if not shard or Path(shard).name != shard:  # the index is untrusted and must not point outside of its directory
            raise ConversionError(
                f"'{index}' contains the path {first_few([shard])}; shards must be in the folder of the index"
            )
    return shards


def read_shards(index: Path, read_one: Callable[[Path], Mapping[Any, Any]] = read_file) -> StateDict:
    """Read all tensors of a sharded checkpoint from its index, each shard with `read_one`."""
    tensors: dict[str, Tensor] = {}
    shards = shards_of_tensors(index)
    for shard in sorted(set(shards.values())):
        tensors |= find_state_dict(index.parent / shard, read_one(index.parent / shard)).tensors
    missing = sorted(shards.keys() - tensors.keys())
    if missing:
        raise ConversionError(f"the shards of '{index}' lack {first_few(missing)}; download all files again")
    return StateDict(tensors)
