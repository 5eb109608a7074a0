"""Config fields of both CvT sources: fields inferred from shapes, and fields that must be assumed."""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.conversion.settings.stage_depths import infer_depths
from torch import Tensor

ASSUMED_FIELDS = ("num_attention_heads", "strides", "paddings", "stride_kv", "padding_kv")
NORM_EPS = {"layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5}


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
