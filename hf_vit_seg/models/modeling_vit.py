"""The Vision Transformer (arXiv 2010.11929), pure or hybrid, with heads for classification and segmentation.

Equation numbers are the paper's. Shapes: B images, C channels, H W pixels, h w grid of tokens, N = h*w,
P prefix tokens (class, distillation, registers, in this order), T = P + N, D width, K classes.
"""

import copy
import os
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
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

from .chosen_heads import linear_head, mask_transformer_head, pyramid_head
from .configuration_vit import VisionTransformerConfig, pair
from .errors import HfVitSegError
from .image_bands import check_channels
from .losses import segmenter_output
from .resnetv2 import ClosingNorm, StandardizedConv2d
from .token_merging import encode_merging
from .transformer_layer import LayerGeometry, LayerScale, VisionTransformerAttention, VisionTransformerLayer
from .vit_embeddings import VisionTransformerEmbeddings
from .vit_segmentation_heads import initialise_head, sample_extent


def encoder_layers(config: VisionTransformerConfig) -> nn.ModuleList:
    """The encoder's layers; the stochastic depth rises linearly."""
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
    """Equation 4's norm, over all tokens."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_final_norm else nn.Identity()


def patch_map(config: VisionTransformerConfig, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """The patches among tokens (B, T, D) as a map (B, D, h, w), channels-last in memory.

    It covers the image with its padding to whole tokens.
    """
    grid = config.grid_of(*pixel_values.shape[-2:])
    return tokens[:, config.num_prefix_tokens :].unflatten(1, grid).permute(0, 3, 1, 2)


def stored_image_size(config: PreTrainedConfig, path: str | os.PathLike, **kwargs) -> int | list[int] | tuple[int, ...]:
    """The image size that a checkpoint's own config.json gives; without one, that of `config`."""
    try:
        stored, _ = type(config).get_config_dict(path, **kwargs)
    except OSError:
        return config.image_size
    return stored.get("image_size", type(config)().image_size)  # defaults are not saved


