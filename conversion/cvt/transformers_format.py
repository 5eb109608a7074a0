"""Cvt of transformers: the same names on disk and in memory."""

from hf_vit_seg.conversion.files.writers import transformers_writer
from hf_vit_seg.conversion.rules import Rule, rename
from hf_vit_seg.conversion.source import Form, Source

from .config_fields import ASSUMED_FIELDS, NORM_EPS, infer
from .shared_names import BATCH_NORM, LAYER, STAGE, WEIGHTS

# Our names of the fields, and those of transformers' config.
FIELDS = {
    "num_channels": "num_channels",
    "depths": "depth",
    "hidden_sizes": "embed_dim",
    "num_attention_heads": "num_heads",
    "patch_sizes": "patch_sizes",
    "strides": "patch_stride",
    "paddings": "patch_padding",
    "mlp_ratios": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "use_cls_token": "cls_token",
    "projection_methods": "qkv_projection_method",
    "kernel_qkv": "kernel_qkv",
    "stride_kv": "stride_kv",
    "padding_kv": "padding_kv",
    "hidden_dropout_prob": "drop_rate",
    "attention_probs_dropout_prob": "attention_drop_rate",
    "drop_path_rate": "drop_path_rate",
    "initializer_range": "initializer_range",
}


def encoder(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the stages, with a prefix on each side."""
    stage, block = source + "encoder.stages.{stage}.", source + "encoder.stages.{stage}.layers.{layer}."
    layer, attention = target + LAYER, block + "attention.attention."
    words = (("query", "q"), ("key", "k"), ("value", "v"))
    return (
        rename(
            stage + "embedding.convolution_embeddings.projection." + WEIGHTS,
            target + STAGE + "patch_embeddings.projection.{p}",
        ),
        rename(
            stage + "embedding.convolution_embeddings.normalization." + WEIGHTS,
            target + STAGE + "patch_embeddings.norm.{p}",
        ),
        rename(stage + "cls_token", target + STAGE + "cls_token", optional=True),
        rename(block + "layernorm_before." + WEIGHTS, layer + "norm1.{p}"),
        *(rule for word, letter in words for rule in projection(attention, word, layer, letter)),
        rename(block + "attention.output.dense." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "layernorm_after." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "intermediate.dense." + WEIGHTS, layer + "mlp.fc1.{p}"),
        rename(block + "output.dense." + WEIGHTS, layer + "mlp.fc2.{p}"),
    )


def projection(attention: str, word: str, layer: str, letter: str) -> tuple[Rule, ...]:
    """Return the rules of queries, keys or values: a convolution, its norm, and a linear layer."""
    there = f"{attention}convolution_projection_{word}.convolution_projection."
    here = f"{layer}attention.{letter}_"
    return (
        rename(there + "convolution.weight", here + "conv.convolution.weight"),
        rename(there + "normalization." + BATCH_NORM, here + "conv.norm.{p}"),
        rename(f"{attention}projection_{word}." + WEIGHTS, here + "proj.{p}"),
    )


def model_writer(model: str):
    """Create the writer of a model class. BitImageProcessor has the same resize and crop as ours."""
    fields = FIELDS | {"padding_q": "padding_q"}
    return transformers_writer("CvtConfig", model, "BitImageProcessor", fields)


FIRST = "encoder.stages.0.embedding.convolution_embeddings.projection.weight"

SOURCE = Source(
    name="transformers",
    title="Cvt of transformers (a directory of save_pretrained, or its weights)",
    forms=(
        Form(
            model="AutoModelForImageClassification",
            signature=("cvt." + FIRST, "classifier.weight"),
            rules=(
                *encoder("cvt.", "cvt."),
                rename("layernorm." + WEIGHTS, "norm.{p}"),
                rename("classifier." + WEIGHTS, "classifier.{p}"),
            ),
            write=model_writer("CvtForImageClassification"),
            directory=True,
        ),
        Form(
            model="AutoModel",
            signature=(FIRST,),
            rules=encoder("", ""),
            write=model_writer("CvtModel"),
            directory=True,
        ),
    ),
    infer=infer,
    # transformers builds every norm with PyTorch's default, ignoring its config, and supports one activation.
    numerics={**NORM_EPS, "hidden_act": "gelu"},
    settings=tuple(FIELDS),
    config_names=FIELDS,
    assumed_fields=ASSUMED_FIELDS,
    model_types=("cvt",),
    notes=(
        "the released CvT was trained with QuickGELU, which transformers replaces with GELU; hidden_act is gelu, as in "
        "transformers",
    ),
)
