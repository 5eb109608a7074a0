"""Linear layers over the channels of tokens, as fast as the processor can.

torch hands a float32 matrix product on a CPU to MKL, which keeps to AVX2 on processors that are not Intel's; a
1x1 convolution goes to oneDNN, which uses AVX-512 wherever there is any. It is the same arithmetic: 100 against 220
GMAC/s on 2 cores of an EPYC, forward and backward alike. oneDNN's convolution is called by its own name, because
`conv2d` turns to it only where there is more than one thread: 54 against 118 GMAC/s on one core.
"""

import torch
from torch import nn
from torch.nn.functional import linear

# Below, what oneDNN needs to set up costs more than it gains: the limit of torch itself (Convolution.cpp).
FEWEST_ELEMENTS = 20480


def pointwise(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`: tokens (.., C), weight (C', C), bias (C',) to (.., C')."""
    if not convolution_pays(tokens, weight):
        return linear(tokens, weight, bias)
    column = tokens.reshape(1, 1, -1, tokens.shape[-1]).permute(0, 3, 1, 2)  # (1, C, 1, N)
    kernel = weight[:, :, None, None]
    product = torch.mkldnn_convolution(column, kernel, bias, padding=(0, 0), stride=(1, 1), dilation=(1, 1), groups=1)
    return product.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], -1)


def convolution_pays(tokens: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether to go through oneDNN: plain float32 tensors on a CPU, in eager mode, enough of them.

    Compilers and exporters see the linear layer that it is. Subclasses of tensors (quantised, distributed) know
    linear layers, not this.
    """
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and tokens.numel() > FEWEST_ELEMENTS
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
