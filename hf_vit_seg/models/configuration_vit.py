"""Configuration of the Vision Transformer (arXiv 2010.11929), pure or hybrid, and of DeiT, DINOv2 and ViTPose."""

from collections.abc import Sequence
from typing import Literal

from huggingface_hub.dataclasses import strict

from .errors import RENAMED_FIELDS, HfVitSegError, reject_renamed_fields
from .grid_sizes import ceil_div
from .layers import MaskClassificationConfig, StagedConfig

PYRAMID_LEVELS = 4
RENAMED = {
    **RENAMED_FIELDS,
    "segmentation_head": "decode_head (and its value all_mlp to feature_pyramid)",
    "decoder_norm": "decode_head_norm and pose_head_norm",
}
# Left and right of COCO's 17 keypoints: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
COCO_FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))


def pair(side: int | Sequence[int]) -> tuple[int, int]:
    """Convert a size, a length or a pair, to (height, width)."""
    if isinstance(side, int):
        return side, side
    height, width = side
    return height, width


@strict
class VisionTransformerConfig(MaskClassificationConfig, StagedConfig):
    """Configuration of ViT, with a field for every numerical difference between its references.

    `image_size` and `patch_size` are one length or (height, width). `image_size` defines the grid of the
    stored position embeddings; for images of other sizes they are resized according to the three
    `position_resize_*` fields (timm: bicubic with antialiasing; torchvision: bicubic with aligned corners;
    vit_jax: bilinear with aligned corners; all but timm without antialiasing). `patch_padding` is the zero padding
    of the patch convolution (ViTPose: 2).

    `position_embeddings_cover_prefix`: the class token and the distillation token have positions, which come before
    the grid's. Without a class token, its position is added to every patch (ViTPose). False: only patches have
    positions (DeiT III, models without class token). Register tokens never have positions; they come between the
    other prefix tokens and the patches (DINOv2).

    With a distillation token there are two classifiers, one per token, which are averaged (DeiT, section 4);
    `use_distillation_classifier` False keeps that of the class token (transformers' DeiTForImageClassification).

    `pooling` selects the classifier's input: the class token or the mean of the patches; `pool_norm` adds a LayerNorm
    after it (timm's `fc_norm`, with `use_final_norm` False); `pre_logits_size` is the width of a tanh layer before
    the classifier (ViT's first ImageNet-21k files).

    `stem` "resnetv2" is the hybrid: a ResNet of `stem_depths` bottlenecks per stage, of width 64 times
    `stem_width_factor`, whose feature map is cut into patches. Its stride is 4 with one stage or none (R+Ti/16 has
    none, and 8x8 patches: stride 32 in total), and doubles with each further stage. Kernels are standardized by
    std + eps ("std_plus_eps", vit_jax with 1e-5) or sqrt(var + eps) ("sqrt_var_plus_eps", timm with 1e-8).
    `stem_padding` is TensorFlow's "same", or "symmetric". jeonsworld/ViT-pytorch differs from both in three fields:
    `stem_pool_padding` False pools without padding, `stem_shortcut_norm` "channel" normalizes every channel of a
    projected shortcut by itself, and `stem_shortcut_norm_eps` (by default `stem_group_norm_eps`) is the epsilon there.

    `token_merging` is the fraction of patches removed by merging the most similar ones, in equal steps between layers
    (ToMe, arXiv 2210.09461); at the end every patch gets the token it was merged into. It makes a trained model faster
    and slightly less accurate (benchmarks/token_merging.md), and can be set at any time. Hidden states and attentions
    have fewer tokens then, so it cannot be combined with "feature_pyramid", and the backbone does not merge.

    `decode_head` is "linear", "mask_transformer" (Segmenter, arXiv 2105.05633; `decode_head_num_layers`
    layers) or "feature_pyramid" (a pyramid of four layers, followed by SegFormer's head; the layers are
    `decode_head_levels`, counted from 1, by default evenly spaced). `decode_head_hidden_size` is the width of the
    last two, by default the encoder's for the mask transformer and 256 for the feature pyramid. `decode_head_norm`
    "group" replaces the feature pyramid's BatchNorm by GroupNorm, for training with few images per batch.

    `decode_head` "query" predicts objects (EoMT, arXiv 2503.19108): `num_queries` tokens join the others before the
    last `num_query_blocks` layers. Their masks are computed on a grid that is 2 ** `num_upscale_blocks` times finer
    than that of the tokens. See `MaskClassificationConfig` for the loss.

    `pose_head` is ViTPose's "classic" (two deconvolutions of `pose_head_hidden_size` channels, with `pose_head_norm`)
    or "simple"; the labels are the keypoints. `pose_flip_test` averages heatmaps with those of the flipped image, in
    which the keypoints of `pose_flip_pairs` are swapped. `pose_target_sigma` is that of the training targets, in pixels
    of the heatmap.
    """

    model_type = "vit_seg"

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    patch_padding: int = 0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    use_cls_token: bool = True
    use_distillation_token: bool = False
    use_distillation_classifier: bool = True
    num_register_tokens: int = 0
    position_embeddings_cover_prefix: bool = True
    position_resize_mode: Literal["bicubic", "bilinear"] = "bicubic"
    position_resize_align_corners: bool = False
    position_resize_antialias: bool = True
    layer_scale_init_value: float | int | None = None
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    use_final_norm: bool = True
    pooling: Literal["token", "mean"] = "token"
    pool_norm: bool = False
    pre_logits_size: int | None = None
    initializer_range: float = 0.02
    stem: Literal["patch", "resnetv2"] = "patch"
    stem_depths: list[int] | tuple[int, ...] = (3, 4, 9)
    stem_width_factor: float | int = 1
    stem_padding: Literal["same", "symmetric"] = "same"
    stem_weight_standardization_mode: Literal["std_plus_eps", "sqrt_var_plus_eps"] = "std_plus_eps"
    stem_weight_standardization_eps: float = 1e-5
    stem_group_norm_eps: float = 1e-6
    stem_shortcut_norm: Literal["group", "channel"] = "group"
    stem_shortcut_norm_eps: float | None = None
    stem_pool_padding: bool = True
    decode_head: str = "linear"
    decode_head_num_layers: int = 2
    decode_head_hidden_size: int | None = None
    decode_head_norm: Literal["batch", "group"] = "batch"
    decode_head_norm_eps: float = 1e-5
    decode_head_dropout_prob: float | int = 0.0
    decode_head_levels: list[int] | tuple[int, ...] | None = None
    num_query_blocks: int = 4
    num_upscale_blocks: int = 2
    pose_head: Literal["classic", "simple"] = "classic"
    pose_head_hidden_size: int = 256
    pose_head_norm: Literal["batch", "group"] = "batch"
    pose_flip_test: bool = False
    pose_flip_pairs: list[list[int]] | tuple[tuple[int, int], ...] = COCO_FLIP_PAIRS
    pose_target_sigma: float | int = 2.0
    token_merging: float | int = 0.0
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        reject_renamed_fields("VisionTransformerConfig", kwargs, RENAMED)
        self.select_stages(kwargs)
        super().__post_init__(**kwargs)

    def list_stages(self) -> list[str]:
        """Return the names of the stages: the embeddings and each layer."""
        return ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]

    @property
    def stem_stride(self) -> int:
        """The stride of the map that is cut into patches."""
        return 1 if self.stem == "patch" else 4 * 2 ** max(len(self.stem_depths) - 1, 0)

    @property
    def token_stride(self) -> tuple[int, int]:
        """The size of a token in pixels, (height, width)."""
        height, width = pair(self.patch_size)
        return height * self.stem_stride, width * self.stem_stride

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the stored position embeddings."""
        return self.token_grid(*pair(self.image_size))

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of tokens for an image, which is padded to multiples of a token."""
        rows, columns = self.token_stride
        return ceil_div(height, rows), ceil_div(width, columns)

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return int(self.use_cls_token) + int(self.use_distillation_token) + self.num_register_tokens

    @property
    def num_prefix_positions(self) -> int:
        """The number of position embeddings before the grid's, including that of an absent class token."""
        return 1 + int(self.use_distillation_token) if self.position_embeddings_cover_prefix else 0

    @property
    def pyramid_layers(self) -> tuple[int, ...]:
        """The four layers of the feature pyramid, counted from 1, finest first."""
        if self.decode_head_levels is not None:
            return tuple(self.decode_head_levels)
        depth = self.num_hidden_layers
        return tuple(max(depth * level // PYRAMID_LEVELS, 1) for level in range(1, PYRAMID_LEVELS + 1))

    def validate_sizes(self):
        """Raise ValueError for sizes of more than two sides, and widths not divisible by the number of heads."""
        for field in ("image_size", "patch_size"):
            size = getattr(self, field)
            if not isinstance(size, int) and len(size) != 2:
                raise HfVitSegError(f"VisionTransformerConfig.{field} is one length or (height, width), got {size}")
        if min(pair(self.patch_size)) <= 2 * self.patch_padding:
            raise HfVitSegError(
                f"VisionTransformerConfig.patch_padding {self.patch_padding} must be less than half of "
                f"patch_size {self.patch_size}, otherwise the convolution returns more tokens than there are patches"
            )
        if self.hidden_size % self.num_attention_heads:
            raise HfVitSegError(
                f"VisionTransformerConfig.hidden_size {self.hidden_size} must be divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )

    def validate_stem(self):
        """Raise ValueError for unpadded pooling before fewer than two stages: the grid would be too small."""
        if self.stem == "resnetv2" and not self.stem_pool_padding and len(self.stem_depths) < 2:
            raise HfVitSegError(
                "VisionTransformerConfig.stem_pool_padding False requires at least two stages in stem_depths, "
                f"got {tuple(self.stem_depths)}: set it to True"
            )

    def validate_merging(self):
        """Raise ValueError for fractions outside [0, 1), and for merging with a head that reads several layers."""
        if not 0 <= self.token_merging < 1:
            raise HfVitSegError(
                f"VisionTransformerConfig.token_merging is a fraction of the patches, from 0 to below 1, got "
                f"{self.token_merging}"
            )
        if self.token_merging and self.decode_head in ("feature_pyramid", "query"):
            raise HfVitSegError(
                "VisionTransformerConfig.token_merging changes the tokens between layers, and decode_head "
                f"'{self.decode_head}' reads several layers: set token_merging to 0 or use another head"
            )

    def validate_query_blocks(self):
        """Raise ValueError for queries that join before more layers than there are, with the query head."""
        if self.decode_head == "query" and self.num_query_blocks > self.num_hidden_layers:
            raise HfVitSegError(
                f"VisionTransformerConfig.num_query_blocks {self.num_query_blocks} must be at most num_hidden_layers "
                f"{self.num_hidden_layers}"
            )

    def validate_levels(self):
        """Raise ValueError for a pyramid that does not have four layers, and for layers that do not exist."""
        levels = self.decode_head_levels
        layers = range(1, self.num_hidden_layers + 1)
        if levels is not None and (len(levels) != PYRAMID_LEVELS or any(level not in layers for level in levels)):
            raise HfVitSegError(
                f"VisionTransformerConfig.decode_head_levels names {PYRAMID_LEVELS} layers from 1 to "
                f"{self.num_hidden_layers}, got {tuple(levels)}"
            )


__all__ = ["VisionTransformerConfig", "pair"]
