"""Configuration of CvT (arXiv 2103.15808): stages of transformer layers whose projections are convolutions."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .errors import HfVitSegError, reject_renamed_fields
from .layers import MaskClassificationConfig, StagedConfig

STAGE_FIELDS = (
    "depths",
    "hidden_sizes",
    "num_attention_heads",
    "patch_sizes",
    "strides",
    "paddings",
    "mlp_ratios",
    "qkv_bias",
    "use_cls_token",
    "projection_methods",
    "kernel_qkv",
    "stride_kv",
    "padding_kv",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
)
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")


@strict
class CvTConfig(MaskClassificationConfig, StagedConfig):
    """Configuration of CvT, with a field for every numerical difference between its references.

    The fields in `STAGE_FIELDS` have one entry per stage. `patch_sizes`, `strides` and `paddings` are those of the
    convolution that embeds a stage's tokens. `kernel_qkv`, `stride_kv` and `padding_kv` are those of the
    attention's projections; queries always keep the grid (stride 1, half the kernel as padding), as the residual
    connection requires. `projection_methods` are "dw_bn" (a depthwise convolution and BatchNorm, the paper's),
    "avg" (keys and values are averaged instead) and "linear" (neither). `use_cls_token` adds a class token to
    a stage; the classifier reads that of the last stage, or the mean of its tokens.

    A dropout or drop path rate can be one number for all stages. A stage's drop path rate is that of its last layer and
    increases linearly from 0 in its first, as in the released code.

    `decode_head_norm` "group" replaces the head's BatchNorm by GroupNorm, for training with few images per batch; the
    encoder keeps its BatchNorms.

    `decode_head` "query" predicts objects by `num_queries` queries, in `query_num_layers` layers with `query_num_heads`
    attention heads (`query_head`). See `MaskClassificationConfig` for the loss.

    `hidden_act` is "quick_gelu" in the released code and "gelu" in transformers, whose CvT has different logits.
    """

    model_type = "cvt_seg"

    num_channels: int = 3
    depths: list[int] | tuple[int, ...] = (1, 2, 10)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 192, 384)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 3, 6)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2)
    paddings: list[int] | tuple[int, ...] = (2, 1, 1)
    mlp_ratios: list[int | float] | tuple[int | float, ...] = (4, 4, 4)
    qkv_bias: list[bool] | tuple[bool, ...] = (True, True, True)
    use_cls_token: list[bool] | tuple[bool, ...] = (False, False, True)
    projection_methods: list[Literal["dw_bn", "avg", "linear"]] | tuple[Literal["dw_bn", "avg", "linear"], ...] = (
        "dw_bn",
        "dw_bn",
        "dw_bn",
    )
    kernel_qkv: list[int] | tuple[int, ...] = (3, 3, 3)
    stride_kv: list[int] | tuple[int, ...] = (2, 2, 2)
    padding_kv: list[int] | tuple[int, ...] = (1, 1, 1)
    hidden_act: str = "quick_gelu"
    hidden_dropout_prob: float | int | list[float | int] | tuple[float | int, ...] = (0.0, 0.0, 0.0)
    attention_probs_dropout_prob: float | int | list[float | int] | tuple[float | int, ...] = (0.0, 0.0, 0.0)
    drop_path_rate: float | int | list[float | int] | tuple[float | int, ...] = (0.0, 0.0, 0.1)
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
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
        reject_renamed_fields("CvTConfig", kwargs)
        self.select_stages(kwargs)
        self.update_derived_fields()
        super().__post_init__(**kwargs)

    def update_derived_fields(self) -> None:
        """Name the stages, and expand single rates to one per stage."""
        super().update_derived_fields()
        for name in RATES:
            rate = getattr(self, name)
            if isinstance(rate, float | int):
                setattr(self, name, [rate] * len(self.depths))
        for name in ("mlp_ratios", *RATES):
            setattr(self, name, [float(number) for number in getattr(self, name)])

    def list_stages(self) -> list[str]:
        """Return the names of the stages."""
        return [f"stage{i}" for i in range(1, len(self.depths) + 1)]

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages, each of which has a map in `hidden_states`."""
        return len(self.depths)

    @property
    def padding_q(self) -> tuple[int, ...]:
        """Padding of the queries' convolutions, which keeps the grid."""
        return tuple(kernel // 2 for kernel in self.kernel_qkv)

    def validate_stages(self):
        """Raise ValueError for fields of different lengths, widths not divisible by the number of heads, and even
        kernels.
        """
        lengths = {name: len(getattr(self, name)) for name in STAGE_FIELDS}
        if len(set(lengths.values())) > 1:
            raise HfVitSegError(f"CvTConfig needs one entry per stage in each of these fields, got {lengths}")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if width % heads:
                raise HfVitSegError(
                    f"CvTConfig.hidden_sizes {tuple(self.hidden_sizes)} must be divisible by "
                    f"num_attention_heads {tuple(self.num_attention_heads)}: {width} % {heads} != 0"
                )
        if any(kernel % 2 == 0 for kernel in self.kernel_qkv):
            raise HfVitSegError(f"CvTConfig.kernel_qkv must be odd, to keep the queries' grid, got {self.kernel_qkv}")


__all__ = ["CvTConfig"]
