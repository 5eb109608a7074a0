"""Any transformers backbone (AutoBackbone) with a segmentation head.

Backbones are loaded from checkpoints in a directory or on the Hub. `AutoBackbone.from_pretrained` is not suitable: it
does not accept directories, and it resets the BatchNorm statistics of timm checkpoints (transformers 5.23).

Shapes: B images, C channels, H W pixels, h_i w_i grid of map i (0 is the finest), K classes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from math import lcm
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
)
from transformers.backbone_utils import BackboneType
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.hub import cached_file

from .bilinear import crop_to_image_extent, pad_to_multiple
from .configuration_backbone_seg import BackboneSegmentationConfig
from .errors import HfVitSegError
from .layers import SegmentationPreTrainedModel, check_channels, hub_options, match_dtype
from .losses import segmenter_output
from .recomputation import update_statistics_once
from .segmentation_heads import HEADS, find_head, has_rising_strides, initialize_head

TIMM_WEIGHTS = "model.safetensors"
CHANNELS_LAST = "NHWC"
DEFAULT_SIZE = 224  # image size for backbones whose config has none
T = TypeVar("T")


def load_backbone_config(path: str | os.PathLike, **hub: Any) -> PreTrainedConfig:
    """Load the config of a checkpoint as a backbone config; for timm's own checkpoints, that of a TimmBackbone.

    ValueError for a model without an AutoBackbone class.
    """
    config = AutoConfig.from_pretrained(path, **hub)
    if config.model_type == "timm_wrapper":  # importing its class would import timm
        return TimmBackboneConfig(backbone=config.architecture)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise HfVitSegError(
            f"{path} is a '{config.model_type}', for which transformers has no backbone (AutoBackbone), so it cannot "
            "have a segmentation head"
        )
    return config


def build_backbone(config: PreTrainedConfig) -> Any:
    """Build a backbone with randomly initialized weights."""
    return build_for_any_size(config, partial(AutoBackbone.from_config, config))


def build_for_any_size(config: PreTrainedConfig, build: Callable[..., T]) -> T:
    """Call `build`, with timm's option for images of any size if the model has it (CNNs do not need it)."""
    if isinstance(config, TimmBackboneConfig):
        with suppress(TypeError):
            return build(dynamic_img_size=True)
    return build()


def returns_channels_last(backbone: Any) -> bool:
    """Return whether a backbone's maps are (B, H, W, C), as those of some timm models."""
    layout = getattr(getattr(backbone, "_backbone", None), "output_fmt", None)
    return getattr(layout, "value", layout) == CHANNELS_LAST


