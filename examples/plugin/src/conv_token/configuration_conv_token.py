"""Configuration of the convolutional-token transformer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ConvTokenConfig(PreTrainedConfig):
    """A convolutional tokenizer, transformer layers, and a top-down head that uses the feature maps of both.

    `stem_widths` has one entry per convolution of the tokenizer. Each convolution halves the grid, and the last entry
    is the hidden size.
    """

    model_type = "conv_token_seg"

    num_channels: int = 3
    stem_widths: list[int] | tuple[int, ...] = (32, 64, 128)
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 256
    dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-5
    decode_head_hidden_size: int = 64
    decode_head_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    @property
    def hidden_size(self) -> int:
        """The hidden size of the transformer layers."""
        return self.stem_widths[-1]

    def validate_heads(self):
        """Reject a hidden size that is not a multiple of the number of attention heads."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"The last entry of ConvTokenConfig.stem_widths, {self.hidden_size}, must be a multiple of "
                f"num_attention_heads, {self.num_attention_heads}"
            )


__all__ = ["ConvTokenConfig"]
