"""Segformer of transformers: names on disk (4.x and 5.x), and names in memory since 5.0."""

from collections.abc import Callable, Sequence

from hf_vit_seg.conversion.files.writers import transformers_writer
from hf_vit_seg.conversion.rules import Rule, rename
from hf_vit_seg.conversion.source import Form, Source, Writer

from .config_fields import ASSUMED_FIELDS, NVIDIA, SETTINGS, infer
from .shared_names import BATCH_NORM, HEAD, LAYER, STAGE, WEIGHTS

# Fields that transformers calls otherwise.
NAMES = {"decode_head_hidden_size": "decoder_hidden_size", "decode_head_dropout_prob": "classifier_dropout_prob"}
SHARED_FIELDS = (
    *SETTINGS,
    "num_channels",
    "depths",
    "hidden_sizes",
    "sr_ratios",
    "patch_sizes",
    "mlp_ratios",
    "decode_head_hidden_size",
    "layer_norm_eps",
)


def on_disk(source: str, target: str) -> tuple[Rule, ...]:
    """Return the encoder's rules with the names that save_pretrained writes."""
    block, layer = source + "encoder.block.{stage}.{layer}.", target + LAYER
    patches = source + "encoder.patch_embeddings.{stage}."
    attention = block + "attention.self."
    return (
        rename(patches + "proj." + WEIGHTS, target + STAGE + "patch_embeddings.projection.{p}"),
        rename(patches + "layer_norm." + WEIGHTS, target + STAGE + "patch_embeddings.norm.{p}"),
        rename(block + "layer_norm_1." + WEIGHTS, layer + "norm1.{p}"),
        rename(attention + "query." + WEIGHTS, layer + "attention.q_proj.{p}"),
        rename(attention + "key." + WEIGHTS, layer + "attention.k_proj.{p}"),
        rename(attention + "value." + WEIGHTS, layer + "attention.v_proj.{p}"),
        rename(block + "attention.output.dense." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(attention + "sr." + WEIGHTS, layer + "attention.reduction.{p}", optional=True),
        rename(attention + "layer_norm." + WEIGHTS, layer + "attention.reduction_norm.{p}", optional=True),
        rename(block + "layer_norm_2." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "mlp.dense1." + WEIGHTS, layer + "mlp.fc1.{p}"),
        rename(block + "mlp.dwconv.dwconv." + WEIGHTS, layer + "mlp.dwconv.{p}"),
        rename(block + "mlp.dense2." + WEIGHTS, layer + "mlp.fc2.{p}"),
        rename(source + "encoder.layer_norm.{stage}." + WEIGHTS, target + STAGE + "norm.{p}"),
    )


def in_memory(source: str, target: str) -> tuple[Rule, ...]:
    """Return the encoder's rules with the names of `state_dict()` since transformers 5.0."""
    stage, block = source + STAGE, source + STAGE + "blocks.{layer}."
    layer, reduction = target + LAYER, block + "attention.sequence_reduction."
    return (
        rename(stage + "patch_embeddings.proj." + WEIGHTS, target + STAGE + "patch_embeddings.projection.{p}"),
        rename(stage + "patch_embeddings.layer_norm." + WEIGHTS, target + STAGE + "patch_embeddings.norm.{p}"),
        rename(block + "layernorm_before." + WEIGHTS, layer + "norm1.{p}"),
        rename(
            block + "attention.{which:q_proj|k_proj|v_proj|o_proj}." + WEIGHTS,
            layer + "attention.{which}.{p}",
        ),
        rename(reduction + "sequence_reduction." + WEIGHTS, layer + "attention.reduction.{p}", optional=True),
        rename(reduction + "layer_norm." + WEIGHTS, layer + "attention.reduction_norm.{p}", optional=True),
        rename(block + "layernorm_after." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
        rename(block + "mlp.dwconv.dwconv." + WEIGHTS, layer + "mlp.dwconv.{p}"),
        rename(stage + "layer_norm." + WEIGHTS, target + STAGE + "norm.{p}"),
    )


def decoder(projection: str) -> tuple[Rule, ...]:
    """Return the rules of the decode head; only the name of the projections has changed."""
    return (
        rename(HEAD + projection + ".{level}.proj." + WEIGHTS, HEAD + "projections.{level}.{p}"),
        rename(HEAD + "linear_fuse.weight", HEAD + "fuse.weight"),
        rename(HEAD + "batch_norm." + BATCH_NORM, HEAD + "fuse_norm.{p}"),
        rename(HEAD + "classifier." + WEIGHTS, HEAD + "classifier.{p}"),
    )


def forms(
    encoder: Callable[[str, str], tuple[Rule, ...]],
    first: str,
    projection: str,
    writers: Sequence[Writer | None],
) -> tuple[Form, ...]:
    """Return the forms of segmentation model, classifier and encoder; `first` is a tensor name of the encoder."""
    inside = encoder("segformer.", "segformer.")
    segment, classify, encode = writers
    return (
        Form(
            model="AutoModelForSemanticSegmentation",
            signature=("segformer." + first, HEAD + "linear_fuse.weight"),
            rules=(*inside, *decoder(projection)),
            settings={"decode_head_flavor": "nvlabs"},
            write=segment,
            directory=True,
        ),
        Form(
            model="AutoModelForImageClassification",
            signature=("segformer." + first, "classifier.weight"),
            rules=(*inside, rename("classifier." + WEIGHTS, "classifier.{p}")),
            write=classify,
            directory=True,
        ),
        Form(model="AutoModel", signature=(first,), rules=encoder("", ""), write=encode, directory=True),
    )


WRITERS = [
    transformers_writer(
        "SegformerConfig", model, "SegformerImageProcessor", {name: NAMES.get(name, name) for name in SHARED_FIELDS}
    )
    for model in ("SegformerForSemanticSegmentation", "SegformerForImageClassification", "SegformerModel")
]

SOURCE = Source(
    name="transformers",
    title="Segformer of transformers (a directory of save_pretrained, or its weights)",
    forms=(
        *forms(on_disk, "encoder.patch_embeddings.0.proj.weight", "linear_c", WRITERS),
        *forms(in_memory, "stages.0.patch_embeddings.proj.weight", "linear_projections", [None] * 3),
    ),
    infer=infer,
    # transformers builds every LayerNorm with PyTorch's default, ignoring its config.
    numerics={
        "layer_norm_eps": 1e-5,
        "patch_norm_eps": 1e-5,
        "reduction_norm_eps": 1e-5,
        "decode_head_norm_eps": 1e-5,
    },
    settings=SETTINGS,
    config_names=NAMES,
    assumed_fields=ASSUMED_FIELDS,
    weights=NVIDIA,
    model_types=("segformer",),
)
