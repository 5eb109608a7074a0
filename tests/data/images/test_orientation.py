"""Images and masks that are stored turned or mirrored."""

from io import BytesIO

import datasets
import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_vit_seg.data.checks.check import check_datasets
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.images.files import ImageBytes, read_orientation
from hf_vit_seg.data.images.orientation import turn_upright, upright_size
from hf_vit_seg.data.images.pixels import read_mask, read_pixels, read_rgb_image
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.sources.source_registry import open_source
from hf_vit_seg.training.data_check import split_content
from hf_vit_seg.training.recipe_loading import load_recipe

ORIENTATIONS = range(1, 9)
HEIGHT, WIDTH = 3, 4
STORED = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
# Where the first stored row and column are in the upright image (EXIF 2.32, table 6).
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}


def tiff(array: np.ndarray, orientation: int, **options) -> ImageBytes:
    buffer = BytesIO()
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(buffer, array, extratags=tags, **options)
    return ImageBytes("a.tif", buffer.getvalue())


def encoded(array: np.ndarray, orientation: int, kind: str) -> ImageBytes:
    buffer, exif = BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(array).save(buffer, kind, exif=exif)
    return ImageBytes(f"a.{kind.lower()}", buffer.getvalue())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientations_match_exif(orientation):
    upright = turn_upright(STORED, orientation)
    assert upright.shape == upright_size(HEIGHT, WIDTH, orientation)
    row, column = CORNERS[orientation]
    assert upright[row, column] == STORED[0, 0]
    along_rows = upright[row] if orientation < 5 else upright[:, column]
    assert sorted(along_rows.tolist()) == STORED[0].tolist()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_images_and_masks_are_upright(orientation, byteorder, compression, dtype):
    file = tiff(STORED.astype(dtype), orientation, compression=compression, byteorder=byteorder)
    expected = turn_upright(STORED, orientation)
    assert read_orientation(file) == orientation
    assert np.array_equal(read_pixels(file, 1)[0].numpy(), expected)
    assert np.array_equal(read_mask(file).numpy(), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("layout", ["chunky", "planar", "pages"])
def test_channels_of_a_tiff_are_upright(orientation, layout):
    bands = np.random.default_rng(0).integers(0, 255, (5, HEIGHT, WIDTH)).astype(np.uint8)
    if layout == "chunky":
        file = tiff(bands.transpose(1, 2, 0), orientation, photometric="minisblack", planarconfig="contig")
    else:
        options = {"planarconfig": "separate"} if layout == "planar" else {}
        file = tiff(bands, orientation, photometric="minisblack", **options)
    assert np.array_equal(read_pixels(file, 5).numpy(), turn_upright(bands, orientation))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_photos_are_upright(orientation, kind):
    gray = np.kron(np.array([[0, 255, 0], [0, 0, 128]], np.uint8), np.ones((16, 16), np.uint8))
    color = np.repeat(gray[..., None], 3, axis=2)
    file = encoded(color, orientation, kind)
    assert read_orientation(file) == orientation
    upright = turn_upright(color.transpose(2, 0, 1), orientation)
    for found in (read_pixels(file, 3).numpy(), np.asarray(read_rgb_image(file)).transpose(2, 0, 1)):
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() < 50  # lossy formats


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_undefined_orientations_are_upright(orientation):
    file = tiff(STORED, orientation)
    assert read_orientation(file) == 1
    assert np.array_equal(read_mask(file).numpy(), STORED)


def save_pair(folder, image_orientation: int, mask_orientation: int) -> RawDataset:
    for name, orientation in (("images", image_orientation), ("masks", mask_orientation)):
        (folder / name).mkdir()
        values = STORED % 2 if name == "masks" else STORED.astype(np.float32)
        (folder / name / "a.tif").write_bytes(tiff(values, orientation).data)
    settings = {"kind": "folders", "images": str(folder / "images"), "masks": str(folder / "masks")}
    return RawDataset(open_source(settings, "segmentation", 1), ClassTable(("a", "b"), ((0, 0), (1, 1))))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_both_sides_of_a_pair_are_turned(tmp_path, orientation):
    sample = save_pair(tmp_path, orientation, orientation).read(0)
    assert np.array_equal(sample.image[0].numpy() % 2, sample.target.numpy())


@pytest.mark.parametrize(
    ("image", "mask", "turned", "warnings"), [(1, 1, 0, 0), (3, 3, 1, 0), (3, 1, 1, 1), (1, 2, 0, 1)]
)
def test_check_counts_orientations(tmp_path, image, mask, turned, warnings):
    recipe, cache = load_recipe("nuclei", ["data.channels=1"]), tmp_path / "facts.json"
    dataset = save_pair(tmp_path, image, mask)
    for _ in range(2):  # the second time from the cache
        report = check_datasets(recipe, {"train": dataset}, cache)
        assert split_content(report.splits["train"])["turned_by_orientation"] == turned
        assert sum("orientation" in warning for warning in report.warnings) == warnings


def test_check_counts_orientations_in_rows(tmp_path):
    rows = {
        "image": [{"bytes": encoded(np.repeat(STORED[..., None], 3, 2), 3, "PNG").data, "path": None}],
        "mask": [{"bytes": encoded(STORED % 2, 1, "PNG").data, "path": None}],
    }
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features, split="train").save_to_disk(str(tmp_path / "rows"))
    source = open_source({"kind": "huggingface", "name": str(tmp_path / "rows"), "split": "train"}, "segmentation")
    dataset = RawDataset(source, ClassTable(("a", "b"), ((0, 0), (1, 1))))
    report = check_datasets(load_recipe("nuclei"), {"train": dataset})
    assert report.splits["train"].rotated_samples == (0,)
    assert sum("orientation" in warning for warning in report.warnings) == 1
