"""Any backbone of transformers' AutoBackbone with a segmentation head of this package.

Shapes: B images, C channels, H W pixels, h_i w_i grid of map i (0 is the finest), K classes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import lcm
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbone_loading import gives_channels_last, hub_options, loaded_backbone, new_backbone, stored_config
from .carried_code import plugged_head
from .chosen_heads import DEFAULT_WIDTH, linear_head, mask_transformer_head, pyramid_head
from .configuration_backbone_seg import LEVELS, SINGLE_MAP_HEADS, BackboneSegmentationConfig
from .errors import HfVitSegError
from .feature_strides import Stride, feature_strides
from .image_bands import check_channels
from .image_padding import padded_to_whole
from .losses import segmenter_output
from .plugged_heads import PLUGGED_HEADS
from .recomputation import count_batches_once
from .segmentation_heads import AllMLPHead
from .vit_segmentation_heads import initialise_head, sample_extent

CONFIG_FIELDS = {field.name for field in fields(BackboneSegmentationConfig)} - {"dtype"} | {"num_labels"}
HEAD_CHANNELS = 64  # of each attention head of the mask transformer
INITIALISED = "_is_hf_initialized"  # by which transformers knows modules that it need not initialise
TENSOR_ACCOUNTS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def cell_classifier(config: BackboneSegmentationConfig, channels: Sequence[int]) -> nn.Module:
    """A classifier per cell."""
    return linear_head(config, channels[0])


def segmenter_decoder(config: BackboneSegmentationConfig, channels: Sequence[int]) -> nn.Module:
    """Segmenter's decoder; its attention heads are as wide as those of all published ViTs."""
    return mask_transformer_head(config, channels[0], HEAD_CHANNELS)


def feature_pyramid_head(config: BackboneSegmentationConfig, channels: Sequence[int]) -> nn.Module:
    """A pyramid made of maps of one stride, and an all-MLP head."""
    return pyramid_head(config, channels[0])


def all_mlp_head(config: BackboneSegmentationConfig, channels: Sequence[int]) -> nn.Module:
    """SegFormer's head over a backbone's own pyramid."""
    return AllMLPHead(
        channels,
        config.segmentation_head_width or DEFAULT_WIDTH,
        cast(int, config.num_labels),
        norm_eps=config.segmentation_norm_eps,
        dropout=config.classifier_dropout_prob,
        norm=config.decoder_norm,
    )


class HeadChoice(NamedTuple):
    """A head, and which maps it reads, in words and as a test of their strides."""

    build: Callable[[BackboneSegmentationConfig, Sequence[int]], nn.Module]
    reads: str
    fits: Callable[[Sequence[Stride]], bool]


def one_map(strides: Sequence[Stride]) -> bool:
    """Whether there is a single map."""
    return len(strides) == 1


def one_stride(strides: Sequence[Stride]) -> bool:
    """Whether there are as many maps as a pyramid has levels, alike in size."""
    return len(strides) == LEVELS and len(set(strides)) == 1


def rising_strides(strides: Sequence[Stride]) -> bool:
    """Whether the maps are of several sizes, finest first."""
    return len(set(strides)) > 1 and all(list(side) == sorted(side) for side in zip(*strides, strict=True))


HEADS: Mapping[str, HeadChoice] = {
    "linear": HeadChoice(cell_classifier, "a single map", one_map),
    "mask_transformer": HeadChoice(segmenter_decoder, "a single map", one_map),
    "feature_pyramid": HeadChoice(feature_pyramid_head, f"{LEVELS} maps of one stride", one_stride),
    "all_mlp": HeadChoice(all_mlp_head, "maps of several strides, finest first", rising_strides),
}


def head_choice(name: str) -> HeadChoice:
    """The head called `name`, ours or a plugin's, which reads what it is given; ValueError where there is none."""
    if name in HEADS:
        return HEADS[name]
    if name not in PLUGGED_HEADS:
        known = ", ".join([*HEADS, *PLUGGED_HEADS])
        raise HfVitSegError(
            f"there is no segmentation_head '{name}', here or in an installed plugin; known are {known}; the card of a "
            "model that wears it (README.md) names the package to install"
        )
    return HeadChoice(plugged_head, "any maps", lambda _: True)


def chosen_head(config: BackboneSegmentationConfig, strides: Sequence[Stride]) -> str:
    """The head's name; ValueError for one that is not known or cannot read maps of these strides."""
    name = config.segmentation_head or ("all_mlp" if rising_strides(strides) else "feature_pyramid")
    reads, fits = head_choice(name)[1:]
    if fits(strides):
        return name
    chosen = config.segmentation_levels is not None
    able = [
        f"'{other}'"
        for other, choice in HEADS.items()
        if choice.fits(strides) or (not chosen and other in SINGLE_MAP_HEADS)
    ]
    found = ", ".join(f"{rows}" if rows == columns else f"{rows}x{columns}" for rows, columns in strides)
    raise HfVitSegError(
        f"segmentation_head '{name}' reads {reads}, but the '{config.backbone.model_type}' backbone gives "
        f"{len(strides)} of stride {found} (stages {', '.join(map(str, config.backbone.out_features))}): take "
        f"{' or '.join([*able, 'other segmentation_levels'])}"
    )


