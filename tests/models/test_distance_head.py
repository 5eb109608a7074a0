"""The head with a distance map: targets, loss, and the watershed that finds the objects."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.distance_head import (
    DistanceOutput,
    build_distance_head,
    center_offsets,
    dense_loss,
    edge_distances,
    edge_pixels,
    relative_distances,
    score_objects,
    smooth,
    watershed,
)
from hf_vit_seg.models.errors import HfVitSegError
from hf_vit_seg.models.modeling_segformer_universal import SegFormerForUniversalSegmentation

SIZE = (48, 56)
FINE = {
    "num_labels": 2,
    "depths": [1, 1, 1],
    "hidden_sizes": [8, 16, 16],
    "num_attention_heads": [1, 1, 1],
    "strides": [2, 2, 2],
    "patch_sizes": [3, 3, 3],
    "sr_ratios": [4, 2, 1],
    "mlp_ratios": [2, 2, 2],
    "decode_head": "distance",
}


def draw_disks(disks: list[tuple[int, int, int]], size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Numbers (H, W) of disks (row, column, radius); the later ones lie under the earlier ones."""
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    numbers = torch.zeros(size, dtype=torch.int64)
    for number, (row, column, radius) in enumerate(disks, start=1):
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        numbers[inside & (numbers == 0)] = number
    return numbers


def compute_mask_logits(numbers: torch.Tensor) -> torch.Tensor:
    return numbers == torch.arange(1, int(numbers.max()) + 1)[:, None, None]


def same_objects(found: torch.Tensor, true: torch.Tensor) -> bool:
    """Whether two maps have the same objects under any numbers."""
    pairs = torch.stack([found.flatten(), true.flatten()]).unique(dim=1)
    return len(pairs[0].unique()) == len(pairs[1].unique()) == pairs.shape[1]


def match_objects(found: torch.Tensor, true: torch.Tensor) -> list[tuple[int, float]]:
    """For each true object, the number of the found object that covers most of it, and their IoU."""
    matches = []
    for number in range(1, int(true.max()) + 1):
        own = true == number
        best = int(torch.bincount(found[own]).argmax())
        matches.append((best, float(((found == best) & own).sum() / ((found == best) | own).sum())))
    return matches


def perfect_output(numbers: torch.Tensor, classes: torch.Tensor, num_labels: int) -> DistanceOutput:
    """The outputs (1, ...) that a model without errors has for numbers (H, W) of objects of these classes."""
    table = torch.cat([torch.tensor([num_labels]), classes])
    one_hot = torch.nn.functional.one_hot(table[numbers], num_labels + 1).permute(2, 0, 1).float()
    return DistanceOutput(
        class_logits=20 * one_hot[None] - 10,
        distances=relative_distances(numbers[None])[None],
        edge_logits=20 * edge_pixels(numbers[None])[None].float() - 10,
        offsets=center_offsets(numbers[None]),
    )


def random_output(images: int, size: tuple[int, int]) -> DistanceOutput:
    """Random outputs for one class, with gradients."""
    maps = [torch.randn(images, channels, *size, requires_grad=True) for channels in (2, 1, 1, 2)]
    return DistanceOutput(None, *maps)


grids = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(4, 8)), max_size=9, unique_by=lambda disk: disk[:2]
)
number_maps = st.lists(st.tuples(st.integers(0, SIZE[0]), st.integers(0, SIZE[1]), st.integers(1, 14)), max_size=8).map(
    draw_disks
)


@given(number_maps)
@settings(max_examples=40, deadline=None)
def test_edge_distances_are_computed_per_object(numbers: torch.Tensor):
    expected = np.zeros(SIZE)
    for number in numbers.unique()[numbers.unique() > 0].tolist():
        mask = numbers.numpy() == number
        expected[mask] = distance_transform_edt(mask)[mask]
    assert np.allclose(edge_distances(numbers[None])[0].numpy(), expected, atol=1e-5)


