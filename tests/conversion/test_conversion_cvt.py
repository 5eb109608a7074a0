"""Both CvT sources match their references in float64 and round-trip losslessly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conversion_references import (
    CLASSES,
    IMAGE,
    TOLERANCE,
    assert_equal_states,
    largest_difference,
    load_converted,
    randomize,
)
from hf_vit_seg.conversion.convert import convert, export
from paths import ORACLES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

ORACLE = ORACLES / "microsoft_cvt"
ORACLE_FILE = ORACLE / "CvT-tiny-64x96.pth"
HEADS = {"num_attention_heads": [1, 2, 3]}  # 16 channels each; the published variants have 64


def oracle() -> tuple[Tensor, Tensor]:
    arrays = np.load(ORACLE / "io.npz")
    return torch.from_numpy(arrays["input"]).double(), torch.from_numpy(arrays["output_f64"])


def oracle_state() -> dict[str, Tensor]:
    return torch.load(ORACLE_FILE, weights_only=True)


def cvt_of_transformers(head: str, **settings: Any) -> transformers.PreTrainedModel:
    """A small Cvt of transformers; with fewer layers it raises IndexError."""
    sizes: dict[str, Any] = {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}
    config = transformers.CvtConfig(**{**sizes, "num_labels": CLASSES, **settings})
    return randomize(getattr(transformers, head)(config))  # type: ignore[return-value]


def test_microsoft_parity(tmp_path: Path) -> None:
    report = convert(ORACLE_FILE, tmp_path / "out", settings=HEADS)
    image, expected = oracle()
    model = load_converted(AutoModelForImageClassification, tmp_path / "out")
    assert largest_difference(model, image, expected) < TOLERANCE
    assert largest_difference(model, image[:1], expected[:1]) < TOLERANCE
    assert report.source.startswith("cvt/microsoft")
    assert (report.variant, report.model) == ("tiny", "CvTForImageClassification")
    assert report.mapped == len(oracle_state()) and not report.dropped
    assert any("384x384" in note for note in report.notes)


@pytest.mark.parametrize(
    "override",
    [
        {"layer_norm_eps": 3e-5},
        {"batch_norm_eps": 3e-5},
        {"hidden_act": "gelu"},
        {"num_attention_heads": [1, 2, 6]},
    ],
)
def test_every_source_option_changes_the_output(tmp_path: Path, override: dict[str, Any]) -> None:
    """The tolerance distinguishes the options, so parity verifies each of them."""
    image, expected = oracle()
    convert(ORACLE_FILE, tmp_path / "out", settings=HEADS | override)
    model = load_converted(AutoModelForImageClassification, tmp_path / "out")
    assert largest_difference(model, image, expected) > 1e3 * TOLERANCE


@pytest.mark.parametrize("name", ["back.pth", "back.safetensors"])
def test_microsoft_round_trip(tmp_path: Path, name: str) -> None:
    convert(ORACLE_FILE, tmp_path / "out", settings=HEADS)
    assert export(tmp_path / "out", tmp_path / name, to="microsoft").notes == ()
    read = load_file if name.endswith("safetensors") else torch.load
    assert_equal_states(read(tmp_path / name), oracle_state())


def test_microsoft_encoder(tmp_path: Path) -> None:
    state = {k: v for k, v in oracle_state().items() if not k.startswith("head.")}
    torch.save(state, tmp_path / "encoder.pth")
    report = convert(tmp_path / "encoder.pth", tmp_path / "out", settings=HEADS)
    assert report.model == "CvTModel"
    assert [name for name, _ in report.dropped] == ["norm.weight", "norm.bias"]
    convert(ORACLE_FILE, tmp_path / "whole", settings=HEADS)
    with torch.no_grad():
        expected = load_converted(AutoModelForImageClassification, tmp_path / "whole").cvt(IMAGE).last_hidden_state
    assert largest_difference(load_converted(AutoModel, tmp_path / "out"), IMAGE, expected) == 0


def test_published_variant_is_detected_from_shapes(tmp_path: Path) -> None:
    with torch.device("meta"):
        reference = transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))
    state = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in reference.state_dict().items()}
    save_file(state, tmp_path / "cvt.safetensors")
    report = convert(tmp_path / "cvt.safetensors", tmp_path / "out")
    assert (report.variant, report.parameters) == ("cvt-13", 19_997_480)
    export(tmp_path / "out", tmp_path / "cvt.pth", to="microsoft")
    assert convert(tmp_path / "cvt.pth", tmp_path / "again").variant == "cvt-13"


HEADED = [("CvtForImageClassification", AutoModelForImageClassification), ("CvtModel", AutoModel)]


@pytest.mark.parametrize(("name", "auto"), HEADED)
@pytest.mark.parametrize("spelling", ["directory", "file"])
def test_transformers_parity_and_round_trip(tmp_path: Path, name: str, auto: Any, spelling: str) -> None:
    reference = cvt_of_transformers(name, drop_path_rate=[0.0, 0.1, 0.2], qkv_bias=[True, False, True])
    reference.save_pretrained(tmp_path / "there")
    there = tmp_path / "there" / ("" if spelling == "directory" else "model.safetensors")
    convert(there, tmp_path / "out")
    model = load_converted(auto, tmp_path / "out")
    assert (model.config.hidden_act, list(model.config.drop_path_rate)) == ("gelu", [0.0, 0.1, 0.2])
    report = export(tmp_path / "out", tmp_path / "back", to="transformers")
    assert report.notes == ()
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert_equal_states(written, load_file(tmp_path / "there" / "model.safetensors"))
    again = load_converted(type(reference), tmp_path / "back")
    with torch.no_grad():
        outputs = reference.double()(IMAGE)
        expected = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    assert largest_difference(model, IMAGE, expected) < TOLERANCE
    assert largest_difference(again, IMAGE, expected) == 0
    assert (again.config.depth, again.config.cls_token) == ([1, 2, 3], [False, False, True])


def test_export_to_transformers_reports_the_activation(tmp_path: Path) -> None:
    convert(ORACLE_FILE, tmp_path / "ours", settings=HEADS)
    report = export(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    assert any("hidden_act quick_gelu (reference: gelu)" in note for note in report.notes)


@pytest.mark.parametrize("edge", [96, 384])
def test_transformers_image_processor_is_preserved(tmp_path: Path, edge: int) -> None:
    """224 is resized to 256 and cropped, 384 is resized directly: ConvNextImageProcessor encodes this in one number."""
    reference = cvt_of_transformers("CvtForImageClassification")
    reference.save_pretrained(tmp_path / "there")
    theirs = transformers.ConvNextImageProcessor(size={"shortest_edge": edge}, image_mean=[0.4] * 3)
    theirs.save_pretrained(tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back", to="transformers")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 190, 3), dtype=np.uint8))
    expected = theirs(photo, return_tensors="pt")["pixel_values"]
    assert expected.shape[-2:] == (edge, edge)
    for folder in ("out", "back"):
        processor = AutoImageProcessor.from_pretrained(tmp_path / folder)
        torch.testing.assert_close(processor(photo, return_tensors="pt")["pixel_values"], expected)


def test_original_preprocessing_and_labels(tmp_path: Path) -> None:
    state = oracle_state()
    state |= {"head.weight": torch.randn(1000, 48), "head.bias": torch.randn(1000)}
    torch.save(state, tmp_path / "cvt.pth")
    convert(tmp_path / "cvt.pth", tmp_path / "out", settings=HEADS)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["shortest_edge"], processor.crop_size["height"], processor.resample) == (256, 224, 3)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label[1] == "goldfish"
