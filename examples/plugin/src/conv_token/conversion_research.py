"""Checkpoints of the research code (tests/reference.py): a state dict of the model, saved with torch.save."""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import rename, split
from hf_vit_seg.conversion.source import Form, Source
from torch import Tensor

WEIGHTS = "{p:weight|bias}"
BATCH_NORM = "{p:weight|bias|running_mean|running_var|num_batches_tracked}"
LAYER = "encoder.layers.{layer}."

RULES = (
    rename("tokenizer.conv_layers.{level}.0.weight", "encoder.tokenizer.convolutions.{level}.weight"),
    rename("blocks.{layer}.pre_norm." + WEIGHTS, LAYER + "pre_norm.{p}"),
    split("blocks.{layer}.self_attn.qkv.weight", [LAYER + f"attention.{which}_proj.weight" for which in "qkv"]),
    rename("blocks.{layer}.self_attn.proj." + WEIGHTS, LAYER + "attention.o_proj.{p}"),
    rename("blocks.{layer}.norm1." + WEIGHTS, LAYER + "norm.{p}"),
    rename("blocks.{layer}.linear1." + WEIGHTS, LAYER + "fc1.{p}"),
    rename("blocks.{layer}.linear2." + WEIGHTS, LAYER + "fc2.{p}"),
    rename("norm." + WEIGHTS, "encoder.norm.{p}"),
    rename("head.lateral.{level}." + WEIGHTS, "decode_head.lateral.{level}.{p}"),
    rename("head.smooth.0.weight", "decode_head.smooth.weight"),
    rename("head.smooth.1." + BATCH_NORM, "decode_head.norm.{p}"),
    rename("head.classifier." + WEIGHTS, "decode_head.classifier.{p}"),
)


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config fields that follow from the tensor shapes."""
    kernels = [tensor for name, tensor in state.items() if name.startswith("encoder.tokenizer.convolutions.")]
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    return {
        "num_channels": kernels[0].shape[1],
        "stem_widths": [kernel.shape[0] for kernel in kernels],
        "num_hidden_layers": len(layers),
        "intermediate_size": state["encoder.layers.0.fc1.weight"].shape[0],
        "decode_head_hidden_size": state["decode_head.smooth.weight"].shape[0],
        "num_labels": state["decode_head.classifier.weight"].shape[0],
    }


SOURCE = Source(
    name="research",
    title="conv_token's research code (.pth)",
    forms=(
        Form(
            model="AutoModelForSemanticSegmentation",
            signature=("tokenizer.conv_layers.0.0.weight", "head.lateral.0.weight"),
            rules=RULES,
            write=write_state_dict,
        ),
    ),
    infer=infer,
    numerics={"layer_norm_eps": 1e-5},
    assumed_fields=("num_attention_heads",),
)
