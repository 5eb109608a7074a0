"""Vision Transformer of timm: ViT, DeiT, and hybrids; also files of DeiT, MAE, DINO and DINOv2 with the same names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hf_vit_seg.conversion.errors import UnsupportedCheckpoint, first_few
from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import Rule, alias, drop, optional, rename
from hf_vit_seg.conversion.source import Form, Source, unsupported_form

from hf_vit_seg.records import shorten

from .config_fields import ASSUMED_FIELDS, ERF_NUMERICS, PYTORCH_STEM, USUAL_STEM, infer
from .shared_names import EMBEDDINGS, STEM, UNIT, WEIGHTS, timm_layers, timm_patches, timm_tokens

BACKBONE = "patch_embed.backbone."
PATCHES, LAYERS = "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"
MASKS = "the mask token, which is only used in pretraining"
DECODER = "a part of MAE's decoder, which is only used in pretraining"
POOLED = "the norm of a classifier that is not in the file"

REFUSED = {
    (BACKBONE + "layer1.0.conv1.weight",): (
        "it is a hybrid with timm's ResNet-D (BatchNorm), which has no published weights; use the hybrids of the paper "
        "(vit_*_r26_s32_*, vit_*_r50_*)"
    ),
    ("blocks.0.mlp.w12.weight",): "it has gated MLPs (SwiGLU, as in DINOv2 giant), which are not supported",
    ("blocks.0.mlp.gate.weight",): "it has gated MLPs (SwiGLU), which are not supported",
    ("blocks.0.attn.q_norm.weight",): "it normalizes queries and keys, which is not supported",
    ("norm_pre.weight",): "it normalizes embeddings (as in CLIP), which is not supported",
    ("attn_pool.q.weight",): "it has attention pooling, expected the class token or mean pooling",
    ("blocks.0.attn.rel_pos.relative_position_bias_table",): "it has relative positions, expected absolute ones",
    ("blocks.0.attn.relative_position_bias_table",): "it has relative positions, expected absolute ones",
}
# Architectures of timm whose tensors have the same names, but whose computation differs.
OTHER_ARCHITECTURES = {
    r"^(eva|beit)|rope|dinov3|_pe_": "it has rotary or relative positions, expected learned absolute ones",
    r"_rpn_": "it normalizes after attention and MLP, expected before them",
    r"giantopt": "its activation is the approximated GELU, expected the exact one",
    r"^vit_base_patch16_gap_|^test_vit": "its attention heads do not have width 64",
    r"patch14_siglip_gap_384": "its image size is not a multiple of the patch size",
}
# Arguments of a timm model whose effect is visible in tensors, or is read, or applies to training only.
KNOWN_ARGUMENTS = {
    "num_classes",
    "in_chans",
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "proj_bias",
    "init_values",
    "class_token",
    "reg_tokens",
    "no_embed_class",
    "global_pool",
    "dynamic_img_size",
    "strict_img_size",
    "weight_init",
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpoint for a config.json of timm with settings that tensors do not show."""
    name, pool = str(config.get("architecture", "")), config.get("global_pool") or "token"
    for pattern, reason in OTHER_ARCHITECTURES.items():
        if re.search(pattern, name):
            raise UnsupportedCheckpoint(f"'{name}' of timm cannot be converted: {reason}")
    if pool not in ("token", "avg"):
        raise UnsupportedCheckpoint(
            f"'{name}' of timm cannot be converted: global_pool is {shorten(pool)}, expected 'token' or 'avg'"
        )
    arguments = config.get("model_args")
    if unknown := sorted(set(arguments) - KNOWN_ARGUMENTS if isinstance(arguments, Mapping) else ()):
        raise UnsupportedCheckpoint(
            f"'{name}' of timm has the model_args {first_few(unknown)}, which are not supported"
        )


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of embeddings, layers and norm of the pure ViT; DINOv2's files have `register_tokens`."""
    registers = target + EMBEDDINGS + "register_tokens"
    return (
        *timm_tokens("", target),
        *timm_patches("", target),
        rename("reg_token", registers, optional=True),
        alias(rename("register_tokens", registers)),
        drop("mask_token", MASKS, optional=True),
        *timm_layers("", target),
        rename("norm." + WEIGHTS, target + "norm.{p}", optional=True),
    )


