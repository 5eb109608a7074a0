"""Checks of model outputs for NaN and infinity."""

import torch

from hf_vit_seg.errors import HfVitSegError


class InvalidOutputError(HfVitSegError):
    """Outputs of a model that contain NaN or infinity."""


def invalid_outputs(outputs: torch.Tensor) -> torch.Tensor:
    """Return where the outputs of a model, of any shape, are NaN or infinity, as a mask of the same shape.

    Minus infinity is accepted: it excludes a class.
    """
    return outputs.isnan() | outputs.isposinf()


def check_outputs(outputs: torch.Tensor, pixels: torch.Tensor) -> None:
    """Raise InvalidOutputError if outputs of a model for `pixels` have `invalid_outputs`."""
    total = outputs.sum()
    if (total.isnan() or total.isposinf()) and invalid_outputs(outputs).any():
        low, high = (float(extreme) for extreme in pixels.aminmax())
        raise InvalidOutputError(
            f"the outputs of the model contain NaN or infinity; its input has values from {low:.4g} to {high:.4g}. If "
            "extreme values mark pixels without data, declare them in the file (gdal_edit.py -a_nodata VALUE FILE); "
            "with float16, use float32 or bfloat16"
        )


__all__ = ["InvalidOutputError", "check_outputs", "invalid_outputs"]
