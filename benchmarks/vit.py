"""ViT, pure and hybrid, against timm and transformers, with the same weights.

    python -m benchmarks.vit [--variants b-16,r50-b-16] [--batches 1,8] [--device cuda --dtype bfloat16]

All use torch's scaled_dot_product_attention, and every contender must return our logits before it is timed.
transformers has no hybrids; timm's run in both memory formats.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from hf_vit_seg.conversion.convert import convert, export
from timm.layers import config as timm_config
from torch import nn

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

PURE = {
    "ti-16": "vit_tiny_patch16_224",
    "s-16": "vit_small_patch16_224",
    "b-16": "vit_base_patch16_224",
}
HYBRID = {
    "r-ti-16": "vit_tiny_r_s16_p8_224",
    "r26-s-32": "vit_small_r26_s32_224",
    "r50-b-16": "vit_base_r50_s16_384",
}
NAMES = PURE | HYBRID


def save_all(variant: str, folder: Path) -> None:
    """Save the same random weights in the format of each contender."""
    torch.save(randomize(timm.create_model(NAMES[variant])).state_dict(), folder / "timm.pth")
    convert(folder / "timm.pth", folder / "ours")
    if variant in PURE:
        export(folder / "ours", folder / "transformers", to="transformers")


def load_ours(folder: Path) -> nn.Module:
    model = architectures()["vit"].models["AutoModelForImageClassification"]
    return Logits(model.from_pretrained(folder / "ours", attn_implementation="sdpa"))


def load_transformers(folder: Path) -> nn.Module:
    from transformers import ViTForImageClassification

    return Logits(ViTForImageClassification.from_pretrained(folder / "transformers", attn_implementation="sdpa"))


def load_timm(folder: Path, variant: str) -> nn.Module:
    timm_config.set_fused_attn(True)
    model = timm.create_model(NAMES[variant])
    model.load_state_dict(torch.load(folder / "timm.pth", weights_only=True))
    return model


def builders(variant: str, folder: Path, pixel_values: torch.Tensor):
    """A function for each contender that builds it, ours first."""
    timm_model = partial(load_timm, folder, variant)
    built = {
        OURS: partial(torch_contender, partial(load_ours, folder), pixel_values),
        "timm": partial(torch_contender, timm_model, pixel_values),
    }
    if variant in HYBRID:
        built["timm, channels last"] = partial(torch_contender, timm_model, pixel_values, channels_last=True)
    else:
        built["transformers"] = partial(torch_contender, partial(load_transformers, folder), pixel_values)
    return built


def main(
    variants: Annotated[str, typer.Option(help="rows of configs/models/vit.yaml, comma-separated")] = ",".join(NAMES),
    batches: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,8",
    rounds: Rounds = 12,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print a table per variant and batch size, with the image size in timm's name."""
    set_up(threads)
    rate = product_rate(device, getattr(torch, dtype))
    for variant, folder in save_variants(variants, save_all):
        size = int(NAMES[variant].rsplit("_", 1)[1])
        for batch in map(int, batches.split(",")):
            pixel_values = torch.randn(batch, 3, size, size, device=device, dtype=getattr(torch, dtype))
            title = f"ViT {variant} ({NAMES[variant]}), {{images}}, {{machine}}"
            built = builders(variant, folder, pixel_values)
            contest(title, built, load_ours(folder), pixel_values, rounds, rate, out)


if __name__ == "__main__":
    typer.run(main)
