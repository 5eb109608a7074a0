"""Mask classification (arXiv 2107.06278): a model predicts Q pairs of a class distribution and a binary mask.

Shapes: B images, Q queries, K classes, n objects of an image, h w the grid of the masks, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .bilinear import to_working_dtype
from .errors import HfVitSegError
from .layers import with_dicts
from .mask_loss import Prediction, mask_classification_loss

Resample = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class UniversalSegmentationOutput(ModelOutput):
    """Class logits (B, Q, K + 1), the last of which is "no object", and mask logits (B, Q, h, w).

    `auxiliary_logits` are the predictions (class logits, mask logits) before each layer that reads queries. They exist
    in training only.
    """

    loss: torch.Tensor | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    auxiliary_logits: tuple[Prediction, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

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
        """The predictions of all layers, the final one last."""
        assert self.class_queries_logits is not None and self.masks_queries_logits is not None
        return [*(self.auxiliary_logits or ()), (self.class_queries_logits, self.masks_queries_logits)]

    def loss_of(
        self,
        config: Any,
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        ignore_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of these predictions, see `mask_classification_loss`."""
        return mask_classification_loss(self.predictions(), mask_labels, class_labels, ignore_mask, config)

    def semantic_logits(self) -> torch.Tensor:
        """Log-scores of classes (B, K, h, w), see `semantic_logits`."""
        assert self.class_queries_logits is not None and self.masks_queries_logits is not None
        return semantic_logits(self.class_queries_logits, self.masks_queries_logits)


def semantic_logits(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of the scores of classes at each pixel (B, K, h, w), marginalized over queries.

    A score is sum_q p_q(k) m_q(pixel) (arXiv 2107.06278, section 3.4), with the class distribution p and the mask's
    probability m. The softmax of the result divides these scores by their sum.
    """
    probabilities = to_working_dtype(class_logits).softmax(-1)[..., :-1]
    masks = to_working_dtype(mask_logits).sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", probabilities, masks)
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log().to(mask_logits.dtype)


def masks_from_labels(
    labels: torch.Tensor, ignore_index: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Class maps (B, H, W) as mask labels (n, H, W) and class labels (n,) of each image, one mask for each class.

    The last result is the mask of ignored pixels (B, H, W).
    """
    ignored = labels == ignore_index
    classes = [found[found != ignore_index] for found in (image.unique() for image in labels)]
    masks = [image == found[:, None, None] for image, found in zip(labels, classes, strict=True)]
    return masks, [found.long() for found in classes], ignored


def check_class_labels(class_labels: Sequence[torch.Tensor], num_labels: int) -> None:
    """HfVitSegError for class labels that are no class of the model."""
    for number, classes in enumerate(class_labels):
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_labels:
            wrong = sorted({label for label in classes.tolist() if not 0 <= label < num_labels})
            raise HfVitSegError(
                f"class_labels of image {number} contain {', '.join(map(str, wrong[:5]))}, expected 0 to "
                f"{num_labels - 1} (num_labels of the config)"
            )


def initialize_object_head(module: nn.Module) -> bool:
    """torch's defaults, as in the released code of EoMT and Mask2Former; False for other modules."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        init.kaiming_uniform_(module.weight, a=5**0.5)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight)
    elif hasattr(module, "mask_probability"):
        init.ones_(module.mask_probability)
    else:
        return False
    return True


class UniversalSegmentation:
    """The forward pass of models whose head predicts objects; `predict` is defined by each model.

    The head's output has the methods `loss_of` and `semantic_logits`.
    """

    config: Any
    decode_head: nn.Module
    accepts_loss_kwargs: ClassVar[bool] = False  # the loss is divided by numbers of objects, not of pixels

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the head; the encoder initializes itself."""
        if not initialize_object_head(module):
            super()._init_weights(module)  # pyright: ignore[reportAttributeAccessIssue]

    def set_mask_probability(self, layer: int, probability: float) -> None:
        """Set the probability with which queries attend within their own masks in a layer, in training."""
        self.decode_head.mask_probability[layer] = probability  # pyright: ignore[reportIndexIssue]

    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Images (B, C, H, W) to the output of the head, without a loss."""
        raise NotImplementedError

    @can_return_tuple
    @with_dicts
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_labels: Sequence[torch.Tensor] | None = None,
        class_labels: Sequence[torch.Tensor] | None = None,
        ignore_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Find the objects in images (B, C, H, W).

        Labels are a list with one entry per image: `mask_labels` (n, H', W'), bool, and `class_labels` (n,), int64,
        where n may be 0. Pixels of `ignore_mask` (B, H', W') do not contribute to the loss.
        """
        output = self.predict(pixel_values, **kwargs)
        if mask_labels is not None and class_labels is not None:
            check_class_labels(class_labels, self.config.num_labels)
            output.loss = output.loss_of(self.config, mask_labels, class_labels, ignore_mask)
        return output


class SemanticUniversalSegmentation(UniversalSegmentation):
    """The same models with semantic results: classes of pixels instead of objects."""

    @can_return_tuple
    @with_dicts
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SemanticSegmenterOutput:
        """Segment images (B, C, H, W): logits (B, K, h, w), the logarithm of scores marginalized over queries.

        `labels` are class maps (B, H', W'), int64, with `config.semantic_loss_ignore_index` for ignored pixels. The
        loss is that of the objects, where each class of an image is one object.
        """
        output = self.predict(pixel_values, **kwargs)
        loss = None
        if labels is not None:
            masks, classes, ignored = masks_from_labels(labels, self.config.semantic_loss_ignore_index)
            check_class_labels(classes, self.config.num_labels)
            loss = output.loss_of(self.config, masks, classes, ignored)
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
]
