"""ViTPose of transformers: directories with both heads match in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_references import TOLERANCE, assert_refused, load_converted, randomize
from hf_vit_seg.conversion.convert import convert
from transformers import (
    AutoImageProcessor,
    AutoModelForPoseEstimation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

IMAGE = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def save_reference(folder: Path, simple: bool, **options: Any) -> VitPoseForPoseEstimation:
    """Save a small model and its processor; the random weights are not those of the initialization."""
    encoder: dict[str, Any] = {
        "image_size": [96, 64], "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "layer_norm_eps": 1e-3, "out_indices": [2],
    }  # fmt: skip
    backbone = VitPoseBackboneConfig(**{**encoder, **options.pop("encoder", {})})
    config = VitPoseConfig(backbone_config=backbone, use_simple_decoder=simple, num_labels=17, **options)
    model = randomize(VitPoseForPoseEstimation(config))
    assert isinstance(model, VitPoseForPoseEstimation)
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 96, "width": 64}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("simple", [True, False])
def test_parity(tmp_path: Path, simple: bool) -> None:
    reference = save_reference(tmp_path / "there", simple).double()
    report = convert(tmp_path / "there", tmp_path / "out")
    assert report.source.startswith("vit/transformers-vitpose")
    model = load_converted(AutoModelForPoseEstimation, tmp_path / "out")
    with torch.no_grad():
        found, expected = model(IMAGE).heatmaps, reference(IMAGE).heatmaps
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < TOLERANCE
    assert model.config.layer_norm_eps == 1e-3
    assert model.config.num_attention_heads == 3
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], processor.size["width"]) == (96, 64)
    assert not processor.do_center_crop
    assert len(model.config.id2label) == 17


def test_flip_pairs_follow_from_the_names(tmp_path: Path) -> None:
    save_reference(tmp_path / "there", True)
    names = ["R_paw", "L_paw", *(f"point {number}" for number in range(15))]
    (tmp_path / "names.json").write_text(json.dumps({"names": names}))
    for name, overrides, expected in (("a", {}, [[1, 0]]), ("b", {"pose_flip_pairs": [[3, 4]]}, [[3, 4]])):
        convert(tmp_path / "there", tmp_path / name, labels=str(tmp_path / "names.json"), settings=overrides)
        config = load_converted(AutoModelForPoseEstimation, tmp_path / name).config
        assert (config.id2label[1], config.pose_flip_pairs) == ("L_paw", expected)


def test_other_enlargement_raises(tmp_path: Path) -> None:
    save_reference(tmp_path / "there", True, scale_factor=2)
    assert_refused(tmp_path, "scale_factor", tmp_path / "there")


def test_mixture_of_experts_vitpose_raises(tmp_path: Path) -> None:
    save_reference(tmp_path / "there", True, encoder={"num_experts": 6, "part_features": 12})
    assert json.loads((tmp_path / "there" / "config.json").read_text())["backbone_config"]["num_experts"] == 6
    assert_refused(tmp_path, "experts", tmp_path / "there")
