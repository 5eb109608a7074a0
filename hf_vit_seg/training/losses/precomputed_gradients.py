"""Losses whose gradient is computed together with them, so that nothing they need waits for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch

from hf_vit_seg.models.bilinear import differentiable_once, working_dtype


def at_once(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """`loss(logits)`, a scalar, in float32 or float64; of its graph only the gradient of `logits` is kept."""
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return loss(logits.to(working_dtype(logits)))
    return WithGradient.apply(logits, loss)


class WithGradient(torch.autograd.Function):
    """A scalar and its gradient, which the backward pass only has to scale."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The loss."""
        with torch.enable_grad():
            own = logits.detach().to(working_dtype(logits)).requires_grad_()
            value = loss(own)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(*torch.autograd.grad(value, own))
        return value.detach()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the logits."""
        return (ctx.saved_tensors[0] * gradients[0]).to(ctx.dtype), None


__all__ = ["at_once"]
