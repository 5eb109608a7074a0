"""Config fields of all ViT sources: fields inferred from shapes, and fields that must be assumed."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from hf_vit_seg.conversion.errors import UnsupportedCheckpoint
from torch import Tensor

ASSUMED_FIELDS = ("num_attention_heads",)
HEADS = {
    1152: 16,
    1280: 16,
    1408: 16,
    1536: 24,
    1664: 16,
}  # ViT-So400m, ViT-H and ViT-g/G; all others have head width 64
HEAD_WIDTH = 64

ERF_NUMERICS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
PYTORCH_STEM = {
    "stem_weight_standardization_eps": 1e-8,
    "stem_weight_standardization_mode": "sqrt_var_plus_eps",
    "stem_group_norm_eps": 1e-5,
    "stem_shortcut_norm_eps": None,
}
# What Google's, timm's and transformers' stems compute, and what that of jeonsworld/ViT-pytorch does.
USUAL_STEM = {
    "stem": "resnetv2",
    "stem_padding": "same",
    "stem_pool_padding": True,
    "stem_shortcut_norm": "group",
}
JEONSWORLD_STEM = {
    "stem": "resnetv2",
    "stem_padding": "symmetric",
    "stem_pool_padding": False,
    "stem_shortcut_norm": "channel",
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
BILINEAR, BICUBIC = 2, 3


def as_pair(size: Any) -> tuple[int, int]:
    """Return (height, width) for an integer or a pair."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def sides(image_size: Any) -> dict[str, int]:
    """Return the image size as a mapping with height and width."""
    return dict(zip(("height", "width"), as_pair(image_size), strict=True))


def resize_settings(config: Any, resample: int = BILINEAR) -> dict[str, Any]:
    """Return settings that resize the whole image to the training size, without keeping the aspect ratio."""
    return {"size": sides(config.image_size), "do_center_crop": False, "crop_size": None, "resample": resample}


def count_modules(state: Mapping[str, Tensor], before: str, first: str) -> int:
    """Count the modules numbered after a prefix; KeyError with name `first` if a number is missing."""
    pattern = re.compile(re.escape(before) + r"(\d+)\.")
    indices = {int(match[1]) for name in state if (match := pattern.match(name))}
    for number in range(len(indices)):
        if number not in indices:
            raise KeyError(f"{before}{number}.{first}")
    return len(indices)


def square(cells: int) -> tuple[int, int] | None:
    """Return the (rows, columns) of a square grid; None if the number of cells is not a square."""
    side = math.isqrt(cells)
    return (side, side) if side and side * side == cells else None


def infer(state: Mapping[str, Tensor], grid: Callable[[int], tuple[int, int] | None] = square) -> dict[str, Any]:
    """Infer config fields from the shapes of the translated tensors, and the usual number of heads.

    `grid` returns (rows, columns) for a number of positions; if it returns None, overrides must set the image size.
    """
    prefix = "vit." if any(name.startswith("vit.") for name in state) else ""
    fields = encoder_fields(state, prefix) | stem_fields(state, prefix + "embeddings.patch_embeddings.stem.")
    fields |= token_fields(state, prefix + "embeddings.")
    fields |= position_fields(fields, state[prefix + "embeddings.position_embeddings"].shape[1], grid)
    return fields | head_fields(state)


