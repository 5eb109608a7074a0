"""Backbones that are not in transformers, for code that is saved with a model.

This package, where it is installed, registers its encoders and those of plugins. Saved code has no such registration:
there, `bundled_code` writes this file with the model's own backbone.
"""

from transformers import PreTrainedConfig, PreTrainedModel

OWN_BACKBONES: tuple[tuple[type[PreTrainedConfig], type[PreTrainedModel]], ...] = ()

__all__ = ["OWN_BACKBONES"]
