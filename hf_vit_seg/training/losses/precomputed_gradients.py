"""Losses that compute their gradient in the forward pass, so that intermediate tensors are freed immediately."""

from collections.abc import Callable
from typing import Any

import torch

from hf_vit_seg.models.bilinear import differentiable_once, working_dtype


def with_precomputed_gradient(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """Return the scalar `loss(logits)` in float32 or float64, storing only the gradient of `logits`."""
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return loss(logits.to(working_dtype(logits)))
    return WithGradient.apply(logits, loss)


class WithGradient(torch.autograd.Function):
    """Compute a scalar and its gradient; the backward pass only scales the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Compute the loss and its gradient."""
        with torch.enable_grad():
            own = logits.detach().to(working_dtype(logits)).requires_grad_()
            value = loss(own)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(*torch.autograd.grad(value, own))
        return value.detach()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradient of the logits."""
        return (ctx.saved_tensors[0] * gradients[0]).to(ctx.dtype), None


__all__ = ["with_precomputed_gradient"]
