"""Photometric transforms, compared with torchvision's where available."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from hf_vit_seg.data.transforms.photometric import LUMA, STEPS, apply_jitter
from hf_vit_seg.data.transforms.pipeline import TransformContext, read_pipeline
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor

REFERENCES = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
}


def context(channels: int = 3, task: str = "segmentation") -> TransformContext:
    processor = SemanticSegmentationImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * channels, image_std=[0.25] * channels
    )
    return TransformContext.from_processor(processor, task)


@pytest.mark.parametrize("name", REFERENCES)
@given(strength=st.floats(0, 2), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_each_step_matches_torchvision(name, strength, seed):
    torch.manual_seed(seed)
    image = torch.randint(0, 256, (3, 11, 13), dtype=torch.uint8)
    ours, theirs = apply_jitter(image, {name: strength}), REFERENCES[name](image, strength)
    assert (ours.int() - theirs.int()).abs().max() <= 2  # torchvision also rounds the gray image


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", STEPS)
def test_neutral_strengths_change_nothing(name, channels):
    _, neutral, for_colors = STEPS[name]
    if for_colors and channels != 3:
        pytest.skip("a step of red, green and blue")
    for image in (torch.randint(0, 256, (channels, 9, 9), dtype=torch.uint8), torch.randn(channels, 9, 9) * 1000):
        assert torch.allclose(apply_jitter(image, {name: neutral}).float(), image.float(), rtol=1e-5, atol=1e-3)


@given(st.floats(-0.5, 0.5))
def test_hue_shift_keeps_luma_and_gray(turn):
    colors = torch.rand(3, 4, 4) * 100 + 50
    turned = apply_jitter(colors, {"hue": turn})
    luma = [torch.einsum("c,chw->hw", LUMA, image) for image in (colors, turned)]
    assert torch.allclose(*luma, rtol=1e-4)
    assert torch.allclose(apply_jitter(turned, {"hue": -turn}), colors, rtol=1e-3)
    gray = torch.rand(1, 4, 4).expand(3, -1, -1)
    assert torch.allclose(apply_jitter(gray, {"hue": turn}), gray, atol=1e-4)


def test_hue_shift_of_120_degrees_turns_red_to_green():
    red = torch.tensor([200.0, 50.0, 50.0]).view(3, 1, 1)
    assert apply_jitter(red, {"hue": 1 / 3}).flatten().argmax() in (1, 2)
    assert apply_jitter(red, {"hue": 1 / 3}).flatten().argmax() != apply_jitter(red, {"hue": -1 / 3}).flatten().argmax()


@given(st.floats(0.1, 2), st.floats(0.1, 2), st.floats(0, 2), st.floats(-0.5, 0.5))
def test_combined_steps_equal_sequential_steps(brightness, contrast, saturation, hue):
    image = torch.rand(3, 6, 6, dtype=torch.float32) * 200
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    stepwise = image
    for name, strength in strengths.items():
        stepwise = apply_jitter(stepwise, {name: strength})
    assert torch.allclose(apply_jitter(image, strengths), stepwise, rtol=1e-3, atol=1e-2)


def test_multichannel_contrast_uses_per_channel_mean():
    image = torch.rand(5, 8, 8) * torch.tensor([1, 10, 100, 1e3, 1e4]).view(5, 1, 1)
    result = apply_jitter(image, {"contrast": 0.3})
    assert torch.allclose(result.mean(dim=(1, 2)), image.mean(dim=(1, 2)), rtol=1e-4)
    assert torch.allclose(result.std(dim=(1, 2)), 0.3 * image.std(dim=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_jitter_follows_its_probability_and_keeps_masks(channels):
    image, mask = torch.randint(0, 256, (channels, 16, 16), dtype=torch.uint8), torch.randint(0, 9, (16, 16))

    def changed_fraction(probability: float) -> float:
        pipeline = read_pipeline([{"photometric": {"probability": probability}}], context(channels))
        results = [pipeline(image, mask) for _ in range(60)]
        assert all(torch.equal(labels, mask) and moved.dtype == torch.uint8 for moved, labels in results)
        return sum(not torch.equal(moved, image) for moved, _ in results) / len(results)

    assert changed_fraction(0) == 0 and changed_fraction(1) == 1 and 0.3 < changed_fraction(0.5) < 1


@pytest.mark.parametrize("fill", [7.0, "mean", "noise"])
@pytest.mark.parametrize("byte", [True, False])
def test_erased_rectangles_use_the_value_range_of_the_image(fill, byte):
    pipeline = read_pipeline(
        [{"random_erasing": {"probability": 1, "area": [0.2, 0.3], "fill": fill}}], context(5, "classification")
    )
    image = torch.full((5, 64, 64), 255, dtype=torch.uint8 if byte else torch.float32)
    erased = pipeline(image, 0)[0]
    gone = (erased != image).any(dim=0)
    assert erased.dtype == image.dtype and 0.1 < gone.float().mean() < 0.4
    values = erased[:, gone].float()
    assert abs(float(values.mean()) - (7 if fill == 7.0 else 127.5)) < 2
    assert (float(values.std()) > 40) == (fill == "noise")
