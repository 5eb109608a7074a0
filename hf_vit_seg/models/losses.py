"""Losses of segmentation heads. Shapes: B images, K classes, h w the grid of the logits, H W that of the labels."""

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput, SemanticSegmenterOutput

from .upsampled_cross_entropy import upsampled_cross_entropy


def semantic_segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean cross-entropy over the pixels that count, at the labels' resolution, in float32 or float64.

    `logits` (B, K, h, w) are resized bilinearly to `labels` (B, H, W), int64. Pixels equal to `ignore_index` do
    not count; where no pixel counts the loss is 0 and its gradient too, not NaN. With K = 1 the loss is binary:
    label 1 is the class, 0 the rest.
    """
    total = upsampled_cross_entropy(logits, labels, ignore_index).sum()
    return total / (labels != ignore_index).sum().clamp(min=1)


def segmenter_output(
    config: PreTrainedConfig,
    encoded: BaseModelOutput | BackboneOutput,
    logits: torch.Tensor,
    labels: torch.Tensor | None,
) -> SemanticSegmenterOutput:
    """What a segmentation model gives: logits, loss if there are labels, and what was recorded of the encoder.

    `labels` are class maps (B, H, W) of any size, int64, with `config.semantic_loss_ignore_index` where a pixel does
    not count.
    """
    loss = None
    if labels is not None:
        loss = semantic_segmentation_loss(logits, labels, config.semantic_loss_ignore_index)
    return SemanticSegmenterOutput(
        loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
    )


__all__ = ["segmenter_output", "semantic_segmentation_loss"]
