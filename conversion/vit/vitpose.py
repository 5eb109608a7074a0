"""ViTPose by its authors (ViTAE-Transformer/ViTPose, .pth): a plain ViT with a classic (deconvolution) or simple head.

The encoder does not use its class token, but the token's position embedding is added to every patch.
"""

import math
from functools import partial
from typing import Any

from hf_vit_seg.conversion.files.writers import write_with_meta
from hf_vit_seg.conversion.rules import Rule, drop, rename
from hf_vit_seg.conversion.source import Form, Source, unsupported_form

from hf_vit_seg.provenance import Provenance

from .config_fields import ASSUMED_FIELDS, BILINEAR, ERF_NUMERICS, infer, sides
from .shared_names import WEIGHTS, timm_layers, timm_patches

BATCH_NORM = "{p:weight|bias|running_mean|running_var|num_batches_tracked}"
HEAD, POSE_HEAD = "keypoint_head.", "pose_head."
EXPERTS = (
    "it is ViTPose++ with experts for several datasets; separate them with tools/model_split.py of ViTPose, and "
    "convert one of its output files"
)
OTHER_HEADS = "a head for keypoints of another dataset"


def portrait_grid(cells: int) -> tuple[int, int] | None:
    """Return the most nearly square (rows, columns) that is not wider than high: crops of persons are 4:3."""
    columns = next((side for side in range(math.isqrt(cells), 1, -1) if cells % side == 0), None)
    return None if columns is None else (cells // columns, columns)


def encoder(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the plain ViT."""
    return (
        *timm_patches(source, target),
        drop(source + "cls_token", "the class token, which the encoder does not use", optional=True),
        *timm_layers(source, target),
        rename(source + "last_norm." + WEIGHTS, target + "norm.{p}"),
    )


def other_heads() -> tuple[Rule, ...]:
    """Return the rules that drop the heads of other datasets."""
    head = "associate_keypoint_heads.{number}."
    return (
        drop(head + "deconv_layers.{part}." + BATCH_NORM, OTHER_HEADS, optional=True),
        drop(head + "final_layer." + WEIGHTS, OTHER_HEADS, optional=True),
    )


FINAL = rename(HEAD + "final_layer." + WEIGHTS, POSE_HEAD + "final.{p}")
CLASSIC = (
    rename(HEAD + "deconv_layers.0.weight", POSE_HEAD + "deconvolutions.0.weight"),
    rename(HEAD + "deconv_layers.1." + BATCH_NORM, POSE_HEAD + "norms.0.{p}"),
    rename(HEAD + "deconv_layers.3.weight", POSE_HEAD + "deconvolutions.1.weight"),
    rename(HEAD + "deconv_layers.4." + BATCH_NORM, POSE_HEAD + "norms.1.{p}"),
)


def preprocessing(config: Any) -> dict[str, Any]:
    """Return settings that resize the crop of a person to the training size."""
    return {"size": sides(config.image_size), "do_center_crop": False, "crop_size": None, "resample": BILINEAR}


ENCODER: dict[str, Any] = {"position_embeddings_cover_prefix": True, "patch_padding": 2, "stem": "patch"}
POSE = "AutoModelForPoseEstimation"
KEYPOINTS = ("coco-keypoints",)

SOURCE = Source(
    name="vitpose",
    title="ViTPose by its authors (ViTAE-Transformer/ViTPose, .pth)",
    forms=(
        unsupported_form(("backbone.blocks.0.mlp.experts.0.weight",), EXPERTS),
        Form(
            model=POSE,
            signature=("backbone.last_norm.weight", HEAD + "deconv_layers.0.weight"),
            rules=(*encoder("backbone.", "vit."), *CLASSIC, FINAL, *other_heads()),
            settings={**ENCODER, "pose_head": "classic"},
            labels=KEYPOINTS,
            write=write_with_meta,
        ),
        Form(
            model=POSE,
            signature=("backbone.last_norm.weight", HEAD + "final_layer.weight"),
            rules=(*encoder("backbone.", "vit."), FINAL, *other_heads()),
            settings={**ENCODER, "pose_head": "simple"},
            labels=KEYPOINTS,
            write=write_with_meta,
        ),
    ),
    infer=partial(infer, grid=portrait_grid),
    numerics={
        **ERF_NUMERICS,
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": False,
        "position_resize_antialias": False,
    },
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
    notes=(
        "published scores use flip test (pose_flip_test); pose_flip_pairs follow from names with left and right, for "
        "other datasets set the names with labels, and other pairs with overrides",
    ),
    weights=Provenance(license="apache-2.0"),
)
