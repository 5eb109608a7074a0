"""How many cells cover a side of an image, and how long they are together: one formula for each size.

torch.export records sizes as formulas of the image's height and width. It cannot prove that two different formulas of
the same size are equal: it then refuses images of other sizes, or searches for a proof for minutes.
"""


def ceil_div(side: int, step: int) -> int:
    """How many cells of `step` pixels cover `side` pixels.

    The dividend is positive (not `-(-side // step)`), because ONNX rounds quotients of integers towards zero.
    """
    return (side + step - 1) // step


def round_up(side: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `side`."""
    return ceil_div(side, step) * step


__all__ = ["ceil_div", "round_up"]
