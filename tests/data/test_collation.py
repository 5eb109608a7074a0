"""Batches, normalization statistics, and display of images."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SegformerImageProcessor, ViTImageProcessor

from hf_vit_seg.data.collation import CollationError, Collator
from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.statistics import StatisticsError, compute_statistics
from hf_vit_seg.data.stream import Draw
from hf_vit_seg.models.image_processing_segmentation import (
    SemanticSegmentationImageProcessor,
    SemanticSegmentationImageProcessorPil,
)
from hf_vit_seg.records import RecordError

PROCESSORS = [SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil]
FLOATS = st.floats(-1e4, 1e5, width=32)


def images(channels: int, height: int, width: int, byte: bool, count: int = 1) -> list[torch.Tensor]:
    if byte:
        return list(torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8))
    return list(torch.randn(count, channels, height, width) * 1e3)


def samples(pixels: list[torch.Tensor], targets=None) -> list[dict]:
    targets = targets or [torch.zeros(image.shape[-2:], dtype=torch.int64) for image in pixels]
    return [
        {"image": image, "target": target, "name": f"{place}.png", "draw": Draw(place, 0, place)}
        for place, (image, target) in enumerate(zip(pixels, targets, strict=True))
    ]


@pytest.mark.parametrize("kind", PROCESSORS)
@given(
    channels=st.integers(1, 6),
    sides=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    byte=st.booleans(),
    factor=st.sampled_from([1 / 255, 1.0, 1 / 65535]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_pixels_are_bit_identical_to_the_saved_processor(kind, channels, sides, byte, factor, seed):
    torch.manual_seed(seed)
    height, width = sides
    mean, std = torch.rand(channels).tolist(), (torch.rand(channels) + 0.1).tolist()
    processor = kind(
        size={"height": height, "width": width}, image_mean=mean, image_std=std, rescale_factor=factor, size_divisor=1
    )
    pixels = images(channels, height, width, byte, count=3)
    batch = Collator(processor, "segmentation")(samples(pixels))
    alone = [processor(image, return_tensors="pt", input_data_format="channels_first") for image in pixels]
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_equal_a_pil_image(kind):
    processor = kind(size={"height": 20, "width": 30})
    pixels = images(3, 20, 30, byte=True, count=2)
    batch = Collator(processor, "segmentation")(samples(pixels))
    assert torch.equal(
        batch["pixel_values"], processor([to_rgb_image(p) for p in pixels], return_tensors="pt").pixel_values
    )


@pytest.mark.parametrize("kind", [SegformerImageProcessor, ViTImageProcessor])
def test_transformers_processors_are_supported(kind):
    processor = kind(size={"height": 20, "width": 30})
    pixels = images(3, 20, 30, byte=True, count=2)
    batch = Collator(processor, "segmentation")(samples(pixels))
    assert torch.equal(batch["pixel_values"], processor(pixels, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_crops_keep_their_size_with_any_processor(kind):
    five, many = ({"height": side, "width": side} for side in (5, 50))
    processor = kind(size={"shortest_edge": 7}, do_center_crop=True, crop_size=five, do_pad=True, pad_size=many)
    batch = Collator(processor, "segmentation")(samples(images(3, 16, 24, byte=True, count=2)))
    assert batch["pixel_values"].shape == (2, 3, 16, 24) and batch["labels"].shape == (2, 16, 24)


@pytest.mark.parametrize(
    ("task", "targets", "shape", "dtype"),
    [
        ("segmentation", [torch.ones(8, 8, dtype=torch.int64)] * 2, (2, 8, 8), torch.int64),
        ("classification", [3, 1], (2,), torch.int64),
        ("pose", [torch.rand(17, 3)] * 2, (2, 17, 3), torch.float32),
    ],
)
def test_labels_have_the_format_of_their_task(task, targets, shape, dtype):
    labels = Collator(SemanticSegmentationImageProcessor(), task)(samples(images(3, 8, 8, True, 2), targets))["labels"]
    assert labels.shape == shape and labels.dtype == dtype
    assert torch.equal(labels[1], torch.as_tensor(targets[1], dtype=dtype))


def test_mixed_image_sizes_raise_with_names():
    pixels = images(3, 8, 8, True) + images(3, 8, 9, True)
    with pytest.raises(CollationError, match=r"0\.png \(3, 8, 8\).*1\.png \(3, 8, 9\).*random_crop"):
        Collator(SemanticSegmentationImageProcessor(), "segmentation")(samples(pixels))


def mixing(entries, seed=0) -> Collator:
    processor = SemanticSegmentationImageProcessor(do_rescale=False, do_normalize=False)
    return Collator(processor, "classification", entries, num_classes=5, seed=seed)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_targets_equal_pixel_fractions(name):
    pixels = [torch.full((3, 32, 32), float(place)).eq(0).float() for place in range(2)]  # ones and zeros
    batch = mixing([{name: {"probability": 1}}])(samples(pixels, [4, 2]))
    labels = batch["labels"]
    assert labels.dtype == torch.float32 and torch.allclose(labels.sum(dim=1), torch.ones(2))
    shown = batch["pixel_values"].mean(dim=(1, 2, 3))  # the fraction of the image of class 4
    assert torch.allclose(labels[:, 4], shown, atol=1e-5) and torch.allclose(labels[:, 2], 1 - shown, atol=1e-5)


def test_mixing_is_seeded_by_the_first_sample_of_the_batch():
    entries = [{"mixup": {"probability": 0.5}}, {"cutmix": {"probability": 0.5}}]
    batch = samples(images(3, 8, 8, False, count=4), [0, 1, 2, 3])
    first = mixing(entries)(batch)
    torch.rand(3)
    again, other = pickle.loads(pickle.dumps(mixing(entries)))(batch), mixing(entries, seed=1)(batch)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_at_most_one_batch_transform_is_applied():
    collator = mixing([{"mixup": {"probability": 0.25}}, {"cutmix": {"probability": 0.25}}])
    pixels = [torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]
    kinds = {"plain": 0, "cutmix": 0, "mixup": 0}
    for index in range(200):
        batch = samples(pixels, [0, 1])
        batch[0]["draw"] = Draw(index, 0, 0)
        values = collator(batch)
        whole = values["pixel_values"].eq(0) | values["pixel_values"].eq(1)
        plain = values["labels"].max(dim=1).values.eq(1).all()
        kinds["plain" if plain else "cutmix" if whole.all() else "mixup"] += 1
    assert kinds["plain"] > 70 and kinds["cutmix"] > 20 and kinds["mixup"] > 20


@pytest.mark.parametrize(
    ("task", "entries", "message"),
    [
        ("segmentation", ["mixup"], "requires the task classification, found segmentation"),
        ("classification", ["mixup", {"cutmix": {"probability": 0.6}}], "must sum to at most 1, found"),
        ("classification", ["mixop"], "did you mean 'mixup'"),
        ("classification", [{"mixup": {"alfa": 1}}], "did you mean 'alpha'"),
    ],
)
def test_invalid_batch_transforms_raise(task, entries, message):
    with pytest.raises(RecordError, match=message):
        Collator(SemanticSegmentationImageProcessor(), task, entries, num_classes=5)


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), FLOATS)
def test_streaming_statistics_equal_all_pixels(channels, sides, far):
    pixels = [torch.randn(channels, height, width) + far for height, width in sides]
    found = compute_statistics(RawSample(str(place), image, None) for place, image in enumerate(pixels))
    together = torch.cat([image.flatten(1) for image in pixels], dim=1).double()
    std = together.std(dim=1, correction=0)
    assert found.rescale_factor == 1
    assert np.allclose(found.mean, together.mean(dim=1), rtol=1e-9, atol=1e-9)
    assert np.allclose(found.std, torch.where(std > 0, std, 1.0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("byte", [True, False])
def test_computed_statistics_normalize_to_zero_mean_and_unit_std(kind, byte):
    pixels = images(4, 16, 16, byte, count=5)
    found = compute_statistics(RawSample(str(place), image, None) for place, image in enumerate(pixels))
    processor = kind(size={"height": 16, "width": 16}, **found.processor_fields())
    values = Collator(processor, "segmentation")(samples(pixels))["pixel_values"].double()
    assert torch.allclose(values.mean(dim=(0, 2, 3)), torch.zeros(4).double(), atol=1e-5)
    assert torch.allclose(values.std(dim=(0, 2, 3), correction=0), torch.ones(4).double(), atol=1e-5)


def test_constant_channel_is_not_divided_by_zero():
    image = torch.stack([torch.zeros(4, 4), torch.arange(16.0).view(4, 4)])
    assert compute_statistics([RawSample("a", image, None)]).std[0] == 1


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([], "no images"),
        ([torch.zeros(3, 2, 2), torch.zeros(4, 2, 2)], "0 has 3 of float32, 1 has 4 of float32"),
        ([torch.zeros(3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.uint8)], "channels and depth"),
        ([torch.zeros(3, 2, 2), torch.full((3, 2, 2), torch.nan)], "1 has pixels that are not finite"),
    ],
)
def test_incompatible_image_statistics_raise(pixels, message):
    with pytest.raises(StatisticsError, match=message):
        compute_statistics(RawSample(str(place), image, None) for place, image in enumerate(pixels))


def test_display_keeps_8_bit_images():
    image = torch.randint(0, 256, (5, 4, 6), dtype=torch.uint8)
    assert np.array_equal(np.asarray(to_rgb_image(image)), image[:3].permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(to_rgb_image(image[:2])), image[:1].expand(3, -1, -1).permute(1, 2, 0).numpy())


@given(st.integers(1, 5), FLOATS, st.floats(1e-2, 1e4))
def test_display_stretches_any_value_range(channels, offset, spread):
    ramp = torch.linspace(0, 1, 400, dtype=torch.float64).view(20, 20) * spread + offset
    image = ramp.expand(channels, -1, -1).clone()
    image[0, 0, 0], image[0, 19, 19] = torch.nan, torch.inf
    shown = np.asarray(to_rgb_image(image)).astype(int)
    assert shown.shape == (20, 20, 3)
    assert (np.diff(shown[..., 0].flatten()[1:-1]) >= 0).all()
    assert shown[0, 1, 0] == 0 and shown[19, 18, 0] == 255 and shown[0, 0, 0] == 0 and shown[19, 19, 0] == 0


def test_display_handles_constant_image():
    assert np.asarray(to_rgb_image(torch.full((1, 3, 3), 7.0))).shape == (3, 3, 3)
    assert not np.asarray(to_rgb_image(torch.full((1, 3, 3), torch.nan))).any()
