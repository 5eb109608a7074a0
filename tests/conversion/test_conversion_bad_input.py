"""Invalid input raises a one-sentence error that names the cause, and writes nothing."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_mmseg import mmseg_state
from conversion_references import ORACLE_FILE, assert_refused, nvlabs_state, transformers_model
from hf_vit_seg.conversion.convert import ConversionError, convert
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

Maker = Callable[[Path], Any]


class Evil:
    """Unpickling it would create a file next to the checkpoint."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}.ran",)


def write_truncated(file: Path, whole: bytes) -> None:
    file.write_bytes(whole[: len(whole) // 2])


def as_safetensors(tensors: dict[str, Tensor], folder: Path) -> bytes:
    save_file(tensors, folder / "whole")
    return (folder / "whole").read_bytes()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def write_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")


def png(file: Path) -> None:
    Image.new("RGB", (4, 4)).save(file, format="PNG")


CONTENTS: dict[str, tuple[Maker, str]] = {
    "empty": (lambda f: f.write_bytes(b""), "is empty (0 bytes)"),
    "random bytes": (lambda f: f.write_bytes(bytes(range(7, 200))), "is not a checkpoint"),
    "png": (png, "is not a checkpoint"),
    "text": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), "is not a checkpoint"),
    "zip": (write_zip, "zip archive of other files ('readme.txt')"),
    "truncated pth": (lambda f: write_truncated(f, ORACLE_FILE.read_bytes()), "truncated or damaged"),
    "truncated safetensors": (
        lambda f: write_truncated(f, as_safetensors(nvlabs_state(), f.parent)),
        "truncated or damaged",
    ),
    "truncated npz": (lambda f: write_truncated(f, npz(a=np.zeros(500))), "truncated or damaged"),
    "truncated pickle": (
        lambda f: write_truncated(f, pickle.dumps({"a": list(range(100))}, 2)),
        "truncated or damaged",
    ),
    "pickle with code": (lambda f: torch.save({"state_dict": Evil(f)}, f), "unpickling objects can execute code"),
    "old pickle with code": (lambda f: f.write_bytes(pickle.dumps(Evil(f), 2)), "unpickling objects can execute code"),
    "whole model": (lambda f: torch.save(torch.nn.Linear(2, 2), f), "'torch.nn.modules.linear.Linear'"),
    "npz with objects": (
        lambda f: f.write_bytes(npz(a=np.array([{}], dtype=object))),
        "array of Python objects",
    ),
    "list": (lambda f: torch.save([torch.zeros(1)], f), "contains a list"),
    "tensor": (lambda f: torch.save(torch.zeros(1), f), "contains a Tensor"),
    "no tensors": (lambda f: torch.save({}, f), "contains no tensors"),
    "other entries": (lambda f: torch.save({"epoch": 3, "a": torch.zeros(1)}, f), "'epoch (int)'"),
    "numbered": (lambda f: torch.save({0: torch.zeros(1)}, f), "not tensors: '0 (Tensor)'"),
    "numpy of a stranger": (lambda f: f.write_bytes(npz(a=np.zeros(3))), "has the keys of no known source"),
}


def without(*names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in nvlabs_state().items() if name not in names}


def with_shape(name: str, *shape: int) -> dict[str, Tensor]:
    return {**nvlabs_state(), name: torch.zeros(shape)}


VIT = {"cls_token": torch.zeros(1, 1, 8), "blocks.0.attn.qkv.weight": torch.zeros(24, 8)}


