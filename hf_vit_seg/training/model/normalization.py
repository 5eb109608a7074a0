"""Replacements for BatchNorm, whose statistics are inaccurate if each process has few images per batch.

"sync": torch's SyncBatchNorm, with statistics over all processes. Parameters keep their names, so the saved model has
BatchNorm. "group": GroupNorm in the decoder, through a field of the model's config; encoders keep the norms that their
pretrained weights need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedConfig

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import RecordError

from .freezing import lock_frozen_norms

SINGLE_VALUE = "more than 1 value per channel"  # in torch's message
GROUP_FIELDS = ("decode_head_norm", "pose_head_norm")


class BatchNormError(HfVitSegError):
    """A batch that is too small for BatchNorm."""


def is_single_value_error(error: ValueError) -> bool:
    """Return whether a BatchNorm was given one value per channel in training."""
    return SINGLE_VALUE in str(error)


@contextmanager
def batchnorm_advice() -> Iterator[None]:
    """Convert torch's error for a BatchNorm with one value per channel into BatchNormError with advice."""
    try:
        yield
    except ValueError as error:
        if not is_single_value_error(error):
            raise
        raise BatchNormError(
            "found a BatchNorm with one value per channel in a training step, expected two or more; set "
            "loop.batch_size to 2 or more, use larger crops in transforms, or freeze the layer with model.freeze"
        ) from error


def norm_fields(norm: str, config: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the config fields that `model.norm` sets; RecordError for models without such a field."""
    if norm != "group":
        return {}
    fields = [field for field in GROUP_FIELDS if hasattr(config, field)]
    if not fields:
        raise RecordError(
            f"model.norm: {config.__name__} has no field '{GROUP_FIELDS[0]}', so a model with GroupNorm could not be "
            "loaded after training; use 'batch' or 'sync'"
        )
    return dict.fromkeys(fields, "group")


def norm_notes(norm: str, model: nn.Module) -> list[str]:
    """Report how many BatchNorms `model.norm: group` did not replace."""
    left = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return [f"{left} BatchNorms of the encoder are not replaced"] if norm == "group" and left else []


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm by SyncBatchNorm; frozen ones stay in evaluation mode.

    After this, a process that runs the model alone in training mode waits for the others. RecordError for several
    processes without a GPU.
    """
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if several and not torch.accelerator.is_available():
        raise RecordError(
            "model.norm: SyncBatchNorm needs GPUs, found several processes on CPUs; use 'group', or 'batch' with "
            "larger batches"
        )
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    lock_frozen_norms(converted)
    return converted
