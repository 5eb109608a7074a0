"""Losses of segmentation models.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, n r W those of a strip.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput, SemanticSegmenterOutput

from .bilinear import StripUpsampling, differentiable_once, pad_classes, upsample, use_upsampling_strips, working_dtype
from .errors import HfVitSegError

MAX_VALUES = 5  # maximum number of wrong labels in a message


def semantic_segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Compute the mean cross-entropy over the pixels that are not ignored, at the labels' resolution, in float32 or
    float64.

    `logits` (B, K, h, w) are resized bilinearly to `labels` (B, H, W), int64. If all pixels are `ignore_index`, loss
    and gradient are 0, not NaN. With K = 1 the loss is binary: label 1 is the class, 0 the background.
    """
    total = upsampled_cross_entropy(logits, labels, ignore_index).sum()
    return total / (labels != ignore_index).sum().clamp(min=1)


def segmenter_output(
    config: PreTrainedConfig,
    encoded: BaseModelOutput | BackboneOutput,
    logits: torch.Tensor,
    labels: torch.Tensor | None,
) -> SemanticSegmenterOutput:
    """Return the output of a segmentation model: logits, the loss if there are labels, and the encoder's recorded
    outputs.

    `labels` are class maps (B, H, W) of any size, int64, with `config.semantic_loss_ignore_index` for pixels that are
    ignored.
    """
    loss = None
    if labels is not None:
        loss = semantic_segmentation_loss(logits, labels, config.semantic_loss_ignore_index)
    return SemanticSegmenterOutput(
        loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
    )


