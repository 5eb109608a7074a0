"""Read one checkpoint file as a dictionary, without executing its code, and without allocating what it only declares.

Formats are detected from the first bytes, not from the file name. Sizes that a file declares (of zip members, arrays,
views of tensors) are compared with the file's own size first.
"""

import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from hf_vit_seg.conversion.errors import ConversionError, first_few
from safetensors.torch import load_file
from torch import Tensor

from hf_vit_seg.errors import error_sentence

EXPECTED = "expected a PyTorch (.pth, .pt, .bin), safetensors or NumPy (.npz) checkpoint"
ZIP = b"PK\x03\x04"
MAX_EXCESS_BYTES = 200 * 2**20  # declared size minus file size, for compression and tensors that share memory
LEGACY_PICKLES = 4  # written by torch.save before 1.6: magic number, version, system, content
# Modules of objects that training frameworks save with the weights. They are replaced by `Ignored`.
FRAMEWORKS = frozenset(
    (
        *("argparse", "collections", "datetime", "enum", "pathlib", "types", "typing"),
        *("accelerate", "detectron2", "fairseq", "fvcore", "lightning", "lightning_fabric", "numpy", "timm"),
        *("mmcls", "mmcv", "mmdet", "mmengine", "mmpose", "mmpretrain", "mmseg", "pytorch_lightning"),
        *("easydict", "ml_collections", "omegaconf", "yacs"),
    )
)
PLAIN = frozenset({"collections.OrderedDict", "collections.Counter"})  # which torch reads
ALLOCATING = frozenset({"builtins.bytearray"})  # torch allows them, and they allocate any size that a file declares


class Ignored:
    """Stands for an object of a training framework; it ignores the arguments and the state of the original."""

    def __init__(self, *arguments: Any): ...

    def __setstate__(self, state: Any) -> None: ...


def read_file(file: Path) -> Mapping[Any, Any]:
    """Read one file; its first bytes determine the format."""
    if not file.is_file():
        raise ConversionError(f"'{file}' is not a file, {EXPECTED}")
    try:
        with file.open("rb") as stream:
            head = stream.read(16) if file.stat().st_size else b""  # files below /proc have no size and may never end
    except OSError as error:
        raise ConversionError(f"'{file}' cannot be read ({error.strerror or error})") from error
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


def read_shapes(file: Path) -> Mapping[Any, Any] | None:
    """Read a file like `read_file`, without its data: tensors have shape and type, and must not be used otherwise.

    None for files of torch.save before 1.6, which can only be read as a whole.
    """
    with file.open("rb") as stream:
        head = stream.read(16) if file.is_file() and file.stat().st_size else b""
    if FORMATS[0][0](head):
        return read_zip(file, shapes_only=True)
    return read_safetensors(file) if FORMATS[1][0](head) else None  # safetensors reads data when it is used


def damaged_error(file: Path, error: Exception) -> ConversionError:
    """Create the error for a file with a valid beginning that cannot be read completely."""
    reason = error_sentence(error, short=True)
    return ConversionError(
        f"'{file}' ({file.stat().st_size} bytes) is truncated or damaged ({reason}); download or copy it again"
    )


def check_size(file: Path, declared: Mapping[str, int]) -> None:
    """Raise ConversionError if a file declares much more data than it has; `declared` are bytes by name."""
    size, total = file.stat().st_size, sum(declared.values())
    if total > size + MAX_EXCESS_BYTES:
        largest = max(declared, key=lambda name: declared[name])
        raise ConversionError(
            f"'{file}' has {size:,} bytes but declares {total:,} bytes of data, most of them "
            f"({declared[largest]:,}) in {first_few([largest])}; it is damaged or harmful: download it again"
        )


def read_safetensors(file: Path) -> Mapping[str, Any]:
    """Read a safetensors file."""
    try:
        return load_file(file)
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error


