"""From images to the tokens of a Vision Transformer (arXiv 2010.11929, equation 1), pure or hybrid.

Shapes: B images, C channels, H W pixels, h w grid of tokens, N = h*w in row-major order, P prefix positions, T tokens
including the prefix, D width.
"""

import torch
from torch import nn
from torch.nn.functional import interpolate

from .bilinear import antialiasing_matrix, pad_to_multiple
from .configuration_vit import VisionTransformerConfig, pair
from .cpu_kernels import ValueCache, can_cache, is_dynamic_export
from .layers import match_dtype
from .resnetv2 import ResNetV2Stem, StemNumerics


def resize_positions(
    positions: torch.Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    mode: str,
    align_corners: bool,
    antialias: bool,
) -> torch.Tensor:
    """Resize position embeddings (1, P + h*w, D) to (1, P + h'*w', D) like an image, in float32 or float64.

    Section 3.2 interpolates "according to their location in the original image" and does not name the filter.
    """
    prefix_length = positions.shape[1] - old_grid[0] * old_grid[1]
    prefix, grid = positions[:, :prefix_length], positions[:, prefix_length:]
    image = grid.unflatten(1, old_grid).permute(0, 3, 1, 2)  # (1, D, h, w)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    if antialias and not align_corners and is_dynamic_export():  # OpenVINO's antialiased filter has other results
        rows, columns = (antialiasing_matrix(*sides, mode, image) for sides in zip(old_grid, new_grid, strict=True))
        image = rows @ image @ columns.T
    else:
        image = interpolate(image, size=new_grid, mode=mode, align_corners=align_corners, antialias=antialias)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


class PatchEmbeddings(nn.Module):
    """Equation 1 without positions: a linear map of every patch, of the image or of the hybrid's feature map."""

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
                shortcut_norm=config.stem_shortcut_norm,
                shortcut_norm_eps=config.stem_shortcut_norm_eps,
                pool_padding=config.stem_pool_padding,
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
        """Map images (B, C, H, W) to (B, D, h, w); sides are zero-padded to multiples of a token."""
        pixel_values = pad_to_multiple(match_dtype(pixel_values, self.projection.weight.dtype), self.token_stride)
        return self.projection(pixel_values if self.stem is None else self.stem(pixel_values))


class VisionTransformerEmbeddings(nn.Module):
    """Equation 1: prefix tokens and patches, with position embeddings."""

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
        length = config.num_prefix_positions + rows * columns
        self.position_embeddings = nn.Parameter(torch.zeros(1, length, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_cache: ValueCache[torch.Tensor] = ValueCache()

    def resize(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the position embeddings for another grid."""
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
        """Return the position embeddings (1, P + h*w, D) for a grid; resized ones are cached if that is safe."""
        if is_dynamic_export():
            return self.resize(grid)
        if grid == self.config.grid_size:
            return self.position_embeddings
        if not can_cache(self.position_embeddings):
            return self.resize(grid)
        key = (grid, self.config.grid_size)
        return self.position_cache.get(key, [self.position_embeddings], lambda: self.resize(grid))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to tokens (B, T, D)."""
        patch_map = self.patch_embeddings(pixel_values)
        patches = patch_map.flatten(2).transpose(1, 2)  # (B, N, D)
        grid = self.config.grid_of(*pixel_values.shape[-2:])
        prefix_length, positions = self.config.num_prefix_positions, self.positions(grid)
        patches = patches + positions[:, prefix_length:]
        prefix = []
        for index, token in enumerate((self.cls_token, self.distillation_token)):
            if token is not None:
                placed = token + positions[:, index : index + 1] if prefix_length else token
                prefix.append(placed.expand(patches.shape[0], -1, -1))
        if self.cls_token is None and prefix_length:
            patches = patches + positions[:, :1]
        if self.register_tokens is not None:
            prefix.append(self.register_tokens.expand(patches.shape[0], -1, -1))
        return self.dropout(torch.cat([*prefix, patches], dim=1) if prefix else patches)


__all__ = ["PatchEmbeddings", "VisionTransformerEmbeddings", "resize_positions"]
