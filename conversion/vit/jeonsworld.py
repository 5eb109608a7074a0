"""Vision Transformer of jeonsworld/ViT-pytorch (.bin): fine-tuned weights of Google."""

from typing import Any

from hf_vit_seg.conversion.rules import Rule, rename
from hf_vit_seg.conversion.source import Form, Source, refusal
from hf_vit_seg.conversion.writers import write_bare

from .config_fields import ERF_NUMERICS, HALF, UNSEEN, infer, resize_settings
from .names import EMBEDDINGS, LAYER, WEIGHTS

HYBRID = (
    "it is a hybrid of jeonsworld/ViT-pytorch, whose stem differs from every other implementation (GroupNorm of the "
    "shortcuts with one group per channel, symmetric padding, unpadded pooling), so that outputs would differ; convert "
    "Google's .npz and fine-tune that"
)


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


def preprocessing(config: Any) -> dict[str, Any]:
    """Return settings that resize the whole image to the training size, with values from -1 to 1."""
    return resize_settings(config) | HALF


SOURCE = Source(
    name="jeonsworld",
    title="Vision Transformer of jeonsworld/ViT-pytorch (.bin)",
    forms=(
        refusal(("transformer.embeddings.hybrid_model.root.conv.weight",), HYBRID),
        Form(
            model="AutoModelForImageClassification",
            marks=("transformer.embeddings.position_embeddings", "head.weight"),
            rules=(*encoder("vit."), rename("head." + WEIGHTS, "classifier.{p}")),
            settings={"stem": "patch", "pooling": "token", "pre_logits_size": None},
            write=write_bare,
        ),
    ),
    infer=infer,
    numerics={
        **ERF_NUMERICS,
        "position_resize_mode": "bilinear",
        "position_resize_align_corners": True,
        "position_resize_antialias": False,
    },
    unseen=UNSEEN,
    preprocessing=preprocessing,
)
