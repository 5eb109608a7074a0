"""Configuration of the convolutional-token transformer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ConvTokenConfig(PreTrainedConfig):
    """Tokens from convolutions, transformer layers over them, a top-down head over both.

    `stem_widths` has one entry per convolution of the tokenizer, each of which halves the grid; the last is the width
    of the tokens.
    """

    model_type = "conv_token_seg"

    num_channels: int = 3
    stem_widths: list[int] | tuple[int, ...] = (32, 64, 128)
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 256
    dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-5
    decoder_hidden_size: int = 64
    classifier_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.stem_widths[-1]

    def validate_heads(self):
        """Refuse a width that the heads do not divide."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"ConvTokenConfig.stem_widths ends with the tokens' width, {self.hidden_size}, which is no multiple of "
                f"num_attention_heads, {self.num_attention_heads}"
            )


__all__ = ["ConvTokenConfig"]
