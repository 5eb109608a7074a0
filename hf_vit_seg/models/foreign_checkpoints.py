"""Checkpoints that do not have this package's format, found by the models' `from_pretrained`.

transformers would ignore their tensors, whose names differ, and return random weights. The package, where it is
installed, puts its converter into the table; code that is saved with a model has an empty table, and refuses them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from .errors import HfVitSegError

# Options of `from_pretrained` that locate files.
HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")


def hub_options(loading: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of `from_pretrained` that locate files, without unset ones."""
    return {name: loading[name] for name in HUB_OPTIONS if loading.get(name) is not None}


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A converted checkpoint: its config, and its tensors by our names."""

    config: PreTrainedConfig
    state_dict: Mapping[str, torch.Tensor]

    def config_for(self, config: Any, loading: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any]]:
        """Return the config to load with, and the remaining options; fields of the config in `loading` override it."""
        loading = {name: value for name, value in loading.items() if name not in HUB_OPTIONS}
        loading["state_dict"] = dict(self.state_dict)
        if isinstance(config, PreTrainedConfig):
            return config, loading
        build: Any = type(self.config).from_dict
        return build(self.config.to_dict(), return_unused_kwargs=True, **loading)


Converter = Callable[..., ConvertedCheckpoint | None]
CONVERTERS: list[Converter] = []  # (path, options that locate files) -> the converted checkpoint


def convert_foreign(
    config_class: Any, path: Any, config: Any, loading: Mapping[str, Any]
) -> ConvertedCheckpoint | None:
    """Convert a checkpoint in another format; None for one of this model's own type.

    HfVitSegError for a checkpoint of another architecture, and for one in another format without a converter.
    """
    if path is None or loading.get("state_dict") is not None:
        return None
    hub = hub_options(loading)
    try:
        stored, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:  # no config.json: a single file, or nothing
        if not os.path.isfile(path) or not CONVERTERS:
            return None
        stored = {}
    model_type = stored.get("model_type")
    if model_type == config_class.model_type:
        return None
    if not stored and isinstance(config, config_class) and not os.path.isfile(path):  # weights beside no config.json
        return None
    converted = next((found for convert in CONVERTERS if (found := convert(path, **hub)) is not None), None)
    if converted is None:
        raise HfVitSegError(
            f"'{path}' has model_type '{model_type}', expected '{config_class.model_type}'; load it with its own "
            "class; a checkpoint of the same architecture in another format is converted by `hf-vit-seg convert`"
        )
    if not isinstance(converted.config, config_class):
        raise HfVitSegError(
            f"'{path}' is a checkpoint for {type(converted.config).__name__}, expected {config_class.__name__}; load "
            "it with `hf_vit_seg.load`"
        )
    converted.config.name_or_path = str(path)
    return converted


def check_any_weights(path: Any, expected: Mapping[str, Any], missing: Any) -> None:
    """HfVitSegError if a checkpoint contains none of a model's tensors, so that all its weights would be random."""
    if expected and len(set(missing)) >= len(expected):
        raise HfVitSegError(
            f"'{path}' contains none of the model's {len(expected)} tensors, so its weights would be random; it has "
            "another format: convert it with `hf-vit-seg convert`"
        )


__all__ = ["CONVERTERS", "HUB_OPTIONS", "ConvertedCheckpoint", "check_any_weights", "convert_foreign", "hub_options"]
