"""CvT (arXiv 2103.15808): a vision transformer with convolutions in its token embeddings and its projections.

Equation numbers are the paper's. Shapes: B images, C channels, H W grid of the stage, N = H*W tokens, P class tokens
(0 or 1), T = P + N, M keys and values (P of them class tokens), K classes.

A stage works on tokens (B, T, C); its grid is a view (B, C, H, W), channels-last, of the last N of them, so that
nothing is transposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from .all_mlp_head import build_all_mlp_head
from .configuration_cvt import CvTConfig
from .cpu_kernels import accelerated_by, apply_linear, channels_last, in_row_strips, with_folded_norm
from .errors import HfVitSegError
from .layers import (
    DropPath,
    SegmentationPreTrainedModel,
    check_channels,
    eager_attention_forward,
    match_dtype,
    split_axis,
    with_dicts,
)
from .losses import segmenter_output
from .recomputation import update_statistics_once

Grid = tuple[int, int]


@dataclass
class CvTModelOutput(BaseModelOutput):
    """The last stage's feature map (B, C, H, W) as `last_hidden_state`, and its class token (B, 1, C) if it has one."""

    cls_token: torch.FloatTensor | None = None


def as_map(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the last H*W of the tokens (B, T, C) as a channels-last feature map (B, C, H, W), without a copy."""
    return split_axis(tokens[:, -(grid[0] * grid[1]) :], 1, grid).permute(0, 3, 1, 2)


def as_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """Flatten (B, C, H, W), channels-last, to (B, N, C)."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def stage_rate(rates: float | Sequence[float], stage: int) -> float:
    """Return a stage's rate; a single number, assigned to a config, holds for all stages."""
    return rates if isinstance(rates, float | int) else rates[stage]


class CvTPatchEmbeddings(nn.Module):
    """Section 3.1, convolutional token embedding: an overlapping convolution and a norm."""

    def __init__(self, config: CvTConfig, stage: int):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels if stage == 0 else config.hidden_sizes[stage - 1],
            config.hidden_sizes[stage],
            kernel_size=config.patch_sizes[stage],
            stride=config.strides[stage],
            padding=config.paddings[stage],
        )
        self.norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        feature_map = match_dtype(feature_map, self.projection.weight.dtype)
        feature_map = self.projection(channels_last(feature_map))
        return self.norm(feature_map.permute(0, 2, 3, 1).contiguous())  # (B, H, W, C)


class DepthwiseProjection(nn.Module):
    """Equation 2 without its linear part: a depthwise convolution without bias, and BatchNorm."""

    export_form = "convolution_with_norm"

    def __init__(self, width: int, kernel: int, stride: int, padding: int, norm_eps: float):
        super().__init__()
        self.convolution = nn.Conv2d(width, width, kernel, stride, padding, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=norm_eps)

    @accelerated_by(with_folded_norm)
    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(feature_map))


