"""CvT by its authors (microsoft/CvT): classifiers, and encoders without a head."""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import Rule, drop, rename
from hf_vit_seg.conversion.source import Form, Source
from torch import Tensor

from .config_fields import ASSUMED_FIELDS, NORM_EPS, infer
from .shared_names import BATCH_NORM, LAYER, STAGE, WEIGHTS

HEAD_WIDTH = 64  # head width of all published sizes
BICUBIC = 3


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of the stages; `target` is the prefix of our names."""
    stage, block, layer = "stage{stage}.", "stage{stage}.blocks.{layer}.", target + LAYER
    projection = "{which:q|k|v}"
    return (
        rename(stage + "patch_embed.proj." + WEIGHTS, target + STAGE + "patch_embeddings.projection.{p}"),
        rename(stage + "patch_embed.norm." + WEIGHTS, target + STAGE + "patch_embeddings.norm.{p}"),
        rename(stage + "cls_token", target + STAGE + "cls_token", optional=True),
        rename(block + "norm1." + WEIGHTS, layer + "norm1.{p}"),
        rename(
            block + f"attn.conv_proj_{projection}.conv.weight",
            layer + "attention.{which}_conv.convolution.weight",
            optional=True,
        ),
        rename(
            block + f"attn.conv_proj_{projection}.bn." + BATCH_NORM,
            layer + "attention.{which}_conv.norm.{p}",
            optional=True,
        ),
        rename(block + f"attn.proj_{projection}." + WEIGHTS, layer + "attention.{which}_proj.{p}"),
        rename(block + "attn.proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "norm2." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
    )


def infer_with_heads(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer config fields from shapes, and the number of heads as in the published sizes."""
    fields = infer(state)
    return fields | {"num_attention_heads": [max(width // HEAD_WIDTH, 1) for width in fields["hidden_sizes"]]}


def preprocessing(config: Any) -> dict[str, Any]:
    """Return the evaluation settings at 224: resize the shorter side to 256 (bicubic), and crop the center."""
    return {"resample": BICUBIC}


SOURCE = Source(
    name="microsoft",
    title="CvT by its authors (microsoft/CvT, .pth)",
    forms=(
        Form(
            model="AutoModelForImageClassification",
            signature=("stage0.patch_embed.proj.weight", "head.weight"),
            rules=(
                *encoder("cvt."),
                rename("norm." + WEIGHTS, "norm.{p}"),
                rename("head." + WEIGHTS, "classifier.{p}"),
            ),
            write=write_state_dict,
        ),
        Form(
            model="AutoModel",
            signature=("stage0.patch_embed.proj.weight",),
            rules=(
                *encoder(""),
                drop("norm." + WEIGHTS, "the classifier's norm, in a file without classifier", optional=True),
            ),
            write=write_state_dict,
        ),
    ),
    infer=infer_with_heads,
    numerics={**NORM_EPS, "hidden_act": "quick_gelu"},
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
    notes=(
        "the files do not contain their training size: preprocessing assumes 224x224 (crop of 256, bicubic); for "
        "384x384, set size to this size and do_center_crop to false, to resize the whole image",
    ),
)
