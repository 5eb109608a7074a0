"""Linear layers over the channels of tokens, as fast as the processor can.

torch hands a float32 matrix product on a CPU to MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN
uses AVX-512 wherever there is any. It is the same arithmetic: 100 against 220 GMAC/s on 2 cores of an EPYC. oneDNN is
reached by the fused linear layer that torch's own compiler calls, or, where autograd is at work, by a 1x1
convolution, which has a backward. (`conv2d` would turn to oneDNN only where there is more than one thread: 54 against
118 GMAC/s on one core.)
"""

import torch
from torch import nn
from torch.nn.functional import linear

from .fast_paths import runs_eagerly

# With fewer multiplications, what oneDNN needs to set up costs more than it gains.
FEWEST_FOR_FUSED_LINEAR = 2**21
FEWEST_FOR_CONVOLUTION = 2**23
# Not every build of torch has it.
FUSED_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def pointwise(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`: tokens (.., C), weight (C', C), bias (C',) to (.., C')."""
    if not onednn_serves(tokens, weight):
        return linear(tokens, weight, bias)
    multiplications = tokens.numel() * weight.shape[0]
    if FUSED_LINEAR is not None and not torch.is_grad_enabled() and multiplications >= FEWEST_FOR_FUSED_LINEAR:
        return FUSED_LINEAR(tokens, weight, bias, "none", [], "")
    if multiplications >= FEWEST_FOR_CONVOLUTION:
        return linear_by_convolution(tokens, weight, bias)
    return linear(tokens, weight, bias)


def linear_by_convolution(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The same, as oneDNN's 1x1 convolution of an image with one row."""
    column = tokens.reshape(1, 1, -1, tokens.shape[-1]).permute(0, 3, 1, 2)  # (1, C, 1, N)
    kernel = weight[:, :, None, None]
    product = torch.mkldnn_convolution(column, kernel, bias, padding=(0, 0), stride=(1, 1), dilation=(1, 1), groups=1)
    return product.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], -1)


def onednn_serves(tokens: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether these are plain float32 tensors on a CPU, with nobody looking on, who would look for a linear layer.

    Subclasses of tensors (quantised, distributed) know linear layers, not this.
    """
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and runs_eagerly()
        and type(weight) in (nn.Parameter, torch.Tensor)
        and type(tokens) is torch.Tensor
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class PointwiseLinear(nn.Linear):
    """`torch.nn.Linear` in all but speed: parameters, names and hooks are the same."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (.., C) to (.., C')."""
        return pointwise(tokens, self.weight, self.bias)


__all__ = ["PointwiseLinear", "pointwise"]
