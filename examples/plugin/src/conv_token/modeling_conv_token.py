"""A convolutional-token transformer: the tokenizer and layers of CCT (arXiv 2104.05704, figure 2), and a top-down head.

There are no position embeddings: the zero padding of the convolutions provides the position information, so images can
have any size. Shapes: B batch, C channels, H W pixels, h w grid of the tokens, N = h*w, D hidden size, K classes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, interpolate
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_conv_token import ConvTokenConfig
from .top_down_head import TopDownHead


@dataclass
class ConvTokenModelOutput(BaseModelOutput):
    """The tokens as a feature map (B, D, h, w), and all feature maps from fine to coarse, including this one."""

    feature_maps: tuple[torch.Tensor, ...] | None = None


class ConvTokenizer(nn.Module):
    """Section 3.3: layers of 3x3 convolution, ReLU and max pooling. Each layer halves the grid."""

    def __init__(self, config: ConvTokenConfig):
        super().__init__()
        widths = [config.num_channels, *config.stem_widths]
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(widths)]
        )
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, feature_map: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to the feature maps of all layers, at 1/2, 1/4, ... of the resolution."""
        feature_maps = []
        for convolution in self.convolutions:
            feature_map = self.pool(convolution(feature_map).relu())
            feature_maps.append(feature_map)
        return feature_maps


class ConvTokenAttention(nn.Module):
    """Self-attention. The query, key and value projections have no bias, as in the released code."""

    def __init__(self, config: ConvTokenConfig):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout_prob = config.dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        query, key, value = (
            projection(tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, N, D/heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout_prob if self.training else 0.0
        context, weights = attention(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(context.reshape(tokens.shape)), weights


class ConvTokenLayer(GradientCheckpointingLayer):
    """Attention and MLP. The second norm is on the residual path, as in the released code."""

    def __init__(self, config: ConvTokenConfig):
        super().__init__()
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ConvTokenAttention(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout_prob)

    def forward(self, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        tokens = self.norm(tokens + self.attention(self.pre_norm(tokens), **kwargs)[0])
        return tokens + self.dropout(self.fc2(self.dropout(gelu(self.fc1(tokens)))))


class ConvTokenPreTrainedModel(PreTrainedModel):
    """Base class of both models."""

    config: ConvTokenConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvTokenLayer", "TopDownHead"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": ConvTokenLayer, "attentions": ConvTokenAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize convolutions as in the released code (arXiv 1502.01852), other layers as in transformers."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight)


class ConvTokenModel(ConvTokenPreTrainedModel):
    """The encoder: tokenizer, transformer layers, final norm."""

    def __init__(self, config: ConvTokenConfig):
        super().__init__(config)
        self.tokenizer = ConvTokenizer(config)
        self.layers = nn.ModuleList([ConvTokenLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> ConvTokenModelOutput:
        """Encode normalized images (B, C, H, W). Raises ValueError for a wrong number of channels."""
        if pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"The model expects images with {self.config.num_channels} channels (config.num_channels), got "
                f"pixel_values of shape {tuple(pixel_values.shape)}"
            )
        *fine, coarse = self.tokenizer(pixel_values)
        tokens = coarse.flatten(2).transpose(1, 2)  # (B, N, D)
        for layer in self.layers:
            tokens = layer(tokens, **kwargs)
        encoded = self.norm(tokens).transpose(1, 2).unflatten(2, coarse.shape[-2:])
        return ConvTokenModelOutput(last_hidden_state=encoded, feature_maps=(*fine, encoded))


class ConvTokenForSemanticSegmentation(ConvTokenPreTrainedModel):
    """The encoder with a top-down head, which also uses the feature maps of the tokenizer."""

    accepts_loss_kwargs = False  # else Trainer would divide by a count of labels that includes ignored pixels

    def __init__(self, config: ConvTokenConfig):
        super().__init__(config)
        self.encoder = ConvTokenModel(config)
        self.decode_head = TopDownHead(
            config.stem_widths,
            cast(int, config.num_labels),
            hidden_size=config.decode_head_hidden_size,
            dropout_prob=config.decode_head_dropout_prob,
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, ceil(H/2), ceil(W/2)).

        `labels` (B, H', W') are int64, with `config.semantic_loss_ignore_index` for ignored pixels. The loss is the
        mean cross-entropy over the other pixels, at the resolution of the labels.
        """
        outputs = self.encoder(pixel_values, **kwargs)
        logits = self.decode_head(outputs.feature_maps)
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            resized = interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            total = cross_entropy(resized, labels, ignore_index=ignored, reduction="sum")
            loss = total / (labels != ignored).sum().clamp(min=1)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["ConvTokenForSemanticSegmentation", "ConvTokenModel", "ConvTokenPreTrainedModel"]
