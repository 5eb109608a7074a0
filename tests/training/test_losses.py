"""The losses of recipes, compared with torch and segmentation_models_pytorch (smp); tests name differences from smp."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch import losses as smp
from segmentation_models_pytorch.losses import _functional as smp_functional
from size_formulas import Largest
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    interpolate,
    one_hot,
)

from hf_vit_seg.models.cpu_kernels import STRIP_BYTES
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.losses.class_weights import class_weights
from hf_vit_seg.training.losses.loss_registry import LOSSES, LossSum, needs_class_frequencies
from hf_vit_seg.training.losses.upsampled_probabilities import upsampled_probabilities

IGNORE = 255
SEVERAL = [name for name in sorted(LOSSES.own) if name != "binary_cross_entropy"]
EVERY = [("binary_cross_entropy", 1), *((name, classes) for name in SEVERAL for classes in (1, 3, 6))]


def term(name, num_classes, **options):
    """A loss as configured by a recipe."""
    return LossSum.from_recipe({name: options}, "segmentation", num_classes, IGNORE)


def random_inputs(images, classes, grid=(5, 6), size=(19, 23), dtype=torch.float64, seed=0, ignored=0.2):
    """Logits, and labels in blocks as in masks, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, *grid, generator=generator, dtype=dtype)
    blocks = torch.randint(0, max(classes, 2), (images, 1, 4, 4), generator=generator)
    labels = interpolate(blocks.double(), size, mode="nearest")[:, 0].long()
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return logits.requires_grad_(), labels


def resize_logits(logits, labels):
    return interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def assert_same(loss, expected, logits, tolerance=1e-9):
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits), rtol=tolerance, atol=tolerance)


# --- properties of every loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), EVERY)
def test_gradient_matches_finite_differences(name, classes):
    logits, labels = random_inputs(2, classes, size=(9, 11))
    loss = term(name, classes)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, labels), logits, atol=1e-6, nondet_tol=1e-12)


@pytest.mark.parametrize(("name", "classes"), EVERY)
def test_loss_and_gradient_are_zero_without_valid_pixels(name, classes):
    logits, labels = random_inputs(2, classes)
    loss = term(name, classes)
    nothing = torch.full_like(labels, IGNORE)
    assert not loss.units(nothing).any()
    value = loss(logits, nothing)
    assert value == 0 and not gradient(value, logits).any()
    half = labels.clone()
    half[0] = IGNORE
    assert loss(logits, half).isfinite()
    assert not gradient(loss(logits, half), logits)[0].any()
    assert_same(loss(logits, half), loss(logits[1:], half[1:]), logits)


@settings(max_examples=60)
@given(st.sampled_from(SEVERAL), st.sampled_from([1, 2, 6, 17]), st.integers(0, 99), st.sampled_from([0.0, 0.5, 0.99]))
def test_sums_and_units_add_up_over_batches(name, classes, seed, ignored):
    """Accumulation and multiple processes are exact because of this."""
    logits, labels = random_inputs(4, classes, seed=seed, ignored=ignored)
    loss = term(name, classes)
    totals = sum(loss.totals(logits[part], labels[part]) for part in (slice(0, 1), slice(1, 4)))
    units = sum(loss.units(labels[part]) for part in (slice(0, 1), slice(1, 4)))
    assert torch.equal(units, loss.units(labels))
    assert_same(loss.combine(totals, units), loss(logits, labels), logits)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("name", SEVERAL)
def test_ignored_pixels_have_no_gradient_and_good_logits_low_loss(name, classes):
    _, labels = random_inputs(2, classes, size=(12, 12))
    target = labels.where(labels != IGNORE, 0)
    sides = one_hot(target, max(classes, 2)).movedim(-1, 1).double() * 2 - 1
    good = (20 * sides[:, -classes:]).requires_grad_()
    loss = term(name, classes)
    assert loss(good, labels) < 1e-3 < loss(-good, labels)
    slope = gradient(loss(0.01 * good, labels), good)
    assert not slope.movedim(1, -1)[labels == IGNORE].any() and slope.any()


