"""Backbones that transformers does not know by itself, for code that is saved beside a model.

Where this package is installed its encoders are registered, and those of plugins. Saved code knows none of them, so
there this file is written anew, with the backbone of the model.
"""

from transformers import PreTrainedConfig, PreTrainedModel

OWN_BACKBONES: tuple[tuple[type[PreTrainedConfig], type[PreTrainedModel]], ...] = ()

__all__ = ["OWN_BACKBONES"]
