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
    report = convert(JEONSWORLD, tmp_path / "out", overrides=THREE_HEADS)
    assert report.source.startswith("vit/jeonsworld")
    with np.load(ORACLES / "jeonsworld_vit" / "io.npz") as arrays:
        image, expected = (torch.from_numpy(arrays[name]).double() for name in ("input", "output_f64"))
    assert largest_difference(load_converted(AutoClassifier, tmp_path / "out"), image, expected) < TOLERANCE
    assert export(tmp_path / "out", tmp_path / "back.bin", to="jeonsworld").notes == ()
    state = torch.load(JEONSWORLD, weights_only=True)
    assert_equal_states(torch.load(tmp_path / "back.bin", weights_only=True), state)


def test_jeonsworld_hybrid_raises(tmp_path: Path) -> None:
    state = torch.load(JEONSWORLD, weights_only=True)
    state["transformer.embeddings.hybrid_model.root.conv.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(state, tmp_path / "hybrid.bin")
    assert_refused(tmp_path, "differs from every other implementation", tmp_path / "hybrid.bin")


def test_unverified_heads_are_reported(tmp_path: Path) -> None:
    note = "assumed num_attention_heads 1"
    assert any(note in text for text in convert(JEONSWORLD, tmp_path / "out").notes)
    report = convert(JEONSWORLD, tmp_path / "overridden", overrides=THREE_HEADS)
    assert not any("num_attention_heads" in text for text in report.notes)


def vit_sources() -> list[str]:
    return [registry.full_name(*pair) for pair in registry.sources() if pair[0].name == "vit"]


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
    convert(JEONSWORLD, tmp_path / "ours", overrides=THREE_HEADS)
    report = export(tmp_path / "ours", tmp_path / "theirs", to=to)
    assert note in " ".join(report.notes)
    assert "stem" not in " ".join(report.notes)
    numerics = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, **THREE_HEADS}
    convert(tmp_path / "theirs", tmp_path / "again", overrides=numerics)
    with torch.no_grad():
        expected = load_converted(AutoClassifier, tmp_path / "ours")(IMAGE).logits
    assert largest_difference(load_converted(AutoClassifier, tmp_path / "again"), IMAGE, expected) == 0


def test_export_raises_for_unsupported_models(tmp_path: Path) -> None:
    convert(ORACLES / "flax_vit_hybrid" / "R-ViT-tiny_16.npz", tmp_path / "hybrid")
    for to in ("torchvision", "jeonsworld"):
        with pytest.raises(ConversionError, match=f"stem 'resnetv2', but {to} supports only 'patch'"):
            export(tmp_path / "hybrid", tmp_path / "theirs", to=to)
    convert(JEONSWORLD, tmp_path / "ours")
    with pytest.raises(ConversionError, match="does not support VisionTransformerForImageClassification"):
        export(tmp_path / "ours", tmp_path / "theirs", to="segmenter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hybrid", "ours"]
