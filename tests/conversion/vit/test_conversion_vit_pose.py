"""ViTPose, classic and simple: match the oracles of the authors' code in float64 and round-trip losslessly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_references import TOLERANCE, assert_equal_states, assert_refused, load_converted
from hf_vit_seg.conversion.convert import convert, export
from paths import ORACLES
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForPoseEstimation

FILES = {"classic": "vitpose-tiny.pth", "simple": "vitpose-tiny-simple.pth"}
THREE_HEADS: dict[str, Any] = {"num_attention_heads": 3}  # of the oracles: their width of 48 suggests one


def source_file(head: str) -> Path:
    return ORACLES / f"vitpose_{head}" / FILES[head]


def state_of(head: str) -> dict[str, Tensor]:
    return torch.load(source_file(head), weights_only=True)["state_dict"]


@torch.no_grad()
def difference(folder: Path, head: str) -> float:
    with np.load(ORACLES / f"vitpose_{head}" / "io.npz") as arrays:
        image, expected = (torch.from_numpy(arrays[name]).double() for name in ("input", "output_f64"))
    found = load_converted(AutoModelForPoseEstimation, folder)(image).heatmaps
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("head", FILES)
def test_parity_and_round_trip(tmp_path: Path, head: str) -> None:
    report = convert(source_file(head), tmp_path / "out", settings=THREE_HEADS)
    assert report.source.startswith("vit/vitpose")
    assert "coco-keypoints, assumed" in report.labels
    assert difference(tmp_path / "out", head) < TOLERANCE
    assert export(tmp_path / "out", tmp_path / "back.pth", to="vitpose").notes == ()
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], state_of(head))


def test_config_fields(tmp_path: Path) -> None:
    convert(source_file("classic"), tmp_path / "out", settings=THREE_HEADS)
    config = load_converted(AutoModelForPoseEstimation, tmp_path / "out").config
    assert (list(config.image_size), config.patch_padding, config.pose_head_hidden_size) == ([96, 64], 2, 32)
    assert (config.use_cls_token, config.position_embeddings_cover_prefix) == (False, True)
    assert (config.num_labels, config.id2label[9]) == (17, "left_wrist")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], processor.size["width"], processor.do_center_crop) == (96, 64, False)


@pytest.mark.parametrize("positions", [192, 432])
def test_published_image_sizes(tmp_path: Path, positions: int) -> None:
    """256x192 and 384x288, inferred from the number of positions."""
    state = {**state_of("simple"), "backbone.pos_embed": torch.randn(1, 1 + positions, 48)}
    torch.save({"state_dict": state}, tmp_path / "vitpose.pth")
    convert(tmp_path / "vitpose.pth", tmp_path / "out")
    height, width = load_converted(AutoModelForPoseEstimation, tmp_path / "out").config.image_size
    assert (height * width, height * 3) == (256 * positions, width * 4)


def test_multi_dataset_checkpoints(tmp_path: Path) -> None:
    """An unused class token and additional heads are dropped by name."""
    state = state_of("classic")
    others = {"backbone.cls_token": torch.randn(1, 1, 48)}
    others |= {k.replace("keypoint_head", "associate_keypoint_heads.2"): v for k, v in state.items() if "_head" in k}
    torch.save({"state_dict": {**state, **others}}, tmp_path / "multi.pth")
    report = convert(tmp_path / "multi.pth", tmp_path / "out", settings=THREE_HEADS)
    assert {name for name, _ in report.dropped} == others.keys()
    assert difference(tmp_path / "out", "classic") < TOLERANCE


def test_unsupported_checkpoints_raise(tmp_path: Path) -> None:
    state = {**state_of("classic"), "backbone.blocks.0.mlp.experts.0.weight": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "plus.pth")
    assert_refused(tmp_path, "ViTPose++", tmp_path / "plus.pth")
    state = {k: v for k, v in state_of("classic").items() if "deconv_layers.3" not in k}
    torch.save({"state_dict": state}, tmp_path / "broken.pth")
    assert_refused(tmp_path, "lacks 'keypoint_head.deconv_layers.3.weight'", tmp_path / "broken.pth")
