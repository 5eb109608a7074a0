"""Transforms keep image and mask aligned, and follow the image processor."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import ConvNextImageProcessor, SegformerImageProcessor, ViTImageProcessor

from hf_vit_seg.data.samples import Person
from hf_vit_seg.data.stream import Draw, seed_draw
from hf_vit_seg.data.transforms.crops import BalancedCrop
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS, TransformContext, read_pipeline
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.records import RecordError

IGNORED = 255
SIZES = [{"height": 48, "width": 64}, {"shortest_edge": 40}, {"longest_edge": 70}]
GEOMETRY = [
    "resize",
    {"random_resize": {"scale": [0.5, 2]}},
    {"random_resize": {"scale": [0.5, 2], "keep_ratio": False}},
    {"random_resize": {"scale": [0.5, 1.5], "relative_to": "image"}},
    {"random_crop": {"size": 56}},
    {"random_crop": {"size": [20, 90], "max_class_share": 0.75}},
    {"pad": {"size": [99, 50]}},
    {"pad": {"divisor": 32}},
    {"random_flip": {"horizontal": 0.5, "vertical": 0.5}},
    {"random_rotate": {"degrees": 30, "probability": 1}},
    {"random_resized_crop": {"size": [40, 56], "scale": [0.4, 1]}},
]


def context(task="segmentation", size=None, channels=3, ignore_index=IGNORED, **fields) -> TransformContext:
    processor = SemanticSegmentationImageProcessor(
        size=size or SIZES[0], image_mean=[0.5] * channels, image_std=[0.25] * channels, **fields
    )
    return TransformContext.from_processor(processor, task, ignore_index)


def patches(height: int, width: int, classes: int = 5, patch: int = 16) -> torch.Tensor:
    rows, columns = -(-height // patch), -(-width // patch)
    labels = torch.randint(0, classes, (rows, columns))
    return labels.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]


def inner(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """If all pixels within reach have one class."""
    window = (2 * reach + 1,) * 2
    edged = torch.nn.functional.pad(mask[None, None].double(), (reach,) * 4, value=-1)
    high = torch.nn.functional.max_pool2d(edged, window, stride=1)
    low = -torch.nn.functional.max_pool2d(-edged, window, stride=1)
    return (high == low)[0, 0]


@pytest.mark.parametrize("entry", GEOMETRY, ids=str)
@given(
    seed=st.integers(0, 2**31), size=st.sampled_from(SIZES), sides=st.tuples(st.integers(30, 99), st.integers(30, 99))
)
@settings(max_examples=25)
def test_mask_and_image_are_transformed_together(entry, seed, size, sides):
    """An image painted with its mask classes matches its mask afterwards, except for blending at class borders."""
    torch.manual_seed(seed)
    mask = patches(*sides)
    image = (50 * mask).to(torch.uint8).expand(3, -1, -1)
    moved, labels = read_pipeline([{"random_flip": {"vertical": 0.5}}, entry], context(size=size))(image, mask)
    assert moved.dtype == torch.uint8 and labels.dtype == torch.int64 and moved.shape[1:] == labels.shape
    assert type(moved) is type(labels) is torch.Tensor
    inside = inner(labels, reach=4) & (labels != IGNORED)  # images are enlarged up to 6x
    assert ((moved.long() - 50 * labels).abs() <= 1)[:, inside].all()
    assert set(labels.unique().tolist()) <= {*range(5), IGNORED}


@pytest.mark.parametrize(
    "entry",
    [{"pad": {"size": 120}}, {"random_crop": {"size": 120}}, {"random_rotate": {"degrees": 45, "probability": 1}}],
)
@pytest.mark.parametrize("fill", [0, 9, "mean"])
@pytest.mark.parametrize("ignored", [255, 65535])
@pytest.mark.parametrize("byte", [True, False])
def test_padding_is_ignored_in_masks_and_filled_in_images(entry, fill, ignored, byte):
    ((name, settings_),) = entry.items()
    pipeline = read_pipeline([{name: settings_ | {"fill": fill}}], context(channels=5, ignore_index=ignored))
    image = torch.full((5, 60, 70), 200, dtype=torch.uint8 if byte else torch.float32)
    moved, labels = pipeline(image, torch.full((60, 70), 300 if ignored > 255 else 3))
    outside = labels == ignored
    assert outside.any() and not outside.all()
    value = 127.5 if fill == "mean" else fill
    beyond = moved[:, ~inner((~outside).long(), 1) & outside] if name == "random_rotate" else moved[:, outside]
    far = moved[:, inner(outside.long(), 1) & outside]
    assert ((far.float() - value).abs() <= 0.5).all()
    assert name == "random_rotate" or ((beyond.float() - value).abs() <= 0.5).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fields", [{}, {"size_divisor": 16}, {"resample": 3}, {"do_resize": False}])
def test_resize_matches_the_processor(size, fields):
    processor = SemanticSegmentationImageProcessor(size=size, do_rescale=False, do_normalize=False, **fields)
    image, mask = torch.randint(0, 256, (3, 51, 83), dtype=torch.uint8), patches(51, 83, patch=3)
    expected = processor(image, segmentation_maps=mask, return_tensors="pt")
    moved, labels = read_pipeline(["resize"], TransformContext.from_processor(processor, "segmentation"))(image, mask)
    assert torch.equal(moved.float(), expected["pixel_values"][0].float())
    assert torch.equal(labels, expected["labels"][0])


@given(st.integers(20, 99), st.integers(20, 99), st.floats(0.3, 3), st.sampled_from(SIZES))
def test_random_resize_keeps_aspect_ratio_and_covers_size(height, width, scale, size):
    known = context(size=size)
    pipeline = read_pipeline([{"random_resize": {"scale": [scale, scale]}}], known)
    labels = pipeline(torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(height, width).long())[1]
    aim = [scale * side for side in known.output_size(height, width)]
    assert all(got >= target - 1 for got, target in zip(labels.shape, aim, strict=True))
    assert any(abs(got - target) <= 1 for got, target in zip(labels.shape, aim, strict=True))
    factor = max(target / side for target, side in zip(aim, (height, width), strict=True))
    assert abs(labels.shape[0] - height * factor) <= 0.51 and abs(labels.shape[1] - width * factor) <= 0.51


def largest_share(labels: torch.Tensor) -> float:
    counted = torch.bincount(labels[labels != IGNORED])
    return float(counted.max() / counted.sum())


def test_crops_avoid_a_dominant_class():
    mask = torch.zeros(200, 200, dtype=torch.int64)
    mask[80:120, 80:120], mask[:60] = 1, IGNORED
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)

    def shares(limit: float) -> torch.Tensor:
        pipeline = read_pipeline([{"random_crop": {"size": 50, "max_class_share": limit}}], context())
        crops = [pipeline(image, mask)[1] for _ in range(300)]
        return torch.tensor([largest_share(c) for c in crops if (c != IGNORED).any()])

    free, limited = shares(1.0), shares(0.75)
    assert (free > 0.75).float().mean() > 0.7
    assert (limited > 0.75).float().mean() < 0.35  # ten attempts do not always find one


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("byte", [True, False])
@pytest.mark.parametrize("name", ["photometric", "random_blur", *GEOMETRY], ids=str)
def test_any_channel_count_and_float_images(name, channels, byte):
    image = torch.randint(0, 256, (channels, 60, 70), dtype=torch.uint8)
    image = image if byte else image * 100.0 - 5000.0
    moved, labels = read_pipeline([name], context(channels=channels))(image, patches(60, 70))
    assert moved.shape[0] == channels and moved.dtype == image.dtype and moved.shape[1:] == labels.shape
    assert moved.isfinite().all()


@pytest.mark.parametrize(
    "name", ["rand_augment", "trivial_augment", "random_erasing", "random_resized_crop", "random_flip", "photometric"]
)
def test_classification_transforms_keep_the_label(name):
    pipeline = read_pipeline([name], context("classification", size={"height": 40, "width": 40}))
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    results = [pipeline(image, 7) for _ in range(20)]
    assert all(target == 7 and moved.shape == image.shape and moved.dtype == torch.uint8 for moved, target in results)
    assert any(not torch.equal(moved, image) for moved, _ in results)


@pytest.mark.parametrize("image", [torch.zeros(5, 9, 9, dtype=torch.uint8), torch.zeros(3, 9, 9)])
def test_uint8_augmentations_reject_other_dtypes(image):
    with pytest.raises(ValueError, match="rand_augment requires 8-bit images"):
        read_pipeline(["rand_augment"], context("classification"))(image, 0)


def test_pipeline_depends_only_on_its_seed():
    pipeline = read_pipeline(
        [{"random_resize": {}}, "random_crop", "random_flip", "random_rotate", "photometric", "random_blur"], context()
    )
    image, mask = torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8), patches(60, 70)

    def result(epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        with seed_draw(Draw(0, epoch, 0), seed=1):
            return pipeline(image, mask)

    first, other, again = result(0), result(1), result(0)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    with seed_draw(Draw(0, 0, 0), seed=1):
        assert torch.equal(pipeline(strided, mask)[0], first[0])


def test_pipeline_can_be_pickled():
    entries = [*GEOMETRY, "photometric", "random_blur"]
    pipeline = read_pipeline(entries, context())
    image, mask = torch.randint(0, 256, (3, 60, 70), dtype=torch.uint8), patches(60, 70)
    results = []
    for same in (pipeline, pickle.loads(pickle.dumps(pipeline))):
        with seed_draw(Draw(0, 0, 0), seed=1):
            results.append(same(image, mask))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_empty_pipeline_is_the_identity():
    image, mask = torch.rand(3, 4, 4), torch.ones(4, 4).long()
    assert read_pipeline([], context())(image, mask) == (image, mask)


@pytest.mark.parametrize(
    ("entries", "task", "message"),
    [
        (["random_flop"], "segmentation", r"transforms\.0: unknown transform 'random_flop'.*random_flip"),
        (["resize", {"random_crop": {"sise": 4}}], "segmentation", r"transforms\.1\.random_crop.*did you mean 'size'"),
        ([{"random_resize": {"scale": [2, 1]}}], "segmentation", "lower bound must come first"),
        ([{"pad": {"size": 4, "divisor": 4}}], "segmentation", "either size or divisor"),
        (["rand_augment"], "segmentation", "requires the task classification, found segmentation"),
        (["random_flip", "person_affine"], "pose", "requires the task .*segmentation, found pose"),
        ([], "pose", "pose requires person_affine"),
        (["person_affine"], "pose", "set data.flip_pairs"),
    ],
)
def test_invalid_transforms_raise_with_position(entries, task, message):
    with pytest.raises(RecordError, match=message):
        read_pipeline(entries, context(task))


def test_crop_requires_a_size_without_processor_size():
    with pytest.raises(RecordError, match=r"transforms\.0: random_crop needs a size"):
        read_pipeline(["random_crop"], context(size={"shortest_edge": 40}))
    cropping = context(size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": 32, "width": 24})
    image = torch.zeros(3, 60, 60, dtype=torch.uint8)
    assert read_pipeline(["random_crop"], cropping)(image, torch.zeros(60, 60).long())[1].shape == (32, 24)


@pytest.mark.parametrize("kind", [SegformerImageProcessor, ViTImageProcessor, ConvNextImageProcessor])
def test_context_is_read_from_transformers_processors(kind):
    known = TransformContext.from_processor(kind(), "segmentation")
    assert known.channels == len(known.std) == 3 and known.resample == kind().resample
    assert min(known.output_size(300, 400)) >= 200 and max(known.mean) < 255 and max(known.mean) > 100


def test_every_transform_documents_purpose_and_tasks():
    for name in TRANSFORMS.rows:
        row = TRANSFORMS.row(name, "here")
        assert row.__doc__ and row.tasks


def test_person_crops_include_keypoints():
    known = TransformContext.from_processor(
        SemanticSegmentationImageProcessor(size={"height": 64, "width": 48}), "pose", keypoint_flip_pairs=((0, 1),)
    )
    person = Person((10, 10, 30, 40), torch.tensor([[12.0, 14, 2], [38, 15, 1], [25, 48, 0]]), 900.0, 1, 1)
    image, keypoints = read_pipeline(["person_affine", "photometric"], known)(
        torch.randint(0, 256, (3, 80, 60), dtype=torch.uint8), person
    )
    assert image.shape == (3, 64, 48) and type(image) is torch.Tensor
    assert keypoints.shape == (3, 3) and set(keypoints[:, 2].tolist()) == {0, 1, 2}


@given(st.integers(0, 2**31), st.tuples(st.integers(10, 90), st.integers(10, 90)))
@settings(max_examples=60)
def test_crop_class_share_counts_visible_pixels(seed, sides):
    torch.manual_seed(seed)
    mask = patches(*sides, classes=2)
    mask[torch.rand(sides) < 0.3] = IGNORED
    crop = BalancedCrop((40, 50), {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}, 0.6, IGNORED)
    window = v2.RandomCrop.make_params(crop, [tv_tensors.Mask(mask)])
    shown = crop.transform(tv_tensors.Mask(mask), window).as_subclass(torch.Tensor)
    counted = shown[shown != IGNORED].bincount(minlength=2)
    assert crop.is_balanced(mask, window) == bool((counted > 0).all() and counted.max() < 0.6 * counted.sum())


@pytest.mark.parametrize("sides", [(80, 120), (30, 120), (20, 25)])
def test_crops_placed_on_classes_contain_each_class_equally_often(sides):
    """Class 2 has a single pixel, class 0 almost all others."""
    mask = torch.zeros(sides, dtype=torch.int64)
    mask[0, 0], mask[-1, -3:], mask[:, 5] = 2, 1, IGNORED
    fills = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
    crop = BalancedCrop((24, 24), fills, 1.0, IGNORED, class_probability=1.0)
    image = tv_tensors.Image(mask.float()[None])
    found, places = torch.zeros(3), set()
    for _ in range(300):
        cut, labels = crop(image, tv_tensors.Mask(mask))
        assert cut.shape[-2:] == labels.shape == (24, 24)
        assert torch.equal(cut[0][labels != IGNORED], labels[labels != IGNORED].float())
        found += torch.bincount(labels[labels != IGNORED].flatten(), minlength=3) > 0
        places.add(tuple((labels == 0).sum(0).tolist()))
    assert found[2] >= 70 and found[1] >= 70  # at least a third of the crops
    assert len(places) > 2 or sides == (20, 25)


def test_crops_of_ignored_masks_are_placed_at_random():
    crop = BalancedCrop((8, 8), {tv_tensors.Image: 0}, 1.0, IGNORED, class_probability=1.0)
    mask = tv_tensors.Mask(torch.full((20, 20), IGNORED))
    assert crop(tv_tensors.Image(torch.zeros(1, 20, 20)), mask)[1].shape == (8, 8)
