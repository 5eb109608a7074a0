"""Losses against the plain implementation, in time and memory: forward and backward, from the decode head's logits.

    python -m benchmarks.losses [--images 8] [--rounds 5] [--device cuda --dtype bfloat16]

The plain implementation resizes all logits and calls torch's cross-entropy, or segmentation_models_pytorch's loss.
Both must return the same gradient before they are timed, up to the factor between the definitions
(tests/training/test_losses.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import typer
from torch import nn

from hf_vit_seg.training.losses.loss_registry import LossSum

from .contest import Dtype, Out, Rounds, Threads, describe, set_up
from .measuring import Contender, peak_memory, print_table, time_interleaved

IGNORE = 255
CLASSES_PER_IMAGE = 9
COLUMNS = ["", "ms", "plain ms", "ratio", "peak MiB", "plain MiB", "ratio", "gradient distance"]


@dataclass(frozen=True)
class Case:
    """A loss with its inputs: K classes, and the sides of square logits and labels."""

    loss: str
    classes: int
    grid: int = 128
    size: int = 512


CASES = (
    Case("cross_entropy", 150),
    Case("cross_entropy", 150, grid=32),
    Case("cross_entropy", 19, grid=256, size=1024),
    Case("cross_entropy", 11),
    Case("cross_entropy", 1),
    Case("focal", 150),
    Case("dice", 150),
    Case("dice", 19),
    Case("lovasz", 19),
)


def draw_inputs(case: Case, images: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits in the decode heads' layout, and labels with blocks of a few classes per image, partly ignored."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(images, case.classes, case.grid, case.grid, device=device, dtype=dtype)
    labels = max(case.classes, 2)
    known = torch.stack([torch.randperm(labels)[torch.arange(CLASSES_PER_IMAGE) % labels] for _ in range(images)])
    blocks = known.gather(1, torch.randint(0, CLASSES_PER_IMAGE, (images, 256))).view(images, 1, 16, 16)
    maps = nn.functional.interpolate(blocks.float(), (case.size, case.size), mode="nearest")[:, 0].long()
    maps[:, : case.size // 10] = IGNORE
    return logits.contiguous(memory_format=torch.channels_last).requires_grad_(), maps.to(device)


def ours(case: Case) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the recipe's loss."""
    return LossSum.from_recipe({case.loss: None}, "segmentation", case.classes, IGNORE)


def plain(case: Case) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Compute the same loss on all resized logits."""
    criterion = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "lovasz": lovasz}[case.loss]

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        resized = nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        return criterion(resized.to(torch.promote_types(logits.dtype, torch.float32)), labels)

    return loss


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's cross-entropy, or the binary one for one class."""
    if logits.shape[1] > 1:
        return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    counts = labels != IGNORE
    targets = labels.where(counts, 0).to(logits.dtype)
    losses = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")
    return (losses * counts).sum() / counts.sum()


def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """smp's focal loss of the softmax; ignored labels are masked, which smp does not do."""
    losses = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).sum() / (labels != IGNORE).sum()


def dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """smp's Dice loss per image, as ours; they differ by the fraction of classes that an image contains."""
    import segmentation_models_pytorch as smp

    criterion = smp.losses.DiceLoss("multiclass", smooth=0.5, ignore_index=IGNORE)
    return torch.stack([criterion(logits[i, None], labels[i, None]) for i in range(len(logits))]).mean()


def lovasz(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """smp's Lovasz loss."""
    import segmentation_models_pytorch as smp

    return smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=IGNORE)(logits, labels)


def build_contender(
    implementation: Callable[[Case], Any], case: Case, images: int, device: str, dtype: torch.dtype
) -> Contender:
    """Forward and backward; returns the gradient of the logits."""
    logits, labels = draw_inputs(case, images, device, dtype)
    loss = implementation(case)
    return lambda: torch.autograd.grad(loss(logits, labels), logits)[0]


def difference(gradient: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of two gradients' directions; 0 for parallel ones."""
    directions = [nn.functional.normalize(tensor.double().flatten(), dim=0) for tensor in (gradient, expected)]
    return float((directions[0] - directions[1]).norm())


def row(case: Case, images: int, rounds: int, device: str, dtype: torch.dtype) -> list[str]:
    """Return one line of the table."""
    implementations = {"ours": partial(build_contender, ours), "plain": partial(build_contender, plain)}
    builders = {who: partial(build, case, images, device, dtype) for who, build in implementations.items()}
    memory = {who: peak_memory(builder, device) for who, builder in builders.items()}
    contenders = {who: builder() for who, builder in builders.items()}
    distance = difference(contenders["ours"](), contenders["plain"]())
    if distance > (1e-3 if dtype == torch.float32 else 2e-2):
        raise RuntimeError(f"{case}: the gradients differ by {distance:.1g}")
    best = time_interleaved(contenders, rounds, device)
    return [
        f"{case.loss}, {case.classes} classes, {case.grid} to {case.size}",
        f"{best['ours']:.0f}",
        f"{best['plain']:.0f}",
        f"{best['plain'] / best['ours']:.1f}",
        f"{memory['ours']:.0f}",
        f"{memory['plain']:.0f}",
        f"{memory['plain'] / memory['ours']:.1f}",
        f"{distance:.0e}",
    ]


def main(
    images: int = 8,
    rounds: Rounds = 3,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    only: str = "",
    out: Out = None,
) -> None:
    """Print the table; `--only dice` selects rows."""
    set_up(threads)
    kind = getattr(torch, dtype)
    rows = [row(case, images, rounds, device, kind) for case in CASES if only in case.loss]
    title = f"Losses of {images} images, forward and backward, {describe(torch.empty(0, device=device, dtype=kind))}"
    print_table(title, COLUMNS, rows, out)


if __name__ == "__main__":
    typer.run(main)
