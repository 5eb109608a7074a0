"""Backbones that are not in transformers, for code that is saved with a model.

Where this package is installed, its encoders and those of plugins are registered. Saved code has no such registration:
there, `bundled_code` writes this file with the model's own backbone.
"""

from transformers import PreTrainedConfig, PreTrainedModel

OWN_BACKBONES: tuple[tuple[type[PreTrainedConfig], type[PreTrainedModel]], ...] = ()

__all__ = ["OWN_BACKBONES"]
