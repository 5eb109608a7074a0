"""Tests of the plugin: parity with the research code, and the conventions of transformers models."""

import pytest
import torch
from conv_token.modeling_conv_token import ConvTokenForSemanticSegmentation
from conv_token.plugin_conv_token import ARCHITECTURE
from conv_token.poly_loss import Poly
from hf_vit_seg.conversion.convert import convert, export
from reference import trained
from transformers import AutoModelForSemanticSegmentation

SIZES = ((64, 64), (61, 45), (8, 131))


def test_conversion_matches_reference_and_is_invertible(tmp_path):
    state = trained().state_dict()
    torch.save(state, tmp_path / "research.pth")
    report = convert(tmp_path / "research.pth", tmp_path / "model", settings={"num_attention_heads": 2})
    assert (report.architecture, report.variant, report.dropped) == ("conv_token", "tiny", ())
    reference, model = trained(), AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")
    for size in SIZES:
        pixel_values = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, logits = reference.double()(pixel_values), model.double()(pixel_values).logits
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    export(tmp_path / "model", tmp_path / "back.pth", to="research")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("variant", ARCHITECTURE.variant_rows())
def test_parameter_counts(variant):
    config = ARCHITECTURE.variant_config(variant, num_labels=150)
    with torch.device("meta"):
        model = ConvTokenForSemanticSegmentation(config)
    assert model.num_parameters() == ARCHITECTURE.variant_rows()[variant]["parameters"]


def test_attention_implementations_agree():
    model = ConvTokenForSemanticSegmentation(ARCHITECTURE.variant_config("tiny")).double().eval()
    pixel_values = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    logits = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(model(pixel_values).logits)
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-6)


def test_loss_ignores_ignored_pixels():
    model = ConvTokenForSemanticSegmentation(ARCHITECTURE.variant_config("tiny", num_labels=3)).eval()
    pixel_values, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    labels[:, :20] = 255
    output = model(pixel_values, labels=labels)
    resized = torch.nn.functional.interpolate(output.logits, (32, 32), mode="bilinear")
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(resized, labels, ignore_index=255))
    assert model(pixel_values, labels=torch.full_like(labels, 255)).loss == 0


def test_poly_adds_epsilon_times_one_minus_probability():
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    labels[0, 0] = 255
    term = Poly(epsilon=2.0).build(num_classes=3, ignore_index=255)
    counts = labels != 255
    sure = logits.softmax(1).gather(1, labels.where(counts, 0)[:, None])[:, 0][counts]
    torch.testing.assert_close(term(logits, labels), (-sure.log() + 2 * (1 - sure)).sum())
    assert term.units(labels) == counts.sum()
