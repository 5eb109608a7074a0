"""The layer of the Vision Transformer (arXiv 2010.11929, figure 1), for encoders and for heads that have layers.

Equation numbers are the paper's. Shapes: B images, T tokens, C channels.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import eager_attention_forward
from .drop_path import DropPath
from .pointwise import PointwiseLinear
from .row_strips import row_strips, strips_pay_in

# Largest temporary of the MLP on a CPU: from 4 MiB on, the allocator maps new pages (see row_strips).
STRIP_BYTES = 3 * 2**20


class LayerGeometry(NamedTuple):
    """What makes one layer: its widths, epsilon and rates."""

    width: int
    heads: int
    mlp_width: int
    norm_eps: float
    dropout: float
    attention_dropout: float
    qkv_bias: bool = True
    layer_scale: float | None = None


class LayerScale(nn.Module):
    """A factor for every channel of a residual branch (arXiv 2103.17239), small in the beginning."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((width,), float(initial)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(.., C) to the same."""
        return hidden_states * self.gamma


class VisionTransformerAttention(nn.Module):
    """Equations 5 to 8: every token asks every token."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry):
        super().__init__()
        width = geometry.width
        self.config = config
        self.head_dim = width // geometry.heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = geometry.attention_dropout
        self.is_causal = False
        self.q_proj = PointwiseLinear(width, width, bias=geometry.qkv_bias)
        self.k_proj = PointwiseLinear(width, width, bias=geometry.qkv_bias)
        self.v_proj = PointwiseLinear(width, width, bias=geometry.qkv_bias)
        self.o_proj = PointwiseLinear(width, width)

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, heads, T, C/heads)."""
        return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, C) to the same, and the weights (B, heads, T, T) if the implementation returns any."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        context, weights = attention(
            self,
            self.split_heads(self.q_proj(hidden_states)),
            self.split_heads(self.k_proj(hidden_states)),
            self.split_heads(self.v_proj(hidden_states)),
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(context.reshape(hidden_states.shape)), weights  # (B, T, C)


class VisionTransformerMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: PreTrainedConfig, geometry: LayerGeometry):
        super().__init__()
        self.fc1 = PointwiseLinear(geometry.width, geometry.mlp_width)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = PointwiseLinear(geometry.mlp_width, geometry.width)
        self.dropout = nn.Dropout(geometry.dropout)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (.., C) through the wide layer and back."""
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(tokens)))))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not strips_pay_in(self, hidden_states):
            return self.transform(hidden_states)
        tokens = hidden_states.flatten(0, -2)
        strips = row_strips(len(tokens), self.fc1.out_features * tokens.element_size(), STRIP_BYTES)
        if len(strips) == 1:
            return self.transform(hidden_states)
        transformed = torch.empty_like(tokens)
        for first, last in strips:
            transformed[first:last] = self.transform(tokens[first:last])
        return transformed.view_as(hidden_states)


class VisionTransformerLayer(GradientCheckpointingLayer):
    """Equations 2 and 3: attention and MLP, each behind a norm and a residual connection."""

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
        """(B, T, C) to the same."""
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(self.dropout(attended)))
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))


__all__ = ["LayerGeometry", "LayerScale", "VisionTransformerAttention", "VisionTransformerLayer"]
