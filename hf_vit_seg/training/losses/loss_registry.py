"""The table of losses, and their weighted sum.

`loss: {cross_entropy: {label_smoothing: 0.1}, dice: {weight: 0.5}}` is a sum of two terms. Plugins add losses through
the entry point group `hf_vit_seg.losses`: a name and a `Loss` record.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, T terms.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from hf_vit_seg.entry_points import LossRecord
from hf_vit_seg.records import RecordError, Table
from hf_vit_seg.training.recipe.schema import Task

from .hard_pixel_losses import Boundary, Ohem
from .pixel_losses import BinaryCrossEntropy, CrossEntropy, Focal
from .region_losses import Dice, Lovasz, Tversky
from .terms import Loss, LossTerm

LOSSES: Table[Loss] = Table(
    "loss",
    {
        "binary_cross_entropy": BinaryCrossEntropy,
        "boundary": Boundary,
        "cross_entropy": CrossEntropy,
        "dice": Dice,
        "focal": Focal,
        "lovasz": Lovasz,
        "ohem": Ohem,
        "tversky": Tversky,
    },
    kind=Loss,
    group="hf_vit_seg.losses",
    contract=LossRecord,
)
DEFAULT = {"cross_entropy": None}  # for recipes without a loss
MULTI_LABEL_DEFAULT = {"binary_cross_entropy": None}
MODEL_LOSS: tuple[Task, ...] = ("pose", "instance", "panoptic")  # tasks with a loss that is part of the model


class LossSum(nn.Module):
    """The weighted sum of terms, each a sum over units, so that terms add up over batches and processes.

    With `num_classes`, logits with another number of channels raise RecordError.
    """

    def __init__(self, terms: Mapping[str, LossTerm], weights: Sequence[float], num_classes: int | None = None):
        super().__init__()
        self.names = tuple(terms)  # names of the terms, in the order of sums and units
        self.terms = nn.ModuleList(terms.values())  # in a ModuleDict, a plugin could not be named "half" or "type"
        self.weights, self.num_classes = tuple(weights), num_classes

    @classmethod
    def from_recipe(
        cls,
        losses: Mapping[str, Mapping[str, Any] | None],
        task: Task,
        num_classes: int,
        ignore_index: int,
        class_frequencies: Sequence[float] | None = None,
    ) -> "LossSum":
        """Build the terms of `recipe.loss`, cross-entropy if it is empty, for a model with `num_classes` outputs.

        `class_frequencies` (pixels or images of each class, or shares) are needed if `needs_class_frequencies`.
        RecordError for an unknown loss, or one that does not support the task or number of classes.
        """
        terms, weights = {}, []
        for name, row in read_losses(losses).items():
            try:
                row.check(task, num_classes)
                terms[name] = row.build(num_classes, ignore_index, class_frequencies)
            except RecordError as error:
                raise RecordError(f"loss.{name}: {error}") from None
            if not isinstance(terms[name], LossTerm):
                kind = type(terms[name]).__name__
                raise RecordError(f"loss.{name}: {type(row).__name__}.build returned {kind}, expected a LossTerm")
            weights.append(row.weight)
        return cls(terms, weights, num_classes)

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of units of each term (T,), float32."""
        return torch.stack([term.units(labels).float() for term in self.each()])

    def totals(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return each term's sum over units (T,), float32 or float64, for logits (B, K, h, w) or (B, K)."""
        if self.num_classes is not None and logits.shape[1] != self.num_classes:
            raise RecordError(
                f"the model returned logits with {logits.shape[1]} channels, expected {self.num_classes}; a "
                "segmentation head must return (B, num_labels, h, w)"
            )
        return torch.stack([term(logits, labels) for term in self.each()])

    def combine(self, totals: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of means: linear in `totals`; terms without units are 0."""
        weights = torch.tensor(self.weights, dtype=totals.dtype, device=totals.device)
        return (weights * totals / units.where(units > 0, 1)).sum()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a single batch."""
        return self.combine(self.totals(logits, labels), self.units(labels))

    def each(self) -> list[LossTerm]:
        """Return the terms in order."""
        return list(cast(Iterable[LossTerm], self.terms))


def read_losses(losses: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Loss]:
    """Read the rows of `recipe.loss`, by name."""
    return {name: LOSSES.read(name, settings, f"loss.{name}") for name, settings in (losses or DEFAULT).items()}


def check_losses(
    losses: Mapping[str, Mapping[str, Any] | None], task: Task, batch_transforms: bool, multi_label: bool = False
) -> None:
    """Raise RecordError for losses that do not support the task, several labels, or the soft labels of batch
    transforms.
    """
    if task in MODEL_LOSS:
        if losses:
            raise RecordError(f"loss cannot be set for {task}: the model computes its own loss; remove the setting")
        return
    for name, row in read_losses(losses).items():
        try:
            row.check_task(task)
        except RecordError as error:
            raise RecordError(f"loss.{name}: {error}") from None
        if multi_label and not row.multi_label:
            raise RecordError(
                f"loss.{name} requires one class per image; with data.multi_label use binary_cross_entropy"
            )
        if batch_transforms and not row.soft_labels:
            soft = [other for other, record in LOSSES.own.items() if record.soft_labels and task in record.tasks]
            raise RecordError(
                f"loss.{name} requires one class per image, but batch_transforms mix classes; use "
                f"{' or '.join(soft)}, or remove batch_transforms"
            )


def describe_losses(losses: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Format the weighted sum, such as `cross_entropy + 0.5 dice`."""
    rows = read_losses(losses).items()
    return " + ".join(name if row.weight == 1 else f"{row.weight:g} {name}" for name, row in rows)


def needs_class_frequencies(losses: Mapping[str, Mapping[str, Any] | None]) -> bool:
    """Return whether a loss computes its class weights from class frequencies."""
    return any(isinstance(getattr(row, "class_weights", None), str) for row in read_losses(losses).values())


__all__ = [
    "DEFAULT",
    "LOSSES",
    "MODEL_LOSS",
    "LossSum",
    "check_losses",
    "describe_losses",
    "needs_class_frequencies",
    "read_losses",
]
