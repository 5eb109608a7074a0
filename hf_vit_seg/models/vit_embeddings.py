"""From images to the tokens of a Vision Transformer (arXiv 2010.11929, equation 1), pure or hybrid.

Shapes: B images, C channels, H W pixels, h w grid of tokens, N = h*w, T tokens with the prefix, D width.
"""

import torch
from torch import nn

from .configuration_vit import VisionTransformerConfig, pair
from .image_padding import padded_to_whole
from .open_sizes import sizes_are_open
from .position_embeddings import resize_positions
from .resnetv2 import ResNetV2Stem, StemNumerics
from .value_cache import ValueCache, remembering_pays


class PatchEmbeddings(nn.Module):
    """Equation 1 without the positions: a linear map of every patch, of the image or of the hybrid's feature map."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        self.token_stride = config.token_stride
        self.stem = None
        if config.stem == "resnetv2":
            numerics = StemNumerics(
                padding=config.stem_padding,
                mode=config.stem_weight_standardization_mode,
                eps=config.stem_weight_standardization_eps,
                norm_eps=config.stem_group_norm_eps,
            )
            self.stem = ResNetV2Stem(config.num_channels, tuple(config.stem_depths), config.stem_width_factor, numerics)
        self.projection = nn.Conv2d(
            config.num_channels if self.stem is None else self.stem.out_channels,
            config.hidden_size,
            kernel_size=pair(config.patch_size),
            stride=pair(config.patch_size),
            padding=config.patch_padding,
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to (B, D, h, w); sides are padded to whole tokens with zeros, right and bottom."""
        pixel_values = padded_to_whole(pixel_values, self.token_stride)
        return self.projection(pixel_values if self.stem is None else self.stem(pixel_values))


class VisionTransformerEmbeddings(nn.Module):
    """Equation 1: the tokens of the patches behind those of the prefix, and their positions."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        width = config.hidden_size
        rows, columns = config.grid_size
        self.config = config
        self.patch_embeddings = PatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_cls_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_distillation_token else None
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.num_register_tokens, width)) if config.num_register_tokens else None
        )
        slots = config.num_prefix_positions
        self.position_embeddings = nn.Parameter(torch.zeros(1, slots + rows * columns, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.resized: ValueCache[torch.Tensor] = ValueCache()

    def resize(self, grid: tuple[int, int]) -> torch.Tensor:
        """The position embeddings for a grid of another size."""
        config = self.config
        return resize_positions(
            self.position_embeddings,
            config.grid_size,
            grid,
            mode=config.position_resize_mode,
            align_corners=config.position_resize_align_corners,
            antialias=config.position_resize_antialias,
        )

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The position embeddings (1, slots + h*w, D) of a grid; resized ones are remembered where that is safe."""
        if sizes_are_open():
            return self.resize(grid)
        if grid == self.config.grid_size:
            return self.position_embeddings
        if not remembering_pays(self.position_embeddings):
            return self.resize(grid)
        key = (grid, self.config.grid_size)
        return self.resized.get(key, [self.position_embeddings], lambda: self.resize(grid))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to tokens (B, T, D)."""
        patch_map = self.patch_embeddings(pixel_values)
        patches = patch_map.flatten(2).transpose(1, 2)  # (B, N, D)
        grid = self.config.grid_of(*pixel_values.shape[-2:])
        slots, places = self.config.num_prefix_positions, self.positions(grid)
        patches = patches + places[:, slots:]
        prefix = []
        for slot, token in enumerate((self.cls_token, self.distillation_token)):
            if token is not None:
                placed = token + places[:, slot : slot + 1] if slots else token
                prefix.append(placed.expand(patches.shape[0], -1, -1))
        if self.cls_token is None and slots:
            patches = patches + places[:, :1]
        if self.register_tokens is not None:
            prefix.append(self.register_tokens.expand(patches.shape[0], -1, -1))
        return self.dropout(torch.cat([*prefix, patches], dim=1) if prefix else patches)


__all__ = ["PatchEmbeddings", "VisionTransformerEmbeddings"]
