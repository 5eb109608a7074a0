"""Bare backbones out of checkpoints, from a directory or the Hub.

`AutoBackbone.from_pretrained` would not do: it takes no directories and asks the Hub for each of them, and it resets
the statistics of the BatchNorms that it has loaded from timm (transformers 5.23).
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
)
from transformers.initialization import no_init_weights
from transformers.utils.hub import cached_file

from .errors import HfVitSegError

TIMM_WEIGHTS = "model.safetensors"
CHANNELS_LAST = "NHWC"
T = TypeVar("T")
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


def hub_options(loading: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of `from_pretrained`, those that say where the files are."""
    return {name: loading[name] for name in HUB_OPTIONS if name in loading}


def stored_config(path: str | os.PathLike, **hub: Any) -> PreTrainedConfig:
    """The config of a checkpoint as that of a backbone: timm's own checkpoints become a TimmBackbone's.

    ValueError for a model that AutoBackbone has no class for.
    """
    config = AutoConfig.from_pretrained(path, **hub)
    if config.model_type == "timm_wrapper":  # to import its class is to import timm
        return TimmBackboneConfig(backbone=config.architecture)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise HfVitSegError(
            f"{path} is a '{config.model_type}', of which transformers has no backbone (AutoBackbone): no head can be "
            "put on it"
        )
    return config


def new_backbone(config: PreTrainedConfig) -> Any:
    """A backbone with fresh weights."""
    return of_any_size(config, partial(AutoBackbone.from_config, config))


def of_any_size(config: PreTrainedConfig, build: Callable[..., T]) -> T:
    """What `build` builds; of timm's models for images of any size, where that is an option (CNNs need none)."""
    if isinstance(config, TimmBackboneConfig):
        with suppress(TypeError):
            return build(dynamic_img_size=True)
    return build()


def gives_channels_last(backbone: Any) -> bool:
    """Whether the maps of a backbone are (B, H, W, C), as those of some of timm's are."""
    layout = getattr(getattr(backbone, "_backbone", None), "output_fmt", None)
    return getattr(layout, "value", layout) == CHANNELS_LAST


def loaded_backbone(
    path: str | os.PathLike, config: PreTrainedConfig, **loading: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The backbone with the checkpoint's weights, and transformers' account of the tensors that are not its."""
    backbone_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    if not isinstance(config, TimmBackboneConfig):
        return backbone_class.from_pretrained(path, config=config, output_loading_info=True, **loading)
    hub = hub_options(loading)
    if isinstance(AutoConfig.from_pretrained(path, **hub), TimmBackboneConfig):  # saved by transformers
        load = PreTrainedModel.from_pretrained.__func__  # TimmBackbone's own asks timm for a model of that name
        return of_any_size(
            config, partial(load, backbone_class, path, config=config, output_loading_info=True, **loading)
        )
    file = cached_file(path, TIMM_WEIGHTS, **hub)
    build = partial(backbone_class, config, pretrained=True, pretrained_cfg_overlay={"file": file})
    with no_init_weights():  # else post_init resets the BatchNorms
        backbone = of_any_size(config, build)
    return backbone, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}


__all__ = ["gives_channels_last", "hub_options", "loaded_backbone", "new_backbone", "stored_config"]
