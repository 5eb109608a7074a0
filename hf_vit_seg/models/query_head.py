"""A query decoder on feature maps: Mask2Former (arXiv 2112.01527, section 3.2) with a feature pyramid network.

Queries attend to the levels of a pyramid in turn, the coarsest first, each within the mask that it has predicted
before; then to each other. The pixel decoder is MaskFormer's (arXiv 2107.06278, section 3.3).

Shapes: B images, C_i channels of map i, h_i w_i its grid (0 is the finest, h w), N = h_i*w_i tokens of a level,
Q queries, D width, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .errors import HfVitSegError
from .layers import OBJECT_HEADS, eager_attention_forward, head_norm, split_axis
from .mask_classification import Resample, UniversalSegmentationOutput
from .mask_loss import Prediction
from .segmentation_heads import DEFAULT_HIDDEN_SIZE, PYRAMID_LEVELS, FeaturePyramid

MLP_RATIO = 8  # 2048 / 256 in the released code
ATTENDED_LEVELS = 3  # the coarsest levels
TEMPERATURE = 10000.0  # base of the position embeddings


def mask_mlp(width: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return the layers that turn a query into the weights of its mask (B, Q, D)."""
    return nn.Sequential(
        nn.Linear(width, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, width)
    )


def compute_mask_logits(embeddings: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mask logits (B, Q, h, w) of mask embeddings (B, Q, D) and pixel features (B, D, h, w)."""
    return split_axis(embeddings @ pixels.flatten(2), 2, pixels.shape[-2:])


def attended_pixels(mask_logits: torch.Tensor, probability: float) -> torch.Tensor:
    """Return the pixels that each query attends to (B, Q, N) bool: with this probability only those of its mask (B, Q,
    h, w). Gradients do not flow through masks.
    """
    inside = mask_logits.detach().flatten(2) > 0
    if probability >= 1:
        return inside
    masked = torch.rand(inside.shape[:2], device=inside.device) < probability
    return inside | ~masked[..., None]


def additive_mask(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask of attention scores: 0 where attended, otherwise the lowest number."""
    return torch.zeros((), dtype=dtype, device=attended.device).where(attended, torch.finfo(dtype).min)


def sine_positions(grid: Sequence[int], width: int, like: torch.Tensor) -> torch.Tensor:
    """Return sine embeddings (h*w, D) of rows and columns; coordinates are fractions of the grid times 2 pi."""
    channels = width // 4
    periods = TEMPERATURE ** (torch.arange(channels, device=like.device, dtype=like.dtype) / channels)
    sides = []
    for side in grid:
        positions = (torch.arange(side, device=like.device, dtype=like.dtype) + 1) / side * (2 * math.pi)
        angles = positions[:, None] / periods
        sides.append(torch.cat([angles.sin(), angles.cos()], dim=-1))  # (side, D / 2)
    rows, columns = sides
    rows = rows[:, None].expand(-1, grid[1], -1)
    columns = columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class QueryAttention(nn.Module):
    """Multi-head attention of queries to keys and values, with position embeddings of queries and keys."""

    def __init__(self, config: PreTrainedConfig, width: int, heads: int):
        super().__init__()
        self.config = config
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """Split channels into heads: (B, N, D) to (B, heads, N, D/heads)."""
        return split_axis(tokens, -1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend from queries (B, Q, D) to keys and values (B, N, D); the mask (B, 1, Q, N) is added to the scores: (B,
        Q, D).
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        context, _ = attention(
            self,
            self.split_heads(self.q_proj(queries)),
            self.split_heads(self.k_proj(keys)),
            self.split_heads(self.v_proj(values)),
            mask,
            dropout=0.0,
            scaling=self.scaling,
        )
        return self.o_proj(context.reshape(queries.shape))


class QueryLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention and an MLP, each with a residual connection, followed by a norm."""

    def __init__(self, config: PreTrainedConfig, width: int, heads: int, dropout: float):
        super().__init__()
        self.cross_attention = QueryAttention(config, width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = QueryAttention(config, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.ReLU(), nn.Linear(MLP_RATIO * width, width))
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        memory: torch.Tensor,
        memory_positions: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Update queries (B, Q, D) with positions (1, Q, D) from a level (B, N, D) with positions (1, N, D)."""
        attended = self.cross_attention(queries + positions, memory + memory_positions, memory, mask)
        queries = self.norm1(queries + self.dropout(attended))
        placed = queries + positions
        queries = self.norm2(queries + self.dropout(self.self_attention(placed, placed, queries)))
        return self.norm3(queries + self.dropout(self.mlp(queries)))


class PixelDecoder(nn.Module):
    """A feature pyramid network: every level is projected, and added to the upsampled coarser levels."""

    def __init__(self, in_channels: Sequence[int], width: int, norm: str, norm_eps: float):
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(channels, width, kernel_size=1) for channels in in_channels])
        self.lateral_norms = nn.ModuleList([head_norm(norm, width, norm_eps) for _ in in_channels])
        self.outputs = nn.ModuleList([nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in in_channels])
        self.output_norms = nn.ModuleList([head_norm(norm, width, norm_eps) for _ in in_channels])
        self.mask_features = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Map feature maps (B, C_i, h_i, w_i), finest first, to levels (B, D, h_i, w_i) and pixel features (B, D, h,
        w).
        """
        modules = zip(self.laterals, self.lateral_norms, self.outputs, self.output_norms, strict=True)
        merged, levels = None, []
        for feature_map, (lateral, lateral_norm, output, output_norm) in reversed(
            list(zip(feature_maps, modules, strict=True))
        ):
            projected = lateral_norm(lateral(feature_map))
            if merged is not None:
                size = projected.shape[-2:]
                projected = projected + interpolate(merged, size=size, mode="bilinear", align_corners=False)
            merged = output_norm(output(projected)).relu()
            levels.insert(0, merged)
        return levels, self.mask_features(levels[0])


class QueryHead(nn.Module):
    """The decoder with its predictions of classes and masks.

    `is_plain`: the maps have the same grid, and a feature pyramid is built from them first.
    """

    def __init__(self, config: Any, in_channels: Sequence[int], is_plain: bool):
        super().__init__()
        width, heads = config.decode_head_hidden_size or DEFAULT_HIDDEN_SIZE, config.query_num_heads
        if width % heads or width % 4:
            raise HfVitSegError(
                f"decode_head_hidden_size {width} must be divisible by 4 and by query_num_heads {heads}"
            )
        norm, eps = config.decode_head_norm, config.decode_head_norm_eps
        self.config = config
        self.pyramid = FeaturePyramid(in_channels[0], eps, norm) if is_plain else None
        self.pixel_decoder = PixelDecoder(in_channels, width, norm, eps)
        self.level_embeddings = nn.Embedding(min(len(in_channels), ATTENDED_LEVELS), width)
        self.queries = nn.Embedding(config.num_queries, width)
        self.query_positions = nn.Embedding(config.num_queries, width)
        self.layers = nn.ModuleList(
            [QueryLayer(config, width, heads, config.decode_head_dropout_prob) for _ in range(config.query_num_layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.class_head = nn.Linear(width, config.num_labels + 1)
        self.mask_head = mask_mlp(width, nn.ReLU)
        self.mask_probability = [1.0] * config.query_num_layers

    def predict(self, queries: torch.Tensor, pixels: torch.Tensor) -> Prediction:
        """Compute class logits (B, Q, K + 1) and mask logits (B, Q, h, w) of queries (B, Q, D)."""
        queries = self.norm(queries)
        return self.class_head(queries), compute_mask_logits(self.mask_head(queries), pixels)

    def attention_mask(self, queries: torch.Tensor, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the mask of a layer's scores (B, 1, Q, N); `pixels` (B, D, h_i, w_i) have the grid of its level.

        Resizing pixel features before the product with a query gives the same as resizing its mask after it. A query
        with an empty mask attends to all pixels.
        """
        masks = compute_mask_logits(self.mask_head(self.norm(queries)), pixels)
        attended = attended_pixels(masks, self.mask_probability[layer] if self.training else 1.0)
        attended = attended | ~attended.any(-1, keepdim=True)
        return additive_mask(attended, queries.dtype)[:, None]

    def forward(
        self, feature_maps: Sequence[torch.Tensor], resample: Resample | None = None
    ) -> UniversalSegmentationOutput:
        """Map feature maps (B, C_i, h_i, w_i), finest first, to predictions; `resample` is applied to mask logits."""
        if self.pyramid is not None:
            feature_maps = self.pyramid.pyramid(feature_maps)
        levels, pixels = self.pixel_decoder(feature_maps)
        levels = levels[-len(self.level_embeddings.weight) :][::-1]  # the coarsest first
        memories = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(levels, self.level_embeddings.weight, strict=True)
        ]
        memory_positions = [sine_positions(level.shape[-2:], level.shape[1], level)[None] for level in levels]
        coarse = [interpolate(pixels, size=level.shape[-2:], mode="bilinear", align_corners=False) for level in levels]
        queries = self.queries.weight.expand(pixels.shape[0], -1, -1)
        positions = self.query_positions.weight[None]
        predictions = []
        for index, layer in enumerate(self.layers):
            level, mask = index % len(levels), None
            if self.training:
                predictions.append(self.predict(queries, pixels))
            if self.mask_probability[index] > 0 if self.training else self.config.query_masked_inference:
                mask = self.attention_mask(queries, coarse[level], index)
            queries = layer(queries, positions, memories[level], memory_positions[level], mask)
        predictions.append(self.predict(queries, pixels))
        return UniversalSegmentationOutput.from_predictions(predictions, resample)


def build_query_head(config: Any, in_channels: Sequence[int], is_plain: bool) -> nn.Module:
    """Return the query head for maps with these numbers of channels, finest first."""
    if len(in_channels) < 2 or (is_plain and len(in_channels) != PYRAMID_LEVELS):
        raise HfVitSegError(
            f"decode_head 'query' reads several maps, or {PYRAMID_LEVELS} of one stride, got {len(in_channels)}: set "
            "decode_head_levels"
        )
    return QueryHead(config, in_channels, is_plain)


def build_object_head(config: Any, in_channels: Sequence[int], is_plain: bool = False) -> nn.Module:
    """Return the head that `config.decode_head` names."""
    return OBJECT_HEADS[config.decode_head](config, in_channels, is_plain)


OBJECT_HEADS["query"] = build_query_head

__all__ = ["QueryHead", "additive_mask", "attended_pixels", "build_object_head", "compute_mask_logits", "mask_mlp"]