def read_zip(file: Path, shapes_only: bool = False) -> Mapping[Any, Any]:
    """Read a zip archive of NumPy or PyTorch; with `shapes_only`, without data."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error
    check_size(file, members)
    if any(name.endswith("data.pkl") for name in members):
        return read_torch(file, shapes_only)
    if members and all(name.endswith(".npy") for name in members):
        return read_npz_shapes(file) if shapes_only else read_npz(file)
    raise ConversionError(f"'{file}' is a zip archive of other files ({first_few(members, 3)}), {EXPECTED}")


def read_torch(file: Path, mapped: bool = False) -> Mapping[Any, Any]:
    """Read a file of torch.save; ConversionError if it contains objects that need code.

    With `mapped`, the data of tensors is read when it is used, and is wrong if the file is compressed. Objects of
    training frameworks (arguments, histories, NumPy scalars) are replaced by `Ignored`.
    """
    try:
        used = set(pickled_names(file))
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error
    if refused := sorted(used & ALLOCATING):
        raise ConversionError(
            f"'{file}' contains {first_few(refused)}, whose size is not limited by the file's; save only its state dict"
        )
    objects = sorted(name for name in used if name.partition(".")[0] in FRAMEWORKS and name not in PLAIN)
    try:
        with torch.serialization.safe_globals([(Ignored, name) for name in objects]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about other pickle protocols
            content = torch.load(str(file), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)", str(error)) or objects
        if not names:
            raise damaged_error(file, error) from error
        raise ConversionError(
            f"'{file}' contains Python objects ({first_few(dict.fromkeys(names))}), expected only tensors and plain "
            "containers, because unpickling objects can execute code; save only its state dict, in the environment "
            "that wrote it, and convert that"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error
    return content


def pickled_names(file: Path) -> Iterator[str]:
    """Yield the names of classes and functions in the pickles of a file of torch.save, without unpickling them."""
    with file.open("rb") as stream:
        if stream.read(4) != ZIP:
            stream.seek(0)
            for _ in range(LEGACY_PICKLES):
                if stream.peek(1):  # a file of another library may have fewer
                    yield from names_in_pickle(stream)
            return
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.filename.endswith("data.pkl"):
                yield from names_in_pickle(io.BytesIO(archive.read(info)))


def names_in_pickle(stream: BinaryIO) -> Iterator[str]:
    """Yield the names in one pickle, as Python 3 imports them."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL" and isinstance(argument, str):
            module, _, name = argument.partition(" ")
            yield f"{module.replace('__builtin__', 'builtins')}.{name}"


def read_npz(file: Path) -> Mapping[str, Any]:
    """Read a NumPy archive; ConversionError for an array of Python objects."""
    tensors: dict[str, Tensor] = {}
    try:
        check_size(file, declared_arrays(file))
        with np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                tensors[name] = from_numpy(arrays[name])
    except ConversionError:
        raise
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


def declared_arrays(file: Path) -> dict[str, int]:
    """Return the sizes in bytes that the headers of a NumPy archive declare, by name."""
    return {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in array_headers(file).items()}


def array_headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shapes and types in the headers of a NumPy archive, by name."""
    headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(member)
            headers[name.removesuffix(".npy")] = shape, dtype
    return headers


def read_npz_shapes(file: Path) -> Mapping[str, Any]:
    """Read the shapes and types of a NumPy archive, as tensors whose elements are one number."""
    try:
        headers = array_headers(file)
        if any(dtype.hasobject for _, dtype in headers.values()):
            return read_npz(file)  # refuses them
        check_size(file, declared_arrays(file))
        return {name: from_numpy(np.zeros((), dtype)).expand(shape) for name, (shape, dtype) in headers.items()}
    except ConversionError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise damaged_error(file, error) from error


def from_numpy(array: np.ndarray) -> Tensor:
    """Convert an array to a tensor; untyped two-byte elements are bfloat16."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


FORMATS = (
    (lambda head: head[:4] == ZIP, read_zip),
    (lambda head: len(head) > 8 and head[8:9] == b"{", read_safetensors),  # before pickles: the length may be 0x280
    (lambda head: head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05", read_torch),
)
