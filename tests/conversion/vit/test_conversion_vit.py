"""torchvision and jeonsworld match in float64 and round-trip losslessly; every ViT source rejects the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_references import (
    ORACLE_FILE,
    TOLERANCE,
    assert_equal_states,
    assert_refused,
    largest_difference,
    load_converted,
    randomize,
)
from hf_vit_seg.conversion import registry
from hf_vit_seg.conversion.convert import ConversionError, convert, export
from jeonsworld_hybrid import logits, random_state, stem
from paths import ORACLES
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from transformers import AutoImageProcessor, AutoModel
from transformers import AutoModelForImageClassification as AutoClassifier

from hf_vit_seg import architectures

JEONSWORLD = ORACLES / "jeonsworld_vit" / "ViT_tiny_checkpoint.bin"
THREE_HEADS: dict[str, Any] = {"num_attention_heads": 3}  # of the oracles: their width of 48 suggests one
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def torchvision_model(**options: Any) -> nn.Module:
    return randomize(
        VisionTransformer(
            image_size=64,
            patch_size=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=128,
            mlp_dim=96,
            num_classes=7,
            **options,
        )
    )


def clone_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def before_0_13(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in state.items()}


@pytest.mark.parametrize("spelled", [dict, before_0_13])
@pytest.mark.parametrize("options", [{}, {"representation_size": 24}], ids=["plain", "pre-logits"])
def test_torchvision(tmp_path: Path, options: dict[str, Any], spelled: Callable) -> None:
    model = torchvision_model(**options)
    state = clone_state(model)
    torch.save(spelled(state), tmp_path / "vit.pth")
    report = convert(tmp_path / "vit.pth", tmp_path / "out")
    assert report.source.startswith("vit/torchvision")
    with torch.no_grad():
        expected = model.double()(IMAGE)
    ours = load_converted(AutoClassifier, tmp_path / "out")
    assert largest_difference(ours, IMAGE, expected) < TOLERANCE
    assert (ours.config.position_resize_mode, ours.config.position_resize_align_corners) == ("bicubic", True)
    assert export(tmp_path / "out", tmp_path / "back.pth", to="torchvision").notes == ()
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), state)


def test_torchvision_encoder_and_positions(tmp_path: Path) -> None:
    """Without a head, at another size, with torchvision's interpolation of positions."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    model = torchvision_model()
    state = {k: v.double() for k, v in clone_state(model).items()}
    torch.save({k: v for k, v in state.items() if not k.startswith("heads.")}, tmp_path / "vit.pth")
    convert(tmp_path / "vit.pth", tmp_path / "out")
    ours = load_converted(AutoModel, tmp_path / "out")
    ours.resize_positions(96)
    expected = interpolate_embeddings(96, 16, state)["encoder.pos_embedding"]  # type: ignore[arg-type]
    assert (ours.embeddings.position_embeddings - expected).abs().max() < TOLERANCE


def test_torchvision_published_variant(tmp_path: Path) -> None:
    import torchvision

    model = randomize(torchvision.models.vit_b_32())
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    report = convert(tmp_path / "vit.pth", tmp_path / "out")
    assert (report.variant, report.parameters) == ("b-32", 88_224_232)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)


def test_jeonsworld(tmp_path: Path) -> None:
    report = convert(JEONSWORLD, tmp_path / "out", settings=THREE_HEADS)
    assert report.source.startswith("vit/jeonsworld")
    with np.load(ORACLES / "jeonsworld_vit" / "io.npz") as arrays:
        image, expected = (torch.from_numpy(arrays[name]).double() for name in ("input", "output_f64"))
    assert largest_difference(load_converted(AutoClassifier, tmp_path / "out"), image, expected) < TOLERANCE
    assert export(tmp_path / "out", tmp_path / "back.bin", to="jeonsworld").notes == ()
    state = torch.load(JEONSWORLD, weights_only=True)
    assert_equal_states(torch.load(tmp_path / "back.bin", weights_only=True), state)


