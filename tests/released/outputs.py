"""The outputs of a tiny model for one image. This module does not import the package: see `exchange`."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

OUTPUTS, ABOUT = "outputs.safetensors", "about.json"
SIZE = (40, 56)  # of the image


def pixel_values(channels: int = 3) -> torch.Tensor:
    """Return the input (1, C, H, W) of all models, without a random generator."""
    return (
        (torch.arange(channels * SIZE[0] * SIZE[1], dtype=torch.float64) * 0.37).sin().float().view(1, channels, *SIZE)
    )


@torch.no_grad()
def outputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's output for `pixel_values`, by name."""
    return dict(named_tensors(model.eval()(pixel_values())))


def named_tensors(outputs: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of an output and their names; those in a tuple are numbered."""
    for name, value in outputs.items():
        for number, tensor in enumerate(value if isinstance(value, tuple) else [value]):
            if isinstance(tensor, torch.Tensor):
                yield (f"{name}.{number}" if isinstance(value, tuple) else name), tensor.contiguous()


def assert_close_to(
    expected: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], prefix: str = ""
) -> None:
    """Compare outputs by name, with a tolerance of 1e-4 standard deviations; `prefix` is for error messages."""
    for name, tensor in expected.items():
        scale = float(tensor.std()) or 1.0
        torch.testing.assert_close(outputs[name], tensor, rtol=1e-4, atol=1e-4 * scale, msg=f"{prefix}{name}")
