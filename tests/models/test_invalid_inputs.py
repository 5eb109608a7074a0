"""Segmentation maps of any container, and errors for images and labels that cannot be used."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_vit_seg import architectures
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_segmentation import (
    SemanticSegmentationImageProcessor,
    SemanticSegmentationImageProcessorPil,
)

SIDE = 8
BACKENDS = [SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil]
CLASSES = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 5
IMAGE = np.zeros((SIDE, SIDE, 3), np.uint8)


@pytest.fixture(params=BACKENDS)
def processor(request):
    return request.param(do_resize=False)


def batch_labels(processor, images, maps) -> torch.Tensor:
    return processor(images, maps, return_tensors="pt")["labels"]


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, SIDE, 1), (1, SIDE, SIDE)])
@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_single_map_with_an_axis_of_length_one(processor, shape, convert):
    found = batch_labels(processor, IMAGE, convert(CLASSES.reshape(shape)))
    assert torch.equal(found, torch.tensor(CLASSES)[None].long())


@pytest.mark.parametrize("shape", [(2, SIDE, SIDE), (2, SIDE, SIDE, 1), (2, 1, SIDE, SIDE)])
def test_batch_of_maps(processor, shape):
    stacked = np.stack([CLASSES, CLASSES.T])
    for maps in (stacked.reshape(shape), list(stacked.reshape(shape))):
        assert torch.equal(batch_labels(processor, [IMAGE, IMAGE], maps), torch.tensor(stacked).long())


@pytest.mark.parametrize("mode", ["L", "P"])
def test_map_from_a_path_keeps_its_values(processor, mode, tmp_path):
    image = Image.fromarray(CLASSES)
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    image.save(tmp_path / "map.png")
    for path in (str(tmp_path / "map.png"), tmp_path / "map.png"):
        assert torch.equal(batch_labels(processor, IMAGE, path), torch.tensor(CLASSES)[None].long())
        assert len(batch_labels(processor, [IMAGE, IMAGE], [path, path])) == 2


@pytest.mark.parametrize("kind", ["array", "array of channels", "list", "image", "path"])
def test_color_map_raises(processor, kind, tmp_path):
    color = np.stack([CLASSES] * 3, axis=-1)
    Image.fromarray(color).save(tmp_path / "map.png")
    maps = {
        "array": color,
        "array of channels": color.transpose(2, 0, 1),
        "list": [color],
        "image": Image.fromarray(color),
        "path": str(tmp_path / "map.png"),
    }
    with pytest.raises(HfVitSegError, match="one class index per pixel"):
        batch_labels(processor, IMAGE, maps[kind])


def test_other_number_of_maps_raises(processor):
    with pytest.raises(HfVitSegError, match="3 segmentation maps for 2 images"):
        batch_labels(processor, [IMAGE, IMAGE], [CLASSES] * 3)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_map_with_fractions_raises(processor, value):
    with pytest.raises(HfVitSegError, match="integer class indices"):
        batch_labels(processor, IMAGE, np.full((SIDE, SIDE), value))


@pytest.mark.parametrize("reduced", [False, True])
def test_map_with_negative_classes_raises(reduced):
    processor = BACKENDS[0](size={"height": SIDE, "width": SIDE}, do_reduce_labels=reduced)
    with pytest.raises(HfVitSegError, match="-1"):
        batch_labels(processor, IMAGE, np.full((SIDE, SIDE), -1))


def test_map_of_whole_floats_is_read(processor):
    assert torch.equal(batch_labels(processor, IMAGE, CLASSES.astype(float)), torch.tensor(CLASSES)[None].long())


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_image_with_other_channels_than_means_raises(mode, backend):
    processor = backend(do_resize=False, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    assert processor(Image.new("RGBA", (SIDE, SIDE)), return_tensors="pt")["pixel_values"].shape[1] == 4
    with pytest.raises(HfVitSegError, match="image_mean of the processor 4"):
        processor(Image.new(mode, (SIDE, SIDE)))


def test_premultiplied_gray_is_blended_with_white(processor):
    image = Image.fromarray(np.stack([CLASSES * 50, np.full_like(CLASSES, 255)], axis=-1), "LA")
    found = processor(image.convert("La"), do_normalize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found * 255, torch.tensor(CLASSES * 50.0).expand(1, 3, -1, -1).float())


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("label", [-1, 9])
def test_label_without_a_class_raises(classes, label):
    config = architectures()["segformer"].variant_config("tiny", num_labels=classes)
    model = transformers.AutoModelForSemanticSegmentation.from_config(config)
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[0, 3, 3] = label
    with pytest.raises(HfVitSegError, match=f"got {label}$"):
        model(torch.randn(1, 3, 32, 32), labels=labels)


@pytest.mark.parametrize("name", ["segformer", "cvt"])
def test_image_below_the_least_size_raises(name):
    model = transformers.AutoModel.from_config(architectures()[name].variant_config("tiny"))
    with pytest.raises(HfVitSegError, match=r"got 2x2.*do_resize"):
        model(torch.zeros(1, 3, 2, 2))
