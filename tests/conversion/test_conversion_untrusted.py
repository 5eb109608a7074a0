"""Harmful and unusual checkpoints: sizes that are only declared, values and types, and files next to the weights."""

import io
import json
import os
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_process import output_of
from conversion_references import assert_refused, nvlabs_state, transformers_model
from hf_vit_seg.conversion.convert import ConversionError, convert
from hf_vit_seg.conversion.settings.labels import MAX_CLASSES, resolve_labels
from hf_vit_seg.conversion.settings.preprocessing import check_channels, check_processor
from safetensors.torch import save_file
from torch import Tensor

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_segmentation import CHECKS, SemanticSegmentationImageProcessorPil

GIGA = 10**9
WEIGHT = "decode_head.linear_pred.weight"


class Allocation:
    """Unpickling it would allocate 2 GB."""

    def __reduce__(self) -> tuple:
        return bytearray, (2**31,)


def write_deflated(file: Path, members: dict[str, tuple[bytes, int]]) -> None:
    """Write a zip archive of members that begin with some bytes and continue with zeros."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (start, zeros) in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(start)
                for _ in range(zeros // 2**20):
                    member.write(bytes(2**20))


def npy_header(count: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (count,)})
    return stream.getvalue()


def write_compressed_torch(file: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, stream)
    with zipfile.ZipFile(stream) as archive:
        parts = {name: (archive.read(name), 0) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith("data/0"))
    write_deflated(file, {**parts, name: (b"", 300 * 2**20)})


def write_long_storage(file: Path) -> None:
    """A file of the old format whose storage declares 4 GB and has 31 kB."""
    torch.save({"a": torch.zeros(7777)}, file, _use_new_zipfile_serialization=False)
    short, long = b"M" + struct.pack("<H", 7777), b"J" + struct.pack("<i", 2**30)
    file.write_bytes(file.read_bytes().replace(short, long))


DECLARED: dict[str, Callable[[Path], Any]] = {
    "expanded tensor": lambda f: torch.save({"a": torch.zeros(1).expand(GIGA)}, f),
    "expanded tensor, old format": lambda f: torch.save(
        {"a": torch.zeros(1).expand(GIGA)}, f, _use_new_zipfile_serialization=False
    ),
    "many views": lambda f: torch.save({str(k): torch.zeros(2**20).expand(20, -1) for k in range(9)}, f),
    "compressed npz": lambda f: write_deflated(f, {"a.npy": (npy_header(75 * 2**20), 300 * 2**20)}),
    "npz header": lambda f: write_deflated(f, {"a.npy": (npy_header(GIGA), 0)}),
    "compressed torch file": write_compressed_torch,
    "byte arrays": lambda f: torch.save({"a": Allocation(), "b": Allocation(), "state_dict": nvlabs_state()}, f),
    "long storage": write_long_storage,
}


@pytest.mark.parametrize("case", DECLARED)
def test_declared_sizes_are_rejected(tmp_path: Path, case: str) -> None:
    DECLARED[case](tmp_path / "model.pth")
    assert_refused(tmp_path, "model.pth", tmp_path / "model.pth")


MEMORY = r"""
import sys
from pathlib import Path
from hf_vit_seg.conversion.convert import ConversionError, convert
from benchmarks.measuring import peak_rss, reset_peak