def root(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the ResNet's first convolution."""
    return (
        rename(source + "conv.weight", target + STEM + "conv.weight"),
        rename(source + "norm." + WEIGHTS, target + STEM + "norm.{p}"),
    )


def resnet(target: str) -> tuple[Rule, ...]:
    """Return the rules of the ResNet with its stages."""
    unit, here = BACKBONE + "stages.{stage}.blocks.{unit}.", target + UNIT
    return (
        *root(BACKBONE + "stem.", target),
        rename(unit + "conv{n:1|2|3}.weight", here + "conv{n}.weight"),
        rename(unit + "norm{n:1|2|3}." + WEIGHTS, here + "norm{n}.{p}"),
        rename(unit + "downsample.conv.weight", here + "shortcut.weight"),
        rename(unit + "downsample.norm." + WEIGHTS, here + "shortcut_norm.{p}"),
    )


def mae_decoder() -> Iterable[Rule]:
    """Yield the rules of MAE's decoder."""
    block = "decoder_blocks.{layer}."
    names = ("decoder_embed.", "decoder_norm.", "decoder_pred.", block + "{which:norm1|norm2}.")
    inner = (block + "attn.{which:qkv|proj}.", block + "mlp.{which:fc1|fc2}.")
    yield drop("decoder_pos_embed", DECODER)
    yield from (drop(name + WEIGHTS, DECODER) for name in (*names, *inner))


HEADS = (
    rename("head." + WEIGHTS, "classifier.{p}"),
    rename("head_dist." + WEIGHTS, "distillation_classifier.{p}", optional=True),
    rename("fc_norm." + WEIGHTS, "pool_norm.{p}", optional=True),
    rename("pre_logits.fc." + WEIGHTS, "pre_logits.{p}", optional=True),
)
BARE = (
    drop("fc_norm." + WEIGHTS, POOLED, optional=True),
    *(optional(rule) for rule in mae_decoder()),
)


def forms(
    signature: tuple[str, ...], stem: Any, settings: Mapping[str, Any], numerics: Mapping[str, Any]
) -> tuple[Form, ...]:
    """Return the forms of classifier and encoder for a stem."""
    return (
        Form(
            model="AutoModelForImageClassification",
            signature=(*signature, LAYERS, "head.weight"),
            rules=(*encoder("vit."), *stem("vit."), *HEADS),
            settings=settings,
            numerics=numerics,
            write=write_state_dict,
        ),
        Form(
            model="AutoModel",
            signature=(*signature, LAYERS),
            rules=(*encoder(""), *stem(""), *BARE),
            settings=settings,
            numerics=numerics,
            write=write_state_dict,
        ),
    )


SOURCE = Source(
    name="timm",
    title="Vision Transformer of timm, and of DeiT, MAE, DINO and DINOv2 with the same names",
    forms=(
        *(unsupported_form((LAYERS, *signature), sentence) for signature, sentence in REFUSED.items()),
        *forms(
            (BACKBONE + "conv.weight",),
            lambda target: root(BACKBONE, target),
            {**USUAL_STEM, "stem_depths": []},
            PYTORCH_STEM,
        ),
        *forms((BACKBONE + "stem.conv.weight",), resnet, USUAL_STEM, PYTORCH_STEM),
        *forms((PATCHES,), lambda target: (), {"stem": "patch"}, {}),
    ),
    infer=infer,
    numerics={
        **ERF_NUMERICS,
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": False,
        "position_resize_antialias": True,
    },
    settings=ASSUMED_FIELDS,
    config_names={"num_attention_heads": "model_args.num_heads"},
    check_config=check_config,
    assumed_fields=ASSUMED_FIELDS,
)
