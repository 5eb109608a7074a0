"""Region overlap losses, per image: Dice, Tversky, Lovász.

Each is a mean over the classes of an image; units are images, so that the loss does not depend on the batch size.
Shapes: B images, K classes, C selected classes, h w the grid of the logits, H W that of the labels, P = H*W.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from hf_vit_seg.models.bilinear import differentiable_once, upsample, working_dtype
from hf_vit_seg.records import Exponent, Factor, FactorFromZero

from .terms import Loss, LossTerm, PerImage, number_of_labels
from .upsampled_probabilities import upsampled_probabilities

# "present": classes of the image's labels; "all": also others, so that predicting these is an error.
Classes = Literal["present", "all"]


class RegionTerm(PerImage):
    """A loss of the probabilities of an image's classes. With one output the only class is label 1.

    Full-resolution tensors of an image are freed before the next image.
    """

    def __init__(self, ignore_index: int, num_classes: int, classes: Classes):
        """The mean is over `classes`; an image without any of them has a loss of 0."""
        super().__init__(ignore_index)
        self.num_classes, self.classes = num_classes, classes

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the images' losses."""
        total = logits[:0].sum().to(working_dtype(logits))  # 0, with a gradient of zeros
        for image in (labels != self.ignore_index).flatten(1).any(1).nonzero()[:, 0].tolist():
            loss = partial(self.image_loss, labels=labels[image])
            total = total + with_precomputed_gradient(loss, logits[image, None])
        return total

    def image_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss of logits (1, K, h, w) and labels (H, W), at least one of which is not ignored."""
        counts = labels != self.ignore_index
        present = labels[counts].unique()
        known = torch.arange(number_of_labels(self.num_classes), device=labels.device)
        classes = known if self.classes == "all" else present
        if self.num_classes == 1:
            classes = classes[classes == 1]
        if not len(classes):
            return logits[:0].sum()
        probabilities = upsampled_probabilities(logits, classes, labels.shape) * counts
        members = labels == classes[:, None, None]
        return self.region_loss(probabilities.flatten(1), members.flatten(1)).mean()

    def region_loss(self, probabilities: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        """Compute the loss (C,) from probabilities and masks (C, P), which are 0 and false at ignored pixels."""
        raise NotImplementedError


class Tversky(Loss):
    """Tversky loss (arXiv 1706.05721) and, with gamma, focal Tversky loss (arXiv 1810.07842)."""

    alpha: FactorFromZero = 0.3  # weight of false positives
    beta: FactorFromZero = 0.7  # weight of false negatives
    gamma: Exponent = 1.0  # exponent of a class's loss
    smooth: Factor = 1.0  # pixels, added to numerator and denominator
    classes: Classes = "present"

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a `TverskyTerm`."""
        weights = (self.alpha, self.beta)
        return TverskyTerm(ignore_index, num_classes, self.classes, weights, self.gamma, self.smooth)


class Dice(Loss):
    """Dice loss (arXiv 1606.04797, without its squares)."""

    smooth: Factor = 1.0  # pixels, added to numerator and denominator of 2 TP / (2 TP + FP + FN)
    classes: Classes = "present"

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a Tversky loss with weights of 0.5."""
        return TverskyTerm(ignore_index, num_classes, self.classes, (0.5, 0.5), 1.0, self.smooth / 2)


class TverskyTerm(RegionTerm):
    """(1 - (TP + s) / (TP + alpha FP + beta FN + s)) ** gamma."""

    def __init__(
        self,
        ignore_index: int,
        num_classes: int,
        classes: Classes,
        weights: tuple[float, float],
        gamma: float,
        smooth: float,
    ):
        """`weights` are alpha and beta."""
        super().__init__(ignore_index, num_classes, classes)
        self.weights, self.gamma, self.smooth = weights, gamma, smooth

    def region_loss(self, probabilities: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        hits = (probabilities * members).sum(1)
        false_positives, false_negatives = probabilities.sum(1) - hits, members.sum(1) - hits
        alpha, beta = self.weights
        all_weighted = hits + alpha * false_positives + beta * false_negatives + self.smooth
        lost = 1 - (hits + self.smooth) / all_weighted
        return lost.clamp(min=torch.finfo(lost.dtype).tiny) ** self.gamma  # a root has an infinite slope at 0


class Lovasz(Loss):
    """Lovász-softmax (arXiv 1705.08790), the extension of the Jaccard loss; with one output the Lovász hinge."""

    classes: Classes = "present"

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a `LovaszTerm`, or a `LovaszHingeTerm` for one output."""
        if num_classes == 1:
            return LovaszHingeTerm(ignore_index)
        return LovaszTerm(ignore_index, num_classes, self.classes)


class LovaszTerm(RegionTerm):
    """The Lovász extension of each class's Jaccard loss at its errors |member - probability|."""

    def region_loss(self, probabilities: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        return lovasz_extension((members.to(probabilities.dtype) - probabilities).abs(), members)


class LovaszHingeTerm(PerImage):
    """Lovász hinge: the Lovász extension of the Jaccard loss of class 1, of the hinge errors of its logit."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the images' losses."""
        logits = upsample(logits, labels.shape[-2:])[:, 0]
        members = labels == 1
        errors = (1 - logits * (2 * members.to(logits.dtype) - 1)).relu() * (labels != self.ignore_index)
        return lovasz_extension(errors.flatten(1), members.flatten(1)).sum()


def lovasz_extension(errors: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Compute the Lovász extension of Jaccard losses (algorithm 1): errors (C, P) >= 0 and masks (C, P) to (C,).

    Pixels without an error change nothing, so ignored pixels may have 0. For an empty mask the result is the largest
    error.
    """
    ordered, order = errors.sort(1, descending=True)
    belongs = members.gather(1, order)
    total = members.sum(1, keepdim=True)
    jaccard = 1 - (total - belongs.cumsum(1)) / (total + (~belongs).cumsum(1)).to(errors.dtype)
    slopes = jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
    return (ordered * slopes).sum(1)


def with_precomputed_gradient(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """Return the scalar `loss(logits)` in float32 or float64, storing only the gradient of `logits`."""
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return loss(logits.to(working_dtype(logits)))
    return WithGradient.apply(logits, loss)


class WithGradient(torch.autograd.Function):
    """Compute a scalar and its gradient; the backward pass only scales the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Compute the loss and its gradient."""
        with torch.enable_grad():
            own = logits.detach().to(working_dtype(logits)).requires_grad_()
            value = loss(own)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(*torch.autograd.grad(value, own))
        return value.detach()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradient of the logits."""
        return (ctx.saved_tensors[0] * gradients[0]).to(ctx.dtype), None


__all__ = ["Dice", "Lovasz", "Tversky", "with_precomputed_gradient"]