class VisionTransformerPreTrainedModel(PreTrainedModel):
    """What all ViT models share: attention choice, recording of outputs, initialisation, resizing at load."""

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
        """Truncated normal for tokens, positions and linear maps; the hybrid's kernels by their fan-in."""
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
        elif isinstance(module, ClosingNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif not initialise_head(module, std):
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load as transformers does; `image_size`, here or in `config`, resizes the stored position embeddings."""
        wanted = kwargs.pop("image_size", None)
        if isinstance(config, PreTrainedConfig) and pretrained_model_name_or_path is not None:
            wanted = config.image_size if wanted is None else wanted
            config = copy.deepcopy(config)
            config.image_size = stored_image_size(config, pretrained_model_name_or_path, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        if wanted is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.resize_positions(wanted)
        return loaded

    def resize_positions(self, image_size: int | tuple[int, int]) -> None:
        """Store the position embeddings for images of another size, (height, width), and say so in the config.

        It is not needed for taking such images, which every model does; it makes their grid the one that is trained
        and saved. ValueError where accelerate keeps the position embeddings elsewhere until they are used.
        """
        embeddings = next(m for m in self.modules() if isinstance(m, VisionTransformerEmbeddings))
        grid = self.config.grid_of(*pair(image_size))
        if grid != self.config.grid_size:
            old = embeddings.position_embeddings
            if old.is_meta and hasattr(embeddings, "_hf_hook"):
                raise HfVitSegError(
                    "The position embeddings are offloaded, where they cannot be resized: resize them in a model that "
                    "was loaded without offloading, save it, and load that"
                )
            with torch.no_grad():
                embeddings.position_embeddings = nn.Parameter(embeddings.resize(grid), old.requires_grad)
        self.config.image_size = image_size


class VisionTransformerModel(VisionTransformerPreTrainedModel):
    """The bare encoder: all tokens (B, T, D), normed."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.embeddings = VisionTransformerEmbeddings(config)
        self.layers = encoder_layers(config)
        self.norm = final_norm(config)
        self.post_init()
        maybe_install_capturing_hooks(self)  # now, because torch.compile cannot do it at the first call

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Encode images.

        `pixel_values` are normalised images (B, C, H, W), sides of any length: they are padded to whole tokens.
        `hidden_states`, when asked for, are the embeddings and the tokens behind each layer, before the final norm.
        """
        check_channels(self.config, pixel_values)
        return BaseModelOutput(last_hidden_state=self.norm(self.encode(self.embeddings(pixel_values), **kwargs)))

    def encode(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Tokens (B, T, D) through all layers, fewer and fewer of them where the config has them merged."""
        config = self.config
        if config.token_merging:
            return encode_merging(self.layers, hidden_states, config.num_prefix_tokens, config.token_merging, **kwargs)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class VisionTransformerForImageClassification(VisionTransformerPreTrainedModel):
    """The encoder with a classifier on its class token or mean; with a distillation token (DeiT) on both, averaged."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        if config.pooling == "token" and not config.use_cls_token:
            raise HfVitSegError("VisionTransformerConfig.pooling 'token' needs use_cls_token; without, take 'mean'")
        if config.use_distillation_token and (config.pooling == "mean" or config.pre_logits_size is not None):
            raise HfVitSegError("A distillation token goes with pooling 'token' and without pre_logits_size")
        width, num_labels = config.hidden_size, cast(int, config.num_labels)
        self.vit = VisionTransformerModel(config)
        self.pool_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pool_norm else nn.Identity()
        self.pre_logits = None if config.pre_logits_size is None else nn.Linear(width, config.pre_logits_size)
        self.classifier = nn.Linear(config.pre_logits_size or width, num_labels)
        distilled = config.use_distillation_token and config.use_distillation_classifier
        self.distillation_classifier = nn.Linear(width, num_labels) if distilled else None
        self.loss_type = "ForImageClassification"  # else a subclass's loss is chosen by its name
        self.post_init()

    def classify(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T, D) to logits (B, K)."""
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


def token_classifier(config: VisionTransformerConfig) -> nn.Module:
    """A classifier per token."""
    return linear_head(config, config.hidden_size)


def segmenter_decoder(config: VisionTransformerConfig) -> nn.Module:
    """Segmenter's decoder; its attention heads are as wide as the encoder's."""
    return mask_transformer_head(config, config.hidden_size, config.hidden_size // config.num_attention_heads)


def layer_pyramid(config: VisionTransformerConfig) -> nn.Module:
    """A pyramid of four layers, and an all-MLP head."""
    return pyramid_head(config, config.hidden_size)


SEGMENTATION_HEADS = {"linear": token_classifier, "mask_transformer": segmenter_decoder, "all_mlp": layer_pyramid}


class VisionTransformerForSemanticSegmentation(VisionTransformerPreTrainedModel):
    """The encoder with the head that `config.segmentation_head` names."""

    accepts_loss_kwargs = False  # else Trainer would divide by a count of labels that includes ignored pixels

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.vit = VisionTransformerModel(config)
        self.decode_head = SEGMENTATION_HEADS[config.segmentation_head](config)
        self.post_init()

    def decode(self, outputs: BaseModelOutput, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of the image with its padding."""
        config, last = self.config, outputs.last_hidden_state
        assert last is not None
        if config.segmentation_head != "all_mlp":
            return self.decode_head(patch_map(config, last, pixel_values))
        assert outputs.hidden_states is not None
        tokens = [*outputs.hidden_states[:-1], last]  # the last one normed
        return self.decode_head([patch_map(config, tokens[i], pixel_values) for i in config.pyramid_layers])

    def segment(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> SemanticSegmenterOutput:
        """The whole forward pass; the pyramid needs `output_hidden_states`."""
        outputs = self.vit(pixel_values, **kwargs)
        height, width = pixel_values.shape[-2:]
        logits = sample_extent(self.decode(outputs, pixel_values), (height, width), self.config.token_stride)
        return segmenter_output(self.config, outputs, logits, labels)

    segment_with_levels = filter_output_hidden_states(segment)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, h, w) of the grid of tokens, 4 times finer for "all_mlp".

        Sides that are no multiple of the token are padded with zeros for the encoder; the logits are sampled such
        that they span the image alone, so that resizing them to any size of the image, as everything that reads
        them does, puts every class where it was seen.

        `labels` are class maps (B, H', W') of any size, int64, with `config.semantic_loss_ignore_index` where a
        pixel does not count. The loss is the mean over the pixels that count (0 when none does), at the labels'
        resolution; with one label it is binary.
        """
        if self.config.segmentation_head == "all_mlp":
            return self.segment_with_levels(pixel_values, labels, **kwargs)
        return self.segment(pixel_values, labels, **kwargs)


class VisionTransformerBackbone(BackboneMixin, VisionTransformerPreTrainedModel):
    """The encoder as feature maps that `config.out_features` chooses: stem (the embeddings), stage1 .. stageL."""

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.embeddings = VisionTransformerEmbeddings(config)
        self.layers = encoder_layers(config)
        self.norm = final_norm(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @filter_output_hidden_states
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Encode images (B, C, H, W) into maps (B, D, h, w) that cover the image padded to whole tokens.

        The last layer's map is normed, as in the bare encoder.
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
    "VisionTransformerBackbone",
    "VisionTransformerForImageClassification",
    "VisionTransformerForSemanticSegmentation",
    "VisionTransformerModel",
    "VisionTransformerPreTrainedModel",
    "patch_map",
]