def test_each_object_has_distances_up_to_one():
    numbers = torch.stack([draw_disks([(10, 10, 8), (30, 30, 3)]), draw_disks([(0, 0, 20)])])
    distances = relative_distances(numbers)
    for image, number in ((0, 1), (0, 2), (1, 1)):
        assert distances[image][numbers[image] == number].max() == 1
    assert (distances[numbers == 0] == 0).all()


def test_object_that_fills_the_image_has_no_edge():
    assert torch.equal(relative_distances(torch.ones(1, *SIZE, dtype=torch.int64)), torch.ones(1, *SIZE))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(4, 8)), max_size=9, unique_by=lambda d: d[:2])
)
@settings(max_examples=30, deadline=None)
def test_disks_are_found_again_from_their_distances(places: list[tuple[int, int, int]]):
    numbers = draw_disks([(10 + 16 * row, 10 + 16 * column, radius) for row, column, radius in places], (52, 52))
    found = watershed(relative_distances(numbers[None])[0], numbers > 0)
    assert same_objects(found, numbers)


@pytest.mark.parametrize("gap", [9, 11, 13])
def test_touching_objects_are_split(gap: int):
    numbers = draw_disks([(20, 20, 8), (20, 20 + gap, 8), (20 + gap, 20, 8)])
    found = watershed(smooth(relative_distances(numbers[None])[0]), numbers > 0)
    assert int(found.max()) == 3
    assert min(iou for _, iou in match_objects(found, numbers)) > 0.8


def test_shallow_peaks_are_merged():
    values = torch.tensor([[0.2, 0.9, 0.85, 1.0, 0.5, 0.8]])
    inside = torch.ones_like(values, dtype=torch.bool)
    assert watershed(values, inside, prominence=0.1).tolist() == [[1, 1, 1, 1, 1, 2]]
    assert watershed(values, inside, prominence=0.01).tolist() == [[1, 1, 2, 2, 2, 3]]
    assert watershed(values, inside, prominence=1.0).tolist() == [[1, 1, 1, 1, 1, 1]]


def test_regions_that_do_not_touch_are_never_merged():
    values = torch.tensor([[0.5, 0.6, 0.0, 0.7, 0.6]])
    assert watershed(values, values > 0, prominence=10.0).tolist() == [[1, 1, 0, 2, 2]]


def test_map_without_objects_stays_empty():
    assert watershed(torch.rand(SIZE), torch.zeros(SIZE, dtype=torch.bool)).max() == 0


def test_perfect_output_gives_the_objects_with_their_classes():
    numbers = draw_disks([(10, 10, 8), (10, 24, 6), (35, 40, 10)])
    classes = torch.tensor([1, 0, 1])
    found, labels, scores = perfect_output(numbers, classes, 2).segments(0, SIZE)
    matches = match_objects(found, numbers)
    assert sorted(number for number, _ in matches) == [1, 2, 3]
    assert min(iou for _, iou in matches) > 0.9
    assert [labels[number - 1].item() for number, _ in matches] == classes.tolist()
    assert (scores > 0.99).all()


def test_semantic_logits_of_one_class_are_positive_where_it_is_probable():
    logits = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    found = DistanceOutput(class_logits=logits).semantic_logits()
    assert found.shape == (2, 1, 5, 6)
    torch.testing.assert_close(found.sigmoid()[:, 0], logits.softmax(1)[:, 0])
    assert DistanceOutput(class_logits=torch.randn(2, 4, 5, 6)).semantic_logits().shape == (2, 3, 5, 6)


def test_uncertain_and_small_objects_are_removed():
    numbers = torch.tensor([[1, 1, 1, 2, 2, 2, 3]])
    margins = torch.tensor([[[0.8, 0.8, 0.8, 0.2, 0.2, 0.2, 0.8]]])
    found, classes, scores = score_objects(numbers, margins, threshold=0.5, least_area=2)
    assert found.tolist() == [[1, 1, 1, 0, 0, 0, 0]]
    assert classes.tolist() == [0]
    assert scores.tolist() == pytest.approx([0.8])


