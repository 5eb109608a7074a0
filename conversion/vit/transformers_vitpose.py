"""ViTPose of transformers (VitPoseForPoseEstimation): the settings of the encoder are in `backbone_config`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hf_vit_seg.conversion.errors import UnsupportedCheckpoint
from hf_vit_seg.conversion.rules import Rule, rename
from hf_vit_seg.conversion.source import Form, Source, unsupported_form

from hf_vit_seg.provenance import Provenance
from hf_vit_seg.records import shorten

from .config_fields import ASSUMED_FIELDS, infer
from .shared_names import EMBEDDINGS, LAYER, WEIGHTS
from .vitpose import BATCH_NORM, ENCODER, KEYPOINTS, POSE, POSE_HEAD, portrait_grid, preprocessing

BLOCK = "backbone.encoder.layer.{layer}."
NORM = "backbone.layernorm.weight"
EXPERTS = (
    "it is ViTPose++ with experts for several datasets, which have no equivalent here; convert the authors' file after "
    "tools/model_split.py of ViTPose"
)
SETTINGS = (
    *ASSUMED_FIELDS,
    "image_size",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of the encoder, whose names in memory and on disk are the same."""
    there, here, layer = "backbone." + EMBEDDINGS, target + EMBEDDINGS, target + LAYER
    inner = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    return (
        rename(there + "position_embeddings", here + "position_embeddings"),
        rename(there + "patch_embeddings.projection." + WEIGHTS, here + "patch_embeddings.projection.{p}"),
        rename(BLOCK + "layernorm_before." + WEIGHTS, layer + "norm1.{p}"),
        *(rename(f"{BLOCK}attention.attention.{a}." + WEIGHTS, f"{layer}attention.{b}.{{p}}") for a, b in inner),
        rename(BLOCK + "attention.output.dense." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(BLOCK + "layernorm_after." + WEIGHTS, layer + "norm2.{p}"),
        rename(BLOCK + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
        rename("backbone.layernorm." + WEIGHTS, target + "norm.{p}"),
    )


def check_config(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpoint for a decoder with another enlargement than ViTPose's."""
    scale = config.get("scale_factor", 4)
    if config.get("use_simple_decoder", True) and scale != 4:
        raise UnsupportedCheckpoint(
            f"the simple decoder enlarges by {shorten(scale)} (scale_factor), expected 4 as in ViTPose"
        )


FINAL = rename("head.conv." + WEIGHTS, POSE_HEAD + "final.{p}")
CLASSIC = (
    rename("head.deconv1.weight", POSE_HEAD + "deconvolutions.0.weight"),
    rename("head.batchnorm1." + BATCH_NORM, POSE_HEAD + "norms.0.{p}"),
    rename("head.deconv2.weight", POSE_HEAD + "deconvolutions.1.weight"),
    rename("head.batchnorm2." + BATCH_NORM, POSE_HEAD + "norms.1.{p}"),
)

SOURCE = Source(
    name="transformers-vitpose",
    title="ViTPose of transformers (a directory of save_pretrained, or its weights)",
    forms=(
        unsupported_form(("backbone.encoder.layer.0.mlp.experts.0.weight", "head.conv.weight"), EXPERTS),
        Form(
            model=POSE,
            signature=(NORM, "head.deconv1.weight", "head.conv.weight"),
            rules=(*encoder("vit."), *CLASSIC, FINAL),
            settings={**ENCODER, "pose_head": "classic"},
            labels=KEYPOINTS,
        ),
        Form(
            model=POSE,
            signature=(NORM, "head.conv.weight"),
            rules=(*encoder("vit."), FINAL),
            settings={**ENCODER, "pose_head": "simple"},
            labels=KEYPOINTS,
        ),
    ),
    infer=partial(infer, grid=portrait_grid),
    check_config=check_config,
    numerics={
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": False,
        "position_resize_antialias": False,
    },
    settings=SETTINGS,
    config_names={name: f"backbone_config.{name}" for name in SETTINGS},
    defaults={"layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
    notes=(
        "pose_flip_pairs follow from names with left and right; for other datasets set the names with labels, and "
        "other pairs with overrides",
    ),
    weights=Provenance(license="apache-2.0"),
    model_types=("vitpose",),
)
