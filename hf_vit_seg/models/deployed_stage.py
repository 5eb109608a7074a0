"""A SegFormer stage as programs for OpenVINO have it: its tokens have mean zero over their channels throughout."""

from typing import Any

from torch import nn

from .centred_norms import Centre, CentredNorm, centre_outputs, handed_on


def centred_stage(stage: Any) -> nn.Module:
    """A `SegFormerStage` in evaluation, changed so that no norm in it takes a mean."""
    patches = stage.patch_embeddings
    centre_outputs(patches.projection)
    patches.norm = CentredNorm(patches.norm)
    stage.patch_embeddings = nn.Sequential(patches, Centre())
    for layer in stage.layers:
        attention, mlp = layer.attention, layer.mlp
        keys = [attention.k_proj, attention.v_proj]
        if attention.reduction is not None:
            centre_outputs(attention.reduction)
            attention.reduction_norm = handed_on(attention.reduction_norm, keys)
            keys = [attention.reduction]
        layer.norm1 = handed_on(layer.norm1, [attention.q_proj, *keys])
        centre_outputs(attention.o_proj)
        layer.norm2 = handed_on(layer.norm2, [mlp.fc1])
        centre_outputs(mlp.fc2)
    stage.norm = CentredNorm(stage.norm)
    return stage


__all__ = ["centred_stage"]