def query_projection(config: CvTConfig, stage: int) -> nn.Module | None:
    """Return the convolution before the queries' linear layer, if any."""
    kernel = config.kernel_qkv[stage]
    if config.projection_methods[stage] != "dw_bn":
        return None
    return DepthwiseProjection(config.hidden_sizes[stage], kernel, 1, kernel // 2, config.batch_norm_eps)


def key_projection(config: CvTConfig, stage: int) -> nn.Module | None:
    """Return the convolution or pooling before the keys' and values' linear layers, if any."""
    shape = config.kernel_qkv[stage], config.stride_kv[stage], config.padding_kv[stage]
    builders = {
        "dw_bn": lambda: DepthwiseProjection(config.hidden_sizes[stage], *shape, config.batch_norm_eps),
        "avg": lambda: nn.AvgPool2d(*shape, ceil_mode=True),
        "linear": lambda: None,
    }
    return builders[config.projection_methods[stage]]()


class CvTAttention(nn.Module):
    """Section 3.2: attention whose queries, keys and values are convolved, keys and values to a smaller grid.

    Scores are scaled by the full width C rather than that of a head, as in the released code. Class tokens bypass the
    convolutions.
    """

    def __init__(self, config: CvTConfig, stage: int):
        super().__init__()
        width, bias = config.hidden_sizes[stage], config.qkv_bias[stage]
        self.config = config
        self.head_dim = width // config.num_attention_heads[stage]
        self.scaling = width**-0.5
        self.attention_dropout = stage_rate(config.attention_probs_dropout_prob, stage)
        self.is_causal = False
        self.q_conv = query_projection(config, stage)
        self.k_conv = key_projection(config, stage)
        self.v_conv = key_projection(config, stage)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = nn.Linear(width, width)

    def project(self, tokens: torch.Tensor, grid: Grid, convolution: nn.Module | None, linear: nn.Module):
        """Apply equation 2: (B, T, C) to (B, heads, M, C/heads)."""
        if convolution is not None:
            convolved = as_tokens(convolution(as_map(tokens, grid)))
            prefix = tokens[:, : -(grid[0] * grid[1])]  # (B, P, C)
            tokens = torch.cat((prefix, convolved), dim=1) if prefix.shape[1] else convolved
        return split_axis(apply_linear(linear, tokens), -1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, tokens: torch.Tensor, grid: Grid, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        context, weights = attention(
            self,
            self.project(tokens, grid, self.q_conv, self.q_proj),
            self.project(tokens, grid, self.k_conv, self.k_proj),
            self.project(tokens, grid, self.v_conv, self.v_proj),
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return apply_linear(self.o_proj, context.reshape(tokens.shape)), weights  # (B, T, C)


class CvTMLP(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, config: CvTConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.expanded_width = int(width * config.mlp_ratios[stage])
        self.fc1 = nn.Linear(width, self.expanded_width)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(self.expanded_width, width)
        self.dropout = nn.Dropout(stage_rate(config.hidden_dropout_prob, stage))

    @in_row_strips()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (.., C) to the same shape."""
        expanded = self.dropout(self.activation(apply_linear(self.fc1, tokens)))
        return self.dropout(apply_linear(self.fc2, expanded))


class CvTLayer(GradientCheckpointingLayer):
    """Attention and MLP, each with a norm before it and a residual connection around it (figure 2b)."""

    def __init__(self, config: CvTConfig, stage: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CvTAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = CvTMLP(config, stage)
        self.dropout = nn.Dropout(stage_rate(config.hidden_dropout_prob, stage))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: torch.Tensor, grid: Grid, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(tokens), grid, **kwargs)
        tokens = tokens + self.drop_path(self.dropout(attended))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class CvTStage(nn.Module):
    """One level of the encoder: (B, C, H, W) to (B, C', H', W') and the class token (B, P, C')."""

    def __init__(self, config: CvTConfig, stage: int):
        super().__init__()
        depth, width = config.depths[stage], config.hidden_sizes[stage]
        rates = [stage_rate(config.drop_path_rate, stage) * i / max(depth - 1, 1) for i in range(depth)]
        self.patch_embeddings = CvTPatchEmbeddings(config, stage)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_cls_token[stage] else None
        self.dropout = nn.Dropout(stage_rate(config.hidden_dropout_prob, stage))
        self.layers = nn.ModuleList([CvTLayer(config, stage, rate) for rate in rates])

    def forward(
        self, feature_map: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.patch_embeddings(feature_map)  # (B, H, W, C)
        batch, height, width, _ = embedded.shape
        tokens = embedded.flatten(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(batch, -1, -1), tokens), dim=1)
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens, (height, width), **kwargs)
        return as_map(tokens, (height, width)), tokens[:, : -(height * width)]


class CvTPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: attention implementations, recorded outputs, and initialization."""

    config: CvTConfig
    base_model_prefix = "cvt"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CvTLayer", "CvTPatchEmbeddings", "AllMLPHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CvTStage, capture_initial_hidden_state=False),
        "attentions": CvTAttention,
    }

    def get_input_embeddings(self) -> nn.Module:
        """Return the first stage's patch embeddings."""
        return next(module for module in self.modules() if isinstance(module, CvTPatchEmbeddings))

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        update_statistics_once(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the released code: truncated normal for linear layers, PyTorch's uniform for convolutions."""
        if isinstance(module, CvTStage):
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            return
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)


def build_stages(config: CvTConfig) -> nn.ModuleList:
    return nn.ModuleList([CvTStage(config, stage) for stage in range(len(config.depths))])


def level_norms(config: CvTConfig, stages: Sequence[str]) -> nn.ModuleDict:
    """Return a norm by stage name for each stage that a head reads; stages themselves do not end with one."""
    widths = dict(zip(config.stage_names, config.hidden_sizes, strict=True))
    return nn.ModuleDict({name: nn.LayerNorm(widths[name], eps=config.layer_norm_eps) for name in stages})


def normalize_channels(norm: nn.Module, feature_map: torch.Tensor) -> torch.Tensor:
    """Apply a norm to the channels of a feature map (B, C, H, W)."""
    return norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def check_image(config: CvTConfig, pixel_values: torch.Tensor) -> None:
    """Raise ValueError for images with a different number of channels, or smaller than the convolutions' kernels."""
    check_channels(config, pixel_values)
    height, width = pixel_values.shape[-2:]
    smallest = 1
    for kernel, stride, padding in zip(
        config.patch_sizes[::-1], config.strides[::-1], config.paddings[::-1], strict=True
    ):
        smallest = max((smallest - 1) * stride + kernel - 2 * padding, 1)
    if height < smallest or width < smallest:
        raise HfVitSegError(
            f"CvT needs images of at least {smallest}x{smallest} pixels, got {height}x{width}: resize or pad them, "
            "for example by an image processor with do_resize"
        )


class CvTModel(CvTPreTrainedModel):
    """The bare encoder: the last stage's feature map (B, C3, H/16, W/16) and its class token, without a norm."""

    def __init__(self, config: CvTConfig):
        super().__init__(config)
        self.stages = build_stages(config)
        self.post_init()
        maybe_install_capturing_hooks(self)  # now, because torch.compile cannot do it at the first call

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> CvTModelOutput:
        """Encode images.

        `pixel_values` are normalized images (B, C, H, W) of at least 3x3 pixels, with sides of any length; the first
        grid has floor((H + 1) / 4) rows. `hidden_states`, if requested, are the feature maps of the stages at 1/4, 1/8
        and 1/16.
        """
        check_image(self.config, pixel_values)
        feature_map, cls_token = pixel_values, None
        for stage in self.stages:
            feature_map, cls_token = stage(feature_map, **kwargs)
        return CvTModelOutput(
            last_hidden_state=feature_map, cls_token=cls_token if self.config.use_cls_token[-1] else None
        )


class CvTForImageClassification(CvTPreTrainedModel):
    """The encoder with a norm and a linear classifier on the class token, or on the mean of the tokens without one."""

    def __init__(self, config: CvTConfig):
        super().__init__(config)
        self.cvt = CvTModel(config)
        self.norm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_sizes[-1], cast(int, config.num_labels))
        self.loss_type = "ForImageClassification"  # otherwise transformers chooses a subclass's loss by its name
        self.post_init()

    @can_return_tuple
    @with_dicts
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images (B, C, H, W): logits (B, K). `labels` (B,) are class indices."""
        outputs = self.cvt(pixel_values, **kwargs)
        tokens = as_tokens(outputs.last_hidden_state) if outputs.cls_token is None else outputs.cls_token
        logits = self.classifier(self.norm(tokens).mean(dim=1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CvTForSemanticSegmentation(CvTPreTrainedModel):
    """The encoder with SegFormer's all-MLP decode head on its three levels, each normalized first."""

    accepts_loss_kwargs = False  # otherwise Trainer would divide by a count of labels that includes ignored pixels

    def __init__(self, config: CvTConfig):
        super().__init__(config)
        self.cvt = CvTModel(config)
        self.level_norms = level_norms(config, config.stage_names)
        self.decode_head = self.build_head(config)
        self.post_init()

    def build_head(self, config: CvTConfig) -> nn.Module:
        """Return the all-MLP decode head."""
        return build_all_mlp_head(config)

    def normalize_levels(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the maps of the stages (B, C, H, W), each normalized."""
        norms = self.level_norms.values()
        return [normalize_channels(norm, level) for norm, level in zip(norms, feature_maps, strict=True)]

    @can_return_tuple
    @with_dicts
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, floor((H + 1) / 4), floor((W + 1) / 4)).

        `labels` are class maps (B, h, w) of any size, int64, with `config.semantic_loss_ignore_index` for
        ignored pixels. The loss is the mean over all other pixels (0 if there are none), at the labels' resolution;
        with one label it is binary.
        """
        outputs = self.cvt(pixel_values, **kwargs)
        logits = self.decode_head(self.normalize_levels(outputs.hidden_states))
        return segmenter_output(self.config, outputs, logits, labels)


class CvTBackbone(BackboneMixin, CvTPreTrainedModel):
    """The encoder as a backbone: `config.out_features` selects from stage1 .. stage3."""

    def __init__(self, config: CvTConfig):
        super().__init__(config)
        self.stages = build_stages(config)
        self.num_features = list(config.hidden_sizes)
        self.level_norms = level_norms(config, self.out_features)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @with_dicts
    @filter_output_hidden_states
    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Encode images (B, C, H, W) to the selected feature maps, each normalized, finest first."""
        check_image(self.config, pixel_values)
        feature_map, feature_maps = pixel_values, []
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            feature_map, _ = stage(feature_map, **kwargs)
            if name in self.out_features:
                feature_maps.append(normalize_channels(self.level_norms[name], feature_map))
        return BackboneOutput(feature_maps=tuple(feature_maps))


__all__ = [
    "CvTBackbone",
    "CvTForImageClassification",
    "CvTForSemanticSegmentation",
    "CvTModel",
    "CvTModelOutput",
    "CvTPreTrainedModel",
]
