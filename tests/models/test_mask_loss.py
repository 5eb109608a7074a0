"""The loss of mask classification: equal to transformers', exact over accumulation, and robust."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtLoss

from hf_vit_seg.models.mask_loss import (
    assign,
    loss_sums,
    loss_units,
    mask_classification_loss,
    sample_masks,
    uncertain_points,
)

IMAGES, QUERIES, CLASSES = 3, 6, 4
SETTINGS = SimpleNamespace(
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=3.0,
    no_object_weight=0.1,
    num_queries=QUERIES,
    train_num_points=40,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
)


@contextmanager
def double_by_default():
    """transformers samples points in the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def prediction(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(IMAGES, QUERIES, CLASSES + 1, generator=generator, dtype=torch.float64)
    masks = 3 * torch.randn(IMAGES, QUERIES, 9, 13, generator=generator, dtype=torch.float64)
    return classes.to(dtype).requires_grad_(), masks.to(dtype).requires_grad_()


def targets(*counts: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    masks = [torch.rand(count, 21, 30, generator=generator) > 0.6 for count in counts]
    classes = [torch.randint(0, CLASSES, (count,), generator=generator) for count in counts]
    return masks, classes


def loss(predictions, masks, classes, ignored=None, settings=SETTINGS, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return mask_classification_loss(predictions, masks, classes, ignored, settings)


@pytest.mark.parametrize("counts", [(2, 3, 1), (6, 1, 4), (8, 2, 1)])  # 8 objects, 6 queries
def test_equals_the_loss_of_transformers_at_the_same_points(counts):
    fields = dict(vars(SETTINGS))
    config = EomtConfig(num_labels=CLASSES, **fields)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 3.0}
    masks, classes = targets(*counts)
    predictions = [prediction(0), prediction(1)]
    with double_by_default():
        reference, expected = EomtLoss(config, weights).double(), torch.zeros(())
        torch.manual_seed(1)
        for class_logits, mask_logits in predictions:
            terms = reference(mask_logits, class_logits, [mask.double() for mask in masks], classes)
            expected = expected + sum(weights[name] * value for name, value in terms.items())
    inputs = [tensor for pair in predictions for tensor in pair]
    expected_gradients = torch.autograd.grad(expected, inputs)
    found = loss(predictions, masks, classes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for gradient, wanted in zip(torch.autograd.grad(found, inputs), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    masks, classes = targets(2, 0, 3)
    ignored = torch.zeros(IMAGES, 21, 30, dtype=torch.bool)
    ignored[0, :5] = True
    uniform = SimpleNamespace(**vars(SETTINGS) | {"importance_sample_ratio": 0.0})  # points that logits do not move
    classes_in, masks_in = prediction()
    assert torch.autograd.gradcheck(
        lambda a, b: loss([(a, b)], masks, classes, ignored, uniform), (classes_in, masks_in), atol=1e-6, fast_mode=True
    )


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 3, 0)])
def test_images_without_objects(counts):
    masks, classes = targets(*counts)
    pair = prediction()
    found = loss([pair], masks, classes)
    gradients = torch.autograd.grad(found, pair)
    assert found.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    empty = [image for image, count in enumerate(counts) if not count]
    assert not gradients[1][empty].any() and gradients[0][empty].any()  # their queries learn "no object"


def test_image_without_objects_alone():
    masks, classes = targets(0)
    class_logits, mask_logits = (tensor[:1] for tensor in prediction())
    expected = SETTINGS.class_weight * -class_logits.log_softmax(-1)[..., -1].mean()
    torch.testing.assert_close(loss([(class_logits, mask_logits)], masks, classes), expected)


def test_empty_mask_is_learned_as_empty():
    """A mask without pixels is matched, its dice is finite, and its logits are lowered."""
    masks, classes = [torch.zeros(1, 21, 30, dtype=torch.bool)], [torch.tensor([1])]
    class_logits, mask_logits = (tensor[:1] for tensor in prediction())
    found = loss([(class_logits, mask_logits)], masks, classes)
    (gradient,) = torch.autograd.grad(found, mask_logits)
    assert found.isfinite() and (gradient >= 0).all() and gradient.any()


def test_ignored_pixels_have_no_weight():
    masks, classes = targets(2, 3, 1)
    ignored = torch.zeros(IMAGES, 21, 30, dtype=torch.bool)
    ignored[..., 15:] = True
    pair = prediction()
    found = loss([pair], masks, classes, ignored)
    changed = [mask ^ ignored[0] for mask in masks]
    # Bilinear labels reach one pixel into the ignored part: compare only beyond it.
    changed = [torch.where(torch.arange(30) == 15, mask, new) for mask, new in zip(masks, changed, strict=True)]
    torch.testing.assert_close(loss([pair], changed, classes, ignored), found)
    (gradient,) = torch.autograd.grad(found, pair[1])
    assert not gradient[..., 8:].any() and gradient[..., :6].any()  # 13 columns: 15 / 30 of them, and a neighbor


def test_all_pixels_ignored():
    masks, classes = targets(2, 0, 1)
    pair = prediction()
    found = loss([pair], masks, classes, torch.ones(IMAGES, 21, 30, dtype=torch.bool))
    gradients = torch.autograd.grad(found, pair)
    assert found.isfinite() and not gradients[1].any()


def test_nothing_ignored_equals_no_mask():
    masks, classes = targets(2, 3, 1)
    pair = prediction()
    nothing = torch.zeros(IMAGES, 21, 30, dtype=torch.bool)
    assert torch.equal(loss([pair], masks, classes, nothing), loss([pair], masks, classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 4e3])
def test_low_precision_is_computed_in_float32(dtype, scale):
    masks, classes = targets(2, 3, 1)
    with torch.no_grad():
        low = [tensor.detach().mul(scale).to(dtype) for tensor in prediction()]
        found = loss([tuple(low)], masks, classes)
        expected = loss([tuple(tensor.float() for tensor in low)], masks, classes)
    assert found.dtype == torch.float32 and found.isfinite()
    torch.testing.assert_close(found, expected)


def test_costs_that_are_not_finite_are_matched_last():
    costs = torch.tensor([[torch.nan, 1.0], [torch.inf, 2.0], [5.0, -torch.inf], [3.0, 9.0]])
    queries, objects = assign(costs)
    assert queries.tolist() == [0, 3] and objects.tolist() == [1, 0]


def test_logits_that_are_not_finite_do_not_raise():
    masks, classes = targets(2, 3, 1)
    class_logits, mask_logits = (tensor.detach().clone() for tensor in prediction())
    class_logits[0, 0], mask_logits[1, 2] = torch.nan, torch.inf
    with torch.no_grad():
        assert loss([(class_logits, mask_logits)], masks, classes).isnan()


def test_sums_of_parts_match_the_whole():
    """The loss of several batches is exact if their sums and units are added."""
    masks, classes = targets(2, 0, 3)
    class_logits, mask_logits = prediction()
    every = SimpleNamespace(**vars(SETTINGS) | {"train_num_points": 4000})
    torch.manual_seed(0)
    whole = loss_sums([(class_logits, mask_logits)], masks, classes, None, every)
    parts, units = [], []
    for image in range(IMAGES):
        torch.manual_seed(image)
        own = slice(image, image + 1)
        parts.append(loss_sums([(class_logits[own], mask_logits[own])], masks[own], classes[own], None, every))
        units.append(loss_units(classes[own], every))
    torch.testing.assert_close(sum(units), loss_units(classes, every))
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0])
    torch.testing.assert_close(sum(parts), whole, rtol=0.1, atol=0.0)  # masks are compared at other random points
    torch.manual_seed(0)
    expected = mask_classification_loss([(class_logits, mask_logits)], masks, classes, None, every)
    torch.testing.assert_close((whole / loss_units(classes, every).double()).sum(), expected)


