"""SegFormer and ViT under torch.compile, ours and transformers', with the same weights and the time of compilation.

    python -m benchmarks.compiled [--models segformer/b0,vit/s-16] [--modes default,max-autotune-no-cudagraphs]

All must return the logits of our eager model before they are timed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import torch
import typer
from torch import nn

from . import segformer, vit
from .contest import OURS, Dtype, Out, Rounds, Threads, check, describe, set_up, torch_contender
from .measuring import Contender, print_table, synchronize, time_interleaved

EAGER, CHANNELS_LAST = "eager", "channels-last"
COLUMNS = ["", "mode", "ms", "images/s", "to ours, eager", "compilation s", "difference"]
Loader = Callable[[], nn.Module]


def save_model(model: str, folder: Path) -> dict[str, Loader]:
    """Save random weights of a model such as "segformer/b0", and return a loader for each implementation."""
    architecture, variant = model.split("/")
    benchmark: Any = {"segformer": segformer, "vit": vit}[architecture]
    benchmark.save_all(variant, folder)
    return {OURS: partial(benchmark.load_ours, folder), "transformers": partial(benchmark.load_transformers, folder)}


def draw_images(model: str, batch: int, size: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Return random images of a size; ViT takes 224."""
    side = 224 if model.startswith("vit/") else size
    return torch.randn(batch, 3, side, side, device=device, dtype=dtype)


def image_shape(pixel_values: torch.Tensor) -> str:
    """Return the number and size of images, such as 1x512x512."""
    batch, _, height, width = pixel_values.shape
    return f"{batch}x{height}x{width}"


def compile_contender(load: Loader, mode: str, pixel_values: torch.Tensor) -> tuple[Contender, float]:
    """Return a compiled model as a contender, and the seconds of its first call."""
    torch.compiler.reset()
    contender = torch_contender(lambda: cast(nn.Module, torch.compile(load(), mode=mode, dynamic=False)), pixel_values)
    start = time.perf_counter()
    contender()
    synchronize(pixel_values.device.type)
    return contender, time.perf_counter() - start


def channels_last_contender(load: Loader, pixel_values: torch.Tensor) -> Contender:
    """Return a model and its input in channels-last memory as a contender."""
    layout = torch.channels_last
    return torch_contender(
        lambda: cast(Any, load()).to(memory_format=layout), pixel_values.contiguous(memory_format=layout)
    )


def compare(
    name: str, loaders: Mapping[str, Loader], modes: Sequence[str], pixel_values: torch.Tensor, rounds: int
) -> list[list[str]]:
    """Return a row for each implementation: eager, and in each mode of torch.compile or in channels-last memory."""
    contenders: dict[str, Contender] = {}
    seconds: dict[str, float] = {}
    labels = {}
    for mode in (EAGER, *modes):
        for who, load in loaders.items():
            key = who if mode == EAGER else f"{who} {mode}"
            labels[key] = [f"{name}, {who}", mode]
            if mode == EAGER:
                contenders[key] = torch_contender(load, pixel_values)
            elif mode == CHANNELS_LAST:
                contenders[key] = channels_last_contender(load, pixel_values)
            else:
                contenders[key], seconds[key] = compile_contender(load, mode, pixel_values)
    differences = check(contenders, pixel_values.dtype)
    best = time_interleaved(contenders, rounds, pixel_values.device.type)
    return [
        [
            *labels[key],
            f"{ms:.1f}",
            f"{1e3 * len(pixel_values) / ms:.1f}",
            f"{ms / best[OURS]:.2f}",
            f"{seconds[key]:.0f}" if key in seconds else "",
            f"{differences[key]:.1e}",
        ]
        for key, ms in best.items()
    ]


def main(
    models: Annotated[str, typer.Option(help="segformer/VARIANT or vit/VARIANT, comma-separated")] = "segformer/b0",
    modes: Annotated[str, typer.Option(help="channels-last or modes of torch.compile, comma-separated")] = (
        "default,max-autotune-no-cudagraphs"
    ),
    size: Annotated[int, typer.Option(help="side of the square images; ViT takes 224")] = 512,
    batch: Annotated[int, typer.Option(help="batch size")] = 1,
    rounds: Rounds = 8,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print a table per model."""
    set_up(threads)
    for model in models.split(","):
        pixel_values = draw_images(model, batch, size, device, getattr(torch, dtype))
        with TemporaryDirectory() as folder:
            rows = compare(model, save_model(model, Path(folder)), modes.split(","), pixel_values, rounds)
        print_table(f"{model}, {image_shape(pixel_values)}, {describe(pixel_values)}", COLUMNS, rows, out)


if __name__ == "__main__":
    typer.run(main)