def jeonsworld_hybrid(path: Path, **sizes: Any) -> dict[str, Tensor]:
    state = random_state(**sizes)
    torch.save(state, path)
    return state


def test_jeonsworld_hybrid(tmp_path: Path) -> None:
    """All tensors, and the outputs at 1e-10, of a transcription of the original's arithmetic."""
    state = jeonsworld_hybrid(tmp_path / "hybrid.bin")
    report = convert(tmp_path / "hybrid.bin", tmp_path / "out", settings=THREE_HEADS)
    assert (report.source.startswith("vit/jeonsworld"), report.dropped) == (True, ())
    ours = load_converted(AutoClassifier, tmp_path / "out")
    assert largest_difference(ours, IMAGE, logits(state, IMAGE, num_heads=3)) < TOLERANCE
    assert ours.config.stem_depths == [2, 1, 2]
    assert export(tmp_path / "out", tmp_path / "back.bin", to="jeonsworld").notes == ()
    assert_equal_states(torch.load(tmp_path / "back.bin", weights_only=True), state)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (80, 112), (16, 16)])
def test_stem_of_jeonsworld_hybrid(tmp_path: Path, size: tuple[int, int]) -> None:
    """Grids of odd and even sides, and a single cell, whose norm per channel is its bias."""
    state = jeonsworld_hybrid(tmp_path / "hybrid.bin")
    convert(tmp_path / "hybrid.bin", tmp_path / "out", settings=THREE_HEADS)
    embeddings = load_converted(AutoClassifier, tmp_path / "out").vit.embeddings.patch_embeddings
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        found, expected = embeddings.stem(image), stem(state, image)
    assert found.shape == expected.shape == (1, 512, size[0] // 16, size[1] // 16)
    assert (found - expected).abs().max() < TOLERANCE


OTHER_STEM = [
    {"stem_padding": "same"},
    {"stem_pool_padding": True},
    {"stem_shortcut_norm": "group"},
    {"stem_shortcut_norm_eps": 1e-6},
    {"stem_group_norm_eps": 1e-5},
    {"stem_weight_standardization_eps": 1e-8},
    {"stem_weight_standardization_mode": "std_plus_eps"},
]


@pytest.mark.parametrize("changed", OTHER_STEM, ids=lambda changed: next(iter(changed)))
def test_every_choice_of_jeonsworld_hybrid_changes_the_output(tmp_path: Path, changed: dict[str, Any]) -> None:
    state = jeonsworld_hybrid(tmp_path / "hybrid.bin")
    convert(tmp_path / "hybrid.bin", tmp_path / "out", settings=THREE_HEADS | changed)
    ours = load_converted(AutoClassifier, tmp_path / "out")
    assert largest_difference(ours, IMAGE, logits(state, IMAGE, num_heads=3)) > 100 * TOLERANCE


@pytest.mark.parametrize("to", ["google", "timm", "transformers"])
def test_other_formats_reject_jeonsworld_hybrid(tmp_path: Path, to: str) -> None:
    jeonsworld_hybrid(tmp_path / "hybrid.bin")
    convert(tmp_path / "hybrid.bin", tmp_path / "ours")
    with pytest.raises(ConversionError, match="stem_shortcut_norm 'channel'"):
        export(tmp_path / "ours", tmp_path / "theirs", to=to)


def test_published_size_of_jeonsworld_hybrid(tmp_path: Path) -> None:
    """R50-ViT-B_16 for images of 384x384, with the number of parameters of Google's."""
    jeonsworld_hybrid(tmp_path / "hybrid.bin", width=64, units=(3, 4, 9), size=384, hidden=768, layers=12, classes=1000)
    report = convert(tmp_path / "hybrid.bin", tmp_path / "out")
    model = AutoClassifier.from_pretrained(tmp_path / "out")
    assert report.variant == "r50-b-16"
    assert report.parameters == 98_659_112 + (24**2 - 14**2) * 768
    assert (model.config.image_size, model.config.num_attention_heads, model.config.patch_size) == (384, 12, 1)
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 384


def test_unverified_heads_are_reported(tmp_path: Path) -> None:
    note = "assumed num_attention_heads 1"
    assert any(note in text for text in convert(JEONSWORLD, tmp_path / "out").notes)
    report = convert(JEONSWORLD, tmp_path / "overridden", settings=THREE_HEADS)
    assert not any("num_attention_heads" in text for text in report.notes)


def vit_sources() -> list[str]:
    return [registry.full_name(*pair) for pair in registry.all_sources() if pair[0].name == "vit"]


def test_all_vit_sources_are_registered() -> None:
    names = (
        "google",
        "timm",
        "torchvision",
        "jeonsworld",
        "transformers",
        "vitpose",
        "transformers-vitpose",
        "segmenter",
        "eomt",
        "transformers-eomt",
    )
    assert vit_sources() == [f"vit/{name}" for name in names]
    assert all(place.startswith("hf_vit_seg.conversion.vit.") for place in architectures()["vit"].conversions)


@pytest.mark.parametrize(
    "name", ["google", "timm", "torchvision", "jeonsworld", "vitpose", "transformers-vitpose", "segmenter"]
)
def test_segformer_matches_no_vit_source(tmp_path: Path, name: str) -> None:
    assert_refused(tmp_path, f"is not a checkpoint of source 'vit/{name}'", ORACLE_FILE, source=f"vit/{name}")
    if name != "jeonsworld":
        assert_refused(tmp_path, f"is not a checkpoint of source '{name}'", JEONSWORLD, source=name)


def test_segformer_is_not_detected_as_transformers_vit(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is not a checkpoint of source 'vit/transformers'", ORACLE_FILE, source="vit/transformers")
    assert_refused(tmp_path, "is not a checkpoint of source 'transformers'", JEONSWORLD, source="transformers")


CROSSINGS = [
    ("google", "hidden_act gelu (reference: gelu_pytorch_tanh)"),
    ("timm", "position_resize_mode bilinear (reference: bicubic)"),
    ("torchvision", "position_resize_mode bilinear (reference: bicubic)"),
    ("transformers", "position_resize_align_corners True (reference: False)"),
]


@pytest.mark.parametrize(("to", "note"), CROSSINGS)
def test_export_to_another_format(tmp_path: Path, to: str, note: str) -> None:
    """Export one model to every format; numerics are reported, and outputs match after the round trip."""
    convert(JEONSWORLD, tmp_path / "ours", settings=THREE_HEADS)
    report = export(tmp_path / "ours", tmp_path / "theirs", to=to)
    assert note in " ".join(report.notes)
    assert "stem" not in " ".join(report.notes)
    numerics = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, **THREE_HEADS}
    convert(tmp_path / "theirs", tmp_path / "again", settings=numerics)
    with torch.no_grad():
        expected = load_converted(AutoClassifier, tmp_path / "ours")(IMAGE).logits
    assert largest_difference(load_converted(AutoClassifier, tmp_path / "again"), IMAGE, expected) == 0


def test_export_raises_for_unsupported_models(tmp_path: Path) -> None:
    convert(ORACLES / "flax_vit_hybrid" / "R-ViT-tiny_16.npz", tmp_path / "hybrid")
    for to, supported in (("torchvision", "stem 'resnetv2', but"), ("jeonsworld", "stem_padding 'same', but")):
        with pytest.raises(ConversionError, match=supported):
            export(tmp_path / "hybrid", tmp_path / "theirs", to=to)
    convert(JEONSWORLD, tmp_path / "ours")
    with pytest.raises(ConversionError, match="does not support VisionTransformerForImageClassification"):
        export(tmp_path / "ours", tmp_path / "theirs", to="segmenter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hybrid", "ours"]
