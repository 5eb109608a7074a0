"""Devices and floating-point types by name."""

from typing import Any

import torch

from hf_vit_seg.errors import error_sentence
from hf_vit_seg.records import suggestion

from .errors import ModelError

DEVICES = ("cpu", "cuda", "mps", "xpu")


def float_type(name: str | torch.dtype) -> torch.dtype:
    """Return a floating-point dtype of torch by name. Raises ModelError for others."""
    kind: Any = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"{name} is not a floating-point type of torch: use float32, bfloat16 or float16")
    return kind


def select_device(device: str | torch.device | None) -> torch.device:
    """Return the device, by default a GPU if available. Raises ModelError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        near = suggestion("cuda" if device == "gpu" else str(device), DEVICES)
        raise ModelError(f"unknown device '{device}', expected cpu, cuda, cuda:1, mps or xpu{near}") from None
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {device} cannot be used: {error_sentence(error, short=True)}; available here: "
            f"{', '.join(available_devices())}"
        ) from None
    return chosen


def available_devices() -> list[str]:
    """Return the names of the devices of this machine."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ["cpu"]
    return ["cpu", *(f"{kind.type}:{index}" for index in range(torch.accelerator.device_count()))]


__all__ = ["available_devices", "float_type", "select_device"]
