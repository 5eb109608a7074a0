"""Segmentation heads by name, for every architecture with a choice of heads, and the heads for plain encoders.

Every head maps a sequence of feature maps (B, C_i, H_i, W_i), finest first, to logits (B, K, h, w). A plugin's head is
a module in a file like those of this folder (it imports torch, transformers and siblings). It is built as
`Head(in_channels, num_labels, ...)` with the number of channels of each map, and with those of SETTINGS that its
constructor has parameters for.

Shapes: B images, C channels of the encoder, h w its grid, N = h*w tokens, D width of the head, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedConfig
from transformers import initialization as init

from .all_mlp_head import AllMLPHead
from .cpu_kernels import apply_linear
from .errors import HfVitSegError
from .external_heads import EXTERNAL_HEADS
from .layers import LayerGeometry, VisionTransformerLayer, head_norm, split_axis

PYRAMID_LEVELS = 4
DEFAULT_HIDDEN_SIZE = 256  # default width of all-MLP heads
# Optional parameters of registered heads, and the config fields with their values.
SETTINGS = {
    "hidden_size": "decode_head_hidden_size",
    "num_layers": "decode_head_num_layers",
    "norm": "decode_head_norm",
    "norm_eps": "decode_head_norm_eps",
    "dropout_prob": "decode_head_dropout_prob",
    "hidden_act": "hidden_act",
}


class LinearHead(nn.Module):
    """A linear classifier on every token (arXiv 2105.05633, section 3.2, "linear")."""

    def __init__(self, in_channels: int, num_labels: int, dropout_prob: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout_prob)
        self.classifier = nn.Linear(in_channels, num_labels)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map one feature map (B, C, h, w) to logits (B, K, h, w), channels-last in memory."""
        (feature_map,) = feature_maps
        return apply_linear(self.classifier, self.dropout(feature_map.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class MaskTransformerHead(nn.Module):
    """Segmenter's decoder (arXiv 2105.05633, section 3.2): class tokens attend to the patches and vice versa.

    The logit of a class at a patch is the cosine similarity of their tokens, followed by a LayerNorm over the classes.
    Class tokens come after the patches. `config` provides activation and attention implementation.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        in_channels: int,
        num_labels: int,
        num_layers: int,
        geometry: LayerGeometry,
    ):
        super().__init__()
        width = geometry.width
        if width % geometry.heads:
            raise HfVitSegError(
                f"the mask transformer's width {width} must be divisible by its number of heads, {geometry.heads}"
            )
        self.projection = nn.Linear(in_channels, width)
        self.class_embeddings = nn.Parameter(torch.zeros(1, num_labels, width))
        self.layers = nn.ModuleList([VisionTransformerLayer(config, geometry) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width, eps=geometry.norm_eps)
        self.patch_projection = nn.Linear(width, width, bias=False)
        self.class_projection = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_labels, eps=geometry.norm_eps)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map one feature map (B, C, h, w) to logits (B, K, h, w), channels-last in memory."""
        (feature_map,) = feature_maps
        patches = apply_linear(self.projection, feature_map.permute(0, 2, 3, 1).flatten(1, 2))  # (B, N, D)
        classes = self.class_embeddings.to(patches.dtype).expand(patches.shape[0], -1, -1)  # (B, K, D)
        hidden_states = torch.cat([patches, classes], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        patches, classes = self.norm(hidden_states).split([patches.shape[1], classes.shape[1]], dim=1)
        patches = normalize(apply_linear(self.patch_projection, patches), dim=-1)
        classes = normalize(apply_linear(self.class_projection, classes), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))  # (B, N, K)
        return split_axis(masks, 1, feature_map.shape[-2:]).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """A feature pyramid from four layers with the same grid (as in BEiT, arXiv 2106.08254).

    The levels have 4, 2, 1 and 1/2 times the grid's side. Each comes from its own layer and is normalized first, as
    the layers of a plain ViT differ in scale.
    """

    def __init__(self, channels: int, norm_eps: float, norm: str = "batch"):
        super().__init__()

        def double() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

        self.level_norms = nn.ModuleList([nn.LayerNorm(channels, eps=norm_eps) for _ in range(PYRAMID_LEVELS)])
        self.levels = nn.ModuleList(
            [
                nn.Sequential(double(), head_norm(norm, channels), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def pyramid(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map four feature maps (B, C, h, w) to four levels (B, C, h_i, w_i), the finest first."""
        levels = []
        for feature_map, norm, level in zip(feature_maps, self.level_norms, self.levels, strict=True):
            levels.append(level(norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        return levels


class PyramidHead(FeaturePyramid):
    """A feature pyramid, and an all-MLP head."""

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        num_labels: int,
        norm_eps: float,
        dropout_prob: float,
        norm: str = "batch",
    ):
        super().__init__(in_channels, norm_eps, norm)
        self.all_mlp = AllMLPHead(
            [in_channels] * PYRAMID_LEVELS, hidden_size, num_labels, dropout_prob=dropout_prob, norm=norm
        )

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map four feature maps (B, C, h, w), the first for the finest level, to logits (B, K, 4*h, 4*w)."""
        return self.all_mlp(self.pyramid(feature_maps))


def initialize_head(module: nn.Module, std: float) -> bool:
    """Initialize class tokens, linear maps and kernels by a truncated normal, biases by 0; False for other modules."""
    if isinstance(module, MaskTransformerHead):
        init.trunc_normal_(module.class_embeddings, std=std)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    else:
        return False
    return True


def linear_head(config: Any, in_channels: Sequence[int], head_dim: int) -> nn.Module:
    return LinearHead(in_channels[0], config.num_labels, config.decode_head_dropout_prob)


def mask_transformer_head(config: Any, in_channels: Sequence[int], head_dim: int) -> nn.Module:
    width = config.decode_head_hidden_size or in_channels[0]
    geometry = LayerGeometry(
        width=width,
        heads=max(width // head_dim, 1),
        mlp_width=4 * width,
        norm_eps=config.decode_head_norm_eps,
        dropout=config.decode_head_dropout_prob,
        attention_dropout=config.decode_head_dropout_prob,
    )
    return MaskTransformerHead(config, in_channels[0], config.num_labels, config.decode_head_num_layers, geometry)


def feature_pyramid_head(config: Any, in_channels: Sequence[int], head_dim: int) -> nn.Module:
    return PyramidHead(
        in_channels[0],
        config.decode_head_hidden_size or DEFAULT_HIDDEN_SIZE,
        config.num_labels,
        config.decode_head_norm_eps,
        config.decode_head_dropout_prob,
        config.decode_head_norm,
    )


def all_mlp_head(config: Any, in_channels: Sequence[int], head_dim: int) -> nn.Module:
    return AllMLPHead(
        in_channels,
        config.decode_head_hidden_size or DEFAULT_HIDDEN_SIZE,
        config.num_labels,
        norm_eps=config.decode_head_norm_eps,
        dropout_prob=config.decode_head_dropout_prob,
        norm=config.decode_head_norm,
    )


def registered_head(name: str, config: Any, in_channels: Sequence[int], head_dim: int) -> nn.Module:
    """Return a plugin's head. Its own defaults apply for config fields that are None."""
    head = EXTERNAL_HEADS[name]
    parameters = signature(head).parameters
    settings = {parameter: getattr(config, field) for parameter, field in SETTINGS.items() if parameter in parameters}
    given = {parameter: value for parameter, value in settings.items() if value is not None}
    try:
        return head(in_channels, config.num_labels, **given)
    except Exception as error:  # third-party code may raise anything
        error.add_note(f"decode_head '{name}', for maps of {list(in_channels)} channels")
        raise


class HeadSpec(NamedTuple):
    """The constructor of a head, and the feature maps that it reads.

    `build` takes a config, the number of channels of each map, and the width of an attention head. `fits` takes the
    strides (height, width) of the maps.
    """

    build: Callable[[Any, Sequence[int], int], nn.Module]
    num_maps: int | None  # None: any number
    reads: str
    fits: Callable[[Sequence[tuple[int, int]]], bool]


def has_one_map(strides: Sequence[tuple[int, int]]) -> bool:
    return len(strides) == 1


def has_equal_strides(strides: Sequence[tuple[int, int]]) -> bool:
    return len(strides) == PYRAMID_LEVELS and len(set(strides)) == 1


def has_rising_strides(strides: Sequence[tuple[int, int]]) -> bool:
    """Return whether maps have several strides (height, width), finest first."""
    return len(set(strides)) > 1 and all(list(side) == sorted(side) for side in zip(*strides, strict=True))


HEADS: Mapping[str, HeadSpec] = {
    "linear": HeadSpec(linear_head, 1, "a single map", has_one_map),
    "mask_transformer": HeadSpec(mask_transformer_head, 1, "a single map", has_one_map),
    "feature_pyramid": HeadSpec(
        feature_pyramid_head, PYRAMID_LEVELS, f"{PYRAMID_LEVELS} maps of one stride", has_equal_strides
    ),
    "all_mlp": HeadSpec(all_mlp_head, None, "maps of several strides, finest first", has_rising_strides),
}


def find_head(name: str) -> HeadSpec:
    """Return the head with a name, built in or registered by a plugin; ValueError if there is none."""
    if name in HEADS:
        return HEADS[name]
    if name not in EXTERNAL_HEADS:
        names = [*HEADS, *EXTERNAL_HEADS]
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'? The known heads are" if near else "the known heads are"
        raise HfVitSegError(
            f"there is no decode_head '{name}', here or in an installed plugin; {hint} {', '.join(names)}; the card of "
            "a model with another head (README.md) names the package to install"
        )
    return HeadSpec(partial(registered_head, name), None, "any maps", lambda _: True)


__all__ = [
    "HEADS",
    "PYRAMID_LEVELS",
    "FeaturePyramid",
    "HeadSpec",
    "LinearHead",
    "MaskTransformerHead",
    "PyramidHead",
    "find_head",
    "has_rising_strides",
    "initialize_head",
]
