"""Norms between the convolutions of heads. Shapes: B images, D width of the head, H W its grid."""

from collections.abc import Callable
from math import gcd

from torch import nn

from .errors import HfVitSegError

MOST_GROUPS = 32  # of arXiv 1803.08494, section 4


def group_norm(width: int, eps: float) -> nn.GroupNorm:
    """GroupNorm (arXiv 1803.08494) in 32 groups, or in as many as divide both 32 and the width."""
    return nn.GroupNorm(gcd(width, MOST_GROUPS), width, eps=eps)


def batch_norm(width: int, eps: float) -> nn.BatchNorm2d:
    """What every published head has."""
    return nn.BatchNorm2d(width, eps=eps)


HEAD_NORMS: dict[str, Callable[[int, float], nn.Module]] = {"batch": batch_norm, "group": group_norm}


def head_norm(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """A norm of (B, D, H, W) by its name: "batch", or "group", which does not look at other images."""
    if kind not in HEAD_NORMS:
        raise HfVitSegError(f"A head's norm is one of {', '.join(HEAD_NORMS)}, got '{kind}'")
    return HEAD_NORMS[kind](width, eps)


__all__ = ["head_norm"]
