"""Train the nano SegFormer on the nuclei of the Data Science Bowl 2018 (CC0), from scratch, on a CPU.

    python examples/nuclei/train.py NUCLEI_FOLDER OUT_DIR [--steps 1200]

NUCLEI_FOLDER holds train/ and test/, each with images/ and masks/ of the same names. The model in
examples/nuclei/model was made by this file with its defaults.
"""

import random
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import get_cosine_schedule_with_warmup

from hf_vit_seg import architectures
from hf_vit_seg.models.label_maps import label_map

NAMES = {0: "background", 1: "nucleus"}
PALETTE = [[0, 0, 0], [255, 120, 0]]
CROP, BATCH = 224, 8


def read(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All images (3, H, W) uint8 of a split with their masks (1, H, W)."""
    pairs = []
    for path in sorted((folder / "images").glob("*.png")):
        image = tv_tensors.Image(pil_to_tensor(Image.open(path).convert("RGB")))
        pairs.append((image, tv_tensors.Mask(pil_to_tensor(Image.open(folder / "masks" / path.name)))))
    return pairs


def augmentation(mean: list[float], std: list[float]) -> v2.Compose:
    """Random crops, sizes, mirrors and colours, then the processor's normalisation."""
    border = {tv_tensors.Image: 0, tv_tensors.Mask: 255}  # what lies outside an image is ignored
    return v2.Compose(
        [
            v2.RandomCrop(CROP, pad_if_needed=True, fill=border),
            v2.RandomAffine(degrees=0, scale=(0.75, 1.6), interpolation=v2.InterpolationMode.BILINEAR, fill=border),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


@torch.no_grad()
def mean_iou(model: torch.nn.Module, processor, pairs) -> float:
    """Mean IoU of both classes over all pixels of whole images at their own size."""
    matrix = torch.zeros(2, 2, dtype=torch.long)
    for image, mask in pairs:
        logits = model.eval()(**processor(image, return_tensors="pt")).logits
        predicted = label_map(logits, mask.shape[-2:])[0]
        matrix += torch.bincount(2 * mask[0].flatten().long() + predicted.flatten(), minlength=4).view(2, 2)
    return float((matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())).mean())


def main(
    nuclei: Path,
    out: Path,
    steps: Annotated[int, typer.Option(help="optimiser steps of 8 crops each")] = 1200,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train, measure on the held-out images, save."""
    random.seed(seed)
    torch.manual_seed(seed)
    architecture = architectures()["segformer"]
    config = architecture.variant_config("nano", id2label=NAMES, label2id={v: k for k, v in NAMES.items()})
    model = architecture.models["AutoModelForSemanticSegmentation"](config)
    processor = architecture.image_processor["torchvision"](do_resize=False, palette=PALETTE)
    train, test = read(nuclei / "train"), read(nuclei / "test")
    augment = augmentation(processor.image_mean, processor.image_std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    start = time.time()
    for step in range(1, steps + 1):
        images, masks = zip(*(augment(*pair) for pair in random.choices(train, k=BATCH)), strict=True)
        loss = model.train()(torch.stack(images), labels=torch.cat(masks).long()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}/{steps}: loss {loss.item():.3f}, {time.time() - start:.0f} s", flush=True)
    print(f"mean IoU on {len(test)} held-out images: {mean_iou(model, processor, test):.3f}")
    model.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
