"""Find the tensor axes that depend on a number in the config, by comparing shapes of models on the meta device.

This finds classifiers and stems of any architecture without a list of names.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
import transformers
from transformers import PreTrainedConfig

CHANNELS = "num_channels"  # the field of every config


def set_classes(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Set the names of a model's classes (keypoints)."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def class_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the classes of a model in the order of its logits."""
    labels = {int(index): name for index, name in (config.id2label or {}).items()}  # keys in JSON are strings
    return tuple(labels[index] for index in sorted(labels))


def channel_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return the config and its nested configs that have `num_channels`."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [inner_config for inner_config in [config, *inner] if hasattr(inner_config, CHANNELS)]


def set_channels(config: PreTrainedConfig, channels: int) -> None:
    """Set the number of image channels, also in nested configs."""
    for part in channel_configs(config):
        setattr(part, CHANNELS, channels)


def tensor_shapes(config: PreTrainedConfig, auto_class: str) -> dict[str, torch.Size]:
    """Return the shapes of all parameters and buffers of the model that an Auto class builds."""
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(copy.deepcopy(config))
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def differing_axes(ones: Mapping[str, torch.Size], others: Mapping[str, torch.Size]) -> dict[str, int]:
    """Return {name: axis} for tensors whose two shapes differ in exactly one axis."""
    by_name = {}
    for name in ones.keys() & others.keys():
        one, other = ones[name], others[name]
        axes = [axis for axis, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if len(one) == len(other) and len(axes) == 1:
            by_name[name] = axes[0]
    return dict(sorted(by_name.items()))


def class_axes(config: PreTrainedConfig, auto_class: str) -> dict[str, int]:
    """Return {name: axis} for tensors with a row per class."""
    larger = copy.deepcopy(config)
    set_classes(larger, [*class_names(config), "one more"])
    return differing_axes(tensor_shapes(config, auto_class), tensor_shapes(larger, auto_class))


def channel_axes(config: PreTrainedConfig, auto_class: str) -> dict[str, int]:
    """Return {name: axis} for tensors with a slice per image channel."""
    larger = copy.deepcopy(config)
    for part in channel_configs(larger):
        setattr(part, CHANNELS, getattr(part, CHANNELS) + 1)
    return differing_axes(tensor_shapes(config, auto_class), tensor_shapes(larger, auto_class))
