"""ViT, DeiT and ViTHybrid of transformers, in every spelling: match in float64 and round-trip losslessly."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conversion_references import (
    TOLERANCE,
    assert_equal_states,
    assert_refused,
    largest_difference,
    load_converted,
    randomize,
)
from hf_vit_seg.conversion.convert import convert, export
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel
from transformers import AutoModelForImageClassification as AutoClassifier

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 7,
}
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MODELS = (
    "ViTForImageClassification",
    "ViTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTModel",
)
SPELLINGS = ("save_pretrained", "memory")


def theirs(name: str, **options: Any) -> Any:
    config = getattr(transformers, name[: name.index("T") + 1] + "Config")
    return randomize(getattr(transformers, name)(config(**{**SIZES, **options})))


def auto_of(name: str) -> Any:
    return AutoModel if name.endswith("Model") else AutoClassifier


@torch.no_grad()
def output_of(model: Any) -> Tensor:
    outputs = model.double()(IMAGE)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def save_spelling(model: Any, spelling: str, folder: Path) -> Path:
    """A directory with the names on disk or in memory, and its config."""
    model.save_pretrained(folder)
    if spelling == "memory":
        save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_parity(tmp_path: Path, name: str, spelling: str) -> None:
    model = theirs(name)
    report = convert(save_spelling(model, spelling, tmp_path / "there"), tmp_path / "out")
    assert report.source.startswith("vit/transformers")
    assert not any("num_attention_heads" in note for note in report.notes)
    ours = load_converted(auto_of(name), tmp_path / "out")
    assert ours.config.layer_norm_eps == 1e-12
    assert largest_difference(ours, IMAGE, output_of(model)) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    model = theirs(name)
    convert(save_spelling(model, "save_pretrained", tmp_path / "there"), tmp_path / "out")
    assert export(tmp_path / "out", tmp_path / "back", to="transformers").notes == ()
    expected = load_file(tmp_path / "there" / "model.safetensors")
    pooler = {k for k in expected if k.startswith("pooler.")}  # not part of the encoder
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert_equal_states(found, {k: v for k, v in expected.items() if k not in pooler})
    again, info = type(model).from_pretrained(tmp_path / "back", dtype=torch.float64, output_loading_info=True)
    assert set(info["missing_keys"]) == pooler
    assert torch.equal(output_of(again.eval()), output_of(model))


@pytest.mark.parametrize(
    "options",
    [{"qkv_bias": False}, {"hidden_act": "quick_gelu"}, {"layer_norm_eps": 1e-3}, {"image_size": [32, 128]}],
    ids=str,
)
def test_sidecar_config_is_used(tmp_path: Path, options: dict[str, Any]) -> None:
    model = theirs("ViTForImageClassification", **options)
    model.config.id2label = {k: f"thing {k}" for k in range(7)}
    model.save_pretrained(tmp_path / "there")
    processor = {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    transformers.ViTImageProcessor(**processor).save_pretrained(tmp_path / "there")
    report = convert(tmp_path / "there", tmp_path / "out")
    assert "config.json" in report.labels
    ours = load_converted(AutoClassifier, tmp_path / "out")
    assert ours.config.id2label == model.config.id2label
    if "image_size" in options:
        image = IMAGE.reshape(2, 3, 32, 128)
        with torch.no_grad():
            expected = model.double()(image).logits
        assert largest_difference(ours, image, expected) < TOLERANCE
    else:
        assert largest_difference(ours, IMAGE, output_of(model)) < TOLERANCE
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_std) == [0.25] * 3


def test_positions_at_other_image_sizes(tmp_path: Path) -> None:
    model = theirs("ViTForImageClassification")
    convert(save_spelling(model, "save_pretrained", tmp_path / "there"), tmp_path / "out")
    image = torch.randn(1, 3, 96, 80, dtype=torch.float64)
    with torch.no_grad():
        expected = model.double()(image, interpolate_pos_encoding=True).logits
    assert largest_difference(load_converted(AutoClassifier, tmp_path / "out"), image, expected) < 1e-6


@pytest.mark.parametrize("name", ["ViTForMaskedImageModeling", "ViTMAEForPreTraining"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_masked_autoencoder_encoder(tmp_path: Path, name: str, spelling: str) -> None:
    """Only the encoder is kept; the decoder and the mask token are dropped by name."""
    small: dict[str, Any] = {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
    }
    config = transformers.ViTMAEConfig(**SIZES, **small) if "MAE" in name else transformers.ViTConfig(**SIZES)
    model = randomize(getattr(transformers, name)(config))
    report = convert(save_spelling(model, spelling, tmp_path / "there"), tmp_path / "out")
    assert report.model == "VisionTransformerModel"
    state = load_file(tmp_path / "there" / "model.safetensors")
    assert {dropped for dropped, _ in report.dropped} == {k for k in state if "decoder." in k or "mask_token" in k}
    found = load_converted(AutoModel, tmp_path / "out").state_dict()
    assert len(found) == len(state) - len(report.dropped)


HYBRID_NAMES = (
    (r"^(cls_token|patch_embed\.)", r"vit.embeddings.\1"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.", "patch_embeddings.projection."),
    (r"patch_embed\.backbone\.stem\.conv\.", "patch_embeddings.backbone.bit.embedder.convolution."),
    (r"patch_embed\.backbone\.stem\.norm\.", "patch_embeddings.backbone.bit.embedder.norm."),
    (r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.", r"patch_embeddings.backbone.bit.encoder.stages.\1.layers."),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"(vit\.encoder.*)\.norm1\.", r"\1.layernorm_before."),
    (r"(vit\.encoder.*)\.norm2\.", r"\1.layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
)


def as_vit_hybrid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors with the names of vit-hybrid in transformers 4."""
    renamed = {}
    for name, tensor in state.items():
        for old, new in HYBRID_NAMES:
            name = re.sub(old, new, name)
        if ".attn.qkv." not in name:
            renamed[name] = tensor
            continue
        for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece.clone()
    return renamed


