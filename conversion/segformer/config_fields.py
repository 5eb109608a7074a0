"""What every SegFormer source shares: config fields read from shapes, and those that shapes cannot show."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_vit_seg.provenance import Provenance

# The authors' weights, and with them all that others converted, or trained from their pretrained encoders.
NVIDIA = Provenance(
    license="other",
    license_name="nvidia-source-code-license-for-segformer",
    license_link="https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
)
LAYER = re.compile(r"(?:segformer\.)?stages\.(\d+)\.layers\.(\d+)\.")

# Padding follows from the patch size (K // 2); heads and strides do not follow from any shape.
UNSEEN = ("num_attention_heads", "strides")
SETTINGS = (
    *UNSEEN,
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "decode_head_dropout_prob",
    "drop_path_rate",
    "initializer_range",
    "semantic_loss_ignore_index",
)
RELEASED_NUMERICS = {
    "layer_norm_eps": 1e-6,
    "patch_norm_eps": 1e-5,
    "reduction_norm_eps": 1e-5,
    "decode_head_norm_eps": 1e-5,
}


def depths_of(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Layers of each stage; a gap in their numbers is a missing tensor."""
    layers: dict[int, set[int]] = {}
    for name in state:
        if found := LAYER.match(name):
            layers.setdefault(int(found[1]), set()).add(int(found[2]))
    depths = [len(layers.get(stage, ())) for stage in range(len(layers))]
    for stage, depth in enumerate(depths):
        for layer in range(max(depth, 1)):
            if layer not in layers.get(stage, ()):
                raise KeyError(f"{prefix}stages.{stage}.layers.{layer}.norm1.weight")
    return depths


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config fields that our own tensors' shapes determine."""
    prefix = "segformer." if any(name.startswith("segformer.") for name in state) else ""
    fields: dict[str, Any] = {"depths": depths_of(state, prefix)}
    stages = [f"{prefix}stages.{stage}." for stage in range(len(fields["depths"]))]
    projections = [state[f"{stage}patch_embeddings.projection.weight"].shape for stage in stages]
    fields["num_channels"] = projections[0][1]
    fields["hidden_sizes"] = [shape[0] for shape in projections]
    fields["patch_sizes"] = [shape[-1] for shape in projections]
    fields["sr_ratios"] = [reduction_ratio(state, stage) for stage in stages]
    hidden = [state[f"{stage}layers.0.mlp.fc1.weight"].shape[0] for stage in stages]
    fields["mlp_ratios"] = [
        wide // width if wide % width == 0 else wide / width
        for wide, width in zip(hidden, fields["hidden_sizes"], strict=True)
    ]
    if any(name.startswith("decode_head.") for name in state):
        fields["decode_head_hidden_size"] = state["decode_head.fuse.weight"].shape[0]
        fields["num_labels"] = state["decode_head.classifier.weight"].shape[0]
    elif "classifier.weight" in state:
        fields["num_labels"] = state["classifier.weight"].shape[0]
    return fields


def reduction_ratio(state: Mapping[str, Tensor], stage: str) -> int:
    """The side of a stage's reduction kernel, 1 without reduction."""
    kernel = state.get(f"{stage}layers.0.attention.reduction.weight")
    return 1 if kernel is None else kernel.shape[-1]
