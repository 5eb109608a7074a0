"""The training loss and the score of each sample in an evaluation, from logits and label maps that it has computed.

Shapes: B images, K classes, H W pixels, T terms of the loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.training.losses.objectives import Batch, HeadObjective, Objective

SampleScores = tuple[tuple[int, float], ...]  # index of the sample in the split, and its score


SEED = 0  # seed of the points at which masks are compared


@contextmanager
def fork_seed(seed: int) -> Iterator[None]:
    """Draw random numbers from a seed, and restore the state of the generators."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class ValidationLoss:
    """The training objective on a split. `counts` (2, T) are the sums and units of its terms."""

    def __init__(self, objective: Objective | None):
        """Without an objective, nothing is computed."""
        self.objective = objective
        self.counts = torch.zeros(2, 0)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the logits of a batch, and the labels at the size of the model's input."""
        self.add(lambda **_: SimpleNamespace(logits=logits), {"labels": labels})

    def update_objects(self, model: Any, outputs: Any, labels: Batch) -> None:
        """Add the outputs of a model that finds objects for a batch; the loss is that of the final predictions.

        Points of masks are drawn from the same random numbers in each evaluation, and the state is restored.
        """
        if not isinstance(self.objective, HeadObjective):
            return

        def compute(mask_labels: Any, class_labels: Any, ignore_mask: Any = None, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(loss=model.compute_loss(outputs, "sum", mask_labels, class_labels, ignore_mask))

        with fork_seed(SEED):
            self.add(compute, labels)

    def add(self, model: Callable[..., Any], labels: Batch) -> None:
        """Add a batch, whose output a function returns in place of the model."""
        if self.objective is None:
            return
        batch = {"pixel_values": None, **labels}
        totals = self.objective.totals(model, batch)  # pyright: ignore[reportArgumentType]
        found = torch.stack([totals.double(), self.objective.units(batch).to(totals.device).double()])
        self.counts = found if not self.counts.numel() else self.counts + found

    def scores(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the loss over all processes, as `loss`; empty if there was no batch. Called by all processes."""
        if self.objective is None:
            return {}
        parts = [part for part in gather_object([self.counts.cpu()]) if part.numel()]
        if not parts:
            return {}
        totals, units = torch.stack(parts).sum(dim=0)
        return {"loss": float(self.objective.combine(totals, units))}


def update_by_image(matrix: ConfusionMatrix, maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Add label maps and labels (B, H, W) to a confusion matrix, and return the mean IoU (B,) of each image.

    The mean is over the classes in the image's labels or its map; it is NaN without labeled pixels.
    """
    means = []
    for label_map, label in zip(maps, labels, strict=True):
        counts = matrix.update(label_map, label)
        hits = counts.diagonal()
        union = counts.sum(dim=0) + counts.sum(dim=1) - hits
        means.append((hits.double() / union).nanmean())  # 0 / 0 of absent classes is NaN
    return torch.stack(means)


def gather_scores(indices: list[int], scores: list[torch.Tensor], accelerator: Accelerator) -> SampleScores:
    """Return the finite scores of all processes with their samples, the lowest first. Called by all processes."""
    values = torch.cat(scores).tolist() if scores else []
    own: list[Any] = [pair for pair in zip(indices, values, strict=True) if pair[1] == pair[1]]
    gathered = gather_object(own) if accelerator.num_processes > 1 else own
    return tuple(sorted(gathered, key=lambda pair: (pair[1], pair[0])))


__all__ = ["SampleScores", "ValidationLoss", "gather_scores", "update_by_image"]
