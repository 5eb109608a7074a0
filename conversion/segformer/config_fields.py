"""Config fields of all SegFormer sources: fields inferred from shapes, and fields that must be assumed."""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.conversion.settings.stage_depths import infer_depths
from torch import Tensor

from hf_vit_seg.provenance import Provenance

# For the authors' weights, conversions of these, and models trained from their encoders.
NVIDIA = Provenance(
    license="other",
    license_name="nvidia-source-code-license-for-segformer",
    license_link="https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
)

# Padding is K // 2 for patch size K; heads and strides do not follow from any shape.
ASSUMED_FIELDS = ("num_attention_heads", "strides")
SETTINGS = (
    *ASSUMED_FIELDS,
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


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer config fields from the shapes of the translated tensors."""
    prefix = "segformer." if any(name.startswith("segformer.") for name in state) else ""
    fields: dict[str, Any] = {"depths": infer_depths(state, prefix)}
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
    """Return the kernel size of a stage's sequence reduction, 1 without reduction."""
    kernel = state.get(f"{stage}layers.0.attention.reduction.weight")
    return 1 if kernel is None else kernel.shape[-1]
