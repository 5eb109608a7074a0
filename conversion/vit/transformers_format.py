"""ViT, DeiT and ViTHybrid of transformers: names on disk, and names in memory since 5.0.

transformers 5 cannot load directories of model type vit-hybrid, but they can be converted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_vit_seg.conversion.files.writers import transformers_writer
from hf_vit_seg.conversion.rules import Rule, drop, optional, rename
from hf_vit_seg.conversion.source import Form, Outgoing, Source, Writer
from safetensors.torch import save_file

from .config_fields import ASSUMED_FIELDS, PYTORCH_STEM, USUAL_STEM, infer
from .shared_names import EMBEDDINGS, LAYER, STEM, UNIT, WEIGHTS

# Fields with the same name in the config.json of transformers.
SETTINGS = (
    *ASSUMED_FIELDS,
    "image_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
)
SHARED_FIELDS = (
    *SETTINGS,
    "num_channels",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "qkv_bias",
)
MASKS = "the mask token, which is only used in pretraining"
DECODER = "a part of the decoder, which is only used in pretraining"
TABLE = Callable[[str, str], tuple[Rule, ...]]


def embeddings(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of tokens, positions and final norm, whose names are the same in all versions."""
    there, here = source + EMBEDDINGS, target + EMBEDDINGS
    return (
        rename(there + "cls_token", here + "cls_token"),
        rename(there + "distillation_token", here + "distillation_token", optional=True),
        drop(there + "mask_token", MASKS, optional=True),
        rename(there + "position_embeddings", here + "position_embeddings"),
        rename(there + "patch_embeddings.projection." + WEIGHTS, here + "patch_embeddings.projection.{p}"),
        rename(source + "layernorm." + WEIGHTS, target + "norm.{p}"),
    )


def on_disk(source: str, target: str) -> tuple[Rule, ...]:
    """Return the encoder's rules with the names that save_pretrained writes."""
    block, layer = source + "encoder.layer.{layer}.", target + LAYER
    inner = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    return (
        *embeddings(source, target),
        rename(block + "layernorm_before." + WEIGHTS, layer + "norm1.{p}"),
        *(rename(f"{block}attention.attention.{a}." + WEIGHTS, f"{layer}attention.{b}.{{p}}") for a, b in inner),
        rename(block + "attention.output.dense." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "layernorm_after." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "intermediate.dense." + WEIGHTS, layer + "mlp.fc1.{p}"),
        rename(block + "output.dense." + WEIGHTS, layer + "mlp.fc2.{p}"),
    )


