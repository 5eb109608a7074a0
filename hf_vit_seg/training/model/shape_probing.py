"""Which axis of which tensor a number of the config decides: models are built without memory, and shapes compared.

This finds classifiers and stems of any architecture without knowing a name of theirs.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
import transformers
from transformers import PreTrainedConfig

BANDS = "num_channels"  # what every config calls the bands of an image


def set_classes(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Name the classes (keypoints) of a model."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def class_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """The classes of a model, in the order of its logits."""
    return tuple(name for _, name in sorted((config.id2label or {}).items()))


def band_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config and those inside it that say how many bands an image has."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [each for each in [config, *inner] if hasattr(each, BANDS)]


def set_bands(config: PreTrainedConfig, bands: int) -> None:
    """Say how many bands an image has."""
    for each in band_configs(config):
        setattr(each, BANDS, bands)


def tensor_shapes(config: PreTrainedConfig, auto_class: str) -> dict[str, torch.Size]:
    """The shapes of all parameters and buffers of the model that an Auto class builds."""
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(copy.deepcopy(config))
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def differing_axes(ones: Mapping[str, torch.Size], others: Mapping[str, torch.Size]) -> dict[str, int]:
    """The axis in which a tensor's two shapes differ, for tensors that differ in one."""
    found = {}
    for name in ones.keys() & others.keys():
        one, other = ones[name], others[name]
        axes = [axis for axis, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if len(one) == len(other) and len(axes) == 1:
            found[name] = axes[0]
    return dict(sorted(found.items()))


def class_axes(config: PreTrainedConfig, auto_class: str) -> dict[str, int]:
    """The tensors that have a row for every class, and which axis that is."""
    larger = copy.deepcopy(config)
    set_classes(larger, [*class_names(config), "one more"])
    return differing_axes(tensor_shapes(config, auto_class), tensor_shapes(larger, auto_class))


def band_axes(config: PreTrainedConfig, auto_class: str) -> dict[str, int]:
    """The tensors that have a slice for every band of an image, and which axis that is."""
    larger = copy.deepcopy(config)
    for each in band_configs(larger):
        setattr(each, BANDS, getattr(each, BANDS) + 1)
    return differing_axes(tensor_shapes(config, auto_class), tensor_shapes(larger, auto_class))
