"""The Vision Transformer (arXiv 2010.11929), pure or hybrid, with heads for classification and segmentation.

Equation numbers are the paper's. Shapes: B images, C channels, H W pixels, h w grid of tokens, N = h*w,
P prefix tokens (class, distillation, registers, in this order), T = P + N, D width, K classes.
"""

import copy
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs, maybe_install_capturing_hooks

from .bilinear import antialiasing_matrix, crop_to_image_extent, pad_to_multiple
from .configuration_vit import VisionTransformerConfig, pair
from .cpu_kernels import ValueCache, can_cache, is_dynamic_export
from .errors import HfVitSegError
from .layers import (
    LayerGeometry,
    LayerScale,
    SegmentationPreTrainedModel,
    VisionTransformerAttention,
    VisionTransformerLayer,
    check_channels,
    convert_foreign,
    match_dtype,
    split_axis,
    unknown_head,
    with_dicts,
)
from .losses import segmenter_output
from .resnetv2 import ResNetV2Stem, StandardizedConv2d, StemNumerics, ZeroInitGroupNorm
from .segmentation_heads import HEADS, initialize_head
from .token_merging import encode_merging


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
        grid = self.config.token_grid(*pixel_values.shape[-2:])
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


BeforeLayer = Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def encoder_layers(config: VisionTransformerConfig) -> nn.ModuleList:
    """Return the encoder's layers; stochastic depth increases linearly."""
    geometry = LayerGeometry(
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp_width=config.intermediate_size,
        norm_eps=config.layer_norm_eps,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        qkv_bias=config.qkv_bias,
        layer_scale=config.layer_scale_init_value,
    )
    depth = config.num_hidden_layers
    rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList([VisionTransformerLayer(config, geometry, rate) for rate in rates])


def final_norm(config: VisionTransformerConfig) -> nn.Module:
    """Build the norm of equation 4, which is applied to all tokens."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_final_norm else nn.Identity()


def patch_map(config: VisionTransformerConfig, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the patches of tokens (B, T, D) as a map (B, D, h, w) of the padded image, channels-last in memory."""
    grid = config.token_grid(*pixel_values.shape[-2:])
    return split_axis(tokens[:, config.num_prefix_tokens :], 1, grid).permute(0, 3, 1, 2)


def read_image_size(config: PreTrainedConfig, path: str | os.PathLike, **kwargs) -> int | list[int] | tuple[int, ...]:
    """Return the image size in a checkpoint's config.json; without such a file, that of `config`."""
    try:
        stored, _ = type(config).get_config_dict(path, **kwargs)
    except OSError:
        return config.image_size
    return stored.get("image_size", type(config)().image_size)  # defaults are not saved


class VisionTransformerPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: attention implementations, recorded outputs, initialization, and resizing of positions at load."""

    config: VisionTransformerConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionTransformerEmbeddings", "VisionTransformerLayer", "AllMLPHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": VisionTransformerLayer,
        "attentions": VisionTransformerAttention,
    }
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize tokens, positions and linear maps by a truncated normal, the hybrid's kernels by their fan-in."""
        std = self.config.initializer_range
        if isinstance(module, VisionTransformerEmbeddings):
            for tokens in (module.cls_token, module.distillation_token, module.register_tokens):
                if tokens is not None:
                    init.trunc_normal_(tokens, std=std)
            init.trunc_normal_(module.position_embeddings, std=std)
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.initial)
        elif isinstance(module, StandardizedConv2d):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, ZeroInitGroupNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif not initialize_head(module, std):
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load as transformers does; `image_size`, here or in `config`, resizes the stored position embeddings."""
        path, image_size = pretrained_model_name_or_path, kwargs.pop("image_size", None)
        converted = convert_foreign(cls.config_class, path, config, kwargs)
        if isinstance(config, PreTrainedConfig) and path is not None:
            image_size = config.image_size if image_size is None else image_size
            config = copy.deepcopy(config)
            stored = read_image_size(config, path, **kwargs) if converted is None else converted.config.image_size
            config.image_size = stored
        if converted is not None:
            path = None
            config, kwargs = converted.config_for(config, kwargs)
        loaded = super().from_pretrained(path, *args, config=config, **kwargs)
        if image_size is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.resize_positions(image_size)
        return loaded

    def resize_positions(self, image_size: int | tuple[int, int]) -> None:
        """Resize the stored position embeddings to images of another size, (height, width), and update the config.

        Every model takes images of any size without this; it changes which grid is trained and saved. ValueError if
        accelerate has offloaded the position embeddings.
        """
        embeddings = next(m for m in self.modules() if isinstance(m, VisionTransformerEmbeddings))
        grid = self.config.token_grid(*pair(image_size))
        if grid != self.config.grid_size:
            old = embeddings.position_embeddings
            if old.is_meta and hasattr(embeddings, "_hf_hook"):
                raise HfVitSegError(
                    "The position embeddings are offloaded and cannot be resized: load the model without offloading, "
                    "resize and save it, and load the result"
                )
            with torch.no_grad():
                embeddings.position_embeddings = nn.Parameter(embeddings.resize(grid), old.requires_grad)
        self.config.image_size = image_size


class VisionTransformerModel(VisionTransformerPreTrainedModel):
    """The bare encoder: all tokens (B, T, D), normalized."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.embeddings = VisionTransformerEmbeddings(config)
        self.layers = encoder_layers(config)
        self.norm = final_norm(config)
        self.post_init()
        maybe_install_capturing_hooks(self)  # now, because torch.compile cannot do it at the first call

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        before_layer: BeforeLayer | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode images.

        `pixel_values` are normalized images (B, C, H, W) with sides of any length, padded to multiples of a token.
        `hidden_states`, if requested, are the embeddings and the tokens after each layer, before the final norm.
        `before_layer` takes the index of a layer and its input (B, T, D), and returns the tokens that replace it, and
        an attention mask or None.
        """
        check_channels(self.config, pixel_values)
        encoded = self.encode(self.embeddings(pixel_values), before_layer, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(encoded))

    def encode(
        self,
        hidden_states: torch.Tensor,
        before_layer: BeforeLayer | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Apply all layers to tokens (B, T, D), with token merging if configured."""
        config = self.config
        if config.token_merging:
            return encode_merging(self.layers, hidden_states, config.num_prefix_tokens, config.token_merging, **kwargs)
        for index, layer in enumerate(self.layers):
            mask = None
            if before_layer is not None:
                hidden_states, mask = before_layer(index, hidden_states)
            hidden_states = layer(hidden_states, attention_mask=mask, **kwargs)
        return hidden_states


