"""ViTPose: heads compared with the authors' outputs; heatmap encoding, loss, flip test and decoding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_references import TOLERANCE, assert_equal_states
from hf_vit_seg.conversion.convert import convert, export
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ORACLES
from random_weights import randomize_weights
from transformers import AutoModelForPoseEstimation
from transformers.models.vitpose import image_processing_vitpose as theirs

from hf_vit_seg import architectures
from hf_vit_seg.models.configuration_vit import COCO_FLIP_PAIRS
from hf_vit_seg.models.heatmaps import (
    blur_heatmaps,
    flip_back,
    gaussian_kernel,
    heatmap_loss,
    heatmaps_from_keypoints,
    keypoints_from_heatmaps,
)

FILES = {"classic": "vitpose-tiny.pth", "simple": "vitpose-tiny-simple.pth"}
IMAGE, HEATMAP = (256, 192), (64, 48)  # (height, width)


def pose_model(**fields: Any) -> Any:
    config = architectures()["vit"].variant_config("tiny", **({"num_labels": 17} | fields))
    return randomize_weights(AutoModelForPoseEstimation.from_config(config)).eval()


@pytest.mark.parametrize("head", FILES)
def test_outputs_match_vitpose_and_round_trip(head: str, tmp_path: Path) -> None:
    folder = ORACLES / f"vitpose_{head}"
    convert(folder / FILES[head], tmp_path / "out", settings={"num_attention_heads": 3})
    arrays = np.load(folder / "io.npz")
    model, info = AutoModelForPoseEstimation.from_pretrained(
        tmp_path / "out", dtype=torch.float64, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(arrays["input"]).double()).heatmaps
    expected = torch.from_numpy(arrays["output_f64"])
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < TOLERANCE
    export(tmp_path / "out", tmp_path / "back.pth", to="vitpose")
    there = torch.load(folder / FILES[head], weights_only=True)["state_dict"]
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], there)


def test_head_names():
    names = {name for name in pose_model().state_dict() if name.startswith("pose_head.") and "tracked" not in name}
    norm = ("weight", "bias", "running_mean", "running_var")
    assert names == {
        "pose_head.deconvolutions.0.weight",
        "pose_head.deconvolutions.1.weight",
        *(f"pose_head.norms.{i}.{part}" for i in (0, 1) for part in norm),
        "pose_head.final.weight",
        "pose_head.final.bias",
    }


@pytest.mark.parametrize("variant", ["vitpose-s", "vitpose-b", "vitpose-l", "vitpose-h"])
def test_seventeen_keypoints_by_default(variant):
    config = architectures()["vit"].variant_config(variant)
    assert config.num_labels == 17
    assert sorted(index for pair in config.pose_flip_pairs for index in pair) == list(range(1, 17))


def test_heatmaps_have_four_times_the_token_resolution():
    with torch.no_grad():
        assert pose_model()(torch.randn(2, 3, 64, 48)).heatmaps.shape == (2, 17, 32, 24)


# Heatmap encoding and decoding.

inside = st.tuples(st.floats(20, 171), st.floats(20, 235))


@settings(max_examples=60)
@given(st.lists(inside, min_size=1, max_size=4))
def test_decoding_inverts_encoding_with_subpixel_accuracy(points):
    """Within a tenth of an image pixel; a heatmap cell has four."""
    keypoints = torch.tensor(points, dtype=torch.float64)[None]
    targets, weights = heatmaps_from_keypoints(keypoints, torch.ones(keypoints.shape[:2]), IMAGE, HEATMAP)
    assert weights.all()
    found, scores = keypoints_from_heatmaps(targets, IMAGE)
    assert (found - keypoints).abs().max() < 0.1
    assert scores.min() > 0.85


def test_heatmap_corners_map_to_image_corners():
    keypoints = torch.tensor([[[0.0, 0.0], [191.0, 255.0]]])
    targets, _ = heatmaps_from_keypoints(keypoints, torch.ones(1, 2), IMAGE, HEATMAP)
    assert targets[0, 0, 0, 0] == 1 and targets[0, 1, -1, -1] == 1


def test_targets_match_mmpose():
    """Per pixel, as in mmpose's _udp_generate_target."""
    keypoints, sigma = torch.tensor([[[50.3, 81.7], [3.0, 250.0], [-80.0, 20.0], [90.0, 90.0]]]), 2
    visible = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    targets, weights = heatmaps_from_keypoints(keypoints, visible, IMAGE, HEATMAP, sigma)
    assert weights.tolist() == [[1, 1, 0, 0]]
    for joint, (x, y) in enumerate(keypoints[0].tolist()):
        x, y = x / (191 / 47), y / (255 / 63)
        left, top = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        for row in range(64):
            for column in range(48):
                near = abs(row - top) <= 3 * sigma and abs(column - left) <= 3 * sigma and joint < 2
                value = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2)) if near else 0
                assert targets[0, joint, row, column] == pytest.approx(value, abs=1e-5)


