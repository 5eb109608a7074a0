"""EoMT against transformers' EomtForUniversalSegmentation with the same weights, and the decoding of queries.

    python -m benchmarks.masks [--threads 2] [--rounds 12]

The model is ViT-S/16 with 100 queries, 512x512, one image, without masks in attention, as after training. Decoding is
panoptic post-processing of 100 queries at 1024x2048, against transformers' EomtImageProcessor; the share of pixels of
the same segment is printed with the times.
"""

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from hf_vit_seg.conversion.convert import convert
from torch import nn
from transformers import AutoModelForUniversalSegmentation, EomtConfig, EomtForUniversalSegmentation
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor

from hf_vit_seg.models.image_processing_universal import UniversalSegmentationImageProcessor

from .contest import OURS, Dtype, Out, Rounds, Threads, contest, set_up, torch_contender
from .measuring import Contender, print_table, product_rate, time_interleaved

SIZE, QUERIES, CLASSES = 512, 100, 133
THEIRS = "transformers"
DECODED = (1024, 2048)


class Masks(nn.Module):
    """A model whose forward returns its mask logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).masks_queries_logits


def save_all(folder: Path) -> None:
    """Save the same random weights in both formats."""
    config = EomtConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=SIZE,
        num_queries=QUERIES,
        id2label={index: f"class {index}" for index in range(CLASSES)},
        num_blocks=3,
    )
    model = EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()
    model.save_pretrained(folder / "transformers")
    convert(folder / "transformers", folder / "ours")


def load_ours(folder: Path) -> Masks:
    return Masks(AutoModelForUniversalSegmentation.from_pretrained(folder / "ours", attn_implementation="sdpa"))


def load_theirs(folder: Path) -> Masks:
    return Masks(EomtForUniversalSegmentation.from_pretrained(folder / "transformers", attn_implementation="sdpa"))


def blobs(queries: int, height: int, width: int) -> torch.Tensor:
    """Mask logits (1, Q, h, w) of discs at random places, as those of a trained model: most pixels are far from 0."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    centers = torch.rand(queries, 2) * torch.tensor([height, width])
    radii = torch.rand(queries) * height / 6 + 4
    distances = ((rows - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2).sqrt()
    return (radii[:, None, None] - distances)[None]


def outputs_of_queries() -> Any:
    """Predictions of which about half of the queries are objects."""
    classes = torch.randn(1, QUERIES, CLASSES + 1)
    labels = torch.randint(0, CLASSES, (QUERIES,))
    labels[::2] = CLASSES
    classes[0, torch.arange(QUERIES), labels] += 12
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=blobs(QUERIES, 256, 512))


def decode(outputs: Any) -> torch.Tensor:
    """Return the map of segments of our processor, which counts them from 1."""
    (result,) = UniversalSegmentationImageProcessor().post_process_panoptic_segmentation(
        outputs, threshold=0.8, label_ids_to_fuse=set(), target_sizes=[DECODED]
    )
    return result["segmentation"]


def decode_theirs(outputs: Any) -> torch.Tensor:
    """Return the map of segments of transformers' processor, which counts them from 0."""
    size = {"shortest_edge": DECODED[0], "longest_edge": DECODED[1]}
    (result,) = EomtImageProcessor().post_process_panoptic_segmentation(outputs, [DECODED], threshold=0.8, size=size)
    return result["segmentation"] + 1


def time_decoding(rounds: int, out: Path | None) -> None:
    """Print the times of the decoders."""
    outputs = outputs_of_queries()
    contenders: dict[str, Contender] = {OURS: partial(decode, outputs), THEIRS: partial(decode_theirs, outputs)}
    with torch.inference_mode():
        maps = {name: contender() for name, contender in contenders.items()}
        best = time_interleaved(contenders, rounds)
    rows = [
        [name, f"{ms:.1f}", f"{ms / best[OURS]:.2f}", f"{(maps[name] == maps[OURS]).float().mean():.4f}"]
        for name, ms in best.items()
    ]
    title = f"{QUERIES} queries at {DECODED[0]}x{DECODED[1]}, {torch.get_num_threads()} CPU threads"
    print_table(title, ["", "ms", "to ours", "pixels of the same segment"], rows, out)


def main(
    rounds: Rounds = 12,
    device: str = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    decoding: Annotated[bool, typer.Option(help="also time the decoding of queries")] = True,
    out: Out = None,
) -> None:
    """Print a table for the model and one for the decoding of its queries."""
    set_up(threads)
    pixel_values = torch.randn(1, 3, SIZE, SIZE, device=device, dtype=getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_all(folder)
        built = {
            OURS: partial(torch_contender, partial(load_ours, folder), pixel_values),
            THEIRS: partial(torch_contender, partial(load_theirs, folder), pixel_values),
        }
        title = f"EoMT with ViT-S/16, {QUERIES} queries, {{images}}, {{machine}}"
        contest(title, built, load_ours(folder), pixel_values, rounds, product_rate(device, pixel_values.dtype), out)
    if decoding:
        time_decoding(rounds, out)


if __name__ == "__main__":
    typer.run(main)