STATES: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "a key missing": (
        lambda: without("backbone.block2.0.attn.kv.bias"),
        "lacks 'backbone.block2.0.attn.kv.bias'",
    ),
    "a rule missing": (
        lambda: without("decode_head.linear_pred.weight", "decode_head.linear_pred.bias"),
        "lacks",
    ),
    "a patch missing": (
        lambda: without("backbone.patch_embed3.proj.weight"),
        "'backbone.patch_embed3.proj.weight'",
    ),
    "a layer missing": (
        lambda: {k: v for k, v in nvlabs_state().items() if not k.startswith("backbone.block1.0.")},
        "lacks 'backbone.block1.0.norm1.weight'",
    ),
    "a stage missing": (
        lambda: {k: v for k, v in nvlabs_state().items() if not k.startswith("backbone.block3.")},
        "lacks 'backbone.block3.0.norm1.weight'",
    ),
    "keys too many": (
        lambda: {**nvlabs_state(), "auxiliary.weight": torch.zeros(1)},
        "not part of this format: 'auxiliary.weight'",
    ),
    "another shape": (
        lambda: with_shape("backbone.block2.0.mlp.fc2.weight", 32, 64),
        "backbone.block2.0.mlp.fc2.weight: found [32, 64], expected [32, 128]",
    ),
    "an odd kv": (lambda: with_shape("backbone.block1.0.attn.kv.weight", 31, 16), "cannot be split into 2"),
    "another rank": (lambda: with_shape("backbone.patch_embed1.proj.weight"), "shapes that are invalid for segformer"),
    "a fragment of a vit": (lambda: VIT, "has the keys of no known source"),
    "two sources": (
        lambda: {**nvlabs_state(), **mmseg_state()},
        "keys of 2 sources, 'segformer/nvlabs', 'segformer/mmseg'",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_non_checkpoint_files_raise(tmp_path: Path, case: str) -> None:
    make, sentence = CONTENTS[case]
    make(tmp_path / "model.pth")
    assert_refused(tmp_path, sentence, tmp_path / "model.pth")


@pytest.mark.parametrize("case", STATES)
def test_mismatched_checkpoints_raise(tmp_path: Path, case: str) -> None:
    make, sentence = STATES[case]
    torch.save({"state_dict": make()}, tmp_path / "model.pth")
    assert_refused(tmp_path, sentence, tmp_path / "model.pth")


def test_missing_file_raises(tmp_path: Path) -> None:
    assert_refused(tmp_path, "does not exist", tmp_path / "nothing.pth")
    (tmp_path / "folder").mkdir()
    assert_refused(tmp_path, "has no model.safetensors", tmp_path / "folder")


def test_mismatched_named_source_raises(tmp_path: Path) -> None:
    torch.save(VIT, tmp_path / "vit.pth")
    assert_refused(tmp_path, "is not a checkpoint of source 'nvlabs'", tmp_path / "vit.pth", source="nvlabs")
    assert_refused(tmp_path, "is not a checkpoint of source 'smp'", ORACLE_FILE, source="smp")
    assert_refused(tmp_path, "unknown source 'caffe'", ORACLE_FILE, source="caffe")


def test_invalid_options_raise(tmp_path: Path) -> None:
    assert_refused(tmp_path, "did you mean 'num_attention_heads'", ORACLE_FILE, settings={"num_attention_head": [1]})
    heads = {"num_attention_heads": [3, 2, 5, 8]}
    assert_refused(tmp_path, "must be divisible by num_attention_heads", ORACLE_FILE, settings=heads)
    assert_refused(tmp_path, "found [16, 3, 7, 7], expected", ORACLE_FILE, settings={"num_channels": 4})
    assert_refused(tmp_path, "neither one of ade20k", ORACLE_FILE, labels="nowhere")
    assert_refused(tmp_path, "has 150 names, but the checkpoint's classifier has 7", ORACLE_FILE, labels="ade20k")


def test_invalid_sidecar_files_raise(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    transformers_model("SemanticSegmentation").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    assert_refused(tmp_path, "has 2 names, but the checkpoint's classifier has 7", folder)
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "2": "b"}}))
    assert_refused(tmp_path, "must number its classes", folder)
    (folder / "config.json").write_text("{")
    assert_refused(tmp_path, "is not valid JSON", folder)


def test_invalid_shards_raise(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    transformers_model("SemanticSegmentation").save_pretrained(folder, max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["one.more"] = "model-00001-of-00002.safetensors"
    outside = {**content, "weight_map": {"a": "../secret.safetensors"}}
    for changed, sentence in ((outside, "must be in the folder of the index"), ({}, "no 'weight_map'")):
        index.write_text(json.dumps(changed))
        assert_refused(tmp_path, sentence, folder)
    content["weight_map"]["one.more"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    assert_refused(tmp_path, "lack 'one.more'", index)
    next(folder.glob("model-00001*")).unlink()
    assert_refused(tmp_path, "is not a file", folder)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_corrupted_bytes_raise(tmp_path: Path) -> None:
    """Any corrupted byte gives a ConversionError or a checkpoint, never another exception."""
    small = {"patch_embed1.proj.weight": torch.zeros(2, 3, 7, 7), "head.weight": torch.zeros(4, 2)}
    torch.save(small, tmp_path / "zip")
    torch.save(small, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "safetensors").write_bytes(as_safetensors(small, tmp_path))
    (tmp_path / "npz").write_bytes(npz(**{name: t.numpy() for name, t in small.items()}))
    generator = np.random.default_rng(0)
    for kind in ("zip", "old", "safetensors", "npz"):
        whole = (tmp_path / kind).read_bytes()
        for position in [*range(0, 300, 3), *generator.integers(0, len(whole), 100)]:
            damaged = bytearray(whole)
            damaged[position % len(whole)] ^= 1 << int(generator.integers(8))
            (tmp_path / "damaged").write_bytes(damaged)
            with pytest.raises(ConversionError):
                convert(tmp_path / "damaged", tmp_path / "out")
