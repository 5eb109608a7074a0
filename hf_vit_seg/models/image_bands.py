"""The bands of an image that a model takes."""

import torch
from transformers import PreTrainedConfig

from .errors import HfVitSegError


def check_channels(config: PreTrainedConfig, pixel_values: torch.Tensor) -> None:
    """Refuse images (B, C, H, W) of another channel count than `config.num_channels`."""
    if pixel_values.shape[1] != config.num_channels:
        raise HfVitSegError(
            f"This model takes images of {config.num_channels} channels (config.num_channels), got "
            f"pixel_values of shape {tuple(pixel_values.shape)}"
        )


__all__ = ["check_channels"]
