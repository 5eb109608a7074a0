"""Accuracy of segmentation heads on the same frozen encoder, trained for the same number of steps on CamVid.

    python -m benchmarks.heads CAMVID ENCODER [--heads linear,all_mlp,query] [--steps 400] [--seeds 0,1,2]

`CAMVID` is a folder with `train`, `val` and `test`, each with `images` and `masks`, and `ENCODER` a checkpoint that
`BackboneForSemanticSegmentation.from_backbone` loads, such as an output of `hf-vit-seg convert`. For a plain ViT, use
the heads linear, feature_pyramid and query. The feature maps of each image and of its mirror image are computed once;
the heads are trained on them without further augmentation. The learning rate of each head is chosen on the validation
images with the first seed, and the test images are scored once for each seed. The mean IoU is that of the dataset, at
the size of the labels.
"""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.nn.utils import clip_grad_norm_
from transformers import AutoImageProcessor
from transformers.modeling_outputs import BaseModelOutput

from hf_vit_seg.data.images.pixels import read_mask, read_rgb_image
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.models.label_maps import label_map
from hf_vit_seg.models.modeling_backbone_seg import BackboneForSemanticSegmentation
from hf_vit_seg.models.modeling_backbone_universal import BackboneForSemanticSegmentation as BackboneWithObjectHead

from .contest import Out, Threads, set_up
from .measuring import print_table

CLASSES, IGNORED = 11, 11
OBJECT_HEADS = ("query",)
IMAGES = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Sample:
    """The feature maps (C, h_i, w_i) of an image in bfloat16 by stage, and its labels (H, W) uint8."""

    maps: dict[str, torch.Tensor]
    labels: torch.Tensor


@dataclass(frozen=True)
class Setup:
    """The encoder's checkpoint, the number of steps, the size of batches, and the input's (height, width)."""

    encoder: str
    steps: int
    batch_size: int
    size: tuple[int, int]


def build(setup: Setup, head: str, seed: int) -> Any:
    """Return a model with the encoder and a head with random weights."""
    torch.manual_seed(seed)
    kind = BackboneWithObjectHead if head in OBJECT_HEADS else BackboneForSemanticSegmentation
    names = {index: f"class {index}" for index in range(CLASSES)}
    return kind.from_backbone(setup.encoder, head, id2label=names, semantic_loss_ignore_index=IGNORED)


def compute_features(setup: Setup, folder: Path, mirrored: bool, limit: int | None) -> list[Sample]:
    """Compute the feature maps of all images of a split, and of their mirror images."""
    model = build(setup, "query", 0)  # reads all maps of any encoder
    processor = AutoImageProcessor.from_pretrained(setup.encoder, do_resize=False, do_center_crop=False)
    samples = []
    for path in sorted((folder / "images").iterdir())[:limit]:
        pixels = processor(read_rgb_image(path), return_tensors="pt")["pixel_values"]
        labels = read_mask((folder / "masks" / path.name).with_suffix(".png"))
        for flip in (False, True)[: 1 + mirrored]:
            with torch.no_grad():
                _, maps = model.feature_maps(pixels.flip(-1) if flip else pixels)
            stages = dict(
                zip(model.backbone.out_features, (level[0].to(torch.bfloat16) for level in maps), strict=True)
            )
            samples.append(Sample(stages, (labels.flip(-1) if flip else labels).to(torch.uint8)))
    return samples


def run(model: Any, setup: Setup, samples: Sequence[Sample], **labels: torch.Tensor) -> Any:
    """Run a model whose encoder is replaced by feature maps."""
    maps = [torch.stack([sample.maps[stage] for sample in samples]).float() for stage in model.backbone.out_features]
    model.feature_maps = lambda *_, **__: (BaseModelOutput(), maps)
    return model(pixel_values=torch.empty(len(samples), 3, *setup.size), **labels)


def train(setup: Setup, head: str, seed: int, rate: float, samples: Sequence[Sample]) -> Any:
    """Train a head, with a linear warmup over a twentieth of the steps and a polynomial decay."""
    model = build(setup, head, seed)
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.decode_head.parameters(), lr=rate, weight_decay=0.01)
    warmup = max(setup.steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 - step / setup.steps) ** 0.9)
    )
    order, queue = random.Random(seed), []
    model.train()
    for _ in range(setup.steps):
        if len(queue) < setup.batch_size:
            queue += order.sample(samples, len(samples))
        batch, queue = queue[: setup.batch_size], queue[setup.batch_size :]
        labels = torch.stack([sample.labels for sample in batch]).long()
        run(model, setup, batch, labels=labels).loss.backward()
        clip_grad_norm_(model.decode_head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def evaluate(model: Any, setup: Setup, samples: Sequence[Sample]) -> float:
    """Compute the mean IoU."""
    matrix = ConfusionMatrix(CLASSES, IGNORED)
    for sample in samples:
        logits = run(model, setup, [sample]).logits
        matrix.update(label_map(logits, (sample.labels.shape[0], sample.labels.shape[1])), sample.labels[None].long())
    return float(matrix.scores()["mean_iou"])


def main(
    camvid: Annotated[Path, typer.Argument(help="folder with train, val and test")],
    encoder: Annotated[str, typer.Argument(help="checkpoint of the encoder")],
    heads: Annotated[str, typer.Option(help="heads to compare")] = "linear,all_mlp,query",
    rates: Annotated[str, typer.Option(help="learning rates of which each head gets its best")] = "3e-4,1e-3",
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 400,
    batch_size: Annotated[int, typer.Option(help="images of a step")] = 8,
    seeds: Annotated[str, typer.Option(help="seeds of the head and of the order of images")] = "0,1,2",
    limit: Annotated[int | None, typer.Option(help="images of each split; all if not given")] = None,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print the table."""
    set_up(threads)
    first = sorted((camvid / "train" / "images").iterdir())[0]
    width, height = read_rgb_image(first).size
    setup = Setup(encoder, steps, batch_size, (height, width))
    splits = {name: compute_features(setup, camvid / folder, name == "train", limit) for name, folder in IMAGES.items()}
    first_seed, *other_seeds = (int(seed) for seed in seeds.split(","))
    rows = []
    for head in heads.split(","):
        start = time.process_time()
        trained = {rate: train(setup, head, first_seed, float(rate), splits["train"]) for rate in rates.split(",")}
        validation = {rate: evaluate(model, setup, splits["validation"]) for rate, model in trained.items()}
        rate = max(validation, key=validation.__getitem__)
        models = [trained[rate], *(train(setup, head, seed, float(rate), splits["train"]) for seed in other_seeds)]
        scores = [evaluate(model, setup, splits["test"]) for model in models]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        parameters = sum(parameter.numel() for parameter in models[0].decode_head.parameters())
        minutes = (time.process_time() - start) / 60
        mean, each = statistics.mean(scores), " ".join(f"{score:.3f}" for score in scores)
        typer.echo(f"{head}: rate {rate}, validation {validation}, test {each}", err=True)
        rows.append([head, f"{parameters / 1e6:.2f}", rate, f"{mean:.3f}", f"{spread:.3f}", each, f"{minutes:.0f}"])
    columns = ["head", "million parameters", "rate", "mean IoU", "deviation", "of each seed", "core minutes"]
    print_table(f"CamVid, {steps} steps of {batch_size}, frozen encoder", columns, rows, out)


if __name__ == "__main__":
    typer.run(main)
