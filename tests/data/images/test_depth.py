"""Images with more than 8 bits that are read as RGB."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hf_vit_seg.data.checks.check import BadDataError, check_datasets, require_valid_data
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.sources.source_registry import open_source
from hf_vit_seg.data.statistics import compute_statistics
from hf_vit_seg.training.recipe_loading import load_recipe

SIDE = 8


def gray(top: int) -> np.ndarray:
    return np.linspace(0, top, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)


def png_rgb_16(values: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB, which PIL cannot write."""
    color = np.repeat(values[..., None], 3, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in color)
    header = struct.pack(">IIBBBBB", *values.shape[::-1], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def save_png(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path.with_suffix(".png"))


def save_tiff(path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), values)


def save_numpy(path: Path, values: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), values)


def save_color_png(path: Path, values: np.ndarray) -> None:
    path.with_suffix(".png").write_bytes(png_rgb_16(values))


SAVERS = (save_png, save_tiff, save_numpy, save_color_png)


def dataset(folder: Path, save, tops: list[int], channels: int) -> RawDataset:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number, top in enumerate(tops):
        save(folder / "images" / f"{number}", gray(top))
        Image.fromarray((gray(1) > 0).astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    settings = {"kind": "folders", "images": str(folder / "images"), "masks": str(folder / "masks")}
    return RawDataset(open_source(settings, "segmentation", channels), ClassTable(("a", "b"), ((0, 0), (1, 1))))


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("top", [1047, 4095])
def test_dark_images_of_more_than_8_bits_are_rejected(tmp_path, save, top):
    data, recipe = dataset(tmp_path, save, [top, 300], 3), load_recipe("nuclei")
    report = check_datasets(recipe, {"train": data}, tmp_path / "facts.json")
    assert len(report.problems) == 1 and "image_mean: computed" in report.problems[0]
    with pytest.raises(BadDataError):
        require_valid_data(recipe, {"train": data}, tmp_path / "facts.json")


@pytest.mark.parametrize("save", SAVERS)
def test_normalized_dark_images_are_accepted(tmp_path, save):
    """Statistics of the images take the place of white, so that no depth is lost."""
    data = dataset(tmp_path, save, [1047, 300], 3)
    recipe = load_recipe("nuclei", ["processor={image_mean: computed, image_std: computed}"])
    report = check_datasets(recipe, {"train": data})
    assert report.problems == [] and report.kinds[0][0] == "3 x uint16"
    statistics = compute_statistics(map(data.read, range(2)))
    values = np.stack([gray(1047), gray(300)]) / 65535
    assert statistics.rescale_factor == 1 / 255
    assert statistics.mean == pytest.approx([values.mean()] * 3) and statistics.std == pytest.approx([values.std()] * 3)


@pytest.mark.parametrize("save", SAVERS)
def test_images_of_the_whole_range_keep_their_values(tmp_path, save):
    data = dataset(tmp_path, save, [65535, 300], 3)
    report = check_datasets(load_recipe("nuclei"), {"train": data})
    assert report.problems == [] and not any("bits" in warning for warning in report.warnings)
    assert data.read(1).image.dtype == torch.uint16
    assert np.array_equal(data.read(1).image.numpy(), np.stack([gray(300)] * 3))


def test_images_of_8_and_16_bits_can_be_mixed(tmp_path):
    """They have one white: an image of 8 bits equals that of 16 bits with its values times 257."""
    data = dataset(tmp_path, save_color_png, [65535, 65535], 3)
    eight = np.round(gray(65535) / 257).astype(np.uint8)
    Image.fromarray(eight).convert("RGB").save(tmp_path / "images" / "1.png")
    report = check_datasets(load_recipe("nuclei"), {"train": data})
    assert report.problems == [] and len(report.kinds) == 2
    mixed = compute_statistics(map(data.read, range(2)))
    values = np.stack([gray(65535) / 257, eight]) / 255
    assert mixed.mean == pytest.approx([values.mean()] * 3) and mixed.rescale_factor == 1 / 255


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("white", [1.0, 65535.0])
def test_statistics_of_other_scales(tmp_path, save, white):
    """Recipes with a rescale_factor of their own: 1 keeps raw values."""
    data = dataset(tmp_path, save, [65535, 300], 3)
    found = compute_statistics(map(data.read, range(2)), white)
    values = np.stack([gray(65535), gray(300)]) / white
    assert found.rescale_factor == 1 / white
    assert found.mean == pytest.approx([values.mean()] * 3) and found.std == pytest.approx([values.std()] * 3)


@pytest.mark.parametrize("save", SAVERS)
def test_one_channel_keeps_the_depth(tmp_path, save):
    data = dataset(tmp_path, save, [1047], 1)
    assert data.read(0).image.dtype == torch.float32
    assert np.array_equal(data.read(0).image[0].numpy(), gray(1047))
    report = check_datasets(load_recipe("nuclei"), {"train": data})
    assert report.problems == []


def test_8_bit_images_are_not_dark(tmp_path):
    data = dataset(tmp_path, lambda path, values: save_png(path, values.astype(np.uint8)), [60], 3)
    report = check_datasets(load_recipe("nuclei"), {"train": data})
    assert report.problems == [] and report.kinds[0][0] == "3 x uint8"


@pytest.mark.parametrize("number", [-1, 65536])
def test_gray_values_beyond_16_bits_raise(number):
    values, buffer = gray(300).astype(np.int32), BytesIO()
    values[0, 0] = number
    np.save(buffer, values)
    file = ImageBytes("a.npy", buffer.getvalue())
    with pytest.raises(ImageFileError, match=str(number)):
        read_pixels(file, 3)
    assert np.array_equal(read_pixels(file, 1)[0].numpy(), values)