def test_more_objects_than_queries_matches_every_query():
    masks, classes = targets(QUERIES + 4, 1, 1)
    weight, objects = loss_units(classes, SETTINGS).tolist()
    assert weight == pytest.approx(QUERIES + 2 + 0.1 * (2 * QUERIES - 2)) and objects == QUERIES + 6
    assert loss([prediction()], masks, classes).isfinite()


@pytest.mark.parametrize(("others", "factor"), [(5, 3 / 4), (0, 3 / 1.5)])
def test_masks_are_divided_by_the_mean_number_of_objects_of_all_processes(others, factor, monkeypatch):
    """With 3 objects here and `others` on a second process; gradients are then averaged over the processes."""
    masks, classes = targets(2, 0, 1)
    settings = SimpleNamespace(**vars(SETTINGS) | {"class_weight": 0.0})
    alone = loss([prediction()], masks, classes, settings=settings)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda objects: objects.add_(others))
    torch.testing.assert_close(loss([prediction()], masks, classes, settings=settings), alone * factor)


def test_sampled_masks_equal_grid_sample():
    masks = targets(5)[0][0]
    points = torch.rand(5, 60, 2, dtype=torch.float64) * 1.02 - 0.01  # some outside
    expected = torch.nn.functional.grid_sample(masks[:, None].double(), 2 * points[:, None] - 1, align_corners=False)
    torch.testing.assert_close(sample_masks(masks, points), expected[:, 0, 0])
    shared = sample_masks(masks, points[:1])
    torch.testing.assert_close(shared, sample_masks(masks, points[:1].expand(5, -1, -1)))


def test_uncertain_points_avoid_ignored_pixels():
    logits = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    ignored = torch.zeros(1, 8, 8, dtype=torch.bool)
    ignored[..., 4:] = True
    settings = SimpleNamespace(**vars(SETTINGS) | {"importance_sample_ratio": 1.0, "oversample_ratio": 20.0})
    torch.manual_seed(0)
    points = uncertain_points(logits, ignored, torch.zeros(1, dtype=torch.long), settings)
    assert points.shape == (1, 40, 2) and (points[..., 0] < 0.5).all()


def test_memory_of_many_large_masks_is_small():
    """Masks are never converted to floating point as a whole."""
    masks = torch.zeros(200, 512, 512, dtype=torch.bool)
    points = torch.rand(1, 100, 2)
    before = torch.zeros(())
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        before = sample_masks(masks, points)
    assert before.shape == (200, 100)
    largest = max(event.cpu_memory_usage for event in profile.events() or ())
    assert largest < masks.numel() / 10


def test_copies_do_not_share_random_points():
    masks, classes = targets(2, 3, 1)
    pair = prediction()
    first, second = loss([pair], masks, classes, seed=1), loss([copy.copy(pair)], masks, classes, seed=2)
    assert first != second  # the points are random
    assert torch.equal(first, loss([pair], masks, classes, seed=1))
