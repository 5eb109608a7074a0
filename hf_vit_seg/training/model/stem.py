"""A first convolution that was trained on other bands than there are.

The rule is timm's (`adapt_input_conv`), for any number S of bands that the convolution was trained on, which is 3 in
nearly all cases. To one band: the sum over its S slices, so that a gray image gives what it gave as S equal bands. To
C bands: its slices in turn, scaled by S / C, so that outputs keep their size. Convolutions that standardize their
kernels (the hybrid ViT's) undo any scale, so there the first holds for the direction of a kernel alone.
"""

import torch


def adapted(weight: torch.Tensor, bands: int, axis: int = 1) -> torch.Tensor:
    """A convolution's kernels (D, S, h, w), S bands on `axis`, for images of other `bands`: (D, C, h, w)."""
    trained = weight.shape[axis]
    if bands == 1:
        return weight.sum(axis, keepdim=True)
    turn = torch.arange(bands, device=weight.device) % trained
    return weight.index_select(axis, turn) * (trained / bands)


def adaptation_in_words(trained: int, bands: int) -> str:
    """What `adapted` did, for a report."""
    if bands == 1:
        return f"its {trained} bands are summed into one"
    return f"its {trained} bands are taken in turn for {bands} and scaled by {trained}/{bands}"
