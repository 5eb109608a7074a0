"""Adapt a pretrained first convolution to images with another number of channels.

As in timm's `adapt_input_conv`, for any number S of pretrained channels. To one channel: the sum over the S slices, so
that a gray image gives the same output as S equal channels. To C channels: the slices are repeated in turn and scaled
by S / C, which keeps the magnitude of outputs. Convolutions with weight standardization (hybrid ViT) remove any scale.
"""

import torch


def adapt_input_conv(weight: torch.Tensor, channels: int, axis: int = 1) -> torch.Tensor:
    """Adapt kernels (D, S, h, w), with S channels on `axis`, to C `channels`: (D, C, h, w)."""
    trained = weight.shape[axis]
    if channels == 1:
        return weight.sum(axis, keepdim=True)
    turn = torch.arange(channels, device=weight.device) % trained
    return weight.index_select(axis, turn) * (trained / channels)


def describe_adaptation(trained: int, channels: int) -> str:
    """Describe the change made by `adapt_input_conv`, for the log."""
    if channels == 1:
        return f"its {trained} channels are summed into one"
    return f"its {trained} channels are repeated to {channels} and scaled by {trained}/{channels}"
