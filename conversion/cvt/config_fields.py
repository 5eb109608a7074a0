"""Config fields of both CvT sources: fields inferred from shapes, and fields that must be assumed."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

LAYER = re.compile(r"(?:cvt\.)?stages\.(\d+)\.layers\.(\d+)\.")
ASSUMED_FIELDS = ("num_attention_heads", "strides", "paddings", "stride_kv", "padding_kv")
NORM_EPS = {"layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5}


def infer_depths(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Count the layers of each stage; KeyError if a layer is missing."""
    layers = {(int(match[1]), int(match[2])) for name in state if (match := LAYER.match(name))}
    stages = 1 + max((stage for stage, _ in layers), default=0)
    depths = [sum(stage == wanted for stage, _ in layers) for wanted in range(stages)]
    for stage, depth in enumerate(depths):
        for layer in range(max(depth, 1)):
            if (stage, layer) not in layers:
                raise KeyError(f"{prefix}stages.{stage}.layers.{layer}.norm1.weight")
    return depths


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer config fields from the shapes of the translated tensors."""
    prefix = "cvt." if any(name.startswith("cvt.") for name in state) else ""
    fields: dict[str, Any] = {"depths": infer_depths(state, prefix)}
    stages = [f"{prefix}stages.{stage}." for stage in range(len(fields["depths"]))]
    embeddings = [state[f"{stage}patch_embeddings.projection.weight"].shape for stage in stages]
    fields["num_channels"] = embeddings[0][1]
    fields["hidden_sizes"] = [shape[0] for shape in embeddings]
    fields["patch_sizes"] = [shape[-1] for shape in embeddings]
    fields["use_cls_token"] = [f"{stage}cls_token" in state for stage in stages]
    attentions = [f"{stage}layers.0.attention." for stage in stages]
    fields["qkv_bias"] = [f"{attention}q_proj.bias" in state for attention in attentions]
    kernels = [state.get(f"{attention}q_conv.convolution.weight") for attention in attentions]
    if kernel_sizes := [kernel.shape[-1] for kernel in kernels if kernel is not None]:
        fields["kernel_qkv"] = [kernel_sizes[0] if kernel is None else kernel.shape[-1] for kernel in kernels]
    hidden = [state[f"{stage}layers.0.mlp.fc1.weight"].shape[0] for stage in stages]
    fields["mlp_ratios"] = [wide / width for wide, width in zip(hidden, fields["hidden_sizes"], strict=True)]
    if "classifier.weight" in state:
        fields["num_labels"] = state["classifier.weight"].shape[0]
    return fields