def encoder_fields(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Infer the fields of the transformer."""
    kernel = state[prefix + "embeddings.patch_embeddings.projection.weight"].shape  # (D, C, P, P)
    width, layer = kernel[0], prefix + "layers.0."
    return {
        "hidden_size": width,
        "num_channels": kernel[1],
        "patch_size": kernel[2] if kernel[2] == kernel[3] else [kernel[2], kernel[3]],
        "num_hidden_layers": count_modules(state, prefix + "layers.", "norm1.weight"),
        "num_attention_heads": HEADS.get(width, max(width // HEAD_WIDTH, 1)),
        "intermediate_size": state[layer + "mlp.fc1.weight"].shape[0],
        "qkv_bias": layer + "attention.q_proj.bias" in state,
        "layer_scale_init_value": 1e-5 if layer + "layer_scale1.gamma" in state else None,
        "use_final_norm": prefix + "norm.weight" in state,
    }


def stem_fields(state: Mapping[str, Tensor], stem: str) -> dict[str, Any]:
    """Infer the fields of a hybrid's ResNet stem."""
    root = state.get(stem + "conv.weight")
    if root is None:
        return {}
    stages = count_modules(state, stem + "stages.", "layers.0.conv1.weight")
    return {
        "num_channels": root.shape[1],
        "stem_width_factor": root.shape[0] / 64,
        "stem_depths": [
            count_modules(state, f"{stem}stages.{stage}.layers.", "conv1.weight") for stage in range(stages)
        ],
    }


def token_fields(state: Mapping[str, Tensor], embeddings: str) -> dict[str, Any]:
    """Infer the fields of the prefix tokens."""
    registers = state.get(embeddings + "register_tokens")
    return {
        "use_cls_token": embeddings + "cls_token" in state,
        "pooling": "token" if embeddings + "cls_token" in state else "mean",
        "use_distillation_token": embeddings + "distillation_token" in state,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
    }


def position_fields(
    fields: Mapping[str, Any], positions: int, grid: Callable[[int], tuple[int, int] | None]
) -> dict[str, Any]:
    """Infer the training image size, and whether class and distillation tokens have position embeddings."""
    slots = 1 + fields["use_distillation_token"]
    covered = grid(positions - slots) if positions > slots else None
    rows_columns = covered or grid(positions)
    check_registers(fields, positions, grid)
    cover = covered is not None or (rows_columns is None and fields["use_cls_token"])
    inferred: dict[str, Any] = {"position_embeddings_cover_prefix": cover}
    if rows_columns is not None:
        height, width = (
            cells * side * stem_stride(fields)
            for cells, side in zip(rows_columns, as_pair(fields["patch_size"]), strict=True)
        )
        inferred["image_size"] = height if height == width else [height, width]
    return inferred


def check_registers(fields: Mapping[str, Any], positions: int, grid: Callable[[int], tuple[int, int] | None]) -> None:
    """Raise UnsupportedCheckpoint if register tokens have position embeddings."""
    prefix, registers = fields["use_cls_token"] + fields["use_distillation_token"], fields["num_register_tokens"]
    patches = positions - prefix - registers
    if registers and patches > 0 and grid(patches) and not grid(positions) and not grid(positions - prefix):
        raise UnsupportedCheckpoint(
            f"{registers} of the {positions} position embeddings belong to register tokens, which is not supported"
        )


def stem_stride(fields: Mapping[str, Any]) -> int:
    """Return the stride of the ResNet stem: 4, doubled by each stage after the first; 1 without a stem."""
    return 4 * 2 ** max(len(fields["stem_depths"]) - 1, 0) if "stem_depths" in fields else 1


def head_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the fields of the classifier or decode head, if any."""
    if "decode_head.queries.weight" in state:
        return {
            "decode_head": "query",
            "num_queries": state["decode_head.queries.weight"].shape[0],
            "num_upscale_blocks": count_modules(state, "decode_head.upscale.", "conv1.weight"),
            "num_labels": state["decode_head.class_head.weight"].shape[0] - 1,
        }
    if "decode_head.class_embeddings" in state:
        classes, width = state["decode_head.class_embeddings"].shape[1:]
        return {
            "decode_head": "mask_transformer",
            "decode_head_num_layers": count_modules(state, "decode_head.layers.", "norm1.weight"),
            "decode_head_hidden_size": width,
            "num_labels": classes,
        }
    if "decode_head.classifier.weight" in state:
        return {"decode_head": "linear", "num_labels": state["decode_head.classifier.weight"].shape[0]}
    if "pose_head.final.weight" in state:
        return pose_fields(state)
    if "classifier.weight" not in state:
        return {}
    pre_logits = state.get("pre_logits.weight")
    return {
        "num_labels": state["classifier.weight"].shape[0],
        "pool_norm": "pool_norm.weight" in state,
        **({"pooling": "mean"} if "pool_norm.weight" in state else {}),
        "pre_logits_size": None if pre_logits is None else pre_logits.shape[0],
    }


def pose_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the number of keypoints, and the width of the deconvolutions, if any."""
    fields = {"num_labels": state["pose_head.final.weight"].shape[0]}
    deconvolution = state.get("pose_head.deconvolutions.0.weight")
    return fields if deconvolution is None else fields | {"pose_head_hidden_size": deconvolution.shape[1]}