for path in [sys.argv[2], *sys.argv[2:]]:  # the first twice: the first call imports modules
    before = reset_peak()
    try:
        convert(Path(path), Path(sys.argv[1]))
        print(path, "converted")
    except ConversionError as error:
        print((peak_rss() - before) // 2**20, error)
"""


def memory_of_refusals(out: Path, paths: list[Path]) -> list[tuple[int, str]]:
    """Convert checkpoints in another process: the memory of each conversion in MiB, and its error."""
    lines = output_of(MEMORY, out, *paths).splitlines()[1:]
    return [(int(line.partition(" ")[0]), line.partition(" ")[2]) for line in lines]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_declared_sizes_are_checked_before_allocation(tmp_path: Path) -> None:
    paths = [tmp_path / case.replace(" ", "-") for case in DECLARED]
    for path, write in zip(paths, DECLARED.values(), strict=True):
        write(path)
    for path, (memory, error) in zip(paths, memory_of_refusals(tmp_path / "out", paths), strict=True):
        assert memory < 100, error
        assert str(path) in error


LARGE = 75 * 2**20  # elements, 300 MiB


def write_config_directory(folder: Path, save: Callable[[dict[str, Tensor], Path], None], name: str) -> Path:
    """A directory of transformers with a tensor that is much larger than its config's."""
    model = transformers_model("SemanticSegmentation")
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    key = next(key for key in state if key.endswith("linear_fuse.weight"))
    state[key] = torch.zeros(LARGE // 32, 32, 1, 1)
    save(state, folder / name)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shapes_are_compared_with_the_config_before_data_is_read(tmp_path: Path) -> None:
    folders = [
        write_config_directory(tmp_path / "safetensors", save_file, "model.safetensors"),
        write_config_directory(tmp_path / "torch", torch.save, "pytorch_model.bin"),
    ]
    for memory, error in memory_of_refusals(tmp_path / "out", folders):
        assert "does not match its config" in error
        assert memory < 100
    archive = tmp_path / "model.npz"
    np.savez(archive, a=np.zeros(LARGE, np.float32))
    [(memory, error)] = memory_of_refusals(tmp_path / "out", [archive])
    assert "no known source" in error
    assert memory < 100


def test_small_views_are_converted(tmp_path: Path) -> None:
    """Tensors that share memory are legitimate."""
    state = nvlabs_state()
    name = next(name for name in state if name.endswith("norm1.weight"))
    state[name] = torch.ones(1).expand(state[name].shape)
    torch.save(state, tmp_path / "model.pth")
    assert convert(tmp_path / "model.pth", tmp_path / "out").mapped > 0


def changed(value: Callable[[Tensor], Tensor], name: str = WEIGHT) -> dict[str, Tensor]:
    state = nvlabs_state()
    name = next(each for each in state if each.endswith(name))
    return {**state, name: value(state[name])}


def fill_one(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[1] = value
    return tensor


VALUES: dict[str, Callable[[Tensor], Any]] = {
    "all NaN": lambda t: torch.full_like(t, float("nan")),
    "one NaN": lambda t: fill_one(t, float("nan")),
    "one infinite": lambda t: fill_one(t, -float("inf")),
    "complex": lambda t: t.to(torch.complex64),
    "int32": lambda t: t.to(torch.int32),
    "bool": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr(),
    "meta": lambda t: t.to("meta"),
    "empty": lambda t: t[:0],
    "no channels": lambda t: t[:, :0],
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz")
@pytest.mark.parametrize("case", VALUES)
def test_unusable_weights_raise_with_their_name(tmp_path: Path, case: str) -> None:
    torch.save({"state_dict": changed(VALUES[case])}, tmp_path / "model.pth")
    assert_refused(tmp_path, "linear_pred.weight", tmp_path / "model.pth")
    assert_refused(tmp_path, str(tmp_path / "model.pth"), tmp_path / "model.pth")


def test_integer_buffers_keep_their_type(tmp_path: Path) -> None:
    counter = "num_batches_tracked"
    torch.save(changed(lambda t: t.float(), counter), tmp_path / "model.pth")
    assert_refused(tmp_path, counter, tmp_path / "model.pth")
    torch.save(changed(lambda t: t.int(), counter), tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "out")


def test_many_classes_raise() -> None:
    for count in (0, MAX_CLASSES + 1, 10**12):
        tracemalloc.start()
        with pytest.raises(ConversionError):
            resolve_labels(count, requested=None, meta={}, config={}, processor={})
        assert tracemalloc.get_traced_memory()[1] < 10**6
        tracemalloc.stop()


NAMES = {
    "long": "a" * 100_000,
    "many digits": f"backbone.block1.{'9' * 5000}.norm1.weight",
    "large number": "backbone.block1.999999999.norm1.weight",
    "large stage of CvT": "stage999999999.blocks.0.norm1.weight",
    "line break": "a\nb",
    "half of a surrogate pair": "a\ud800",
    "empty": "",
}


@pytest.mark.parametrize("case", NAMES)
def test_unusual_names_raise_one_short_line(tmp_path: Path, case: str) -> None:
    torch.save({**nvlabs_state(), NAMES[case]: torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ConversionError) as error:
        convert(tmp_path / "model.pth", tmp_path / "out")
    assert len(str(error.value)) < 1000
    str(error.value).encode()
    assert_refused(tmp_path, "part of this format", tmp_path / "model.pth")


def directory(folder: Path) -> Path:
    transformers_model("SemanticSegmentation").save_pretrained(folder, max_shard_size="100KB")
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


INDEX, CONFIG, PROCESSOR = "model.safetensors.index.json", "config.json", "preprocessor_config.json"
SIDECARS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "index of null": (INDEX, lambda f: edit(f, weight_map={"a": None})),
    "index of numbers": (INDEX, lambda f: edit(f, weight_map={"a": 5})),
    "index of lists": (INDEX, lambda f: edit(f, weight_map={"a": ["b"]})),
    "index without name": (INDEX, lambda f: edit(f, weight_map={"a": ""})),
    "deep config": (CONFIG, lambda f: f.write_text('{"a":' + "[" * 100_000)),
    "long integer": (CONFIG, lambda f: f.write_text('{"hidden_size": ' + "9" * 5000 + "}")),
    "unknown activation": (CONFIG, lambda f: edit(f, hidden_act="nothing")),
    "activation of another type": (CONFIG, lambda f: edit(f, hidden_act=["gelu"])),
    "dropout above one": (CONFIG, lambda f: edit(f, hidden_dropout_prob=7.0)),
    "strides of zero": (CONFIG, lambda f: edit(f, strides=[0, 0, 0, 0])),
    "negative heads": (CONFIG, lambda f: edit(f, num_attention_heads=[-1, -1, -1, -1])),
    "half of a surrogate pair": (CONFIG, lambda f: f.write_text(r'{"id2label": {"0": "\ud800"}}')),
    "long class name": (CONFIG, lambda f: edit(f, id2label={str(k): "a" * 10_000 for k in range(7)})),
    "processor of another kind": (PROCESSOR, lambda f: f.write_text("[1]")),
    "processor link": (PROCESSOR, lambda f: (f.unlink(), f.symlink_to("/dev/zero"))),
    "processor pipe": (PROCESSOR, lambda f: (f.unlink(), os.mkfifo(f))),
    "card": ("README.md", lambda f: f.write_text('---\nlicense: "\\ud800"\n---\n')),
}


@pytest.mark.parametrize("case", SIDECARS)
def test_unusual_files_next_to_weights_raise(tmp_path: Path, case: str) -> None:
    folder = directory(tmp_path / "there")
    name, change = SIDECARS[case]
    change(folder / name)
    with pytest.raises(ConversionError) as error:
        convert(folder, tmp_path / "out")
    assert len(str(error.value)) < 1000
    assert_refused(tmp_path, str(folder), folder)


NONSENSE: dict[str, list[Any]] = {
    "resample": [[0, 0, 0], 9, -1, "bilinear", True, 2.5, 3.0, 4],
    "size": [
        *("bilinear", [[1, 2]], {"height": 0, "width": 5}, {"height": 5}, 10**9, -3, [1, 2, 3], True),
        *({"max_height": 5, "max_width": 5}, {"height": 10**5, "width": 10**5}),
    ],
    "size_divisor": [0, -1, "a", 2.0],
    "crop_size": [{"height": "a", "width": 2}, {}, {"shortest_edge": 5}],
    "image_mean": [[[0.5]], "imagenet", [float("nan")] * 3, [], True, [1e300] * 3],
    "image_std": [0, [0.2, 0.2, 0.0], [-1, 1, 1], "a", 1e-300],
    "rescale_factor": [0, -1, "a", float("inf"), 1e-320, 1e300],
    "do_resize": [1, "yes"],
    "do_normalize": [[True]],
    "reduce_labels": ["true"],
    "crop_pct": [0, 2, "a", 1e-9],
    "palette": [5, "x", [[300, 0, 0]], [[0, 0]]],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_invalid_processor_settings_raise_on_read(tmp_path: Path, name: str) -> None:
    for value in NONSENSE[name]:
        with pytest.raises(ConversionError, match=f"config.json': {name} is"):
            check_processor({name: value}, tmp_path / "preprocessor_config.json")
        with pytest.raises(HfVitSegError, match=name):
            SemanticSegmentationImageProcessorPil.from_dict({name: value})
    folder = directory(tmp_path / "there")
    edit(folder / "preprocessor_config.json", **{name: NONSENSE[name][0]})
    assert_refused(tmp_path, name, folder)


def test_settings_of_processors_that_contradict_each_other_raise(tmp_path: Path) -> None:
    folder = directory(tmp_path / "there")
    for settings in (
        {"image_mean": [0.5] * 5},
        {"image_mean": [0.5], "image_std": [0.5]},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 2},
        {"do_center_crop": True},
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        assert_refused(tmp_path, str(folder), folder)
    check_channels({"image_mean": [0.5] * 5}, 5, folder)


@pytest.mark.parametrize("name", NONSENSE)
def test_saved_models_with_nonsense_in_processors_are_not_loaded(tmp_path: Path, name: str) -> None:
    SemanticSegmentationImageProcessorPil().save_pretrained(tmp_path)
    edit(tmp_path / "preprocessor_config.json", **{name: NONSENSE[name][0]})
    with pytest.raises(HfVitSegError, match=name):
        SemanticSegmentationImageProcessorPil.from_pretrained(tmp_path)


def test_valid_processors_are_read(tmp_path: Path) -> None:
    for values in (
        {"size": 512, "resample": 3, "image_mean": [0.5], "image_std": 1, "rescale_factor": 1 / 255},
        {"size": [512, 256], "crop_size": {"height": 2, "width": 3}, "do_resize": False},
        {"size": {"shortest_edge": 256}, "crop_pct": 0.875, "image_mean": None},
        dict.fromkeys(CHECKS),
    ):
        check_processor(values, tmp_path / "preprocessor_config.json")


def test_link_below_proc_raises(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    (tmp_path / "model.pth").symlink_to("/proc/self/status")
    assert_refused(tmp_path, "model.pth", tmp_path / "model.pth")


@pytest.mark.parametrize("rows", [2, 4, 6, 8])
def test_safetensors_whose_length_looks_like_a_pickle(tmp_path: Path, rows: int) -> None:
    """A header of 0x280 bytes begins like a pickle of protocol 2."""
    save_file({"a": torch.zeros(rows)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    wanted = 0x80 + 0x100 * (2 + (length > 0x280))
    padded = struct.pack("<Q", wanted) + content[8 : 8 + length] + b" " * (wanted - length) + content[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(padded)
    assert_refused(tmp_path, "no known source ('a')", tmp_path / "model.safetensors")
