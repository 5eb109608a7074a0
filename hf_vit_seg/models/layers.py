"""Layers that several architectures share: attention, stochastic depth, and the Vision Transformer's layer.

Sources: attention (arXiv 1706.03762, equation 1), stochastic depth (arXiv 1603.09382), the Vision Transformer
(arXiv 2010.11929, figure 1; equation numbers are this paper's), GroupNorm (arXiv 1803.08494).

Shapes: B images, N queries, M keys, T tokens, C channels, D width of a head, H W grid.
"""

from collections.abc import Callable
from functools import wraps
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .cpu_kernels import apply_linear, in_row_strips
from .errors import HfVitSegError

MAX_GROUPS = 32  # of GroupNorm, section 4


def check_channels(config: PreTrainedConfig, pixel_values: torch.Tensor) -> None:
    """ValueError unless images (B, C, H, W) have `config.num_channels` channels."""
    if pixel_values.shape[1] != config.num_channels:
        raise HfVitSegError(
            f"This model takes images of {config.num_channels} channels (config.num_channels), got "
            f"pixel_values of shape {tuple(pixel_values.shape)}"
        )


def match_dtype(pixel_values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast float images to the type of the weights, such as bfloat16. Integers are pixels that were not normalized."""
    casts = pixel_values.is_floating_point() and dtype.is_floating_point
    return pixel_values.to(dtype) if casts else pixel_values


def with_dicts(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a forward, inside of `can_return_tuple`: its encoder returns dicts whatever `config.return_dict` is."""

    @wraps(forward)
    def wrapper(model: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(model, *args, **(kwargs | {"return_dict": True}))

    return wrapper


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
    """softmax(Q K^T * scaling) V, (B, N, heads, C/heads), and the attention weights (B, heads, N, M).

    The only implementation that returns weights; transformers' ALL_ATTENTION_FUNCTIONS has the others.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for some images of a batch."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A residual branch (B, ..) to the same shape."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * (hidden_states.new_empty(shape).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:.4f}"


class LayerGeometry(NamedTuple):
    """The widths, epsilon and dropout rates of a Vision Transformer's layer."""

    width: int
    heads: int
    mlp_width: int
    norm_eps: float
    dropout: float
    attention_dropout: float
    qkv_bias: bool = True
    layer_scale: float | None = None


class LayerScale(nn.Module):
    """A learned factor per channel of a residual branch (arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((width,), float(initial)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(.., C) to the same shape."""
        return hidden_states * self.gamma


class VisionTransformerAttention(nn.Module):
    """Multi-head self-attention, equations 5 to 8."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry):
        super().__init__()
        width = geometry.width
        self.config = config
        self.head_dim = width // geometry.heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = geometry.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(width, width, bias=geometry.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=geometry.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=geometry.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, C) to (B, heads, T, C/heads)."""
        return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, C) to the same shape, and the weights (B, heads, T, T) if the implementation returns them."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        context, weights = attention(
            self,
            self.split_heads(apply_linear(self.q_proj, hidden_states)),
            self.split_heads(apply_linear(self.k_proj, hidden_states)),
            self.split_heads(apply_linear(self.v_proj, hidden_states)),
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return apply_linear(self.o_proj, context.reshape(hidden_states.shape)), weights  # (B, T, C)


class VisionTransformerMLP(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry):
        super().__init__()
        self.expanded_width = geometry.mlp_width
        self.fc1 = nn.Linear(geometry.width, geometry.mlp_width)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(geometry.mlp_width, geometry.width)
        self.dropout = nn.Dropout(geometry.dropout)

    @in_row_strips()
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(.., C) to the same shape."""
        expanded = self.dropout(self.activation(apply_linear(self.fc1, hidden_states)))
        return self.dropout(apply_linear(self.fc2, expanded))


class VisionTransformerLayer(GradientCheckpointingLayer):
    """Equations 2 and 3: attention and MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry, drop_path_rate: float = 0.0):
        super().__init__()
        width, scale = geometry.width, geometry.layer_scale
        self.norm1 = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.attention = VisionTransformerAttention(config, geometry)
        self.layer_scale1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.mlp = VisionTransformerMLP(config, geometry)
        self.layer_scale2 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.dropout = nn.Dropout(geometry.dropout)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """(B, T, C) to the same shape."""
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(self.dropout(attended)))
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))


def group_norm(width: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or with the largest number of groups that divides both 32 and the width."""
    return nn.GroupNorm(gcd(width, MAX_GROUPS), width, eps=eps)


HEAD_NORMS: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}


def head_norm(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """A head's norm of (B, D, H, W): "batch" as in the publications, or "group", which is independent of the batch."""
    if kind not in HEAD_NORMS:
        raise HfVitSegError(f"A head's norm is one of {', '.join(HEAD_NORMS)}, got '{kind}'")
    return HEAD_NORMS[kind](width, eps=eps)


__all__ = [
    "DropPath",
    "LayerGeometry",
    "LayerScale",
    "VisionTransformerAttention",
    "VisionTransformerLayer",
    "check_channels",
    "eager_attention_forward",
    "head_norm",
    "match_dtype",
    "with_dicts",
]
