"""Publish models on the Hub: model card, `hf-vit-seg push` and `hf-vit-seg push-space`."""

from .push import PushResult, push
from .repository import PushError, Target
from .space import push_space

__all__ = ["PushError", "PushResult", "Target", "push", "push_space"]