@pytest.mark.parametrize("name", SEVERAL)
def test_half_precision_logits_give_a_float32_loss(name):
    logits, labels = random_inputs(2, 6)
    half = logits.detach().bfloat16().requires_grad_()
    value = term(name, 6)(half, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, term(name, 6)(half.detach().float(), labels), rtol=1e-4, atol=1e-5)
    assert gradient(value, half).dtype == torch.bfloat16


# --- pixel losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_matches_torch(classes, label_smoothing, weighted):
    logits, labels = random_inputs(2, classes)
    weights = [0.5 + index for index in range(classes)] if weighted else None
    loss = term("cross_entropy", classes, class_weights=weights, label_smoothing=label_smoothing)(logits, labels)
    expected = cross_entropy(
        resize_logits(logits, labels),
        labels,
        torch.tensor(weights, dtype=logits.dtype) if weighted else None,
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
    )
    assert_same(loss, expected, logits)


def test_cross_entropy_matches_smp_except_for_the_mean():
    """smp's mean includes ignored pixels; so does its SoftBCEWithLogitsLoss."""
    logits, labels = random_inputs(2, 5)
    share = (labels != IGNORE).double().mean()
    theirs = smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=IGNORE)(resize_logits(logits, labels), labels)
    assert_same(term("cross_entropy", 5, label_smoothing=0.1)(logits, labels), theirs / share, logits)
    logits, labels = random_inputs(2, 1)
    weight = torch.tensor(3.0, dtype=torch.float64)
    criterion = smp.SoftBCEWithLogitsLoss(ignore_index=IGNORE, pos_weight=weight)
    theirs = criterion(resize_logits(logits, labels)[:, 0], labels.double())
    share = (labels != IGNORE).double().mean()
    assert_same(term("binary_cross_entropy", 1, positive_weight=3.0)(logits, labels), theirs / share, logits)