def test_refinement_step_matches_transformers(monkeypatch):
    """Its blur differs from the authors' (always sigma 0.8), so both decode heatmaps that are already blurred."""
    monkeypatch.setattr(theirs, "gaussian_filter", lambda heatmap, **_: heatmap, raising=False)
    points = torch.tensor([[[50.3, 81.7], [120.0, 200.2], [90.0, 90.0]]])
    heatmaps, _ = heatmaps_from_keypoints(points, torch.ones(1, 3), IMAGE, HEATMAP)
    heatmaps = blur_heatmaps(heatmaps + 0.05 * torch.rand(heatmaps.shape), 11)
    peaks, scores = theirs.get_keypoint_predictions(heatmaps.numpy())
    expected = theirs.post_dark_unbiased_data_processing(peaks, heatmaps.numpy(), kernel=1)
    found, ours = keypoints_from_heatmaps(heatmaps, (HEATMAP[0], HEATMAP[1]), blur=1)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours, torch.from_numpy(scores)[..., 0])


def test_blur_kernel_matches_opencv():
    """cv2.getGaussianKernel(11, 0): sigma 2."""
    kernel = gaussian_kernel(11, torch.zeros((), dtype=torch.float64))
    expected = torch.exp(-(torch.arange(-5.0, 6.0, dtype=torch.float64) ** 2) / 8)
    torch.testing.assert_close(kernel, expected / expected.sum())


def test_small_heatmaps_are_decoded():
    found, scores = keypoints_from_heatmaps(torch.rand(2, 3, 4, 5), (16, 20))
    assert found.shape == (2, 3, 2) and scores.shape == (2, 3)
    assert found.isfinite().all()


# The flip test.


def test_flip_back_swaps_sides():
    keypoints = 20 + 150 * torch.rand(1, 17, 2)
    mirrored = torch.stack([191 - keypoints[..., 0], keypoints[..., 1]], dim=-1)
    order = list(range(17))
    for left, right in COCO_FLIP_PAIRS:
        order[left], order[right] = right, left
    straight, _ = heatmaps_from_keypoints(keypoints, torch.ones(1, 17), IMAGE, HEATMAP)
    seen, _ = heatmaps_from_keypoints(mirrored[:, order], torch.ones(1, 17), IMAGE, HEATMAP)
    back = flip_back(seen, COCO_FLIP_PAIRS)
    # If a center is between two pixels, the flipped window can be off by one row or column.
    assert (straight - back).abs().max() < 0.012


def test_flip_test_averages_both_heatmaps():
    model, pixel_values = pose_model(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        straight = model(pixel_values).heatmaps
        mirrored = flip_back(model(pixel_values.flip(-1)).heatmaps, COCO_FLIP_PAIRS)
        both = model(pixel_values, flip_test=True).heatmaps
        torch.testing.assert_close(both, (straight + mirrored) / 2)
        again = model(pixel_values.flip(-1), flip_test=True).heatmaps
        torch.testing.assert_close(flip_back(again, COCO_FLIP_PAIRS), both)
        model.config.pose_flip_test = True
        assert torch.equal(model(pixel_values).heatmaps, both)
        assert torch.equal(model(pixel_values, flip_test=False).heatmaps, straight)


def test_invalid_keypoint_pairs_raise():
    with pytest.raises(ValueError, match=r"keypoints 0 \.\. 4"):
        pose_model(num_labels=5)(torch.randn(1, 3, 64, 48), flip_test=True)


# Training.


def test_loss_matches_mmpose():
    """JointsMSELoss with use_target_weight: the mean of the means per joint."""
    heatmaps, targets = torch.randn(2, 3, 8, 6), torch.rand(2, 3, 8, 6)
    weights = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    joints = [
        torch.nn.functional.mse_loss(
            heatmaps[:, j] * weights[:, j, None, None], targets[:, j] * weights[:, j, None, None]
        )
        for j in range(3)
    ]
    torch.testing.assert_close(heatmap_loss(heatmaps, targets, weights), sum(joints) / 3)


def test_invisible_keypoints_are_ignored():
    model, pixel_values = pose_model(), torch.randn(2, 3, 64, 48)
    labels = torch.rand(2, 17, 3) * torch.tensor([48.0, 64.0, 0.0])
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    assert loss == 0
    labels[:, 0, 2] = 2
    other = labels.clone()
    other[:, 1:, :2] += 5
    losses = [model(pixel_values, labels=given).loss for given in (labels, other)]
    assert losses[0] == losses[1] > 0


def test_model_learns_a_keypoint():
    """A model with a simple head and few layers finds a bright spot."""
    torch.manual_seed(0)
    config = architectures()["vit"].variant_config("tiny", num_labels=1, pose_head_hidden_size=16, pose_flip_pairs=())
    model = AutoModelForPoseEstimation.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        center = torch.tensor([8.0, 8.0]) + torch.rand(16, 1, 2) * torch.tensor([31.0, 47.0])
        spot, _ = heatmaps_from_keypoints(center, torch.ones(16, 1), (64, 48), (64, 48), sigma=3)
        return 4 * spot.expand(-1, 3, -1, -1), torch.cat([center, torch.ones(16, 1, 1)], dim=-1)

    for _ in range(150):
        images, labels = batch()
        loss = 100 * model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = batch()
    with torch.no_grad():
        found, _ = keypoints_from_heatmaps(model.eval()(images).heatmaps, (64, 48))
    assert (found - labels[..., :2]).norm(dim=-1).median() < 3
