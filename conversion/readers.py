"""Read checkpoint files and directories as named tensors, without executing code from them.

Formats are detected from the first bytes, not from the file name.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.provenance import card_metadata
from hf_vit_seg.text_files import read_json_object

from .errors import ConversionError, first_few

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WRAPPERS = ("state_dict", "model", "model_state_dict")
FLAX_STATES = ("opt/target/", "params/")
EXPECTED = "expected a PyTorch (.pth, .pt, .bin), safetensors or NumPy (.npz) checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, `meta` of a training framework, and contents of JSON files and model card in the directory."""

    path: Path
    tensors: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint: a file, the index of a sharded checkpoint, or a directory with either."""
    if not path.exists():
        raise ConversionError(f"'{path}' does not exist; pass the path of a checkpoint file or directory")
    file = weight_file(path) if path.is_dir() else path
    tensors, meta = read_shards(file) if file.name.endswith(".index.json") else read_state_dict(file)
    if not tensors:
        raise ConversionError(f"'{file}' contains no tensors, {EXPECTED}")
    return Checkpoint(
        path=path,
        tensors=select_parameters(remove_prefix(tensors, "module.")),
        meta=meta,
        config=read_json(file.parent / "config.json"),
        processor=read_json(file.parent / "preprocessor_config.json"),
        card=read_card(file.parent),
    )


def read_card(folder: Path) -> dict[str, Any]:
    """Read the metadata of a model card; empty if there is none."""
    try:
        return card_metadata(folder)
    except HfVitSegError as error:
        raise ConversionError(f"{error}; fix or remove it") from None


def weight_file(folder: Path) -> Path:
    """Find a directory's weights: an index, a file with a standard name, or the only checkpoint."""
    for name in INDEX_FILES + WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(f for f in folder.iterdir() if f.suffix in (".pth", ".pt", ".bin", ".npz", ".safetensors"))
    if len(others) != 1:
        found = f"{len(others)} other checkpoints ({first_few(f.name for f in others)})" if others else "no other one"
        raise ConversionError(
            f"directory '{folder}' has no {' or '.join(WEIGHT_FILES)}, found {found}; pass the path of the file"
        )
    return others[0]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file."""
    if not os.path.lexists(path):
        return {}
    try:
        return read_json_object(path)
    except HfVitSegError as error:
        raise ConversionError(str(error)) from None


def read_shards(index: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read all tensors of a sharded checkpoint from its index."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ConversionError(f"'{index}' has no 'weight_map', expected the index of a sharded checkpoint")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:  # the index is untrusted and must not point outside of its directory
            raise ConversionError(f"'{index}' contains the path '{shard}'; shards must be in the folder of the index")
        tensors |= read_state_dict(index.parent / shard)[0]
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise ConversionError(f"the shards of '{index}' lack {first_few(missing)}; download all files again")
    return tensors, {}


def read_state_dict(file: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read the tensors of one file, without wrappers of training frameworks, and the framework's `meta`."""
    content = read_file(file)
    meta = content.get("meta")
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    others = [
        f"{name} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and torch.is_tensor(value))
    ]
    if others:
        raise ConversionError(
            f"'{file}' has entries that are not tensors: {first_few(others)}; expected a flat dictionary of tensors, "
            f"or one under {' or '.join(WRAPPERS)}"
        )
    return copy_shared(content), meta if isinstance(meta, Mapping) else {}


def copy_shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, because safetensors cannot save them."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes and place not in seen
        seen.add(place)
        tensor = tensor.detach()
        result[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    return result


def remove_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove a prefix that all names share, such as DataParallel's `module.`."""
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def select_parameters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the model's parameters from a flax training state, which also contains the optimizer's."""
    for prefix in FLAX_STATES:
        inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if inside:
            return inside
    return tensors


def read_file(file: Path) -> Mapping[str, Any]:
    """Read one file; its first bytes determine the format."""
    if not file.is_file():
        raise ConversionError(f"'{file}' is not a file, {EXPECTED}")
    with file.open("rb") as stream:
        head = stream.read(16)
    if not head:
        raise ConversionError(f"'{file}' is empty (0 bytes); download or copy it again")
    for recognized, reader in FORMATS:
        if recognized(head):
            content = reader(file)
            break
    else:
        raise ConversionError(f"'{file}' is not a checkpoint (it begins with {head[:8]!r}), {EXPECTED}")
    if not isinstance(content, Mapping):
        raise ConversionError(f"'{file}' contains a {type(content).__name__}, expected a dictionary of tensors")
    return content


def damaged_error(file: Path, error: Exception) -> ConversionError:
    """Create the error for a file with a valid beginning that cannot be read completely."""
    reason = error_sentence(error, short=True)
    return ConversionError(
        f"'{file}' ({file.stat().st_size} bytes) is truncated or damaged ({reason}); download or copy it again"
    )


def read_safetensors(file: Path) -> Mapping[str, Any]:
    """Read a safetensors file."""
    try:
        return load_file(file)
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error


def read_zip(file: Path) -> Mapping[str, Any]:
    """Read a zip archive of NumPy or PyTorch."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error
    if any(name.endswith("data.pkl") for name in members):
        return read_torch(file)
    if members and all(name.endswith(".npy") for name in members):
        return read_npz(file)
    raise ConversionError(f"'{file}' is a zip archive of other files ({first_few(members, 3)}), {EXPECTED}")


def read_torch(file: Path) -> Mapping[str, Any]:
    """Read a file of torch.save; ConversionError if it contains objects that need code."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not names:
            raise damaged_error(file, error) from error
        raise ConversionError(
            f"'{file}' contains Python objects ({first_few(dict.fromkeys(names))}), expected only tensors and plain "
            "containers, because unpickling objects can execute code; save only its state dict, in the environment "
            "that wrote it, and convert that"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error


def read_npz(file: Path) -> Mapping[str, Any]:
    """Read a NumPy archive; ConversionError for an array of Python objects."""
    tensors: dict[str, Tensor] = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                tensors[name] = from_numpy(arrays[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise damaged_error(file, error) from error
        raise ConversionError(
            f"'{file}' contains an array of Python objects, which is not read because unpickling can execute code; "
            "save plain numeric arrays"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error
    return tensors


def from_numpy(array: np.ndarray) -> Tensor:
    """Convert an array to a tensor; untyped two-byte elements are bfloat16."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


FORMATS = (
    (lambda head: head[:4] == b"PK\x03\x04", read_zip),
    (lambda head: head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05", read_torch),
    (lambda head: len(head) > 8 and head[8:9] == b"{", read_safetensors),
)
