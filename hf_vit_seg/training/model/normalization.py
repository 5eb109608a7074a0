"""Which norm stands where a model was built with BatchNorm, whose statistics are poor when a process sees few images.

"sync": torch's SyncBatchNorm, the statistics of all processes together. Parameters keep their names, so what is saved
is the model with BatchNorm. "group": GroupNorm in the decoder, a field of the model's config, so that what is saved
loads by itself; encoders keep the norms that their pretrained weights need.
"""

from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedConfig

from hf_vit_seg.records import RecordError

from .freezing import hold_frozen_norms

GROUP_FIELDS = ("decode_head_norm", "pose_head_norm")


def norm_fields(norm: str, config: type[PreTrainedConfig]) -> dict[str, Any]:
    """The config fields that a choice of norm sets; RecordError for models that could not be saved with it."""
    if norm != "group":
        return {}
    fields = [field for field in GROUP_FIELDS if hasattr(config, field)]
    if not fields:
        raise RecordError(
            f"model.norm: {config.__name__} has no field '{GROUP_FIELDS[0]}', so a model with GroupNorm could be "
            "trained but not loaded again; take 'batch' or 'sync'"
        )
    return dict.fromkeys(fields, "group")


def norm_notes(norm: str, model: nn.Module) -> list[str]:
    """What a choice of norm did not change."""
    left = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return [f"{left} BatchNorms of the encoder stay"] if norm == "group" and left else []


def synchronised(model: nn.Module) -> nn.Module:
    """The model with SyncBatchNorm for every BatchNorm, held in evaluation where it was.

    To be called when no process runs the model alone any more: it would wait for the others. RecordError for several
    processes without a GPU.
    """
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if several and not torch.accelerator.is_available():
        raise RecordError(
            "model.norm: torch has SyncBatchNorm for GPUs alone, and these are several processes on CPUs; take "
            "'group', or 'batch' with larger batches"
        )
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    hold_frozen_norms(converted)
    return converted
