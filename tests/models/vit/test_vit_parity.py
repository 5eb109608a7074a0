"""ViT, its relatives and the hybrids compared with timm and transformers, live, with random weights in float64."""

from typing import Any

import pytest
import torch
from random_weights import randomize_weights
from vit_names import from_timm

from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.modeling_vit import VisionTransformerForImageClassification, VisionTransformerModel

timm = pytest.importorskip("timm")
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2  # noqa: E402

THEIRS: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7, "patch_size": 16}
OURS: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "num_labels": 7,
    "patch_size": 16,
}
TIMM_STEM: dict[str, Any] = {
    "stem": "resnetv2",
    "stem_weight_standardization_mode": "sqrt_var_plus_eps",
    "stem_weight_standardization_eps": 1e-8,
    "stem_group_norm_eps": 1e-5,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "square": ({"img_size": 64}, {"image_size": 64}, (64, 64)),
    "rectangle": ({"img_size": (64, 96)}, {"image_size": (64, 96)}, (64, 96)),
    "tuple patch": (
        {"img_size": (64, 48), "patch_size": (16, 8)},
        {"image_size": (64, 48), "patch_size": (16, 8)},
        (64, 48),
    ),
    "other grid": ({"img_size": (64, 32), "dynamic_img_size": True}, {"image_size": (64, 32)}, (96, 80)),
    "smaller grid": ({"img_size": 96, "dynamic_img_size": True}, {"image_size": 96}, (32, 48)),
    "padded": (
        {"img_size": 64, "dynamic_img_size": True, "dynamic_img_pad": True},
        {"image_size": 64},
        (61, 45),
    ),
    "no qkv bias": ({"img_size": 64, "qkv_bias": False}, {"image_size": 64, "qkv_bias": False}, (64, 64)),
    "layer scale": (
        {"img_size": 64, "init_values": 1e-5},
        {"image_size": 64, "layer_scale_init_value": 1e-5},
        (64, 64),
    ),
    "DeiT III": (
        {"img_size": 64, "no_embed_class": True, "init_values": 1e-5},
        {"image_size": 64, "position_embeddings_cover_prefix": False, "layer_scale_init_value": 1e-5},
        (64, 64),
    ),
    "registers": (
        {"img_size": 64, "no_embed_class": True, "reg_tokens": 4},
        {"image_size": 64, "position_embeddings_cover_prefix": False, "num_register_tokens": 4},
        (64, 64),
    ),
    "mean": (
        {"img_size": 64, "global_pool": "avg"},
        {"image_size": 64, "pooling": "mean", "pool_norm": True, "use_final_norm": False},
        (64, 64),
    ),
    "mean without class token": (
        {
            "img_size": 64,
            "global_pool": "avg",
            "class_token": False,
            "fc_norm": False,
            "reg_tokens": 2,
            "no_embed_class": True,
        },
        {
            "image_size": 64,
            "pooling": "mean",
            "use_cls_token": False,
            "position_embeddings_cover_prefix": False,
            "num_register_tokens": 2,
        },
        (64, 64),
    ),
}