def test_perfect_output_has_a_lower_loss_than_a_shifted_one():
    numbers = draw_disks([(10, 10, 8), (10, 24, 6), (35, 40, 10)])
    output = perfect_output(numbers, torch.tensor([1, 0, 1]), 2)
    labels = [compute_mask_logits(numbers)], [torch.tensor([1, 0, 1])]
    shifted = [compute_mask_logits(numbers).roll(3, dims=-1)], labels[1]
    assert output.head_loss(None, *labels) < 0.01 < output.head_loss(None, *shifted)


def test_ignored_pixels_have_no_gradient():
    output = random_output(1, SIZE)
    ignored = torch.zeros(1, *SIZE, dtype=torch.bool)
    ignored[:, :, 16:] = True
    dense_loss(output, [compute_mask_logits(draw_disks([(10, 12, 8)]))], [torch.tensor([0])], ignored).backward()
    for tensor in output.maps():
        assert tensor.grad is not None
        assert (tensor.grad[..., 16:] == 0).all()
        assert tensor.grad[..., :16].abs().max() > 0


def test_loss_is_the_mean_over_images():
    output = random_output(2, (24, 28))
    masks = [compute_mask_logits(draw_disks([(10, 10, 8)])), torch.zeros(0, *SIZE, dtype=torch.bool)]
    classes = [torch.tensor([0]), torch.zeros(0, dtype=torch.int64)]
    single = []
    for own in (slice(0, 1), slice(1, 2)):
        part = DistanceOutput(None, *(values[own] for values in output.maps()))
        single.append(dense_loss(part, masks[own], classes[own]).item())
    both = dense_loss(output, masks, classes).item()
    assert np.isfinite(both)
    assert both == pytest.approx(sum(single) / 2, rel=1e-5)


def test_offsets_lead_to_the_center_of_each_object():
    numbers = draw_disks([(10, 10, 6), (30, 40, 12)])
    down, right = center_offsets(numbers[None])[0]
    for number, row, column in ((1, 10, 10), (2, 30, 40)):
        own = numbers == number
        radius = float((own.sum() / torch.pi).sqrt())
        rows, columns = own.nonzero(as_tuple=True)
        assert torch.allclose(down[own] * radius, row - rows.float(), atol=1e-4)
        assert torch.allclose(right[own] * radius, column - columns.float(), atol=1e-4)


def test_images_without_objects_or_labels_have_a_finite_loss():
    model = SegFormerForUniversalSegmentation(SegFormerConfig(**FINE))
    images = torch.randn(2, 3, 40, 44)
    masks = [torch.zeros(0, 40, 44, dtype=torch.bool)] * 2
    classes = [torch.zeros(0, dtype=torch.int64)] * 2
    loss = model(images, masks, classes, ignore_mask=torch.ones(2, 40, 44, dtype=torch.bool)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_plain_encoder_is_rejected():
    with pytest.raises(HfVitSegError):
        build_distance_head(SegFormerConfig(**FINE), [8, 8, 8, 8], is_plain=True)


@pytest.mark.slow
def test_short_training_separates_touching_disks():
    torch.manual_seed(0)
    numbers = [draw_disks([(12, 12, 8), (12, 26, 7), (34, 40, 10)]), draw_disks([(24, 20, 9), (24, 37, 9)])]
    images = torch.stack([(each > 0).float().expand(3, -1, -1) for each in numbers])
    labels = (
        [compute_mask_logits(each) for each in numbers],
        [torch.zeros(int(each.max()), dtype=torch.int64) for each in numbers],
    )
    model = SegFormerForUniversalSegmentation(SegFormerConfig(**FINE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(images, *labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        output = model(images)
    assert [int(output.segments(image, SIZE)[0].max()) for image in (0, 1)] == [3, 2]
