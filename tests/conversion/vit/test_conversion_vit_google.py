"""Google's .npz files match the flax oracles in float64 in every spelling and round-trip losslessly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_references import TOLERANCE, assert_refused, largest_difference, load_converted
from hf_vit_seg.conversion.convert import convert, export
from paths import ORACLES
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel
from transformers import AutoModelForImageClassification as AutoClassifier

FILES = {
    "flax_vit_pure": "ViT-tiny_16.npz",
    "flax_vit_pure_prelogits": "ViT-tiny_16-pre_logits.npz",
    "flax_vit_hybrid": "R-ViT-tiny_16.npz",
    "flax_vit_hybrid_stem_only": "R-stem-ViT-tiny.npz",
}
Arrays = dict[str, np.ndarray]


def arrays_of(oracle: str) -> Arrays:
    with np.load(ORACLES / oracle / FILES[oracle]) as arrays:
        return dict(arrays)


def image_and_output(oracle: str) -> tuple[Tensor, Tensor]:
    with np.load(ORACLES / oracle / "io.npz") as arrays:
        image, output = torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["output_f64"])
    return image.permute(0, 3, 1, 2).double(), output


def difference(folder: Path, oracle: str) -> float:
    image, output = image_and_output(oracle)
    return largest_difference(load_converted(AutoClassifier, folder), image, output)


def linen(arrays: Arrays) -> Arrays:
    """The names and shapes of current flax."""

    def linen_name(name: str) -> str:
        for old, new in (("Attention_1", "Attention_0"), ("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0")):
            name = name.replace(old, new)
        return name

    return {linen_name(name): a.reshape(-1) if a.shape[:3] == (1, 1, 1) else a for name, a in arrays.items()}


def save_arrays(arrays: Arrays, path: Path) -> Path:
    np.savez(path, allow_pickle=False, **arrays)
    return path


def assert_same_arrays(path: Path, expected: Arrays) -> None:
    with np.load(path, allow_pickle=False) as found:
        assert set(found.files) == expected.keys()
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
            assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("oracle", FILES)
def test_parity(tmp_path: Path, oracle: str) -> None:
    report = convert(ORACLES / oracle / FILES[oracle], tmp_path / "out")
    assert report.source.startswith("vit/google")
    assert (report.architecture, report.model) == ("vit", "VisionTransformerForImageClassification")
    assert difference(tmp_path / "out", oracle) < TOLERANCE


@pytest.mark.parametrize("oracle", FILES)
def test_round_trip(tmp_path: Path, oracle: str) -> None:
    convert(ORACLES / oracle / FILES[oracle], tmp_path / "out")
    report = export(tmp_path / "out", tmp_path / "back.npz", to="google")
    assert report.notes == ()
    assert_same_arrays(tmp_path / "back.npz", arrays_of(oracle))


SPELLINGS: dict[str, Callable[[Arrays], Arrays]] = {
    "linen": linen,
    "training": lambda a: {"opt/state/step": np.zeros(()), **{"opt/target/" + k: v for k, v in a.items()}},
    "params": lambda a: {"params/" + k: v for k, v in linen(a).items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("oracle", FILES)
def test_name_spellings(tmp_path: Path, oracle: str, spelling: str) -> None:
    """All spellings give equal weights; export writes the published names."""
    arrays = arrays_of(oracle)
    convert(save_arrays(SPELLINGS[spelling](arrays), tmp_path / "other.npz"), tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.npz", to="google")
    assert_same_arrays(tmp_path / "back.npz", arrays)
    assert difference(tmp_path / "out", oracle) < TOLERANCE


def test_untyped_bfloat16(tmp_path: Path) -> None:
    halves = {k: torch.from_numpy(v).bfloat16() for k, v in arrays_of("flax_vit_hybrid").items()}
    stored = {k: v.view(torch.int16).numpy().view("V2") for k, v in halves.items()}
    convert(save_arrays(stored, tmp_path / "half.npz"), tmp_path / "out")
    assert AutoClassifier.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    export(tmp_path / "out", tmp_path / "back.npz", to="google")
    assert_same_arrays(tmp_path / "back.npz", stored)


@pytest.mark.parametrize("oracle", ["flax_vit_pure", "flax_vit_hybrid"])
def test_encoder(tmp_path: Path, oracle: str) -> None:
    bare = {k: v for k, v in arrays_of(oracle).items() if not k.startswith("head/")}
    convert(save_arrays(bare, tmp_path / "bare.npz"), tmp_path / "out")
    load_converted(AutoModel, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.npz", to="google")
    assert_same_arrays(tmp_path / "back.npz", bare)


def test_config_fields(tmp_path: Path) -> None:
    report = convert(ORACLES / "flax_vit_hybrid" / FILES["flax_vit_hybrid"], tmp_path / "out")
    config = AutoClassifier.from_pretrained(tmp_path / "out").config
    assert (config.hidden_act, config.layer_norm_eps, config.image_size) == ("gelu_pytorch_tanh", 1e-6, 64)
    assert (config.num_attention_heads, list(config.stem_depths), config.stem_width_factor) == (3, [2, 1, 1], 0.5)
    assert not any("num_attention_heads" in note for note in report.notes)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], list(processor.image_mean)) == (64, [0.5, 0.5, 0.5])
    assert not processor.do_center_crop


def zoom_positions(grid: np.ndarray, side: int) -> np.ndarray:
    """Position resizing of the reference (h, w, D): scipy.ndimage.zoom of order 1 with aligned corners."""
    for axis in (0, 1):
        places, known = np.linspace(0, grid.shape[axis] - 1, side), np.arange(grid.shape[axis])
        grid = np.apply_along_axis(lambda line, at, of: np.interp(at, of, line), axis, grid, places, known)
    return grid


@pytest.mark.parametrize("side", [3, 6])
def test_positions_at_other_image_sizes(tmp_path: Path, side: int) -> None:
    file = ORACLES / "flax_vit_pure" / FILES["flax_vit_pure"]
    convert(file, tmp_path / "out")
    model = load_converted(AutoClassifier, tmp_path / "out")
    positions = arrays_of("flax_vit_pure")["Transformer/posembed_input/pos_embedding"].astype(np.float64)
    model.resize_positions(16 * side)
    found = model.vit.embeddings.position_embeddings.detach()[0]
    grid = zoom_positions(positions[0, 1:].reshape(4, 4, 48), side).reshape(-1, 48)
    expected = torch.from_numpy(np.concatenate([positions[0, :1], grid]))
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("field", ["layer_norm_eps", "stem_weight_standardization_eps", "stem_group_norm_eps"])
def test_every_epsilon_changes_the_output(tmp_path: Path, field: str) -> None:
    file = ORACLES / "flax_vit_hybrid" / FILES["flax_vit_hybrid"]
    convert(file, tmp_path / "out", settings={field: 3e-6})
    assert difference(tmp_path / "out", "flax_vit_hybrid") > 100 * TOLERANCE


def test_zero_heads_of_2020_are_reported(tmp_path: Path) -> None:
    file = ORACLES / "flax_vit_pure_prelogits" / FILES["flax_vit_pure_prelogits"]
    assert any("all zeros" in note for note in convert(file, tmp_path / "out").notes)


REFUSED: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "big vision": (lambda a: {**a, "pos_embedding": np.zeros((1, 16, 48))}, "layout of google-research/big_vision"),
    "scanned": (lambda a: {"Transformer/encoderblock/LayerNorm_0/scale": np.zeros((2, 48))}, "big_vision"),
    "two numberings": (lambda a: {**linen(a), **a}, "twice"),
    "a block missing": (lambda a: without(a, "encoderblock_0/"), "lacks 'Transformer/encoderblock_0/"),
    "a kernel missing": (lambda a: without(a, "1/query/kernel"), "lacks 'Transformer/encoderblock_"),
    "a rectangle": (
        lambda a: {**a, "Transformer/posembed_input/pos_embedding": np.zeros((1, 13, 48), np.float32)},
        "pos_embedding: found [1, 13, 48]",
    ),
}


def without(arrays: Arrays, part: str) -> Arrays:
    return {k: v for k, v in arrays.items() if part not in k}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_checkpoints_raise(tmp_path: Path, case: str) -> None:
    make, sentence = REFUSED[case]
    assert_refused(tmp_path, sentence, save_arrays(make(arrays_of("flax_vit_pure")), tmp_path / "bad.npz"))


def test_override_gives_rectangular_images(tmp_path: Path) -> None:
    arrays = arrays_of("flax_vit_pure")
    arrays["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 13, 48), np.float32)
    convert(save_arrays(arrays, tmp_path / "in.npz"), tmp_path / "out", settings={"image_size": [48, 64]})
    assert list(load_converted(AutoClassifier, tmp_path / "out").config.image_size) == [48, 64]