def in_memory(source: str, target: str) -> tuple[Rule, ...]:
    """Return the encoder's rules with the names of `state_dict()` since transformers 5.0."""
    block, layer = source + LAYER, target + LAYER
    return (
        *embeddings(source, target),
        rename(block + "layernorm_before." + WEIGHTS, layer + "norm1.{p}"),
        rename(
            block + "attention.{which:q_proj|k_proj|v_proj|o_proj}." + WEIGHTS,
            layer + "attention.{which}.{p}",
        ),
        rename(block + "layernorm_after." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
    )


def hybrid(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of an encoder on disk with a BiT stem, model type vit-hybrid in transformers 4."""
    bit = source + EMBEDDINGS + "patch_embeddings.backbone.bit."
    unit, here = bit + "encoder.stages.{stage}.layers.{unit}.", target + UNIT
    return (
        *on_disk(source, target),
        rename(bit + "embedder.convolution.weight", target + STEM + "conv.weight"),
        rename(bit + "embedder.norm." + WEIGHTS, target + STEM + "norm.{p}"),
        rename(unit + "conv{n:1|2|3}.weight", here + "conv{n}.weight"),
        rename(unit + "norm{n:1|2|3}." + WEIGHTS, here + "norm{n}.{p}"),
        rename(unit + "downsample.conv.weight", here + "shortcut.weight"),
        rename(unit + "downsample.norm." + WEIGHTS, here + "shortcut_norm.{p}"),
    )


def mae_decoder() -> tuple[Rule, ...]:
    """Return the rules of ViTMAE's decoder, with all names, including those of save_pretrained in 5.x."""
    block = "decoder.decoder_{layers:layers|encoder.layer}.{layer}."
    names = (
        *("decoder.decoder_embed.", "decoder.decoder_norm.", "decoder.decoder_pred.", "decoder.{number}."),
        block + "layernorm_{where:before|after}.",
        block + "attention.attention.{which:query|key|value}.",
        block + "{which:attention.output|intermediate|output}.dense.",
        block + "attention.{which:q_proj|k_proj|v_proj|o_proj}.",
        block + "mlp.{which:fc1|fc2}.",
    )
    rules = (*(drop(name + WEIGHTS, DECODER) for name in names), drop("decoder.decoder_pos_embed", DECODER))
    return tuple(optional(rule) for rule in (*rules, drop("decoder.mask_token", MASKS)))


def writer(name: str, head: str) -> Writer:
    """Create the writer of a class of ViT or DeiT."""
    return transformers_writer(f"{name}Config", name + head, f"{name}ImageProcessor", SHARED_FIELDS)


def hybrid_writer(model: str) -> Writer:
    """Create a writer of directories for transformers 4; version 5 has no config class for these."""

    def write(outgoing: Outgoing, path: Path) -> None:
        config: Any = outgoing.config
        bit = {
            "model_type": "bit",
            "depths": list(config.stem_depths),
            "layer_type": "bottleneck",
            "global_padding": "same",
            "embedding_dynamic_padding": True,
            "out_features": [f"stage{len(config.stem_depths)}"],
        }
        described = {name: getattr(config, name) for name in (*SHARED_FIELDS, "id2label", "label2id")}
        described |= {"model_type": "vit-hybrid", "architectures": [model], "backbone_config": bit}
        path.mkdir()
        save_file(dict(outgoing.tensors), path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        if outgoing.processor:
            processor = {**outgoing.processor, "image_processor_type": "ViTHybridImageProcessor"}
            (path / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")

    return write


CLASSIFICATION = "AutoModelForImageClassification"
HEADLESS: dict[str, Any] = {"stem": "patch", "num_register_tokens": 0, "position_embeddings_cover_prefix": True}
HEADED: dict[str, Any] = {**HEADLESS, "pooling": "token", "pre_logits_size": None}
PLAIN: dict[str, Any] = {"use_distillation_token": False}
DISTILLED: dict[str, Any] = {"use_distillation_token": True}
CLASSIFY = (rename("classifier." + WEIGHTS, "classifier.{p}"),)
TEACHER = (
    rename("cls_classifier." + WEIGHTS, "classifier.{p}"),
    rename("distillation_classifier." + WEIGHTS, "distillation_classifier.{p}"),
)
POOLER = drop(
    "pooler.dense." + WEIGHTS, "the pooler, which is untrained in most files and not used by any head", optional=True
)


def forms(table: TABLE, first: str, write: Callable[[str, str], Writer | None]) -> tuple[Form, ...]:
    """Return the forms of ViT and DeiT; `first` is a tensor name of the encoder."""
    vit, deit = (*table("vit.", "vit."), *CLASSIFY), (*table("deit.", "vit."), *TEACHER)
    bare = (*table("", ""), POOLER)
    rows = (
        (CLASSIFICATION, ("vit." + first, "classifier.weight"), vit, HEADED | PLAIN, "ViT", "ForImageClassification"),
        (
            CLASSIFICATION,
            ("deit." + first, "cls_classifier.weight"),
            deit,
            HEADED | DISTILLED | {"use_distillation_classifier": True},
            "DeiT",
            "ForImageClassificationWithTeacher",
        ),
        (
            CLASSIFICATION,
            ("deit." + first, "classifier.weight"),
            (*table("deit.", "vit."), *CLASSIFY),
            HEADED | DISTILLED | {"use_distillation_classifier": False},
            "DeiT",
            "ForImageClassification",
        ),
        ("AutoModel", (first, "embeddings.distillation_token"), bare, HEADLESS | DISTILLED, "DeiT", "Model"),
        ("AutoModel", (first,), bare, HEADLESS | PLAIN, "ViT", "Model"),
    )
    return (
        *(
            Form(
                model=model,
                signature=signature,
                rules=rules,
                settings=settings,
                write=write(name, head),
                directory=True,
            )
            for model, signature, rules, settings, name, head in rows
        ),
        Form(model="AutoModel", signature=("vit." + first,), rules=(*table("vit.", ""), *mae_decoder())),
        Form(model="AutoModel", signature=("deit." + first,), rules=(*table("deit.", ""), *mae_decoder())),
    )


BIT = "embeddings.patch_embeddings.backbone.bit.embedder.convolution.weight"
HYBRID: dict[str, Any] = {
    **USUAL_STEM,
    "use_distillation_token": False,
    "num_register_tokens": 0,
    "position_embeddings_cover_prefix": True,
}

SOURCE = Source(
    name="transformers",
    title="ViT, DeiT or ViTHybrid of transformers (a directory of save_pretrained, or its weights)",
    forms=(
        Form(
            model=CLASSIFICATION,
            signature=("vit." + BIT, "classifier.weight"),
            rules=(*hybrid("vit.", "vit."), *CLASSIFY),
            settings={**HYBRID, "pooling": "token", "pre_logits_size": None},
            numerics=PYTORCH_STEM,
            write=hybrid_writer("ViTHybridForImageClassification"),
            directory=True,
        ),
        Form(
            model="AutoModel",
            signature=(BIT,),
            rules=(*hybrid("", ""), POOLER),
            settings=HYBRID,
            numerics=PYTORCH_STEM,
            write=hybrid_writer("ViTHybridModel"),
            directory=True,
        ),
        *forms(on_disk, "encoder.layer.0.layernorm_before.weight", writer),
        *forms(in_memory, "layers.0.layernorm_before.weight", lambda name, head: None),
    ),
    infer=infer,
    numerics={
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": False,
        "position_resize_antialias": False,
    },
    settings=SETTINGS,
    defaults={"layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    assumed_fields=ASSUMED_FIELDS,
    model_types=("vit", "deit", "vit-hybrid", "vit_hybrid", "vit_mae"),
)
