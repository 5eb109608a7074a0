"""SegFormer (arXiv 2105.15203): a Mix Transformer encoder without position embeddings, and an all-MLP decode head.

Equation numbers are the paper's. Shapes: B images, C channels, H W grid of the stage, N = H*W tokens,
M tokens after the reduction by R, K classes.

Feature maps are kept as (B, H, W, C) inside a stage, so that a token sequence (B, N, C) and a channels-last
image (B, C, H, W) are both views of the same memory and nothing is transposed.
"""

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
from .configuration_segformer import SegFormerConfig
from .cpu_kernels import apply_linear, channels_last, in_row_strips
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

CLASSIFIER_STD = 0.01  # at initialization, as in mmsegmentation and the released code


def convolve(convolution: nn.Conv2d, hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply a convolution to (B, H, W, C) memory without copying it: (B, H', W', C')."""
    return convolution(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class OverlapPatchEmbeddings(nn.Module):
    """Section 3.1, overlapped patch merging: a convolution with kernel K, stride S and padding K // 2."""

    def __init__(self, config: SegFormerConfig, stage: int):
        super().__init__()
        kernel = config.patch_sizes[stage]
        self.projection = nn.Conv2d(
            config.num_channels if stage == 0 else config.hidden_sizes[stage - 1],
            config.hidden_sizes[stage],
            kernel_size=kernel,
            stride=config.strides[stage],
            padding=kernel // 2,
        )
        self.norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.patch_norm_eps)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        feature_map = match_dtype(feature_map, self.projection.weight.dtype)
        feature_map = self.projection(channels_last(feature_map))
        return self.norm(feature_map.permute(0, 2, 3, 1).contiguous())  # (B, H, W, C)


class SegFormerAttention(nn.Module):
    """Equations 1 and 2: self-attention with sequence reduction R: keys and values come from a grid R times smaller."""

    def __init__(self, config: SegFormerConfig, stage: int):
        super().__init__()
        width, ratio = config.hidden_sizes[stage], config.sr_ratios[stage]
        self.config = config
        self.head_dim = width // config.num_attention_heads[stage]
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.reduction = nn.Conv2d(width, width, kernel_size=ratio, stride=ratio) if ratio > 1 else None
        self.reduction_norm = nn.LayerNorm(width, eps=config.reduction_norm_eps) if ratio > 1 else None

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """Split channels into heads: (B, N, C) to (B, heads, N, C/heads)."""
        return split_axis(tokens, -1, (-1, self.head_dim)).transpose(1, 2)

    def reduce(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply equation 2: (B, H, W, C) to (B, M, C)."""
        if self.reduction is None or self.reduction_norm is None:
            return hidden_states.flatten(1, 2)
        return self.reduction_norm(convolve(self.reduction, hidden_states).flatten(1, 2))

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        reduced = self.reduce(hidden_states)  # (B, M, C)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        context, weights = attention(
            self,
            self.split_heads(apply_linear(self.q_proj, hidden_states.flatten(1, 2))),
            self.split_heads(apply_linear(self.k_proj, reduced)),
            self.split_heads(apply_linear(self.v_proj, reduced)),
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return apply_linear(self.o_proj, context.reshape(hidden_states.shape)), weights  # (B, H, W, C)


class MixFFN(nn.Module):
    """Equation 3: linear, depthwise 3x3 convolution, activation, linear.

    The convolution's zero padding is the model's only information about position.
    """

    export_form = "mix_ffn"

    def __init__(self, config: SegFormerConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.expanded_width = int(width * config.mlp_ratios[stage])
        self.fc1 = nn.Linear(width, self.expanded_width)
        self.dwconv = nn.Conv2d(
            self.expanded_width, self.expanded_width, kernel_size=3, padding=1, groups=self.expanded_width
        )
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(self.expanded_width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @in_row_strips(halo=1)
    def forward(self, hidden_states: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """Map (B, H, W, C) to the same shape, for the given rows; the others only provide the convolution's border."""
        expanded = convolve(self.dwconv, apply_linear(self.fc1, hidden_states))[:, rows]  # (B, H, W, E*C)
        return self.dropout(apply_linear(self.fc2, self.dropout(self.activation(expanded))))


class SegFormerLayer(GradientCheckpointingLayer):
    """Figure 2: efficient self-attention and Mix-FFN, each with a norm before and a residual connection around it."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SegFormerAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MixFFN(config, stage)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class SegFormerStage(nn.Module):
    """One level of the encoder: (B, C, H, W) to (B, C', H', W'), both channels-last in memory."""

    export_form = "segformer_stage"

    def __init__(self, config: SegFormerConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        self.patch_embeddings = OverlapPatchEmbeddings(config, stage)
        self.layers = nn.ModuleList([SegFormerLayer(config, stage, rate) for rate in drop_path_rates])
        self.norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)

    def forward(self, feature_map: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.patch_embeddings(feature_map)  # (B, H, W, C)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return self.norm(hidden_states).permute(0, 3, 1, 2)


class SegFormerPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: attention implementations, recorded outputs, and initialization."""

    config: SegFormerConfig
    base_model_prefix = "segformer"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["SegFormerLayer", "OverlapPatchEmbeddings", "AllMLPHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SegFormerStage, capture_initial_hidden_state=False),
        "attentions": SegFormerAttention,
    }

    def get_input_embeddings(self) -> nn.Module:
        """Return the first stage's patch embeddings."""
        return next(module for module in self.modules() if isinstance(module, OverlapPatchEmbeddings))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as NVlabs: normal with the fan-out for convolutions, truncated normal for linear layers."""
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            init.normal_(module.weight, mean=0.0, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            init.ones_(module.weight)
        else:
            return super()._init_weights(module)
        if module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            for name, statistic in module.named_buffers(recurse=False):
                init.constant_(statistic, 1.0 if name == "running_var" else 0.0)


def build_stages(config: SegFormerConfig) -> nn.ModuleList:
    """Return the encoder's stages; the stochastic depth rises linearly over all layers of all stages."""
    total = sum(config.depths)
    rates = iter([config.drop_path_rate * i / max(total - 1, 1) for i in range(total)])
    return nn.ModuleList(
        [
            SegFormerStage(config, stage, [next(rates) for _ in range(depth)])
            for stage, depth in enumerate(config.depths)
        ]
    )


def check_image(config: SegFormerConfig, pixel_values: torch.Tensor) -> None:
    """Raise ValueError for images with a different number of channels, or too small for one reduced key."""
    check_channels(config, pixel_values)
    height, width = pixel_values.shape[-2:]
    smallest, stride = 1, 1
    for step, ratio in zip(config.strides, config.sr_ratios, strict=True):
        stride *= step
        smallest = max(smallest, (ratio - 1) * stride + 1)
    if height < smallest or width < smallest:
        raise HfVitSegError(
            f"SegFormer needs images of at least {smallest}x{smallest} pixels, got {height}x{width}: resize or pad "
            "them, for example by an image processor with do_resize"
        )


class SegFormerModel(SegFormerPreTrainedModel):
    """The bare encoder: the last stage's normalized feature map (B, C4, H/32, W/32)."""

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        self.stages = build_stages(config)
        self.post_init()
        maybe_install_capturing_hooks(self)  # now, because torch.compile cannot do it at the first call

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Encode images.

        `pixel_values` are normalized images (B, C, H, W) of at least 29x29 pixels, with sides of any length.
        `hidden_states`, if requested, are the feature maps of the stages at 1/4, 1/8, 1/16 and 1/32.
        """
        check_image(self.config, pixel_values)
        feature_map = pixel_values
        for stage in self.stages:
            feature_map = stage(feature_map, **kwargs)
        return BaseModelOutput(last_hidden_state=feature_map)


class SegFormerForImageClassification(SegFormerPreTrainedModel):
    """The encoder with a linear classifier on the mean of the last feature map, as trained on ImageNet."""

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        self.segformer = SegFormerModel(config)
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
        outputs = self.segformer(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state.mean(dim=(2, 3)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SegFormerForSemanticSegmentation(SegFormerPreTrainedModel):
    """The encoder with the all-MLP decode head of section 3.2."""

    accepts_loss_kwargs = False  # otherwise Trainer would divide by a count of labels that includes ignored pixels

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        self.segformer = SegFormerModel(config)
        self.decode_head = self.build_head(config)
        self.post_init()

    def build_head(self, config: SegFormerConfig) -> Any:
        """Return the all-MLP decode head."""
        return build_all_mlp_head(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the encoder, except for the classifier: with the fan-out, its few outputs would have huge
        logits.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d) and module is getattr(self.decode_head, "classifier", None):
            init.normal_(module.weight, std=CLASSIFIER_STD)

    @can_return_tuple
    @with_dicts
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, ceil(H/4), ceil(W/4)).

        `labels` are class maps (B, h, w) of any size, int64, with `config.semantic_loss_ignore_index` for
        ignored pixels. The loss is the mean over all other pixels (0 if there are none), at the labels' resolution;
        with one label it is binary.
        """
        outputs = self.segformer(pixel_values, **kwargs)
        logits = self.decode_head(outputs.hidden_states)
        return segmenter_output(self.config, outputs, logits, labels)


class SegFormerBackbone(BackboneMixin, SegFormerPreTrainedModel):
    """The encoder as a backbone: `config.out_features` selects from stage1 .. stage4."""

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        self.stages = build_stages(config)
        self.num_features = list(config.hidden_sizes)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @with_dicts
    @filter_output_hidden_states
    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Encode images (B, C, H, W) to the selected feature maps, finest first."""
        check_image(self.config, pixel_values)
        feature_map, feature_maps = pixel_values, []
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            feature_map = stage(feature_map, **kwargs)
            if name in self.out_features:
                feature_maps.append(feature_map)
        return BackboneOutput(feature_maps=tuple(feature_maps))


__all__ = [
    "SegFormerBackbone",
    "SegFormerForImageClassification",
    "SegFormerForSemanticSegmentation",
    "SegFormerModel",
    "SegFormerPreTrainedModel",
]
