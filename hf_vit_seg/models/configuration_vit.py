"""Configuration of the Vision Transformer (arXiv 2010.11929), pure or hybrid, of DeiT, DINOv2 and ViTPose."""

from collections.abc import Sequence
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .errors import HfVitSegError
from .grid_sizes import ceil_div

PYRAMID_LEVELS = 4
# Left and right of COCO's 17 keypoints: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
COCO_FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))


def pair(side: int | Sequence[int]) -> tuple[int, int]:
    """One length for both sides, or (height, width) as they are."""
    if isinstance(side, int):
        return side, side
    height, width = side
    return height, width


@strict
class VisionTransformerConfig(BackboneConfigMixin, PreTrainedConfig):
    """Everything that a ViT checkpoint of any source needs to give its source's numbers.

    `image_size` and `patch_size` are one length or (height, width). `image_size` says which grid the stored
    position embeddings are for; images of other sizes are taken as well, and positions resized as the three
    `position_resize_*` fields say (timm: bicubic with antialiasing; torchvision: bicubic with aligned corners;
    vit_jax: bilinear with aligned corners; all but timm without antialiasing). `patch_padding` is the zero padding
    of the patch convolution (ViTPose: 2).

    `position_embeddings_cover_prefix`: the class token has a position of its own, and so has the distillation
    token; these slots stand before the grid. If there is no class token, its slot is added to every patch (ViTPose).
    False: only patches have positions (DeiT III, class-token-free models). Register tokens never have any; they
    stand between the other prefix tokens and the patches (DINOv2).

    With a distillation token the classifiers are two, one on each token, and averaged (DeiT, section 4);
    `use_distillation_classifier` False leaves the one on the class token (transformers' DeiTForImageClassification).

    `pooling` is what the classifier reads: the class token or the mean of the patches; `pool_norm` a LayerNorm
    behind it (timm's `fc_norm`, with `use_final_norm` False); `pre_logits_size` the width of a tanh layer before
    the classifier (ViT's first ImageNet-21k files).

    `stem` "resnetv2" is the hybrid: a ResNet of `stem_depths` bottlenecks per stage, of width 64 times
    `stem_width_factor`, whose feature map is cut into patches. It has stride 4 with one stage or none (R+Ti/16 has
    none, and 8x8 patches: stride 32 in all), and twice as much with each further one. Its kernels are standardised by
    std + eps ("std_plus_eps", vit_jax with 1e-5) or sqrt(var + eps) ("sqrt_var_plus_eps", timm with 1e-8).
    `stem_padding` is TensorFlow's "same", or "symmetric".

    `token_merging` is the share of the patches that are merged away, the most alike first, before the last layer, in
    equal steps between the layers (ToMe, arXiv 2210.09461); at the end every patch gets the token that it went into.
    It makes a trained model faster and a little less exact (benchmarks/token_merging.md), and may be set at any time.
    The layers' hidden states and attentions are then of fewer tokens, so the pyramid of "all_mlp" does not go with it
    and the backbone does not merge.

    `segmentation_head` is "linear", "mask_transformer" (Segmenter, arXiv 2105.05633; `segmentation_head_depth`
    layers) or "all_mlp" (a feature pyramid of four layers, and SegFormer's head over it; the layers are
    `segmentation_levels`, counted from 1; evenly spaced without). `segmentation_head_width` is the width of the
    last two: without, the encoder's for the mask transformer and 256 for the all-MLP head. `decoder_norm` "group" puts
    GroupNorm in the place of the BatchNorms of the all-MLP and the classic pose head, for training with few images.

    `pose_head` is ViTPose's "classic" (two deconvolutions of `pose_head_width` channels) or "simple"; the labels are
    the keypoints. `pose_flip_test` averages heatmaps with those of the mirrored image, in which the keypoints of
    `pose_flip_pairs` change places. `pose_target_sigma` is that of the targets in training, in pixels of the heatmap.
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
    segmentation_head: Literal["linear", "mask_transformer", "all_mlp"] = "linear"
    segmentation_head_depth: int = 2
    segmentation_head_width: int | None = None
    segmentation_norm_eps: float = 1e-5
    decoder_norm: Literal["batch", "group"] = "batch"
    segmentation_levels: list[int] | tuple[int, ...] | None = None
    pose_head: Literal["classic", "simple"] = "classic"
    pose_head_width: int = 256
    pose_flip_test: bool = False
    pose_flip_pairs: list[list[int]] | tuple[tuple[int, int], ...] = COCO_FLIP_PAIRS
    pose_target_sigma: float | int = 2.0
    classifier_dropout_prob: float | int = 0.0
    token_merging: float | int = 0.0
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @property
    def stem_stride(self) -> int:
        """Pixels per side of a cell of the map that is cut into patches."""
        return 1 if self.stem == "patch" else 4 * 2 ** max(len(self.stem_depths) - 1, 0)

    @property
    def token_stride(self) -> tuple[int, int]:
        """Pixels (height, width) that one token stands for."""
        height, width = pair(self.patch_size)
        return height * self.stem_stride, width * self.stem_stride

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the stored position embeddings."""
        return self.grid_of(*pair(self.image_size))

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image, whose sides are padded to whole tokens."""
        rows, columns = self.token_stride
        return ceil_div(height, rows), ceil_div(width, columns)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the patches."""
        return int(self.use_cls_token) + int(self.use_distillation_token) + self.num_register_tokens

    @property
    def num_prefix_positions(self) -> int:
        """Position embeddings before those of the grid; an absent class token has its slot too."""
        return 1 + int(self.use_distillation_token) if self.position_embeddings_cover_prefix else 0

    @property
    def pyramid_layers(self) -> tuple[int, ...]:
        """The four layers, counted from 1, that the feature pyramid is made of, finest first."""
        if self.segmentation_levels is not None:
            return tuple(self.segmentation_levels)
        depth = self.num_hidden_layers
        return tuple(max(depth * level // PYRAMID_LEVELS, 1) for level in range(1, PYRAMID_LEVELS + 1))

    def validate_sizes(self):
        """Refuse sizes of more than two sides, and widths that the heads do not divide."""
        for field in ("image_size", "patch_size"):
            size = getattr(self, field)
            if not isinstance(size, int) and len(size) != 2:
                raise HfVitSegError(f"VisionTransformerConfig.{field} is one length or (height, width), got {size}")
        if min(pair(self.patch_size)) <= 2 * self.patch_padding:
            raise HfVitSegError(
                f"VisionTransformerConfig.patch_padding {self.patch_padding} must be less than half of "
                f"patch_size {self.patch_size}, else the patch convolution makes more tokens than there are patches"
            )
        if self.hidden_size % self.num_attention_heads:
            raise HfVitSegError(
                f"VisionTransformerConfig.hidden_size {self.hidden_size} must be divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )

    def validate_merging(self):
        """Refuse shares outside [0, 1), and merging under a head that reads every layer's map."""
        if not 0 <= self.token_merging < 1:
            raise HfVitSegError(
                f"VisionTransformerConfig.token_merging is a share of the patches, from 0 to below 1, got "
                f"{self.token_merging}"
            )
        if self.token_merging and self.segmentation_head == "all_mlp":
            raise HfVitSegError(
                "VisionTransformerConfig.token_merging leaves the layers different tokens, and segmentation_head "
                "'all_mlp' needs the map of several: set token_merging to 0 or take another head"
            )

    def validate_levels(self):
        """Refuse a pyramid of other than four layers, and layers that do not exist."""
        levels = self.segmentation_levels
        known = range(1, self.num_hidden_layers + 1)
        if levels is not None and (len(levels) != PYRAMID_LEVELS or any(level not in known for level in levels)):
            raise HfVitSegError(
                f"VisionTransformerConfig.segmentation_levels names {PYRAMID_LEVELS} layers from 1 to "
                f"{self.num_hidden_layers}, got {tuple(levels)}"
            )


__all__ = ["VisionTransformerConfig", "pair"]