def timm_hybrid() -> nn.Module:
    pytest.importorskip("timm")
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import _resnetv2

    def embed(**settings: Any) -> nn.Module:
        return HybridEmbed(backbone=_resnetv2((1, 2)), proj=True, **settings)

    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7, "patch_size": 1}
    return randomize(VisionTransformer(**sizes, img_size=64, embed_layer=embed))


def hybrid_directory(folder: Path, state: dict[str, Tensor]) -> Path:
    """The structure of google/vit-hybrid-base-bit-384, downscaled."""
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    bit = {"model_type": "bit", "depths": [1, 2], "global_padding": "same", "layer_type": "bottleneck"}
    config = {**SIZES, "model_type": "vit-hybrid", "layer_norm_eps": 1e-12, "patch_size": 1, "backbone_config": bit}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_hybrid(tmp_path: Path) -> None:
    """timm's hybrid at transformers' epsilon is the reference, because version 5 has removed the class."""
    model = timm_hybrid()
    state = as_vit_hybrid(model.state_dict())
    report = convert(hybrid_directory(tmp_path / "there", state), tmp_path / "out")
    assert report.source.startswith("vit/transformers")
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12
    with torch.no_grad():
        expected = model.double()(IMAGE)
    assert largest_difference(load_converted(AutoClassifier, tmp_path / "out"), IMAGE, expected) < TOLERANCE
    assert export(tmp_path / "out", tmp_path / "back", to="transformers").notes == ()
    assert_equal_states(load_file(tmp_path / "back" / "model.safetensors"), state)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["model_type"], config["backbone_config"]["depths"]) == ("vit-hybrid", [1, 2])
    convert(tmp_path / "back", tmp_path / "again")
    first, second = (load_converted(AutoClassifier, tmp_path / place) for place in ("out", "again"))
    assert_equal_states(second.state_dict(), first.state_dict())


def test_hybrid_encoder(tmp_path: Path) -> None:
    state = as_vit_hybrid(timm_hybrid().state_dict())
    bare = {k.removeprefix("vit."): v for k, v in state.items() if k.startswith("vit.")}
    pooler = {f"pooler.dense.{p}": torch.zeros(48) for p in ("weight", "bias")}
    report = convert(hybrid_directory(tmp_path / "there", {**bare, **pooler}), tmp_path / "out")
    assert {name for name, _ in report.dropped} == pooler.keys()
    export(tmp_path / "out", tmp_path / "back", to="transformers")
    assert_equal_states(load_file(tmp_path / "back" / "model.safetensors"), bare)


MAKERS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "a layer missing": (lambda s: {k: v for k, v in s.items() if "layer.1.attention" not in k}, "encoder.layer.1."),
    "a strange tensor": (lambda s: {**s, "vit.encoder.layer.0.lambda_1": torch.zeros(1)}, "lambda_1"),
}


@pytest.mark.parametrize("case", MAKERS)
def test_unsupported_checkpoints_raise(tmp_path: Path, case: str) -> None:
    make, sentence = MAKERS[case]
    theirs("ViTForImageClassification").save_pretrained(tmp_path / "there")
    file = tmp_path / "there" / "model.safetensors"
    save_file(make(load_file(file)), file)
    assert_refused(tmp_path, sentence, tmp_path / "there")
