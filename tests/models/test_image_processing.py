"""The image processor: both backends, any image, segmentation maps, round trips and pipelines."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SegformerImageProcessor, pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.image_processing_segmentation import (
    SemanticSegmentationImageProcessor,
    SemanticSegmentationImageProcessorPil,
)
from hf_vit_seg.models.modeling_segformer import SegFormerForImageClassification, SegFormerForSemanticSegmentation

BACKENDS = {"torchvision": SemanticSegmentationImageProcessor, "pil": SemanticSegmentationImageProcessorPil}
TINY = {
    "hidden_sizes": (16, 32, 40, 64),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 5, 8),
    "decode_head_hidden_size": 32,
}


@pytest.fixture(params=list(BACKENDS))
def build(request):
    return BACKENDS[request.param]


def photo(height: int = 60, width: int = 90) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    bands = [128 + 100 * np.sin(rows / 7 + k) * np.cos(columns / (5 + k)) for k in range(3)]
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8))


def mask(height: int = 60, width: int = 90) -> np.ndarray:
    return (np.arange(height * width).reshape(height, width) // 37 % 5).astype(np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"height": 48, "width": 130}},
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 70, "longest_edge": 80}, "size_divisor": 32},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 71, "width": 33}},
        {"size": {"longest_edge": 50}, "do_pad": True, "pad_size": {"height": 64, "width": 64}},
    ],
)
def test_backends_agree(options):
    results = [build(**options)(photo(), mask(), return_tensors="pt") for build in BACKENDS.values()]
    torchvision, pil = results
    assert torchvision.pixel_values.dtype == pil.pixel_values.dtype == torch.float32
    assert (torchvision.pixel_values - pil.pixel_values).abs().max() < 0.02  # one step of 8-bit rounding
    assert torch.equal(torchvision.labels, pil.labels)
    assert torchvision.labels.dtype == torch.int64
    assert torchvision.labels.shape[1:] == torchvision.pixel_values.shape[2:]


def test_equal_to_processor_of_transformers():
    options = {"return_tensors": "pt", "do_reduce_labels": True}
    kinds = (SemanticSegmentationImageProcessor, SegformerImageProcessor)
    one, other = (kind()(photo(), mask(), **options) for kind in kinds)
    assert torch.equal(one.pixel_values, other.pixel_values)
    assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("size", "divisor", "wanted"),
    [
        ({"shortest_edge": 30}, None, (30, 45)),
        ({"shortest_edge": 30, "longest_edge": 36}, None, (24, 36)),
        ({"longest_edge": 45}, 32, (32, 64)),
        ({"height": 33, "width": 64}, 32, (64, 64)),
    ],
)
def test_sizes(build, size, divisor, wanted):
    pixels = build(size=size, size_divisor=divisor)(photo(), return_tensors="pt").pixel_values
    assert tuple(pixels.shape[2:]) == wanted


def test_long_thin_images_raise(build):
    with pytest.raises(ValueError, match="longest_edge"):
        build(size={"shortest_edge": 512})(np.zeros((1, 4000, 3), np.uint8))
    pixels = build(size={"shortest_edge": 64, "longest_edge": 128})(np.zeros((1, 4000, 3), np.uint8))["pixel_values"]
    assert pixels[0].shape == (3, 1, 128)


def test_reduce_labels_applies_to_labels_only(build):
    labels = np.array([[0, 1], [255, 5]], dtype=np.uint8)
    options = {"do_resize": False, "return_tensors": "pt"}
    result = build(do_reduce_labels=True)(photo(2, 2), labels, **options)
    assert result.labels.tolist() == [[[255, 0], [255, 4]]]
    assert torch.equal(result.pixel_values, build()(photo(2, 2), **options).pixel_values)


def test_padding_is_ignored(build):
    crop = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 4, "width": 4}}
    labels = build(**crop)(photo(2, 2), np.ones((2, 2), np.uint8), return_tensors="pt").labels[0]
    assert (labels == 1).sum() == 4
    assert (labels == 255).sum() == 12


def test_mask_container_types(build):
    plain = mask()
    palette = Image.fromarray(plain)
    palette.putpalette([7, 9, 200] * 256)
    wanted = build()(photo(), plain, return_tensors="pt").labels
    for container in (palette, torch.from_numpy(plain), [Image.fromarray(plain)], plain[None], plain.astype(np.int64)):
        assert torch.equal(build()(photo(), container, return_tensors="pt").labels, wanted)
    with pytest.raises(ValueError, match="one class index per pixel"):
        build()(photo(), photo())
    with pytest.raises(ValueError, match="height and width of their images"):
        build()(photo(), mask(30, 30))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_images_of_any_mode_become_rgb(build, mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(photo().convert("L")).astype(np.int32) * 257)
    else:
        image = photo().convert("RGBA").convert("LA").convert(mode) if mode == "PA" else photo().convert(mode)
    result = build()(image, do_resize=False, do_normalize=False, return_tensors="pt").pixel_values[0] * 255
    assert result.shape == (3, 60, 90)
    color = mode in ("RGB", "RGBA", "CMYK", "YCbCr", "P")
    wanted = photo() if color else photo().convert("1" if mode == "1" else "L").convert("RGB")
    reference = torch.from_numpy(np.array(wanted)).permute(2, 0, 1).float()
    assert (result.float() - reference).abs().mean() < (40 if mode == "P" else 3)


def test_transparency_is_blended_with_white(build):
    image = Image.new("RGBA", (9, 7), (200, 0, 0, 0))
    assert (build()(image, do_resize=False, do_normalize=False, return_tensors="pt").pixel_values == 1).all()
    array = np.asarray(image)
    assert (build()(array, do_resize=False, do_normalize=False, return_tensors="pt").pixel_values == 1).all()


@pytest.mark.parametrize("bands", [1, 2, 5, 12])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_channel_count_and_both_layouts(build, bands, dtype):
    processor = build(image_mean=[0.4] * bands, image_std=[0.2] * bands, size={"height": 32, "width": 40})
    image = (np.random.default_rng(0).random((bands, 50, 70)) * 200).astype(dtype)
    first = processor(image, return_tensors="pt").pixel_values
    last = processor(np.moveaxis(image, 0, -1), return_tensors="pt").pixel_values
    assert first.shape == (1, bands, 32, 40)
    torch.testing.assert_close(first, last)


def test_arrays_with_other_channel_counts_raise(build):
    with pytest.raises(ValueError, match="no axis of 5 channels"):
        build(image_mean=[0.4] * 5, image_std=[0.2] * 5)(np.zeros((20, 20, 3), np.uint8))


def test_gray_arrays(build):
    gray = np.asarray(photo().convert("L"))
    color = build()(photo().convert("L"), return_tensors="pt").pixel_values
    for images in (gray, [gray], torch.from_numpy(gray.copy()), gray[None], gray[..., None]):
        torch.testing.assert_close(build()(images, return_tensors="pt").pixel_values, color)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("sizes", [None, [(20, 30), (7, 9)]])
def test_post_processing(build, classes, sizes):
    outputs = SemanticSegmenterOutput(logits=torch.randn(2, classes, 8, 8))
    maps = build().post_process_semantic_segmentation(outputs, sizes)
    full = build().post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    for labels, both, size in zip(maps, full, sizes or [(8, 8)] * 2, strict=True):
        assert labels.shape == size
        assert labels.dtype == torch.int64
        scores = both.segmentation_scores
        assert scores.shape == (classes, *size)
        assert torch.equal(both.segmentation, labels)
        assert torch.equal(labels, (scores[0] > 0).long() if classes == 1 else scores.argmax(0))
    with pytest.raises(ValueError, match="target_sizes"):
        build().post_process_semantic_segmentation(outputs, [(3, 3)])


def test_auto_class_round_trip(tmp_path, build):
    SegFormerConfig().save_pretrained(tmp_path)
    made = build(palette=[[1, 2, 3], [4, 5, 6]], size_divisor=32, do_reduce_labels=True, size={"shortest_edge": 96})
    made.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["palette"] == [[1, 2, 3], [4, 5, 6]]
    for backend, cls in BACKENDS.items():
        read = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(read) is cls
        assert read.to_json_string() == made.to_json_string()


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_pipelines_run_without_logged_errors(tmp_path, caplog, monkeypatch, backend):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    labels = {i: f"thing {i}" for i in range(5)}
    BACKENDS[backend](size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    picture = photo().convert("P")
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    SegFormerForSemanticSegmentation(SegFormerConfig(**TINY, id2label=labels)).save_pretrained(tmp_path)
    found = pipeline("image-segmentation", model=str(tmp_path), image_processor=processor)(picture)
    assert sum(np.asarray(part["mask"]).astype(bool).sum() for part in found) == 60 * 90
    assert {part["label"] for part in found} <= set(labels.values())
    features = pipeline("image-feature-extraction", model=str(tmp_path), image_processor=processor)(picture)
    assert np.asarray(features).shape == (1, 64, 2, 2)
    SegFormerForImageClassification(SegFormerConfig(**TINY, id2label=labels)).save_pretrained(tmp_path)
    classes = pipeline("image-classification", model=str(tmp_path), image_processor=processor)(picture)
    assert {entry["label"] for entry in classes} <= set(labels.values())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
