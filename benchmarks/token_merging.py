"""What token merging brings and costs: a ViT segmentation model on labelled images, at several shares merged.

    python -m benchmarks.token_merging MODEL IMAGES MASKS [--shares 0,0.25,0.5] [--dtypes float32,bfloat16]

Masks are read as class numbers, files in the order of their names; where a mask has no class of the model, the pixel
does not count. Scores are in float32, at the masks' own size. Times are of one whole image, from pixels to label map.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix

from .contest import Out, Rounds, Threads, set_up
from .measuring import interleaved, print_table

IGNORED = 255


def pairs(images: Path, masks: Path, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """At most `most` images (3, H, W) and masks (H, W), spread evenly over the folders."""
    files = list(zip(sorted(images.iterdir()), sorted(masks.iterdir()), strict=True))
    for index in range(min(most, len(files))):
        image, mask = files[index * len(files) // min(most, len(files))]
        yield read_pixels(image), read_mask(mask)


def set_share(segmenter: Segmenter, share: float) -> Segmenter:
    """The same segmenter, merging another share from now on."""
    segmenter.model.config.token_merging = share
    return segmenter


def scores(segmenter: Segmenter, shares: list[float], data: list[tuple[torch.Tensor, torch.Tensor]]):
    """Mean IoU at each share, and the share of pixels that keep the first one's label."""
    plain: list[torch.Tensor] = []
    for share in shares:
        counted = ConfusionMatrix(len(segmenter.names), IGNORED)
        found = [set_share(segmenter, share).label_map(image) for image, _ in data]
        plain = plain or found
        for labels, (_, mask) in zip(found, data, strict=True):
            counted.update(labels, mask.where(mask < len(segmenter.names), IGNORED))
        same = torch.tensor([(a == b).double().mean() for a, b in zip(plain, found, strict=True)]).mean()
        yield share, float(counted.scores()["mean_iou"]), float(same)


def timed(segmenter: Segmenter, share: float, image: torch.Tensor) -> torch.Tensor:
    """What is timed."""
    return set_share(segmenter, share).label_map(image)


def main(
    model: str,
    images: Path,
    masks: Path,
    shares: Annotated[
        str, typer.Option(help="values of token_merging, by commas; the first is the baseline")
    ] = "0,0.5",
    dtypes: Annotated[str, typer.Option(help="types to time, by commas")] = "float32,bfloat16",
    most: Annotated[int, typer.Option(help="images that are scored")] = 1000,
    device: str = "cpu",
    rounds: Rounds = 12,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print a table of scores and one of times."""
    set_up(threads)
    merged = [float(share) for share in shares.split(",")]
    data = list(pairs(images, masks, most))
    segmenters = {
        name: Segmenter.from_pretrained(model, device, name)
        for name in {"float32": 0} | dict.fromkeys(dtypes.split(","))
    }
    rows = []
    for share, iou, same in scores(segmenters["float32"], merged, data):
        rows.append([f"{share:g}", f"{100 * iou:.2f}", f"{100 * same:.2f} %"])
        print(*rows[-1], flush=True)
    print_table(f"{model}, {len(data)} images", ["merged", "mean IoU", "same label"], rows, out)
    if rounds == 0:
        return
    contenders = {
        f"{name}, {share:g}": partial(timed, segmenters[name], share, data[0][0])
        for name in dtypes.split(",")
        for share in merged
    }
    times = interleaved(contenders, rounds, device)
    first = next(iter(times.values()))
    table = [[name, f"{time:.0f}", f"{first / time:.2f}"] for name, time in times.items()]
    print_table("one image, pixels to label map", ["type, merged", "ms", "speed-up"], table, out)


if __name__ == "__main__":
    typer.run(main)
