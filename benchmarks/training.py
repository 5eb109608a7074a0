"""A training step of SegFormer and of ViT with the pyramid head against transformers, with the same weights and images.

    python -m benchmarks.training [--variants b0,b2,vit-s] [--size 256] [--batch 2] [--device cuda --dtype bfloat16]

A step is the forward pass, the loss, the backward pass and AdamW; with another type than float32 the forward pass runs
under autocast. Both losses must agree in evaluation before the steps are timed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from . import pyramid_vit, segformer
from .contest import OURS, Dtype, Out, Rounds, Threads, describe, save_variants, set_up
from .measuring import Contender, peak_memory, print_table, time_interleaved
from .segformer import CLASSES

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative, of the losses
COLUMNS = ["", "ms", "images/s", "to ours", "peak MiB"]
LEARNING_RATE = 6e-5  # of the paper


class TrainingStep:
    """Trains a segmentation model on the same batch again and again: each call is one step, and returns its loss."""

    def __init__(self, load: Callable[[], Any], pixel_values: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype):
        self.model = load().model.to(pixel_values.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.pixel_values, self.labels, self.dtype = pixel_values, labels, dtype

    def loss(self) -> torch.Tensor:
        """Return the loss of the batch, float32."""
        with torch.autocast(self.pixel_values.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(pixel_values=self.pixel_values, labels=self.labels).loss

    def __call__(self) -> torch.Tensor:
        self.model.train()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def check(steps: dict[str, TrainingStep], dtype: torch.dtype) -> None:
    """Raise RuntimeError if the losses of the models differ in evaluation."""
    with torch.no_grad():
        losses = {}
        for name, step in steps.items():
            step.model.eval()
            losses[name] = float(step.loss())
    for name, loss in losses.items():
        if abs(loss - losses[OURS]) > TOLERANCE[dtype] * losses[OURS]:
            raise RuntimeError(f"the loss of {name} is {loss:.6g}, ours {losses[OURS]:.6g}")


def compare(
    variant: str, folder: Path, batch: int, size: int, rounds: int, device: str, dtype: torch.dtype
) -> list[list[str]]:
    """Return the rows of one variant: milliseconds, images per second, ratio to ours and peak memory."""
    pixel_values = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(0, CLASSES, (batch, size, size), device=device)
    models = pyramid_vit if variant in pyramid_vit.WIDTHS else segformer
    loaders = {OURS: partial(models.load_ours, folder), "transformers": partial(models.load_transformers, folder)}
    builders: dict[str, Callable[[], Contender]] = {
        name: partial(TrainingStep, load, pixel_values, labels, dtype) for name, load in loaders.items()
    }
    memory = {name: peak_memory(build, device) for name, build in builders.items()}
    steps: Any = {name: build() for name, build in builders.items()}
    check(steps, dtype)
    best = time_interleaved(steps, rounds, device)
    return [
        [
            f"{variant.upper()}, {name}",
            f"{ms:.1f}",
            f"{1e3 * batch / ms:.1f}",
            f"{ms / best[OURS]:.2f}",
            f"{memory[name]:.0f}",
        ]
        for name, ms in best.items()
    ]


def save_all(variant: str, folder: Path, size: int) -> None:
    """Save the same random weights for both models."""
    if variant in pyramid_vit.WIDTHS:
        pyramid_vit.save_all(variant, folder, size)
    else:
        segformer.save_all(variant, folder)


def main(
    variants: Annotated[str, typer.Option(help="b0 to b5, vit-ti and vit-s, comma-separated")] = "b0",
    size: Annotated[int, typer.Option(help="side of the square images")] = 256,
    batch: Annotated[int, typer.Option(help="batch size")] = 2,
    rounds: Rounds = 8,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print the table."""
    set_up(threads)
    kind = getattr(torch, dtype)
    rows = []
    for variant, folder in save_variants(variants, partial(save_all, size=size)):
        rows += compare(variant, folder, batch, size, rounds, device, kind)
    title = f"Training step, {batch}x{size}x{size}, {CLASSES} classes, "
    title += describe(torch.empty(0, device=device, dtype=kind))
    print_table(title, COLUMNS, rows, out)


if __name__ == "__main__":
    typer.run(main)
