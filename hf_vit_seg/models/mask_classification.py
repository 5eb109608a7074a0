"""Mask classification (arXiv 2107.06278): a model predicts Q pairs of a class distribution and a binary mask.

Shapes: B images, Q queries, K classes, n objects of an image, h w the grid of the masks, H W pixels.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .bilinear import to_working_dtype
from .errors import HfVitSegError
from .layers import OBJECT_HEADS, object_auto_classes, with_dicts
from .mask_loss import Prediction, loss_sums, loss_units, mask_classification_loss

Resample = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class UniversalSegmentationOutput(ModelOutput):
    """Class logits (B, Q, K + 1), the last of which is "no object", and mask logits (B, Q, h, w).

    `auxiliary_logits` are the predictions (class logits, mask logits) before each layer that reads queries. They are
    computed only in training.
    """

    loss: torch.Tensor | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    auxiliary_logits: tuple[Prediction, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    exported: ClassVar[tuple[str, ...]] = ("class_queries_logits", "masks_queries_logits")  # outputs of programs

    @classmethod
    def from_predictions(
        cls, predictions: Sequence[Prediction], resample: Resample | None = None
    ) -> "UniversalSegmentationOutput":
        """Build the output from the predictions of all layers, the final one last; `resample` is applied to masks."""
        if resample is not None:
            predictions = [(classes, resample(masks)) for classes, masks in predictions]
        *auxiliary, (classes, masks) = predictions
        return cls(
            class_queries_logits=classes,
            masks_queries_logits=masks,
            auxiliary_logits=tuple(auxiliary) if auxiliary else None,
        )

    def predictions(self) -> list[Prediction]:
        """Return the predictions of all layers, the final one last."""
        assert self.class_queries_logits is not None and self.masks_queries_logits is not None
        return [*(self.auxiliary_logits or ()), (self.class_queries_logits, self.masks_queries_logits)]

    def head_loss(
        self,
        config: Any,
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        ignore_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of these predictions, see `mask_classification_loss`."""
        return mask_classification_loss(self.predictions(), mask_labels, class_labels, ignore_mask, config)

    def head_loss_sums(
        self,
        config: Any,
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        ignore_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the sums of the loss of these predictions, see `mask_loss.loss_sums`."""
        return loss_sums(self.predictions(), mask_labels, class_labels, ignore_mask, config)

    def semantic_logits(self) -> torch.Tensor:
        """Return the log-scores of the classes (B, K, h, w), see `semantic_logits`."""
        assert self.class_queries_logits is not None and self.masks_queries_logits is not None
        return semantic_logits(self.class_queries_logits, self.masks_queries_logits)


def semantic_logits(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the scores of classes at each pixel (B, K, h, w), marginalized over queries.

    A score is sum_q p_q(k) m_q(pixel) (arXiv 2107.06278, section 3.4), with the class distribution p and the mask's
    probability m. The softmax of the result divides these scores by their sum. With one class, the result is the logit
    of its score, limited to values below 1.
    """
    probabilities = to_working_dtype(class_logits).softmax(-1)[..., :-1]
    masks = to_working_dtype(mask_logits).sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", probabilities, masks)
    if scores.shape[1] == 1:
        return scores.logit(eps=torch.finfo(scores.dtype).eps).to(mask_logits.dtype)
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log().to(mask_logits.dtype)


def masks_from_labels(
    labels: torch.Tensor, ignore_index: int, num_labels: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Convert class maps (B, H, W) to mask labels (n, H, W) and class labels (n,) of each image, one mask for each
    class.

    With one label, class maps are binary: 1 is the class, and 0 the background, which has no mask. The last result is
    the mask of ignored pixels (B, H, W).
    """
    ignored = labels == ignore_index
    background = int(num_labels == 1)
    values = [found[(found != ignore_index) & (found >= background)] for found in (image.unique() for image in labels)]
    masks = [image == found[:, None, None] for image, found in zip(labels, values, strict=True)]
    return masks, [found.long() - background for found in values], ignored


def check_class_labels(class_labels: Sequence[torch.Tensor], num_labels: int) -> None:
    """Raise HfVitSegError for class labels that are not classes of the model."""
    for number, classes in enumerate(class_labels):
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_labels:
            wrong = sorted({label for label in classes.tolist() if not 0 <= label < num_labels})
            raise HfVitSegError(
                f"class_labels of image {number} contain {', '.join(map(str, wrong[:5]))}, expected 0 to "
                f"{num_labels - 1} (num_labels of the config)"
            )


def initialize_object_head(module: nn.Module) -> bool:
    """Initialize with torch's defaults, as the released code of EoMT and Mask2Former; False for other modules."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        init.kaiming_uniform_(module.weight, a=5**0.5)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight)
    else:
        return False
    return True


def with_object_head(config: Any, heads: Collection[str]) -> Any:
    """Return the config if its head is one of `heads`, otherwise a copy with the query head: the caller's is not
    changed.
    """
    if config.decode_head in heads:
        return config
    changed = copy.deepcopy(config)
    changed.decode_head = "query"
    return changed


class UniversalSegmentation:
    """The forward pass of models whose head predicts objects; `predict` is defined by each model.

    The head's output has the methods `head_loss` and `semantic_logits`.
    """

    config: Any
    decode_head: nn.Module
    accepts_loss_kwargs: ClassVar[bool] = False  # the loss is divided by numbers of objects, not of pixels

    def __init__(self, config: Any, **parts: Any):
        super().__init__(with_object_head(config, OBJECT_HEADS), **parts)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the head; the encoder initializes itself."""
        if not initialize_object_head(module):
            super()._init_weights(module)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def mask_probability(self) -> list[float]:
        """The probability, for each layer, with which queries attend only within their own masks in training.

        It is 1 at first, and is not saved. Schedules change the elements.
        """
        return self.decode_head.mask_probability  # pyright: ignore[reportReturnType]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; all Auto classes of image segmentation find the code."""
        if getattr(self, "_auto_class", None) is not None:
            names = {
                auto_class: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
                for auto_class, kind in object_auto_classes(type(self)).items()
            }
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **names}
        super().save_pretrained(save_directory, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Map images (B, C, H, W) to the output of the head, without a loss."""
        raise NotImplementedError

    def compute_loss(self, output: Any, reduction: str, *labels: Any) -> torch.Tensor:
        """Return the loss of an output, or its sums (T,) with reduction "sum"; labels are masks, classes, ignored
        pixels.
        """
        check_class_labels(labels[1], self.config.num_labels)
        if reduction == "mean":
            return output.head_loss(self.config, *labels)
        if hasattr(output, "head_loss_sums"):
            return output.head_loss_sums(self.config, *labels)
        return output.head_loss(self.config, *labels)[None] * len(labels[0])

    def loss_units(self, *, class_labels: Sequence[torch.Tensor], **labels: Any) -> torch.Tensor:
        """Return the divisors (T,) of the sums that `loss_reduction` "sum" returns; both add up over batches and
        processes.

        For losses without sums of their own, the sum is over images.
        """
        if hasattr(self.decode_head, "mask_probability"):
            return loss_units(class_labels, self.config)
        return torch.tensor([float(len(class_labels))], device=class_labels[0].device)

    @can_return_tuple
    @with_dicts
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_labels: Sequence[torch.Tensor] | None = None,
        class_labels: Sequence[torch.Tensor] | None = None,
        ignore_mask: torch.Tensor | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        **kwargs: Any,
    ) -> Any:
        """Find the objects in images (B, C, H, W).

        Labels are a list with one entry per image: `mask_labels` (n, H', W'), bool, and `class_labels` (n,), int64,
        where n may be 0. Pixels of `ignore_mask` (B, H', W') do not contribute to the loss. With `loss_reduction`
        "sum", the loss is a vector of sums (T,), see `loss_units`.
        """
        output = self.predict(pixel_values, **kwargs)
        if mask_labels is not None and class_labels is not None:
            output.loss = self.compute_loss(output, loss_reduction, mask_labels, class_labels, ignore_mask)
        return output


class SemanticUniversalSegmentation(UniversalSegmentation):
    """The same models with semantic results: classes of pixels instead of objects."""

    def loss_units(self, *, labels: torch.Tensor, **others: Any) -> torch.Tensor:
        """Return the divisors (T,) of the sums of the loss for class maps (B, H, W)."""
        _, classes, _ = self.masks_from_labels(labels)
        return super().loss_units(class_labels=classes)

    def masks_from_labels(self, labels: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Convert class maps (B, H, W) to masks of classes, see the function of this name."""
        return masks_from_labels(labels, self.config.semantic_loss_ignore_index, self.config.num_labels)

    @can_return_tuple
    @with_dicts
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        **kwargs: Any,
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, h, w), the logarithm of scores marginalized over queries.

        `labels` are class maps (B, H', W'), int64, with `config.semantic_loss_ignore_index` for ignored pixels. The
        loss is that of the objects, where each class of an image is one object.
        """
        output = self.predict(pixel_values, **kwargs)
        loss = None
        if labels is not None:
            loss = self.compute_loss(output, loss_reduction, *self.masks_from_labels(labels))
        return SemanticSegmenterOutput(
            loss=loss,
            logits=output.semantic_logits(),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


__all__ = [
    "Resample",
    "SemanticUniversalSegmentation",
    "UniversalSegmentation",
    "UniversalSegmentationOutput",
    "initialize_object_head",
    "masks_from_labels",
    "semantic_logits",
    "with_object_head",
]
