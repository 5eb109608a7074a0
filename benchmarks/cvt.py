"""CvT's classifiers against transformers, with the same weights.

    python -m benchmarks.cvt [--variants cvt-13] [--sizes 224,384] [--batches 1,8] [--device cuda --dtype bfloat16]

Ours uses torch's scaled_dot_product_attention; transformers' CvT only has eager attention. Both must
return the same logits before they are timed.
"""

import itertools
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from hf_vit_seg.conversion.convert import convert
from torch import nn
from transformers import CvtConfig, CvtForImageClassification

from hf_vit_seg import architectures

from .contest import (
    OURS,
    Dtype,
    Logits,
    Out,
    Rounds,
    Threads,
    contest,
    randomize,
    save_variants,
    set_up,
    torch_contender,
)
from .measuring import product_rate

CLASSES = 1000


def save_both(variant: str, folder: Path) -> None:
    """Save the same random weights in both formats."""
    row = architectures()["cvt"].variant_rows()[variant]
    config = CvtConfig(embed_dim=row["hidden_sizes"], depth=row["depths"], num_heads=row["num_attention_heads"])
    config.num_labels = CLASSES
    randomize(CvtForImageClassification(config)).save_pretrained(folder / "transformers")
    convert(folder / "transformers", folder / "ours")


def load_ours(folder: Path) -> nn.Module:
    model = architectures()["cvt"].models["AutoModelForImageClassification"]
    return Logits(model.from_pretrained(folder / "ours", attn_implementation="sdpa"))


def load_transformers(folder: Path) -> nn.Module:
    return Logits(CvtForImageClassification.from_pretrained(folder / "transformers"))


def main(
    variants: Annotated[str, typer.Option(help="rows of configs/models/cvt.yaml, comma-separated")] = "cvt-13,cvt-21",
    sizes: Annotated[str, typer.Option(help="sides of the square images, comma-separated")] = "224,384",
    batches: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,8",
    rounds: Rounds = 12,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print a table per variant, size and number of images."""
    set_up(threads)
    rate = product_rate(device, getattr(torch, dtype))
    for variant, folder in save_variants(variants, save_both):
        for size, batch in itertools.product(map(int, sizes.split(",")), map(int, batches.split(","))):
            pixel_values = torch.randn(batch, 3, size, size, device=device, dtype=getattr(torch, dtype))
            built = {
                OURS: partial(torch_contender, partial(load_ours, folder), pixel_values),
                "transformers": partial(torch_contender, partial(load_transformers, folder), pixel_values),
            }
            title = f"{variant.replace('cvt', 'CvT')}, {{images}}, {CLASSES} classes, {{machine}}"
            contest(title, built, load_ours(folder), pixel_values, rounds, rate, out)


if __name__ == "__main__":
    typer.run(main)
