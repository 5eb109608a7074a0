"""Vision Transformer of jeonsworld/ViT-pytorch (.bin), pure and hybrid: fine-tuned weights of Google."""

from typing import Any

from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import Rule, rename
from hf_vit_seg.conversion.source import Form, Source

from .config_fields import ASSUMED_FIELDS, ERF_NUMERICS, HALF, JEONSWORLD_STEM, infer, resize_settings
from .shared_names import EMBEDDINGS, LAYER, STEM, UNIT, WEIGHTS

STEM_NUMERICS = {
    "stem_weight_standardization_eps": 1e-5,
    "stem_weight_standardization_mode": "sqrt_var_plus_eps",
    "stem_group_norm_eps": 1e-6,
    "stem_shortcut_norm_eps": 1e-5,
}
HYBRID_MODEL = "transformer.embeddings.hybrid_model."
HEADS = rename("head." + WEIGHTS, "classifier.{p}")
SETTINGS = {"pooling": "token", "pre_logits_size": None}


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of the model without its head."""
    here, there = target + EMBEDDINGS, "transformer.embeddings."
    block, layer = "transformer.encoder.layer.{layer}.", target + LAYER
    projections = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj"))
    return (
        rename(there + "cls_token", here + "cls_token"),
        rename(there + "position_embeddings", here + "position_embeddings"),
        rename(there + "patch_embeddings." + WEIGHTS, here + "patch_embeddings.projection.{p}"),
        rename(block + "attention_norm." + WEIGHTS, layer + "norm1.{p}"),
        rename(block + "ffn_norm." + WEIGHTS, layer + "norm2.{p}"),
        *(rename(f"{block}attn.{a}." + WEIGHTS, f"{layer}attention.{b}.{{p}}") for a, b in projections),
        rename(block + "ffn.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
        rename("transformer.encoder.encoder_norm." + WEIGHTS, target + "norm.{p}"),
    )


def stem(target: str) -> tuple[Rule, ...]:
    """Return the rules of the hybrid's ResNet, a port of Google's with other padding and norms of the shortcuts."""
    unit, here = HYBRID_MODEL + "body.block{stage+1}.unit{unit+1}.", target + UNIT
    return (
        rename(HYBRID_MODEL + "root.conv.weight", target + STEM + "conv.weight"),
        rename(HYBRID_MODEL + "root.gn." + WEIGHTS, target + STEM + "norm.{p}"),
        rename(unit + "conv{n:1|2|3}.weight", here + "conv{n}.weight"),
        rename(unit + "gn{n:1|2|3}." + WEIGHTS, here + "norm{n}.{p}"),
        rename(unit + "downsample.weight", here + "shortcut.weight"),
        rename(unit + "gn_proj." + WEIGHTS, here + "shortcut_norm.{p}"),
    )


def preprocessing(config: Any) -> dict[str, Any]:
    """Return settings that resize the whole image to the training size, with values from -1 to 1."""
    return resize_settings(config) | HALF


SOURCE = Source(
    name="jeonsworld",
    title="Vision Transformer of jeonsworld/ViT-pytorch (.bin)",
    forms=(
        Form(
            model="AutoModelForImageClassification",
            signature=(HYBRID_MODEL + "root.conv.weight", "head.weight"),
            rules=(*encoder("vit."), *stem("vit."), HEADS),
            settings=JEONSWORLD_STEM | SETTINGS,
            numerics=STEM_NUMERICS,
            write=write_state_dict,
        ),
        Form(
            model="AutoModelForImageClassification",
            signature=("transformer.embeddings.position_embeddings", "head.weight"),
            rules=(*encoder("vit."), HEADS),
            settings={"stem": "patch", **SETTINGS},
            write=write_state_dict,
        ),
    ),
    infer=infer,
    numerics={
        **ERF_NUMERICS,
        "position_resize_mode": "bilinear",
        "position_resize_align_corners": True,
        "position_resize_antialias": False,
    },
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
)
