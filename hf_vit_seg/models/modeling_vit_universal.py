"""EoMT (arXiv 2503.19108): a plain Vision Transformer that predicts objects by queries among its tokens.

Before the last L2 layers (`config.num_query_blocks`), learned queries join the tokens. In training, each of these
layers lets queries attend only to the patches in the masks that they predict before it; the probability of this mask
is annealed to 0, so that inference needs no mask (section 3.3).

Shapes: B images, H W pixels, h w grid of tokens, N = h*w, P prefix tokens, Q queries, T = Q + P + N tokens in this
order, D width, K classes, u*h u*w grid of the masks.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers.activations import ACT2FN

from .bilinear import crop_to_image_extent
from .configuration_vit import VisionTransformerConfig
from .layers import SEMANTIC_MODELS
from .mask_classification import (
    SemanticUniversalSegmentation,
    UniversalSegmentation,
    UniversalSegmentationOutput,
    with_object_head,
)
from .mask_loss import Prediction
from .modeling_vit import VisionTransformerForSemanticSegmentation as VisionTransformerWithPixelHead
from .modeling_vit import VisionTransformerModel, VisionTransformerPreTrainedModel, patch_map
from .query_head import additive_mask, attended_pixels, compute_mask_logits

UPSCALE_NORM_EPS = 1e-6  # as in the released code, for every encoder


class MaskMLP(nn.Module):
    """Three layers that turn a query into the weights of its mask."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        width = config.hidden_size
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, width)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """Map (B, Q, D) to the same shape."""
        return self.fc3(self.activation(self.fc2(self.activation(self.fc1(queries)))))


class UpscaleBlock(nn.Module):
    """Doubles the grid: a transposed convolution, an activation, a depthwise convolution, and a norm."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.activation = ACT2FN[config.hidden_act]
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=UPSCALE_NORM_EPS)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map (B, D, h, w) to (B, D, 2*h, 2*w), channels-last in memory."""
        feature_map = self.conv2(self.activation(self.conv1(feature_map)))
        return self.norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EoMTHead(nn.Module):
    """The queries, and the predictions of their classes and masks."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__()
        self.queries = nn.Embedding(config.num_queries, config.hidden_size)
        self.class_head = nn.Linear(config.hidden_size, int(config.num_labels or 0) + 1)
        self.mask_head = MaskMLP(config)
        self.upscale = nn.Sequential(*(UpscaleBlock(config) for _ in range(config.num_upscale_blocks)))
        self.mask_probability = [1.0] * config.num_query_blocks

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> Prediction:
        """Map queries (B, Q, D) and patches (B, D, h, w) to class logits (B, Q, K + 1) and masks (B, Q, u*h, u*w)."""
        return self.class_head(queries), compute_mask_logits(self.mask_head(queries), self.upscale(patches))


class VisionTransformerForUniversalSegmentation(UniversalSegmentation, VisionTransformerWithPixelHead):
    """The encoder with queries among its tokens."""

    decode_head: Any
    _no_split_modules = [*(VisionTransformerWithPixelHead._no_split_modules or ()), "EoMTHead"]

    def __init__(self, config: VisionTransformerConfig):
        config = with_object_head(config, ("query",))
        VisionTransformerPreTrainedModel.__init__(self, config)
        config.validate()
        self.vit = VisionTransformerModel(config)
        self.decode_head = EoMTHead(config)
        self.post_init()

    def read(self, tokens: torch.Tensor, pixel_values: torch.Tensor) -> Prediction:
        """Return the predictions of normalized tokens (B, T, D)."""
        queries = self.config.num_queries
        return self.decode_head(tokens[:, :queries], patch_map(self.config, tokens[:, queries:], pixel_values))

    def attention_mask(self, masks: torch.Tensor, tokens: torch.Tensor, block: int, grid: Any) -> torch.Tensor:
        """Return the mask of a layer's scores (B, 1, T, T): queries attend to the patches in their masks (B, Q, u*h,
        u*w).

        They attend to each other and to prefix tokens, and all other tokens to everything.
        """
        (images, length), queries = tokens.shape[:2], self.config.num_queries
        masks = interpolate(masks, size=grid, mode="bilinear", align_corners=False)
        attended = attended_pixels(masks, self.decode_head.mask_probability[block] if self.training else 1.0)
        others = attended.new_ones(1, 1, 1)
        attended = torch.cat([others.expand(images, queries, length - attended.shape[2]), attended], dim=2)
        attended = torch.cat([attended, others.expand(images, length - queries, length)], dim=1)
        return additive_mask(attended, tokens.dtype)[:, None]

    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> UniversalSegmentationOutput:
        """Map images (B, C, H, W) to predictions, whose masks are resampled to span the image alone."""
        config, size = self.config, pixel_values.shape[-2:]
        first, predictions = config.num_hidden_layers - config.num_query_blocks, []

        # Quoted, because torch.compile cannot evaluate unions in inner functions before torch 2.9.
        def before_layer(index: int, tokens: torch.Tensor) -> "tuple[torch.Tensor, torch.Tensor | None]":
            """Let the queries join, and predict the masks of queries."""
            if index == first:
                tokens = torch.cat([self.decode_head.queries.weight.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            if index < first or not (self.training or config.query_masked_inference):
                return tokens, None
            predictions.append(self.read(self.vit.norm(tokens), pixel_values))
            if self.training and self.decode_head.mask_probability[index - first] <= 0:
                return tokens, None
            masks = predictions[-1][1].detach()
            return tokens, self.attention_mask(masks, tokens, index - first, config.token_grid(*size))

        outputs = self.vit(pixel_values, before_layer=before_layer, **kwargs)
        predictions.append(self.read(outputs.last_hidden_state, pixel_values))
        crop = partial(crop_to_image_extent, size=(size[0], size[1]), multiple=config.token_stride)
        output = UniversalSegmentationOutput.from_predictions(predictions if self.training else predictions[-1:], crop)
        output.hidden_states, output.attentions = outputs.hidden_states, outputs.attentions
        return output


class VisionTransformerForSemanticSegmentation(
    SemanticUniversalSegmentation, VisionTransformerForUniversalSegmentation
):
    """The same model with semantic results."""

    _auto_class = "AutoModelForSemanticSegmentation"


SEMANTIC_MODELS[VisionTransformerWithPixelHead] = VisionTransformerForSemanticSegmentation

__all__ = ["VisionTransformerForSemanticSegmentation", "VisionTransformerForUniversalSegmentation"]