def upsampled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    strip_bytes: int | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of every pixel, (B, H, W), in float32 or float64: 0 where the label is `ignore_index`.

    Equal to `cross_entropy(interpolate(logits, labels.shape[1:], mode="bilinear"), labels, reduction="none")` with
    these options, for logits (B, K, h, w), labels (B, H, W), int64, and class weights (K,), without storing the resized
    logits. At 512x512 with 150 classes, these take 150 MiB per image, and the plain computation has three such tensors:
    resized logits, log-probabilities, and gradient. Here both passes work in strips that fit into the cache; the
    backward pass resizes again and immediately reduces a strip's gradient to the logits' grid. On a CPU, both passes
    together are several times faster than writing the large tensors.

    With a single class, the loss is binary: its logit is that of label 1 against label 0, and weights are (2,). The
    loss is differentiable once. `strip_bytes` is the size of a strip of logits; the default depends on the device.
    ValueError for labels of the wrong shape or type; on a CPU also for labels outside of the classes.
    """
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0] or labels.is_floating_point():
        raise HfVitSegError(
            f"labels are class maps (B, H, W) of integers, one for each of the {logits.shape[0]} images; got "
            f"shape {tuple(labels.shape)}, {labels.dtype}"
        )
    labels = labels.long()
    options = ignore_index, class_weights, label_smoothing
    if torch.compiler.is_compiling():
        return cross_entropy(logits, labels, *options, strip_bytes)
    try:
        return cross_entropy(logits, labels, *options, strip_bytes)
    except (IndexError, RuntimeError):
        if logits.device.type == "cpu":  # other devices report the error later, when values cannot be read
            check_label_values(labels, max(logits.shape[1], 2), ignore_index)
        raise


def check_label_values(labels: torch.Tensor, classes: int, ignore_index: int) -> None:
    """Raise HfVitSegError for labels that are neither a class nor ignored."""
    values = labels[labels != ignore_index].unique()
    wrong = values[(values < 0) | (values >= classes)].tolist()
    if wrong:
        raise HfVitSegError(
            f"Labels are 0 to {classes - 1}, or {ignore_index} for ignored pixels (semantic_loss_ignore_index of the "
            f"config), got {', '.join(map(str, wrong[:MAX_VALUES]))}"
        )


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
    strip_bytes: int | None,
) -> torch.Tensor:
    """Compute `upsampled_cross_entropy` of labels (B, H, W), int64, in the fastest way for the device and number of
    classes.
    """
    if logits.shape[1] == 1:
        return binary_cross_entropy(logits, labels, ignore_index, class_weights, label_smoothing)
    if not use_upsampling_strips(logits):
        return plain_cross_entropy(logits, labels, ignore_index, class_weights, label_smoothing)
    weights = torch.ones(logits.shape[1]) if class_weights is None else class_weights
    weights = weights.to(logits.device, working_dtype(logits))
    own, every = (1 - label_smoothing) * weights, label_smoothing / len(weights) * weights
    logits = pad_classes(logits)
    every = nn.functional.pad(every, (0, logits.shape[1] - len(every))) if label_smoothing else None
    return CrossEntropyInStrips.apply(logits, labels, ignore_index, own, every, strip_bytes)


def plain_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Compute `upsampled_cross_entropy` with torch's operators at full size."""
    logits = upsample(logits, labels.shape[-2:])
    return nn.functional.cross_entropy(
        logits,
        labels,
        None if class_weights is None else class_weights.to(logits),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def binary_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Compute `upsampled_cross_entropy` of two classes with the logits 0 and `logits` (B, 1, h, w)."""
    logits = upsample(logits, labels.shape[-2:])[:, 0]
    counts = labels != ignore_index
    labels = labels.where(counts, 0)
    weights = logits.new_ones(2) if class_weights is None else class_weights.to(logits)
    # Factors of the negative log-probabilities of class 0 and class 1 for each label (rows).
    costs = ((1 - label_smoothing) * torch.eye(2).to(logits) + label_smoothing / 2) * weights
    shares = costs[:, 1] / costs.sum(1).clamp(min=torch.finfo(costs.dtype).tiny)  # 0 for labels without weight
    targets = shares.gather(0, labels.flatten()).view_as(labels)  # not `shares[labels]`: negative labels are errors
    amounts = None if class_weights is None else costs.sum(1)[labels]
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, amounts, reduction="none")
    return losses.where(counts, 0)


class CrossEntropyInStrips(torch.autograd.Function):
    """The losses of all pixels, computed in strips, with an explicit gradient.

    With log-probabilities s and p = exp(s), a pixel of label y has the loss -a(y) s(y) - sum_k b(k) s(k), where a is
    `own` and b is `every`. The gradient with respect to its logits is (a(y) + sum b) p - a(y) [k = y] - b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ignore_index: int,
        own: torch.Tensor,
        every: torch.Tensor | None,
        strip_bytes: int | None,
    ) -> torch.Tensor:
        """Return the losses (B, H, W)."""
        ctx.save_for_backward(logits, labels, own, every)
        ctx.ignore_index, ctx.strip_bytes = ignore_index, strip_bytes
        upsampling = StripUpsampling(logits, labels.shape[-2:], strip_bytes)
        losses = own.new_zeros(labels.shape)
        for strip in upsampling.strips():
            counts = labels[strip] != ignore_index
            if all_ignored(counts):
                continue
            targets = labels[strip].where(counts, 0)
            scores = upsampling.upsample(strip).log_softmax(-1)
            costs = -own[targets] * scores.gather(-1, targets[..., None])[..., 0]
            if every is not None:
                costs -= scores.mul_(every).sum(-1)
            losses[strip] = costs.where(counts, 0)
        return losses

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the logits (B, K, h, w)."""
        logits, labels, own, every = ctx.saved_tensors
        upsampling = StripUpsampling(logits, labels.shape[-2:], ctx.strip_bytes)
        total = upsampling.zeros()
        for strip in upsampling.strips():
            counts = labels[strip] != ctx.ignore_index
            if all_ignored(counts):
                continue
            targets = labels[strip].where(counts, 0)[..., None]
            factors = gradients[0][strip].where(counts, 0)[..., None]
            hits = own[targets] * factors
            gradient = upsampling.upsample(strip).softmax(-1)
            gradient *= hits if every is None else hits + every.sum() * factors
            gradient.scatter_add_(-1, targets, -hits)
            if every is not None:
                gradient -= every * factors
            upsampling.add_transposed(gradient, strip, total)
        return total.permute(0, 3, 1, 2).to(logits.dtype), None, None, None, None, None


def all_ignored(counts: torch.Tensor) -> bool:
    """Return whether every pixel is ignored; False on a GPU, where the answer would cost a synchronization."""
    return counts.device.type == "cpu" and not counts.any()


__all__ = ["segmenter_output", "semantic_segmentation_loss", "upsampled_cross_entropy"]
