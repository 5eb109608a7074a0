"""Attention written out (arXiv 1706.03762, equation 1): the only implementation that can return its weights.

Shapes: B images, N queries, M keys, C channels. transformers' ALL_ATTENTION_FUNCTIONS has the others.
"""

import torch
from torch import nn


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, heads, N, C/heads)
    key: torch.Tensor,  # (B, heads, M, C/heads)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(Q K^T * scaling) V, (B, N, heads, C/heads), and the attention weights (B, heads, N, M)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


__all__ = ["eager_attention_forward"]
