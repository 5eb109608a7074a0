"""What a GPU alone can show, in one command: inference, training, losses and label maps against transformers.

    python -m benchmarks.gpu [--out FILE]

Without a GPU, the same code runs on the CPU with small images and few variants, as a check of the command.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import typer

from . import losses, training
from .compiled import CHANNELS_LAST, COLUMNS, compare, draw_images, image_shape, save_model
from .contest import Out, save_variants, set_up
from .measuring import print_table
from .segformer import print_label_map_table, save_all


@dataclass(frozen=True)
class Plan:
    """What to run on a kind of device."""

    device: str
    models: tuple[str, ...]
    batches: tuple[int, ...]
    size: int
    dtypes: tuple[torch.dtype, ...]
    compiled: tuple[str, ...]  # models that are also compiled, with the last dtype and batch size
    channels_last: tuple[str, ...]  # models that are also run in channels-last memory, with the same
    trained: tuple[str, ...]
    training_batch: int
    loss_images: int
    rounds: int


GPU = Plan(
    device="cuda",
    models=("segformer/b0", "segformer/b2", "segformer/b5", "vit/s-16", "vit/b-16"),
    batches=(1, 16, 64),
    size=512,
    dtypes=(torch.float32, torch.bfloat16),
    compiled=("segformer/b0", "vit/s-16"),
    channels_last=("segformer/b0", "segformer/b2"),
    trained=("b0", "b2"),
    training_batch=16,
    loss_images=8,
    rounds=5,
)
CPU = Plan(
    device="cpu",
    models=("segformer/b0", "vit/ti-16"),
    batches=(1, 2),
    size=64,
    dtypes=(torch.float32, torch.bfloat16),
    compiled=(),
    channels_last=("segformer/b0",),
    trained=("b0",),
    training_batch=2,
    loss_images=1,
    rounds=2,
)


def inference_rows(plan: Plan) -> Iterator[list[str]]:
    """Yield the rows of all models, dtypes and batch sizes."""
    for model in plan.models:
        with TemporaryDirectory() as folder:
            loaders = save_model(model, Path(folder))
            for dtype, batch in product(plan.dtypes, plan.batches):
                pixel_values = draw_images(model, batch, plan.size, plan.device, dtype)
                is_last = (dtype, batch) == (plan.dtypes[-1], plan.batches[-1])
                modes = [CHANNELS_LAST] if model in plan.channels_last and is_last else []
                modes += ["default"] if model in plan.compiled and is_last else []
                name = f"{model}, {image_shape(pixel_values)}, {str(dtype).removeprefix('torch.')}"
                yield from compare(name, loaders, modes, pixel_values, plan.rounds)


def main(out: Out = None) -> None:
    """Print the tables."""
    set_up(None)
    plan = GPU if torch.cuda.is_available() else CPU
    print_table(f"Inference, {plan.device}", COLUMNS, list(inference_rows(plan)), out)
    dtype = plan.dtypes[-1]
    for variant, folder in save_variants(",".join(plan.trained), save_all):
        rows = training.compare(variant, folder, plan.training_batch, plan.size, plan.rounds, plan.device, dtype)
        print_table(
            f"Training step, {plan.training_batch}x{plan.size}x{plan.size}, bfloat16", training.COLUMNS, rows, out
        )
    rows = [losses.row(case, plan.loss_images, plan.rounds, plan.device, dtype) for case in losses.CASES[:1]]
    print_table(f"Losses of {plan.loss_images} images, bfloat16", losses.COLUMNS, rows, out)
    print_label_map_table(torch.empty(0, device=plan.device), plan.rounds, out)


if __name__ == "__main__":
    typer.run(main)
