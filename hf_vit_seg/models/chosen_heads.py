"""Segmentation heads as a config's fields say. Configs with a choice of heads call these fields alike."""

from typing import cast

from torch import nn
from transformers import PreTrainedConfig

from .transformer_layer import LayerGeometry
from .vit_segmentation_heads import LinearHead, MaskTransformerHead, PyramidHead

DEFAULT_WIDTH = 256  # of all-MLP heads


def linear_head(config: PreTrainedConfig, in_channels: int) -> nn.Module:
    """A classifier per cell of a map."""
    return LinearHead(in_channels, cast(int, config.num_labels), config.classifier_dropout_prob)


def mask_transformer_head(config: PreTrainedConfig, in_channels: int, head_channels: int) -> nn.Module:
    """Segmenter's decoder, as wide as the map where the config says nothing else, with MLPs four times as wide.

    `head_channels` are those of an attention head.
    """
    width = config.segmentation_head_width or in_channels
    geometry = LayerGeometry(
        width=width,
        heads=max(width // head_channels, 1),
        mlp_width=4 * width,
        norm_eps=config.segmentation_norm_eps,
        dropout=config.classifier_dropout_prob,
        attention_dropout=config.classifier_dropout_prob,
    )
    num_labels = cast(int, config.num_labels)
    return MaskTransformerHead(config, in_channels, num_labels, config.segmentation_head_depth, geometry)


def pyramid_head(config: PreTrainedConfig, in_channels: int) -> nn.Module:
    """Four levels made of maps of one stride, and an all-MLP head."""
    return PyramidHead(
        in_channels,
        config.segmentation_head_width or DEFAULT_WIDTH,
        cast(int, config.num_labels),
        config.segmentation_norm_eps,
        config.classifier_dropout_prob,
        config.decoder_norm,
    )


__all__ = ["DEFAULT_WIDTH", "linear_head", "mask_transformer_head", "pyramid_head"]