class BackboneForSemanticSegmentation(PreTrainedModel):
    """A backbone and the head that `config.segmentation_head` names, or that fits its strides."""

    config: BackboneSegmentationConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    accepts_loss_kwargs = False  # else Trainer would divide by a count of labels that includes ignored pixels
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionTransformerLayer", "AllMLPHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: BackboneSegmentationConfig, backbone: PreTrainedModel | None = None):
        """Build the model around a new backbone, or around one that is built and loaded already."""
        super().__init__(config)
        config.check_parts()
        self.backbone: Any = new_backbone(config.backbone) if backbone is None else backbone
        config.backbone_config = self.backbone.config  # timm has settled its stages in it
        strides = feature_strides(self.backbone)
        self.turns_maps = gives_channels_last(self.backbone)
        self.token = lcm(*(rows for rows, _ in strides)), lcm(*(columns for _, columns in strides))
        self.head_name = chosen_head(config, strides)
        self.decode_head = head_choice(self.head_name).build(config, self.backbone.channels)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.post_init()

    def get_input_embeddings(self) -> nn.Module | None:
        """The backbone's; None for one that names none, as convolutional ones do."""
        try:
            return self.backbone.get_input_embeddings()
        except NotImplementedError:
            return None

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        count_batches_once(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The head's; the backbone initialises itself."""
        if not initialise_head(module, self.config.initializer_range):
            super()._init_weights(module)

    @classmethod
    def config_around(
        cls, path: str | os.PathLike, head: str | None = None, hub: Mapping[str, Any] | None = None, **settings: Any
    ) -> BackboneSegmentationConfig:
        """The config of a model around a bare backbone checkpoint; `hub` says where it is (`revision`, `token` ...)."""
        bare = stored_config(path, **(hub or {}))
        return BackboneSegmentationConfig(backbone_config=bare, segmentation_head=head, **settings)

    @classmethod
    def from_backbone(
        cls,
        path: str | os.PathLike,
        head: str | None = None,
        *,
        config: BackboneSegmentationConfig | None = None,
        output_loading_info: bool = False,
        **settings: Any,
    ) -> Any:
        """A model with the weights of a bare backbone checkpoint, a directory or Hub id, and a fresh head.

        `settings` are fields of BackboneSegmentationConfig (`id2label`, `segmentation_head_width` ...) and options of
        `from_pretrained` (`revision`, `dtype`, `attn_implementation` ...). A `config` takes the place of `head` and of
        the fields. With `output_loading_info` also transformers' account of missing, unexpected and mismatched
        tensors. ValueError for checkpoints that have no AutoBackbone, and for a head that cannot read its maps.
        """
        described = {name: value for name, value in settings.items() if name in CONFIG_FIELDS}
        loading = {name: value for name, value in settings.items() if name not in CONFIG_FIELDS}
        if config is None:
            config = cls.config_around(path, head, hub_options(loading), **described)
        config._attn_implementation = loading.pop("attn_implementation", config._attn_implementation)
        backbone, account = loaded_backbone(path, config.backbone, **loading)
        for module in backbone.modules():
            setattr(module, INITIALISED, True)  # what is loaded stays
        model = cls._from_config(config, dtype=backbone.dtype, backbone=backbone).eval()
        return (model, model.account_of(account)) if output_loading_info else model

    def account_of(self, backbone: Mapping[str, Any]) -> dict[str, Any]:
        """The account of a backbone's tensors as that of all tensors of this model."""
        named = {
            kind: {(f"backbone.{n[0]}", *n[1:]) if isinstance(n, tuple) else f"backbone.{n}" for n in backbone[kind]}
            for kind in TENSOR_ACCOUNTS
        }
        named["missing_keys"] |= {name for name in self.state_dict() if name.startswith("decode_head.")}
        return named

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, h, w) of the finest map's grid, 4 times finer for the pyramid.

        Sides that are no multiple of the coarsest map's cell are padded with zeros for the backbone; the logits are
        sampled such that they span the image alone.

        `labels` are class maps (B, H', W') of any size, int64; `segmenter_output` tells which pixels count.
        """
        check_channels(self.config, pixel_values)
        height, width = pixel_values.shape[-2:]
        padded = padded_to_whole(pixel_values, self.token)
        outputs = self.backbone.forward_with_filtered_kwargs(padded, return_dict=True, **kwargs)
        maps = outputs.feature_maps
        if self.turns_maps:
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        logits = self.decode_head(maps[0] if self.head_name in SINGLE_MAP_HEADS else maps)
        logits = sample_extent(logits, (height, width), self.token)
        return segmenter_output(self.config, outputs, logits, labels)


__all__ = ["BackboneForSemanticSegmentation"]
