"""Mean IoU of label maps: ours against evaluate's own module.

    python -m benchmarks.metrics [--maps 16 --size 512 --classes 150] [--device cuda]

evaluate's module is on the Hub and not in a package, so its published steps are reproduced here: every map is stored
in an Arrow file (by `evaluate.Metric` itself), and `compute` reads all of them and takes np.histogram of the hits, the
predictions and the references of each map. Its current version declares maps as images, the first version as sequences
of numbers. One row shows the steps without Arrow. All contenders must return the same IoU before they are timed.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import datasets
import evaluate
import numpy as np
import torch
import typer
from evaluate import config

from hf_vit_seg.metrics import module_path
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix

from .contest import Out, Rounds, Threads, set_up
from .measuring import Contender, print_table, time_interleaved

IGNORED = 255
OURS, MODULE = "ConfusionMatrix", "our module of evaluate"
IMAGES, SEQUENCES = "evaluate's mean_iou, images", "evaluate's mean_iou, sequences"
STEPS = "evaluate's mean_iou without Arrow"


def histogram_iou(predictions: Any, references: Any, num_labels: int) -> torch.Tensor:
    """evaluate's steps: IoU (K,) from three histograms per map."""
    areas = np.zeros((3, num_labels))
    for prediction, reference in zip(predictions, references, strict=True):
        prediction, reference = np.array(prediction), np.array(reference)
        counted = reference != IGNORED
        prediction, reference = prediction[counted], reference[counted]
        maps = (prediction[prediction == reference], prediction, reference)
        areas += [np.histogram(labels, bins=num_labels, range=(0, num_labels - 1))[0] for labels in maps]
    hits, predicted, labeled = areas
    return torch.from_numpy(hits / (predicted + labeled - hits))


class HubMeanIoU(evaluate.Metric):
    """The time-consuming part of evaluate's module, with maps declared as images."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: self.map_feature() for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def map_feature(self) -> Any:
        return datasets.Image()

    def _compute(self, predictions: Any, references: Any, num_labels: int) -> dict[str, Any]:
        return {"per_category_iou": histogram_iou(predictions, references, num_labels).numpy()}


class SequenceMeanIoU(HubMeanIoU):
    """The module with maps declared as sequences."""

    def map_feature(self) -> Any:
        return datasets.List(datasets.List(datasets.Value("uint16")))


def label_maps(maps: int, size: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and references (maps, size, size) int64: patches, 70 % correct, 5 % of the pixels ignored."""
    patch = max(1, size // 32)
    coarse = torch.randint(0, classes, (maps, -(-size // patch), -(-size // patch)))
    references = coarse.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :size, :size].contiguous()
    guesses = torch.randint(0, classes, references.shape)
    predictions = torch.where(torch.rand(references.shape) < 0.7, references, guesses)
    return predictions, references.masked_fill(torch.rand(references.shape) < 0.05, IGNORED)


def contenders(predictions: torch.Tensor, references: torch.Tensor, classes: int, device: str) -> dict[str, Contender]:
    """Contenders that add maps one by one and return the IoU (K,)."""
    on_device = [labels.to(device) for labels in (predictions, references)]
    arrays = [labels.numpy() for labels in (predictions, references)]

    def ours() -> torch.Tensor:
        matrix = ConfusionMatrix(classes, IGNORED)
        for pair in zip(*on_device, strict=True):
            matrix.update(*pair)
        return torch.from_numpy(matrix.scores()["per_category_iou"])

    def run_module(metric: Any, maps: Any) -> Contender:
        def run() -> torch.Tensor:
            for prediction, reference in zip(*maps, strict=True):
                metric.add_batch(predictions=prediction[None], references=reference[None])
            return torch.from_numpy(metric.compute(num_labels=classes)["per_category_iou"])

        return run

    return {
        OURS: ours,
        MODULE: run_module(evaluate.load(module_path("mean_iou")), on_device),
        IMAGES: run_module(HubMeanIoU(), arrays),
        SEQUENCES: run_module(SequenceMeanIoU(), arrays),
        STEPS: lambda: histogram_iou(arrays[0], arrays[1], classes),
    }


def time_contenders(built: dict[str, Contender], rounds: int, device: str) -> dict[str, float]:
    """Best time in ms of each contender, after a check that all agree."""
    expected = built[STEPS]()
    for name, contender in built.items():
        torch.testing.assert_close(contender(), expected, equal_nan=True, msg=f"{name} returns a different IoU")
    return time_interleaved(built, rounds, device)


def main(
    maps: Annotated[int, typer.Option(help="label maps")] = 16,
    size: Annotated[int, typer.Option(help="side of a map")] = 512,
    classes: Annotated[int, typer.Option(help="at most 255")] = 150,
    rounds: Rounds = 10,
    device: Annotated[str, typer.Option(help="where our maps are; evaluate's are on the CPU")] = "cpu",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Print a table."""
    set_up(threads)
    warnings.filterwarnings("ignore", message="Downcasting array dtype")  # datasets stores int64 maps as int32
    pair = label_maps(maps, size, classes)
    with tempfile.TemporaryDirectory() as cache:
        config.HF_METRICS_CACHE = Path(cache)
        best = [
            time_contenders(contenders(pair[0].to(dtype), pair[1].to(dtype), classes, device), rounds, device)
            for dtype in (torch.int64, torch.uint8)
        ]
    rows = [
        [name, *(cell for ms in best for cell in (f"{ms[name]:.1f}", f"{ms[name] / ms[OURS]:.1f}"))] for name in best[0]
    ]
    where = f"{torch.get_num_threads()} CPU threads" if device == "cpu" else torch.cuda.get_device_name()
    title = f"Mean IoU of {maps} maps of {size}x{size}, {classes} classes, {where}"
    print_table(title, ["", "int64 ms", "to ours", "uint8 ms", "to ours"], rows, out)


if __name__ == "__main__":
    typer.run(main)
