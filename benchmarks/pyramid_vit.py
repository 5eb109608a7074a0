"""ViT with the pyramid head, and the same model from transformers' parts, for `benchmarks.training`.

transformers has no segmentation head for a plain ViT. The other model is its ViTModel, the pyramid, and the decode head
of its SegFormer.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import SegformerConfig, ViTConfig, ViTModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from hf_vit_seg import architectures
from hf_vit_seg.models.segmentation_heads import FeaturePyramid

from .contest import Logits, randomize

CLASSES = 150
WIDTHS = {"vit-ti": 192, "vit-s": 384}
HEAD_WIDTH, EPS = 256, 1e-6
RENAMED = {
    "vit.norm.": "vit.layernorm.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "decode_head.level": "pyramid.level",
    "decode_head.all_mlp.fuse_norm.": "head.batch_norm.",
    "decode_head.all_mlp.fuse.": "head.linear_fuse.",
    "decode_head.all_mlp.classifier.": "head.classifier.",
}


class PyramidViT(nn.Module):
    """transformers' ViTModel with a feature pyramid and the decode head of its SegFormer."""

    def __init__(self, width: int, image_size: int):
        super().__init__()
        config = ViTConfig(
            image_size=image_size,
            hidden_size=width,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=EPS,
        )
        config._attn_implementation = "sdpa"
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.levels = [config.num_hidden_layers * level // 4 for level in range(1, 5)]
        self.pyramid = FeaturePyramid(width, EPS)
        names = {index: str(index) for index in range(CLASSES)}
        self.head = SegformerDecodeHead(
            SegformerConfig(
                hidden_sizes=[width] * 4, decoder_hidden_size=HEAD_WIDTH, classifier_dropout_prob=0.0, id2label=names
            )
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SemanticSegmenterOutput:
        outputs = self.vit(pixel_values, output_hidden_states=True)
        tokens = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
        side = pixel_values.shape[-1] // 16
        maps = [tokens[level][:, 1:].transpose(1, 2).unflatten(2, (-1, side)) for level in self.levels]
        logits, loss = self.head(self.pyramid.pyramid(maps)), None
        if labels is not None:
            upsampled = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = functional.cross_entropy(upsampled, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


def save_all(variant: str, folder: Path, size: int) -> None:
    """Save the same random weights for both models."""
    width, architecture = WIDTHS[variant], architectures()["vit"]
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "image_size": size,
        "layer_norm_eps": EPS,
        "decode_head": "feature_pyramid",
        "decode_head_hidden_size": HEAD_WIDTH,
        "decode_head_dropout_prob": 0.0,
        "num_labels": CLASSES,
    }
    config = architecture.config(**settings)
    randomize(architecture.models["AutoModelForSemanticSegmentation"](config)).save_pretrained(folder / "ours")


def load_ours(folder: Path) -> nn.Module:
    return Logits(architectures()["vit"].models["AutoModelForSemanticSegmentation"].from_pretrained(folder / "ours"))


def load_transformers(folder: Path) -> nn.Module:
    """Copy our weights into the model from transformers' parts."""
    ours: Any = architectures()["vit"].models["AutoModelForSemanticSegmentation"].from_pretrained(folder / "ours")
    model = PyramidViT(ours.config.hidden_size, ours.config.image_size)
    weights = {}
    for name, tensor in ours.state_dict().items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if "all_mlp.projections" in name:
            _, _, _, level, parameter = name.split(".")
            name = f"head.linear_projections.{level}.proj.{parameter}"
        weights[name] = tensor
    model.load_state_dict(weights)
    return Logits(model)