def load_backbone(
    path: str | os.PathLike, config: PreTrainedConfig, **loading: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a backbone with the checkpoint's weights; also returns transformers' loading info."""
    backbone_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    if not isinstance(config, TimmBackboneConfig):
        return backbone_class.from_pretrained(path, config=config, output_loading_info=True, **loading)
    hub = hub_options(loading)
    if isinstance(AutoConfig.from_pretrained(path, **hub), TimmBackboneConfig):  # saved by transformers
        load = PreTrainedModel.from_pretrained.__func__  # TimmBackbone's own method asks timm for a model of that name
        return build_for_any_size(
            config, partial(load, backbone_class, path, config=config, output_loading_info=True, **loading)
        )
    file = cached_file(path, TIMM_WEIGHTS, **hub)
    build = partial(backbone_class, config, pretrained=True, pretrained_cfg_overlay={"file": file})
    with no_init_weights():  # otherwise post_init resets the BatchNorms
        backbone = build_for_any_size(config, build)
    return backbone, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}


def feature_strides(backbone: Any) -> tuple[tuple[int, int], ...]:
    """Return the stride (height, width) of each map of an AutoBackbone. timm reports it; others run once on the meta
    device.

    The image has the backbone's own size, because that is the only size that all of them accept.
    """
    if backbone.backbone_type == BackboneType.TIMM:
        return tuple((stride, stride) for stride in backbone._backbone.feature_info.reduction())
    size = getattr(backbone.config, "image_size", None) or DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, backbone.config.num_channels, height, width, device="meta", dtype=backbone.dtype)
    with torch.no_grad():
        maps = functional_call(backbone, meta, (image,), {"return_dict": True}).feature_maps
    sides = [feature_map.shape[-2:] for feature_map in maps]
    return tuple((round(height / rows), round(width / columns)) for rows, columns in sides)


CONFIG_FIELDS = {field.name for field in fields(BackboneSegmentationConfig)} - {"dtype"} | {"num_labels"}
ATTENTION_HEAD_DIM = 64  # width of a head of the mask transformer, as in all published ViTs
INITIALIZED = "_is_hf_initialized"  # the attribute by which transformers skips initialized modules
RECORDED_OUTPUTS = ("output_hidden_states", "output_attentions")
TENSOR_KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def select_head(config: BackboneSegmentationConfig, strides: Sequence[tuple[int, int]]) -> str:
    """Return the head's name; ValueError if it is unknown or cannot read maps of these strides."""
    name = config.decode_head or ("all_mlp" if has_rising_strides(strides) else "feature_pyramid")
    head = find_head(name)
    if head.fits(strides):
        return name
    levels_are_given = config.decode_head_levels is not None
    suitable = [
        f"'{other}'"
        for other, spec in HEADS.items()
        if spec.fits(strides) or (not levels_are_given and spec.num_maps == 1)
    ]
    sizes = ", ".join(f"{rows}" if rows == columns else f"{rows}x{columns}" for rows, columns in strides)
    raise HfVitSegError(
        f"decode_head '{name}' reads {head.reads}, but the '{config.backbone.model_type}' backbone returns "
        f"{len(strides)} of stride {sizes} (stages {', '.join(map(str, config.backbone.out_features))}): use "
        f"{' or '.join([*suitable, 'other decode_head_levels'])}"
    )


class BackboneForSemanticSegmentation(SegmentationPreTrainedModel):
    """A backbone with the head selected by `config.decode_head`, or by its strides."""

    config: BackboneSegmentationConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    accepts_loss_kwargs = False  # otherwise Trainer would divide by a count of labels that includes ignored pixels
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionTransformerLayer", "AllMLPHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: BackboneSegmentationConfig, backbone: PreTrainedModel | None = None):
        """Build the model with a new backbone, or with one that has been loaded."""
        super().__init__(config)
        config.check_parts()
        self.backbone: Any = build_backbone(config.backbone) if backbone is None else backbone
        config.backbone_config = self.backbone.config  # timm has added its stages
        strides = feature_strides(self.backbone)
        self.has_channels_last_maps = returns_channels_last(self.backbone)
        self.token = lcm(*(rows for rows, _ in strides)), lcm(*(columns for _, columns in strides))
        self.decode_head = self.build_head(config, strides)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.post_init()

    def build_head(self, config: BackboneSegmentationConfig, strides: Sequence[tuple[int, int]]) -> nn.Module:
        """Return the head for maps of these strides."""
        self.head_name = select_head(config, strides)
        return find_head(self.head_name).build(config, self.backbone.channels, ATTENTION_HEAD_DIM)

    def get_input_embeddings(self) -> nn.Module | None:
        """Return the backbone's; None if it has none, as convolutional ones."""
        try:
            return self.backbone.get_input_embeddings()
        except NotImplementedError:
            return None

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        update_statistics_once(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the head; the backbone initializes itself."""
        if not initialize_head(module, self.config.initializer_range):
            super()._init_weights(module)

    @classmethod
    def config_from_backbone(
        cls, path: str | os.PathLike, head: str | None = None, hub: Mapping[str, Any] | None = None, **settings: Any
    ) -> BackboneSegmentationConfig:
        """Build the config of a model with the backbone of a checkpoint; `hub` has options such as `revision`."""
        bare = load_backbone_config(path, **(hub or {}))
        return BackboneSegmentationConfig(backbone_config=bare, decode_head=head, **settings)

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
        """Return a model with the weights of a backbone checkpoint, a directory or Hub id, and a randomly initialized
        head.

        `settings` are fields of BackboneSegmentationConfig (`id2label`, `decode_head_hidden_size` ...) and options of
        `from_pretrained` (`revision`, `dtype`, `attn_implementation` ...). A `config` replaces `head` and the fields.
        `output_loading_info` adds transformers' lists of missing, unexpected and mismatched tensors to the result.
        ValueError for checkpoints without an AutoBackbone, and for a head that cannot read the backbone's maps.
        """
        fields_given = {name: value for name, value in settings.items() if name in CONFIG_FIELDS}
        loading = {name: value for name, value in settings.items() if name not in CONFIG_FIELDS}
        if config is None:
            config = cls.config_from_backbone(path, head, hub_options(loading), **fields_given)
        config._attn_implementation = loading.pop("attn_implementation", config._attn_implementation)
        backbone, info = load_backbone(path, config.backbone, **loading)
        for module in backbone.modules():
            setattr(module, INITIALIZED, True)  # keep what was loaded
        model = cls._from_config(config, dtype=backbone.dtype, backbone=backbone).eval()
        return (model, model.loading_info(info)) if output_loading_info else model

    def loading_info(self, backbone: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loading info of a backbone as that of this model."""
        named = {
            kind: {(f"backbone.{n[0]}", *n[1:]) if isinstance(n, tuple) else f"backbone.{n}" for n in backbone[kind]}
            for kind in TENSOR_KINDS
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
        """Segment images (B, C, H, W): logits (B, K, h, w) on the finest map's grid, 4 times finer for the pyramid.

        The backbone's input is zero-padded to multiples of the coarsest map's cell, and the logits are resampled to
        span the image alone. `labels` are class maps (B, H', W') of any size, int64, see `segmenter_output`.
        """
        outputs, maps = self.feature_maps(pixel_values, **kwargs)
        height, width = pixel_values.shape[-2:]
        logits = crop_to_image_extent(self.decode_head(maps), (height, width), self.token)
        return segmenter_output(self.config, outputs, logits, labels)

    def feature_maps(self, pixel_values: torch.Tensor, **kwargs: Any) -> tuple[Any, Sequence[torch.Tensor]]:
        """Return the backbone's output, and its maps (B, C, h_i, w_i) of the padded image."""
        check_channels(self.config, pixel_values)
        padded = pad_to_multiple(match_dtype(pixel_values, self.backbone.dtype), self.token)
        for name in RECORDED_OUTPUTS:
            if getattr(self.config, name, False):
                kwargs.setdefault(name, True)  # the backbone reads its own config
        outputs = self.backbone.forward_with_filtered_kwargs(padded, **(kwargs | {"return_dict": True}))
        maps = outputs.feature_maps
        if self.has_channels_last_maps:
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        return outputs, maps


__all__ = [
    "BackboneForSemanticSegmentation",
    "build_backbone",
    "feature_strides",
    "load_backbone",
    "load_backbone_config",
    "returns_channels_last",
]
