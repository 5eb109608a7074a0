"""Segmentation heads for encoders with a single grid of tokens.

Shapes: B images, C channels of the encoder, h w its grid, N = h*w tokens, D width of the head, K classes.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import grid_sample, normalize
from transformers import PreTrainedConfig
from transformers import initialization as init

from .errors import HfVitSegError
from .grid_sizes import ceil_div, round_up
from .head_norms import head_norm
from .open_sizes import sizes_are_open
from .pointwise import PointwiseLinear
from .segmentation_heads import AllMLPHead
from .strip_upsampling import working_dtype
from .transformer_layer import LayerGeometry, VisionTransformerLayer


class LinearHead(nn.Module):
    """A linear classifier on every token (arXiv 2105.05633, section 3.2, "linear")."""

    def __init__(self, in_channels: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = PointwiseLinear(in_channels, num_labels)

    def forward(self, feature_map: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, C, h, w) to logits (B, K, h, w), channels-last in memory."""
        return self.classifier(self.dropout(feature_map.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class MaskTransformerHead(nn.Module):
    """Segmenter's decoder (arXiv 2105.05633, section 3.2): class tokens go through the layers with the patches.

    A class's logit at a patch is the cosine of both tokens, and a LayerNorm over the classes of a patch follows.
    The class tokens stand behind the patches. `config` gives activation and attention implementation.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        in_channels: int,
        num_labels: int,
        depth: int,
        geometry: LayerGeometry,
    ):
        super().__init__()
        width = geometry.width
        if width % geometry.heads:
            raise HfVitSegError(f"the mask transformer's width {width} is no multiple of its {geometry.heads} heads")
        self.projection = PointwiseLinear(in_channels, width)
        self.class_embeddings = nn.Parameter(torch.zeros(1, num_labels, width))
        self.layers = nn.ModuleList([VisionTransformerLayer(config, geometry) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.patch_projection = PointwiseLinear(width, width, bias=False)
        self.class_projection = PointwiseLinear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_labels, eps=geometry.norm_eps)

    def forward(self, feature_map: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, C, h, w) to logits (B, K, h, w), channels-last in memory."""
        size = feature_map.shape[-2:]
        patches = self.projection(feature_map.permute(0, 2, 3, 1).flatten(1, 2))  # (B, N, D)
        classes = self.class_embeddings.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, K, D)
        hidden_states = torch.cat([patches, classes], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        patches, classes = self.norm(hidden_states).split([patches.shape[1], classes.shape[1]], dim=1)
        patches = normalize(self.patch_projection(patches), dim=-1)
        classes = normalize(self.class_projection(classes), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))  # (B, N, K)
        return masks.unflatten(1, size).permute(0, 3, 1, 2)


class PyramidHead(nn.Module):
    """A feature pyramid from four layers of one grid (as in arXiv 2106.08254, BEiT), and SegFormer's head over it.

    The levels have 4, 2, 1 and 1/2 times the grid's side; each comes from a layer of its own, normed first, because
    the layers of a plain ViT differ in scale.
    """

    def __init__(
        self, in_channels: int, width: int, num_labels: int, norm_eps: float, dropout: float, norm: str = "batch"
    ):
        super().__init__()
        channels = in_channels

        def double() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

        self.level_norms = nn.ModuleList([nn.LayerNorm(channels, eps=norm_eps) for _ in range(4)])
        self.levels = nn.ModuleList(
            [
                nn.Sequential(double(), head_norm(norm, channels), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.all_mlp = AllMLPHead([channels] * 4, width, num_labels, dropout=dropout, norm=norm)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps (B, C, h, w), the first for the finest level, to logits (B, K, 4*h, 4*w)."""
        levels = []
        for feature_map, norm, level in zip(feature_maps, self.level_norms, self.levels, strict=True):
            levels.append(level(norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        return self.all_mlp(levels)


def initialise_head(module: nn.Module, std: float) -> bool:
    """Truncated normal for class tokens, linear maps and kernels, zeros for biases; whether the module has any."""
    if isinstance(module, MaskTransformerHead):
        init.trunc_normal_(module.class_embeddings, std=std)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    else:
        return False
    return True


def sample_extent(logits: torch.Tensor, size: tuple[int, int], token: tuple[int, int]) -> torch.Tensor:
    """Logits (B, K, a, b) of an image that was padded to whole tokens, as logits of the image alone.

    `size` is the image's (height, width), `token` that of the pixels of a token; there are one or more whole cells of
    logits per token. What reads logits takes them to span the image from border to border; those of a padded image
    span the padding too. So they are sampled (bilinearly) at the centres of a grid that spans the image, of as many
    cells as cover it at the logits' stride.
    """
    if not sizes_are_open() and all(length % step == 0 for length, step in zip(size, token, strict=True)):
        return logits
    lines = []
    for cells, length, step in zip(logits.shape[-2:], size, token, strict=True):
        whole, per_token = round_up(length, step), cells // ceil_div(length, step)
        count = ceil_div(length * per_token, step)
        centres = (torch.arange(count, device=logits.device, dtype=torch.float32) + 0.5) / count  # 0 .. 1 of the image
        lines.append(centres * (2 * length / whole) - 1)  # -1 .. 1 of the padded picture
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    wide = logits.to(working_dtype(logits))  # places in bfloat16 would be off by whole cells
    points = torch.stack([columns, rows], dim=-1).to(wide.dtype).expand(logits.shape[0], -1, -1, -1)
    sampled = grid_sample(wide, points, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(logits.dtype)


__all__ = ["LinearHead", "MaskTransformerHead", "PyramidHead", "initialise_head", "sample_extent"]
