"""Handing models on: the card, `hf-vit-seg push` and `hf-vit-seg push-space`."""

from .push import Pushed, push
from .repository import PushError, Target
from .space import push_space

__all__ = ["PushError", "Pushed", "Target", "push", "push_space"]