class VisionTransformerForImageClassification(VisionTransformerPreTrainedModel):
    """The encoder with a classifier on its class token or mean; with a distillation token (DeiT) on both, averaged."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        if config.pooling == "token" and not config.use_cls_token:
            raise HfVitSegError(
                "VisionTransformerConfig.pooling 'token' requires use_cls_token; without it, use 'mean'"
            )
        if config.use_distillation_token and (config.pooling == "mean" or config.pre_logits_size is not None):
            raise HfVitSegError("A distillation token requires pooling 'token' and no pre_logits_size")
        width, num_labels = config.hidden_size, cast(int, config.num_labels)
        self.vit = VisionTransformerModel(config)
        self.pool_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pool_norm else nn.Identity()
        self.pre_logits = None if config.pre_logits_size is None else nn.Linear(width, config.pre_logits_size)
        self.classifier = nn.Linear(config.pre_logits_size or width, num_labels)
        distilled = config.use_distillation_token and config.use_distillation_classifier
        self.distillation_classifier = nn.Linear(width, num_labels) if distilled else None
        self.loss_type = "ForImageClassification"  # otherwise transformers chooses a subclass's loss by its name
        self.post_init()

    def classify(self, tokens: torch.Tensor) -> torch.Tensor:
        """Classify tokens (B, T, D): logits (B, K)."""
        if self.config.pooling == "mean":
            pooled = tokens[:, self.config.num_prefix_tokens :].mean(dim=1)
        else:
            pooled = tokens[:, 0]
        pooled = self.pool_norm(pooled)
        if self.pre_logits is not None:
            pooled = self.pre_logits(pooled).tanh()
        logits = self.classifier(pooled)
        if self.distillation_classifier is not None:
            logits = (logits + self.distillation_classifier(self.pool_norm(tokens[:, 1]))) / 2
        return logits

    @can_return_tuple
    @with_dicts
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images (B, C, H, W): logits (B, K). `labels` (B,) are class indices."""
        outputs = self.vit(pixel_values, **kwargs)
        logits = self.classify(outputs.last_hidden_state)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def with_head_layers(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a forward to record the hidden states that the head reads; they are returned only if requested."""
    filtered = filter_output_hidden_states(forward)

    @wraps(forward)
    def wrapper(model: Any, *args: Any, **kwargs: Any) -> Any:
        return (filtered if model.head_reads_layers else forward)(model, *args, **kwargs)

    return wrapper


class VisionTransformerForSemanticSegmentation(VisionTransformerPreTrainedModel):
    """The encoder with the head selected by `config.decode_head`."""

    accepts_loss_kwargs = False  # otherwise Trainer would divide by a count of labels that includes ignored pixels

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        if config.decode_head not in HEADS:
            raise unknown_head(config.decode_head, HEADS)
        head = HEADS[config.decode_head]
        self.vit = VisionTransformerModel(config)
        self.head_reads_layers = head.num_maps != 1
        self.head_layers = config.pyramid_layers if self.head_reads_layers else (-1,)
        channels = [config.hidden_size] * len(self.head_layers)
        self.decode_head = head.build(config, channels, config.hidden_size // config.num_attention_heads)
        self.post_init()

    def feature_maps(self, outputs: BaseModelOutput, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps (B, D, h, w) that the head reads; that of the last layer is normalized."""
        tokens = [*(outputs.hidden_states or ())[:-1], cast(torch.Tensor, outputs.last_hidden_state)]
        return [patch_map(self.config, tokens[layer], pixel_values) for layer in self.head_layers]

    @can_return_tuple
    @with_dicts
    @with_head_layers
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, h, w) on the grid of tokens, 4 times finer for "feature_pyramid".

        The encoder's input is zero-padded to multiples of a token. The logits are resampled to span the image alone,
        so that they can be resized to the image without a shift.

        `labels` are class maps (B, H', W') of any size, int64, with `config.semantic_loss_ignore_index` for ignored
        pixels. The loss is the mean over all other pixels (0 if there are none), at the labels' resolution; with one
        label it is binary.
        """
        outputs = self.vit(pixel_values, **kwargs)
        height, width = pixel_values.shape[-2:]
        logits = self.decode_head(self.feature_maps(outputs, pixel_values))
        logits = crop_to_image_extent(logits, (height, width), self.config.token_stride)
        return segmenter_output(self.config, outputs, logits, labels)


class VisionTransformerBackbone(BackboneMixin, VisionTransformerPreTrainedModel):
    """The encoder as a backbone: `config.out_features` selects from stem (the embeddings), stage1 .. stageL."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.embeddings = VisionTransformerEmbeddings(config)
        self.layers = encoder_layers(config)
        self.norm = final_norm(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @with_dicts
    @filter_output_hidden_states
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Encode images (B, C, H, W) to maps (B, D, h, w) of the image padded to multiples of a token.

        The last layer's map is normalized, as in the bare encoder.
        """
        check_channels(self.config, pixel_values)
        hidden_states, feature_maps = self.embeddings(pixel_values), []
        for name, layer in zip(self.stage_names, [None, *self.layers], strict=True):
            hidden_states = hidden_states if layer is None else layer(hidden_states, **kwargs)
            if name in self.out_features:
                tokens = self.norm(hidden_states) if name == self.stage_names[-1] else hidden_states
                feature_maps.append(patch_map(self.config, tokens, pixel_values))
        return BackboneOutput(feature_maps=tuple(feature_maps))


__all__ = [
    "PatchEmbeddings",
    "VisionTransformerBackbone",
    "VisionTransformerEmbeddings",
    "VisionTransformerForImageClassification",
    "VisionTransformerForSemanticSegmentation",
    "VisionTransformerModel",
    "VisionTransformerPreTrainedModel",
    "patch_map",
    "resize_positions",
]
