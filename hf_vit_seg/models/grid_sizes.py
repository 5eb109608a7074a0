"""Sizes of grids that cover an image, each computed by one formula.

torch.export records sizes as formulas of the image's height and width. It cannot prove that two different formulas
of the same size are equal: it then restricts the sizes, or searches for a proof for minutes.
"""


def ceil_div(side: int, step: int) -> int:
    """Return the number of cells of `step` pixels that cover `side` pixels.

    The dividend is positive (not `-(-side // step)`), because ONNX rounds quotients of integers toward zero.
    """
    return (side + step - 1) // step


def round_up(side: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `side`."""
    return ceil_div(side, step) * step


__all__ = ["ceil_div", "round_up"]