def test_single_output_uses_both_class_weights():
    logits, labels = random_inputs(2, 1)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    for options in ({"class_weights": [0.3, 2.0]}, {"label_smoothing": 0.2}):
        loss = term("cross_entropy", 1, **options)(logits, labels)
        assert_same(loss, term("cross_entropy", 2, **options)(both, labels), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_matches_smp(gamma):
    """For several classes, focal loss of the softmax. smp's FocalLoss would treat each class as binary."""
    logits, labels = random_inputs(2, 1)
    theirs = smp.FocalLoss("binary", alpha=0.25, gamma=gamma, ignore_index=IGNORE)(
        resize_logits(logits, labels), labels
    )
    assert_same(term("focal", 1, gamma=gamma, alpha=0.25)(logits, labels), theirs, logits)
    logits, labels = random_inputs(2, 6)
    counted = resize_logits(logits, labels).movedim(1, -1)[labels != IGNORE]
    theirs = smp_functional.softmax_focal_loss_with_logits(counted, labels[labels != IGNORE], gamma=gamma)
    assert_same(term("focal", 6, gamma=gamma)(logits, labels), theirs, logits)


def test_focal_weights_classes_and_is_finite_at_certainty():
    logits, labels = random_inputs(2, 3)
    alpha = [0.2, 1.0, 3.0]
    counts = labels != IGNORE
    losses = cross_entropy(resize_logits(logits, labels), labels, ignore_index=IGNORE, reduction="none")
    weights = torch.tensor(alpha).double()[labels.where(counts, 0)]
    expected = (weights * (1 - (-losses).exp()) ** 2 * losses).sum() / counts.sum()
    assert_same(term("focal", 3, alpha=alpha)(logits, labels), expected, logits)
    certain = (1e4 * one_hot(labels.where(counts, 0), 3).movedim(-1, 1).double()).requires_grad_()
    value = term("focal", 3, gamma=0.5)(certain, labels)
    assert value == 0 and gradient(value, certain).isfinite().all()


@pytest.mark.parametrize(("threshold", "share"), [(0.7, 0.1), (0.05, 0.5), (0.2, 0.01), (1.0, 0.1)])
def test_ohem_is_the_mean_over_hard_pixels_per_image(threshold, share):
    logits, labels = random_inputs(3, 4)
    means = []
    for image, mask in zip(resize_logits(logits, labels), labels, strict=True):
        counted = image[:, mask != IGNORE].T
        chance = counted.softmax(1).gather(1, mask[mask != IGNORE][:, None])[:, 0]
        least = chance.sort().values[max(-(-len(chance) * share // 1), 1).__int__() - 1]
        hard = (chance < threshold) | (chance <= least)
        means.append(-chance[hard].log().mean())
    loss = term("ohem", 4, threshold=threshold, min_kept_share=share)(logits, labels)
    assert_same(loss, torch.stack(means).mean(), logits)


@pytest.mark.parametrize("width", [1, 3])
def test_boundary_loss_is_cross_entropy_near_class_borders(width):
    logits, labels = random_inputs(2, 5)
    near = torch.zeros_like(labels, dtype=torch.bool)
    for image, row, column in (labels != IGNORE).nonzero().tolist():
        rows, columns = (slice(max(place - width, 0), place + width + 1) for place in (row, column))
        around = labels[image, rows, columns]
        near[image, row, column] = ((around != labels[image, row, column]) & (around != IGNORE)).any()
    losses = cross_entropy(resize_logits(logits, labels), labels, ignore_index=IGNORE, reduction="none")
    loss = term("boundary", 5, width=width)
    assert loss.units(labels) == near.sum()
    assert 0 < near.sum() < (labels != IGNORE).sum()
    assert_same(loss(logits, labels), losses[near].mean(), logits)


# --- region losses -----------------------------------------------------------------------------------------------


def per_image(criterion, logits, labels):
    """smp's loss of one image at a time: its Dice sums regions over the whole batch."""
    resized_logits = resize_logits(logits, labels)
    return torch.stack([criterion(resized_logits[i, None], labels[i, None]) for i in range(len(labels))])


def present_share(labels, classes):
    return torch.tensor([len(mask[mask != IGNORE].unique()) / classes for mask in labels], dtype=torch.float64)


@pytest.mark.parametrize("classes", [1, 3, 7])
def test_dice_matches_smp(classes):
    """smp's mean has classes that are absent in the image in its denominator; its smooth is half of ours."""
    logits, labels = random_inputs(3, classes)
    mode = "binary" if classes == 1 else "multiclass"
    theirs = per_image(smp.DiceLoss(mode, smooth=2.0, ignore_index=IGNORE), logits, labels)
    share = 1 if classes == 1 else present_share(labels, classes)
    assert_same(term("dice", classes, smooth=4.0)(logits, labels), (theirs / share).mean(), logits)


@pytest.mark.parametrize("classes", [1, 3, 7])
def test_tversky_matches_smp(classes):
    """As with Dice; smp takes the power of the mean, we (like the paper) the mean of powers."""
    logits, labels = random_inputs(3, classes)
    mode, gamma = ("binary", 0.75) if classes == 1 else ("multiclass", 1.0)
    criterion = smp.TverskyLoss(mode, smooth=1.0, ignore_index=IGNORE, alpha=0.3, beta=0.7, gamma=gamma)
    share = 1 if classes == 1 else present_share(labels, classes)
    theirs = per_image(criterion, logits, labels) / share
    assert_same(term("tversky", classes, gamma=gamma)(logits, labels), theirs.mean(), logits)


@pytest.mark.parametrize("classes", [1, 3, 7])
def test_lovasz_matches_smp(classes):
    logits, labels = random_inputs(3, classes, dtype=torch.float32)  # smp supports no other
    criterion = smp.LovaszLoss("binary" if classes == 1 else "multiclass", per_image=True, ignore_index=IGNORE)
    maps = resize_logits(logits, labels)
    theirs = criterion(maps[:, 0] if classes == 1 else maps, labels)
    assert_same(term("lovasz", classes)(logits, labels), theirs, logits, 1e-5)


def test_fully_ignored_image_matches_smp():
    """Why ours skip such images: smp's mean counts them (as 0), or is NaN (Lovász with classes)."""
    logits, labels = random_inputs(2, 3, dtype=torch.float32)
    labels[0] = IGNORE
    theirs = smp.LovaszLoss("multiclass", per_image=True, ignore_index=IGNORE)(resize_logits(logits, labels), labels)
    assert theirs.numel() != 1
    alone = term("lovasz", 3)(logits[1:], labels[1:])
    torch.testing.assert_close(term("lovasz", 3)(logits, labels), alone)


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
def test_absent_classes_are_optional(name):
    logits, labels = random_inputs(1, 6, ignored=0.0)
    labels.clamp_(max=3)
    some, every = (term(name, 6, classes=classes) for classes in ("present", "all"))
    assert every(logits, labels) != some(logits, labels)
    quiet = torch.cat([logits[:, :4], logits[:, 4:] * 0 - 1e3], 1)
    ratio = len(labels.unique()) / 6
    torch.testing.assert_close(every(quiet, labels), some(quiet, labels) * ratio, rtol=1e-6, atol=1e-6)


@settings(max_examples=60)
@given(
    st.sampled_from([1, 3, 6, 20]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([1, 4000, None]),
    st.data(),
)
def test_probabilities_of_selected_classes(classes, grid, size, strip_bytes, data):
    logits = torch.randn(1, classes, *grid, dtype=torch.float64, requires_grad=True)
    among = list(range(max(classes, 2)))
    chosen = torch.tensor(data.draw(st.lists(st.sampled_from(among), unique=True, min_size=1)))
    ours = upsampled_probabilities(logits, chosen, size, strip_bytes)
    both = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits
    expected = interpolate(both, size, mode="bilinear").softmax(1)[0, chosen]
    upstream = torch.randn_like(expected)
    assert_same((ours * upstream).sum(), (expected * upstream).sum(), logits)


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz"])
def test_region_losses_compute_only_present_classes(name):
    logits, labels = random_inputs(4, 20, (16, 16), (64, 64))
    labels = labels.where(labels == IGNORE, labels % 2)
    with Largest() as largest:
        term(name, 20)(logits, labels).backward()
    assert largest.numel <= max(logits.numel(), STRIP_BYTES // 8)


# --- classification ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": [1.0, 2.0, 0.5]}])
def test_classifier_loss_with_hard_or_soft_targets(options):
    logits, labels = torch.randn(8, 3, requires_grad=True), torch.randint(0, 3, (8,))
    loss = LossSum.from_recipe({"cross_entropy": options}, "classification", 3, IGNORE)
    weights = torch.tensor(options["class_weights"]) if "class_weights" in options else None
    expected = cross_entropy(logits, labels, weights, label_smoothing=options.get("label_smoothing", 0))
    torch.testing.assert_close(loss(logits, labels), expected)
    if "class_weights" not in options:  # torch divides soft targets by images, independent of weights
        shares = torch.rand(8, 3).softmax(1)
        expected = cross_entropy(logits, shares, **options)
        torch.testing.assert_close(loss(logits, shares), expected)
    torch.testing.assert_close(loss(logits, one_hot(labels, 3).float()), loss(logits, labels))


def test_classifier_binary_cross_entropy():
    logits, labels = torch.randn(8, 3, requires_grad=True), torch.randint(0, 3, (8,))
    loss = LossSum.from_recipe({"binary_cross_entropy": None}, "classification", 3, IGNORE)
    shares = one_hot(labels, 3).float()
    expected = binary_cross_entropy_with_logits(logits, shares)
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, shares), expected)
    smooth = LossSum.from_recipe({"binary_cross_entropy": {"label_smoothing": 0.3}}, "classification", 3, IGNORE)
    torch.testing.assert_close(smooth(logits, labels), binary_cross_entropy_with_logits(logits, 0.7 * shares + 0.1))


def test_classifier_focal_loss():
    logits, labels = torch.randn(8, 7, requires_grad=True), torch.randint(0, 7, (8,))
    loss = LossSum.from_recipe({"focal": None}, "classification", 7, IGNORE)(logits, labels)
    torch.testing.assert_close(loss, smp_functional.softmax_focal_loss_with_logits(logits, labels))


# --- the table and the sum ---------------------------------------------------------------------------------------


def test_recipe_losses_are_summed_with_weights():
    logits, labels = random_inputs(2, 4)
    both = LossSum.from_recipe({"cross_entropy": None, "dice": {"weight": 0.5}}, "segmentation", 4, IGNORE)
    assert both.names == ("cross_entropy", "dice")
    assert both.units(labels).tolist() == [int((labels != IGNORE).sum()), 2]
    expected = term("cross_entropy", 4)(logits, labels) + 0.5 * term("dice", 4)(logits, labels)
    torch.testing.assert_close(both(logits, labels), expected)
    default = LossSum.from_recipe({}, "segmentation", 4, IGNORE)
    assert torch.equal(default(logits, labels), term("cross_entropy", 4)(logits, labels))


@pytest.mark.parametrize(
    ("losses", "task", "classes", "message"),
    [
        ({"cross_entropie": None}, "segmentation", 3, "did you mean 'cross_entropy'"),
        ({"dice": {"smoth": 1}}, "segmentation", 3, "loss.dice.smoth is not a known setting; did you mean 'smooth'"),
        ({"ohem": {"threshold": 3}}, "segmentation", 3, "loss.ohem.threshold should be"),
        ({"dice": None}, "classification", 3, "loss.dice: this loss supports segmentation"),
        ({"binary_cross_entropy": None}, "segmentation", 3, "one output"),
        ({"cross_entropy": {"class_weights": [1, 2]}}, "segmentation", 3, "found 2 numbers, expected one per class"),
        ({"cross_entropy": {"class_weights": "balanced"}}, "segmentation", 3, "require class frequencies"),
        ({"focal": {"alpha": 0.25}}, "segmentation", 3, "one weight per class"),
        ({"focal": {"alpha": [1, 1]}}, "classification", 3, "expected one per class"),
    ],
)
def test_invalid_losses_raise(losses, task, classes, message):
    with pytest.raises(RecordError, match=message):
        LossSum.from_recipe(losses, task, classes, IGNORE)


def test_class_weights_from_frequencies():
    counts = [10, 0, 40, 50]
    assert class_weights(None, 4, counts) is None
    assert class_weights((1, 2, 3, 4), 4, None).tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(class_weights("median_frequency", 4, counts), torch.tensor([4, 1, 1, 0.8]))
    torch.testing.assert_close(class_weights("balanced", 4, counts), torch.tensor([10 / 3, 1, 5 / 6, 2 / 3]))
    root = class_weights("inverse_root", 4, counts)
    torch.testing.assert_close(root[0] / root[2], torch.tensor(2.0))
    torch.testing.assert_close(root[[0, 2, 3]].mean(), torch.tensor(1.0))
    for rule in ("balanced", "inverse_root", "median_frequency"):
        shares = [count / 100 for count in counts]
        torch.testing.assert_close(class_weights(rule, 4, shares), class_weights(rule, 4, counts))
        losses = {"cross_entropy": {"class_weights": rule}}
        assert needs_class_frequencies(losses)
        assert LossSum.from_recipe(losses, "segmentation", 4, IGNORE, counts).each()[0].weights.shape == (4,)
    assert not needs_class_frequencies({}) and not needs_class_frequencies({"dice": None})
