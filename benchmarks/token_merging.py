"""Speed and accuracy of token merging: a ViT segmentation model on labeled images, for several fractions merged.

    python -m benchmarks.token_merging MODEL IMAGES MASKS [--shares 0,0.25,0.5] [--dtypes float32,bfloat16]

Masks contain class numbers; images and masks are paired by sorted file name. Pixels without a class of the model are
ignored. Scores are in float32, at the resolution of the masks. Times are for one image, from pixels to label map.
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
from .measuring import print_table, time_interleaved

IGNORED = 255


def read_pairs(images: Path, masks: Path, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Read at most `most` images (3, H, W) and masks (H, W), spread evenly over the folders."""
    files = list(zip(sorted(images.iterdir()), sorted(masks.iterdir()), strict=True))
    for index in range(min(most, len(files))):
        image, mask = files[index * len(files) // min(most, len(files))]
        yield read_pixels(image), read_mask(mask)


def set_share(segmenter: Segmenter, share: float) -> Segmenter:
    """Set the fraction of merged tokens; returns the same segmenter."""
    segmenter.model.config.token_merging = share
    return segmenter


def scores(segmenter: Segmenter, shares: list[float], data: list[tuple[torch.Tensor, torch.Tensor]]):
    """Mean IoU for each fraction merged, and the fraction of pixels with the same label as for the first."""
    plain: list[torch.Tensor] = []
    for share in shares:
        counted = ConfusionMatrix(len(segmenter.names), IGNORED)
        found = [set_share(segmenter, share).label_map(image) for image, _ in data]
        plain = plain or found
        for labels, (_, mask) in zip(found, data, strict=True):
            counted.update(labels, mask.where(mask < len(segmenter.names), IGNORED))
        same = torch.tensor([(a == b).double().mean() for a, b in zip(plain, found, strict=True)]).mean()
        yield share, float(counted.scores()["mean_iou"]), float(same)


def segment(segmenter: Segmenter, share: float, image: torch.Tensor) -> torch.Tensor:
    """Compute the label map of an image, with a fraction of its tokens merged."""
    return set_share(segmenter, share).label_map(image)


def main(
    model: str,
    images: Path,
    masks: Path,
    shares: Annotated[
        str, typer.Option(help="values of token_merging, comma-separated; the first is the baseline")
    ] = "0,0.5",
    dtypes: Annotated[str, typer.Option(help="types to time, comma-separated")] = "float32,bfloat16",
    most: Annotated[int, typer.Option(help="maximum number of images to score")] = 1000,
    device: str = "cpu",
    rounds: Rounds = 12,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print a table of scores and one of times."""
    set_up(threads)
    merged = [float(share) for share in shares.split(",")]
    data = list(read_pairs(images, masks, most))
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
        f"{name}, {share:g}": partial(segment, segmenters[name], share, data[0][0])
        for name in dtypes.split(",")
        for share in merged
    }
    times = time_interleaved(contenders, rounds, device)
    first = next(iter(times.values()))
    table = [[name, f"{time:.0f}", f"{first / time:.2f}"] for name, time in times.items()]
    print_table("one image, pixels to label map", ["type, merged", "ms", "speed-up"], table, out)


if __name__ == "__main__":
    typer.run(main)