def compare(reference, config: VisionTransformerConfig, size: tuple[int, int]) -> None:
    """Same weights, same images, same logits."""
    reference = randomize_weights(reference).double().eval()
    model = VisionTransformerForImageClassification(config).double().eval()
    model.load_state_dict(from_timm(reference.state_dict()), strict=True)
    pixel_values = torch.randn(2, 3, *size, dtype=torch.float64)
    # timm resizes positions in float32 for any dtype.
    tolerance = 1e-10 if config.token_grid(*size) == config.grid_size else 1e-6
    with torch.no_grad():
        expected = reference(pixel_values)
        for _ in range(2):  # the second call uses the cache of the first
            torch.testing.assert_close(model(pixel_values).logits, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(model(pixel_values).logits.detach(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_pure_vit_matches_timm(case):
    theirs, ours, size = CASES[case]
    compare(VisionTransformer(**(THEIRS | theirs)), VisionTransformerConfig(**(OURS | ours)), size)


def test_distilled_vit_matches_timm():
    reference = VisionTransformerDistilled(**THEIRS, img_size=64)
    compare(reference, VisionTransformerConfig(**OURS, image_size=64, use_distillation_token=True), (64, 64))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("depths", "patch"), [((), 8), ((1,), 4), ((2, 1), 2), ((1, 1, 1, 1), 1)])
def test_hybrid_matches_timm(depths, patch, padding):
    backbone = _resnetv2(depths, padding_same=padding == "same")
    reference = VisionTransformer(
        **(THEIRS | {"patch_size": patch}), img_size=(64, 96), embed_layer=HybridEmbedOn(backbone)
    )
    config = VisionTransformerConfig(
        **(OURS | TIMM_STEM | {"patch_size": patch}), image_size=(64, 96), stem_depths=depths, stem_padding=padding
    )
    compare(reference, config, (64, 96))


def test_hybrid_at_odd_sizes_is_timm_on_the_padded_image():
    """Documented in docs/architectures/hybrid.md: timm pads the stem's map, not the image."""
    backbone = _resnetv2((1, 1), padding_same=True)
    settings = THEIRS | {"patch_size": 2, "dynamic_img_size": True, "dynamic_img_pad": True}
    reference = VisionTransformer(**settings, img_size=(64, 96), embed_layer=HybridEmbedOn(backbone))
    reference = randomize_weights(reference).double().eval()
    config = VisionTransformerConfig(**(OURS | TIMM_STEM | {"patch_size": 2}), image_size=(64, 96), stem_depths=(1, 1))
    model = VisionTransformerForImageClassification(config).double().eval()
    model.load_state_dict(from_timm(reference.state_dict()), strict=True)
    pixel_values = torch.randn(1, 3, 61, 83, dtype=torch.float64)
    padded = torch.nn.functional.pad(pixel_values, (0, 96 - 83, 0, 64 - 61))
    with torch.no_grad():
        found = model(pixel_values).logits
        torch.testing.assert_close(found, reference(padded), rtol=1e-10, atol=1e-10)
        assert reference(pixel_values).shape == found.shape and (reference(pixel_values) - found).abs().max() > 1e-3


class HybridEmbedOn:
    """timm's embedding layer on a given backbone."""

    def __init__(self, backbone: torch.nn.Module):
        self.backbone = backbone

    def __call__(self, **settings):
        return HybridEmbed(backbone=self.backbone, proj=True, **settings)


@pytest.mark.parametrize(
    ("name", "depths", "patch"),
    [
        ("vit_tiny_r_s16_p8_224", (), 8),
        ("vit_small_r26_s32_224", (2, 2, 2, 2), 1),
        ("vit_base_r50_s16_224", (3, 4, 9), 1),
    ],
)
def test_published_hybrids_match_timm(name, depths, patch):
    reference = timm.create_model(name, pretrained=False, num_classes=7)
    config = VisionTransformerConfig(
        **TIMM_STEM,
        stem_depths=depths,
        patch_size=patch,
        hidden_size=reference.embed_dim,
        num_attention_heads=reference.blocks[0].attn.num_heads,
        intermediate_size=4 * reference.embed_dim,
        num_labels=7,
    )
    compare(reference, config, (224, 224))


def test_encoder_matches_timm():
    reference = randomize_weights(VisionTransformer(**(THEIRS | {"num_classes": 0}), img_size=64)).double().eval()
    model = VisionTransformerModel(VisionTransformerConfig(**OURS, image_size=64)).double().eval()
    model.load_state_dict(from_timm(reference.state_dict(), prefix=""), strict=True)
    pixel_values = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = reference.forward_features(pixel_values)
        torch.testing.assert_close(model(pixel_values).last_hidden_state, expected, rtol=1e-10, atol=1e-10)
