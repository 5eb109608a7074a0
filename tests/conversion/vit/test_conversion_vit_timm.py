"""timm's models, run live, and files of DeiT, MAE, DINO and DINOv2: match in float64 and round-trip losslessly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_references import (
    TOLERANCE,
    assert_equal_states,
    assert_refused,
    largest_difference,
    load_converted,
    randomize,
)
from hf_vit_seg.conversion.convert import convert, export
from torch import Tensor, nn
from transformers import AutoModel
from transformers import AutoModelForImageClassification as AutoClassifier
from transformers import AutoModelForSemanticSegmentation as AutoSegmenter

timm = pytest.importorskip("timm")
from timm.layers.hybrid_embed import HybridEmbed  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from timm.models.vision_transformer_hybrid import _resnetv2  # noqa: E402

SIZES: dict[str, Any] = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 7, "patch_size": 16}
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vit(**options: Any) -> Any:
    return randomize(VisionTransformer(**{**SIZES, "img_size": 64, **options}))


def distilled_model(**options: Any) -> nn.Module:
    return randomize(VisionTransformerDistilled(**{**SIZES, "img_size": 64, **options}))


def hybrid(depths: tuple[int, ...], patch: int) -> Any:
    def embed(**settings: Any) -> nn.Module:
        return HybridEmbed(backbone=_resnetv2(depths), proj=True, **settings)

    return vit(patch_size=patch, embed_layer=embed)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "patches of 8x16": lambda: vit(patch_size=(8, 16), img_size=(32, 64)),
    "without qkv bias": lambda: vit(qkv_bias=False),
    "layer scale": lambda: vit(init_values=1e-5),
    "deit 3": lambda: vit(init_values=1e-5, no_embed_class=True),
    "dinov2 with registers": lambda: vit(init_values=1e-5, no_embed_class=True, reg_tokens=4),
    "mean": lambda: vit(global_pool="avg"),
    "mean without class token": lambda: vit(global_pool="avg", class_token=False),
    "mean without norms": lambda: vit(global_pool="avg", class_token=False, fc_norm=False),
    "distilled": distilled_model,
    "hybrid": lambda: hybrid((2, 1), 2),
    "hybrid of four stages": lambda: hybrid((1, 1, 1, 1), 1),
    "hybrid of a stem": lambda: hybrid((), 4),
}


def random_image(model: Any) -> Tensor:
    return IMAGE[:, :, : model.patch_embed.img_size[0], : model.patch_embed.img_size[1]]


@torch.no_grad()
def logits_of(model: nn.Module, image: Tensor) -> Tensor:
    return model.double()(image)


def save_state(state: dict[str, Tensor], path: Path, wrapper: str | None = None) -> Path:
    torch.save({wrapper: state} if wrapper else state, path)
    return path


@pytest.mark.parametrize("case", MODELS)
def test_parity_and_round_trip(tmp_path: Path, case: str) -> None:
    model = MODELS[case]()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Only square grids can be inferred from the number of positions.
    options: dict[str, Any] = {"settings": {"image_size": [32, 64]}} if case == "patches of 8x16" else {}
    report = convert(save_state(state, tmp_path / "timm.pth"), tmp_path / "out", **options)
    assert report.source.startswith("vit/timm")
    ours, image = load_converted(AutoClassifier, tmp_path / "out"), random_image(model)
    assert largest_difference(ours, image, logits_of(model, image)) < TOLERANCE
    report = export(tmp_path / "out", tmp_path / "back.pth", to="timm")
    assert report.notes == ()
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), state)


@pytest.mark.parametrize("make", [lambda: vit(num_classes=0), lambda: hybrid((1, 1), 2)], ids=["vit", "hybrid"])
def test_encoder(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = make()
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("head.")}
    report = convert(save_state(state, tmp_path / "timm.pth"), tmp_path / "out")
    assert report.model == "VisionTransformerModel"
    with torch.no_grad():
        expected = model.double().forward_features(IMAGE)
    assert largest_difference(load_converted(AutoModel, tmp_path / "out"), IMAGE, expected) < TOLERANCE
    export(tmp_path / "out", tmp_path / "back.pth", to="timm")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), state)


def block_names(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items() if k.startswith("blocks.0.")}


def test_mae(tmp_path: Path) -> None:
    """MAE's own file: the encoder under `model`, together with the decoder for pretraining."""
    model = vit(num_classes=0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = ("embed", "norm", "pred")
    decoder = {f"decoder_{name}.{p}": torch.randn(3) for name in pairs for p in ("weight", "bias")}
    decoder |= {"decoder_pos_embed": torch.randn(1, 17, 3), "mask_token": torch.randn(1, 1, 3)}
    decoder |= block_names("decoder_", state)
    report = convert(save_state({**state, **decoder}, tmp_path / "mae.pth", "model"), tmp_path / "out")
    assert {name for name, _ in report.dropped} == decoder.keys()
    with torch.no_grad():
        expected = model.double().forward_features(IMAGE)
    assert largest_difference(load_converted(AutoModel, tmp_path / "out"), IMAGE, expected) < TOLERANCE
    for auto, heads in ((AutoSegmenter, "decode_head."), (AutoClassifier, "classifier.")):
        _, info = auto.from_pretrained(tmp_path / "out", num_labels=3, output_loading_info=True)
        assert info["missing_keys"] and all(name.startswith(heads) for name in info["missing_keys"])
        assert not info["unexpected_keys"]


def test_facebook_dinov2(tmp_path: Path) -> None:
    """Its registers have no positions and its class token has one; timm stores their sum."""
    model = vit(num_classes=0, init_values=1e-5, reg_tokens=4, no_embed_class=True)
    timms = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    place = torch.randn(1, 1, 128)
    facebook = {("register_tokens" if k == "reg_token" else k): v.clone() for k, v in timms.items()}
    facebook["pos_embed"] = torch.cat([place, facebook["pos_embed"]], dim=1)
    facebook["mask_token"] = torch.randn(1, 128)
    model.double().load_state_dict({k: v.double() for k, v in timms.items()})
    with torch.no_grad():
        model.cls_token += place
        expected = model.forward_features(IMAGE)
    report = convert(save_state(facebook, tmp_path / "dinov2.pth"), tmp_path / "out")
    assert [name for name, _ in report.dropped] == ["mask_token"]
    assert largest_difference(load_converted(AutoModel, tmp_path / "out"), IMAGE, expected) < TOLERANCE


def test_facebook_deit_3(tmp_path: Path) -> None:
    """Its files name the scales gamma_1 and gamma_2."""
    state = vit(init_values=1e-5, no_embed_class=True).state_dict()
    spelled = {k.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): v for k, v in state.items()}
    assert spelled.keys() != state.keys()
    convert(save_state(spelled, tmp_path / "deit.pth", "model"), tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.pth", to="timm")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), dict(state))


@pytest.mark.parametrize(
    ("name", "variant"),
    # With exact GELU, timm's ViT-Ti is the same function as DeiT-Ti.
    [
        ("vit_tiny_patch16_224", "deit-ti-16"),
        ("vit_tiny_r_s16_p8_224", "r-ti-16"),
        ("vit_small_r26_s32_224", "r26-s-32"),
    ],
)
def test_published_variants(tmp_path: Path, name: str, variant: str) -> None:
    model = randomize(timm.create_model(name, pretrained=False))
    report = convert(save_state(dict(model.state_dict()), tmp_path / "timm.pth"), tmp_path / "out")
    assert report.variant == variant
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    assert (
        largest_difference(load_converted(AutoClassifier, tmp_path / "out"), image, logits_of(model, image)) < TOLERANCE
    )


def resnet_d() -> dict[str, Tensor]:
    names = ("conv1.0.weight", "bn1.weight", "layer1.0.conv1.weight")
    return {**vit().state_dict(), **{f"patch_embed.backbone.{name}": torch.zeros(1) for name in names}}


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "flavour B": (resnet_d, "ResNet-D (BatchNorm)"),
    "gated": (lambda: {**vit().state_dict(), "blocks.0.mlp.w12.weight": torch.zeros(1)}, "SwiGLU"),
    "normed queries": (lambda: dict(vit(qk_norm=True).state_dict()), "normalizes queries and keys"),
    "CLIP": (lambda: dict(vit(pre_norm=True).state_dict()), "normalizes embeddings"),
    "attention pooling": (lambda: dict(vit(global_pool="map").state_dict()), "has attention pooling"),
    "a strange tensor": (lambda: {**vit().state_dict(), "neck.weight": torch.zeros(1)}, "'neck.weight'"),
    "a missing layer": (
        lambda: {k: v for k, v in vit().state_dict().items() if not k.startswith("blocks.1.attn")},
        "lacks 'blocks.1.attn.",
    ),
    "an odd qkv": (lambda: {**vit().state_dict(), "blocks.1.attn.qkv.bias": torch.zeros(31)}, "split into 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_checkpoints_raise(tmp_path: Path, case: str) -> None:
    make, sentence = REFUSED[case]
    assert_refused(tmp_path, sentence, save_state(make(), tmp_path / "timm.pth"))
