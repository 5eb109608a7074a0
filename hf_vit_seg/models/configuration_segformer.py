"""Configuration of SegFormer (arXiv 2105.15203): a Mix Transformer encoder and an all-MLP decode head."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .errors import HfVitSegError, reject_renamed_fields
from .layers import MaskClassificationConfig, StagedConfig

STAGE_FIELDS = (
    "depths",
    "hidden_sizes",
    "num_attention_heads",
    "sr_ratios",
    "patch_sizes",
    "strides",
    "mlp_ratios",
)


@strict
class SegFormerConfig(MaskClassificationConfig, StagedConfig):
    """Configuration of SegFormer, with a field for every numerical difference between its references.

    The fields with one entry per stage are `depths`, `hidden_sizes`, `num_attention_heads`, `sr_ratios` (the
    paper's reduction R: keys and values have 1/R of the side), `patch_sizes` (K), `strides` (S;
    the padding is K // 2) and `mlp_ratios` (E; the released code has 4 everywhere, the paper's table does not).

    Every epsilon is a field because the references differ. NVlabs: `layer_norm_eps` (two norms of a block, one
    after each stage) 1e-6, `patch_norm_eps` and `reduction_norm_eps` 1e-5. mmsegmentation: 1e-6 throughout.
    transformers: 1e-5 throughout, regardless of its config.

    `decode_head_flavor` is "nvlabs" (a linear projection per level) or "mmseg" (convolution, BatchNorm and ReLU
    per level); their weights cannot be converted into each other.
    `decode_head_norm` "group" replaces the head's BatchNorm by GroupNorm, for training with few images per batch.

    `decode_head` "query" predicts objects by `num_queries` queries, in `query_num_layers` layers with `query_num_heads`
    attention heads (`query_head`). See `MaskClassificationConfig` for the loss.
    """

    model_type = "segformer_seg"

    num_channels: int = 3
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 160, 256)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (4, 4, 4, 4)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-6
    patch_norm_eps: float = 1e-5
    reduction_norm_eps: float = 1e-5
    decode_head: str = "all_mlp"
    decode_head_hidden_size: int = 256
    query_num_layers: int = 6
    query_num_heads: int = 8
    query_masked_inference: bool = True  # as in Mask2Former
    decode_head_flavor: Literal["nvlabs", "mmseg"] = "nvlabs"
    decode_head_norm: Literal["batch", "group"] = "batch"
    decode_head_norm_eps: float = 1e-5
    decode_head_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        reject_renamed_fields("SegFormerConfig", kwargs)
        self.select_stages(kwargs)
        super().__post_init__(**kwargs)

    def list_stages(self) -> list[str]:
        """Return the names of the stages."""
        return [f"stage{i}" for i in range(1, len(self.depths) + 1)]

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages, each of which has a map in `hidden_states`."""
        return len(self.depths)

    def validate_stages(self):
        """Raise ValueError for per-stage fields of different lengths, and for widths not divisible by the number of
        heads.
        """
        lengths = {name: len(getattr(self, name)) for name in STAGE_FIELDS}
        if len(set(lengths.values())) > 1:
            raise HfVitSegError(f"SegFormerConfig needs one entry per stage in each of these fields, got {lengths}")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if width % heads:
                raise HfVitSegError(
                    f"SegFormerConfig.hidden_sizes {tuple(self.hidden_sizes)} must be divisible by "
                    f"num_attention_heads {tuple(self.num_attention_heads)}: {width} % {heads} != 0"
                )


__all__ = ["SegFormerConfig"]
