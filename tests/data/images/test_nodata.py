"""Pixels without data, by the tag of a TIFF and by `data.nodata`."""

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tifffile
import torch
from tiny_runs import log, run, weights, write_recipe

from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.data.statistics import compute_statistics
from hf_vit_seg.inference.dense.image_preparation import prepare_image
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.image_inputs import load_file
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.training.recipe_loading import load_recipe

SIDE = 32
LOWEST = float(np.finfo(np.float32).min)  # as GDAL writes it for float32


def write_floats(folder: Path, nodata: float, suffix: str = ".tif", tag: str | None = None, count: int = 4) -> Path:
    """Images of two channels around 100, the label being where the first one is larger; the first has no corner."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:, number * 4 : number * 4 + 12] = 1
        image = random.normal(100, 10, (2, SIDE, SIDE)).astype(np.float32) + 50 * mask * np.array([[[1]], [[-1]]])
        image = image.astype(np.float32)
        if number == 0:
            image[:, :8, :8] = nodata
        path = folder / "images" / f"{number}{suffix}"
        tags = [] if tag is None else [(42113, "s", 0, tag, True)]
        if suffix == ".npy":
            np.save(path, image)
        else:
            tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate", extratags=tags)
        tifffile.imwrite(folder / "masks" / f"{number}.tif", mask)
    return folder


def recipe(folder: Path, **data: Any) -> dict[str, Any]:
    source = {"kind": "folders", "images": str(folder / "images"), "masks": str(folder / "masks")}
    return {
        "model": {"architecture": "segformer", "variant": "tiny", "fields": {"drop_path_rate": 0.0}},
        "processor": {"do_resize": False, "image_mean": "computed", "image_std": "computed"},
        "data": {"train": source, "validation": source, "channels": 2, "classes": ["a", "b"], "workers": 0, **data},
        "loop": {"steps": 3, "batch_size": 2, "log_every": 1},
        "evaluation": {"samples": 0},
    }


def read_first(folder: Path, out: Path, **data: Any):
    dataset = open_split(load_recipe(write_recipe(out, recipe(folder, **data))), "train")
    assert dataset is not None
    return dataset.read(0)


@pytest.mark.parametrize(
    ("nodata", "suffix", "tag", "setting"),
    [
        (LOWEST, ".tif", "-3.4028234663852886e+38", {}),
        (LOWEST, ".tif", "-3.4028235e+38", {}),
        (math.nan, ".tif", "nan", {}),
        (-9999, ".tif", "-9999", {}),
        (-9999, ".tif", None, {"nodata": -9999}),
        (-9999, ".npy", None, {"nodata": -9999}),
        (math.nan, ".npy", None, {"nodata": "nan"}),
        (-1, ".tif", "-9999", {"nodata": -1}),
    ],
)
def test_labels_without_data_are_ignored_and_pixels_are_filled(tmp_path, nodata, suffix, tag, setting):
    sample = read_first(write_floats(tmp_path / "data", nodata, suffix, tag), tmp_path, **setting)
    assert (sample.image[:, :8, :8] == 0).all() and sample.image.isfinite().all()
    assert (sample.target[:8, :8] == 255).all() and (sample.target != 255).sum() == SIDE**2 - 64


def test_declared_value_can_be_disabled(tmp_path):
    sample = read_first(write_floats(tmp_path / "data", -9999, tag="-9999"), tmp_path, nodata="none")
    assert (sample.image[:, :8, :8] == -9999).all() and (sample.target != 255).all()


def test_value_without_nodata_tag_is_data(tmp_path):
    with pytest.raises(ImageFileError):
        read_first(write_floats(tmp_path / "data", math.nan), tmp_path)


def test_measured_value_in_one_channel_is_data(tmp_path):
    folder = write_floats(tmp_path / "data", 0, tag="0")
    image = tifffile.imread(folder / "images" / "0.tif")
    image[0, 20, 20] = 0
    tags = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(
        folder / "images" / "0.tif", image, photometric="minisblack", planarconfig="separate", extratags=tags
    )
    sample = read_first(folder, tmp_path)
    assert sample.missing is not None and sample.missing.sum() == 64
    assert sample.target[20, 20] != 255


@pytest.mark.parametrize("value", [200, 0])
def test_mask_value_declared_as_missing_is_ignored_unless_it_has_a_class(tmp_path, value):
    folder = write_floats(tmp_path / "data", -1)
    mask = np.ones((SIDE, SIDE), np.uint8)
    mask[:4] = value
    tifffile.imwrite(folder / "masks" / "0.tif", mask, extratags=[(42113, "s", 0, str(value), True)])
    sample = read_first(folder, tmp_path)
    assert (sample.target[:4] == (255 if value == 200 else 0)).all() and (sample.target[4:] == 1).all()


def test_statistics_leave_out_missing_pixels(tmp_path):
    whole = write_floats(tmp_path / "data", -9999, tag="-9999")
    dataset = open_split(load_recipe(write_recipe(tmp_path, recipe(whole))), "train")
    assert dataset is not None
    found = compute_statistics(map(dataset.read, range(len(dataset))))
    images = [tifffile.imread(path) for path in sorted((whole / "images").glob("*.tif"))]
    values = np.concatenate([image[:, image[0] != -9999] for image in images], axis=1).astype(float)
    assert found.mean == pytest.approx(values.mean(1).tolist()) and found.std == pytest.approx(values.std(1).tolist())


def test_check_does_not_count_missing_pixels(tmp_path):
    folder = write_floats(tmp_path / "data", LOWEST, tag="-3.4028235e+38", count=1)
    report = check(load_recipe(write_recipe(tmp_path, recipe(folder))), ["train"])
    assert not report.problems and sum(report.class_counts("train")) == SIDE**2 - 64


def test_predict_fills_missing_pixels_with_the_mean(tmp_path):
    path = write_floats(tmp_path / "data", LOWEST, tag="-3.4028235e+38", count=1) / "images" / "0.tif"
    fields = {"image_mean": [100.0, 90.0], "image_std": [10.0, 10.0], "do_rescale": False, "do_resize": False}
    prepared = prepare_image(path, Protocol(), SemanticSegmentationImageProcessor(**fields), 2)
    assert (prepared.pixel_values[..., :8, :8].abs() < 1e-5).all() and prepared.pixel_values.isfinite().all()


def test_training_with_a_declared_value_equals_training_with_the_mean_in_its_place(tmp_path):
    """The model sees the mean of the processor, and neither loss nor scores count these pixels."""
    folder = write_floats(tmp_path / "data", LOWEST, tag="-3.4028235e+38")
    run(write_recipe(tmp_path, recipe(folder)), tmp_path / "run")
    mean = json.loads((tmp_path / "run" / "best" / "preprocessor_config.json").read_text())
    filled = write_floats(tmp_path / "filled", 0)
    path = filled / "images" / "0.tif"
    image = tifffile.imread(path)
    image[:, :8, :8] = np.array(mean["image_mean"], np.float32)[:, None, None]
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate")
    mask = tifffile.imread(filled / "masks" / "0.tif")
    mask[:8, :8] = 255
    tifffile.imwrite(filled / "masks" / "0.tif", mask)
    other = recipe(filled)
    other["processor"] = {"do_resize": False} | {
        name: mean[name] for name in ("image_mean", "image_std", "do_rescale", "rescale_factor")
    }
    run(write_recipe(tmp_path, other), tmp_path / "other")
    assert log(tmp_path / "run") == log(tmp_path / "other")
    assert log(tmp_path / "run", "evaluation") == log(tmp_path / "other", "evaluation")
    one, two = weights(tmp_path / "run" / "last"), weights(tmp_path / "other" / "last")
    assert all(torch.equal(one[name], two[name]) for name in one)


def write_tar(folder: Path, target: Path) -> Path:
    """The images and masks of a folder as samples of a tar file."""
    with tarfile.open(target, "w") as archive:
        for path in sorted((folder / "images").iterdir()):
            archive.add(path, path.name)
            archive.add(folder / "masks" / path.name, f"{path.stem}.mask.tif")
    return target


def write_table(folder: Path, target: Path) -> Path:
    """The images and masks of a folder as encoded bytes in the rows of a Parquet file."""
    rows = [
        {"image": path.read_bytes(), "mask": (folder / "masks" / path.name).read_bytes()}
        for path in sorted((folder / "images").iterdir())
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    return target


def upload(folder: Path, address: str) -> str:
    """Copy a folder to an address in memory."""
    fsspec.filesystem("memory").put(str(folder), address, recursive=True)
    return address


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "folders"])
def test_declared_values_of_files_in_archives_tables_and_at_addresses(tmp_path, kind):
    folder = write_floats(tmp_path / "data", -9999, tag="-9999")
    mask = np.full((SIDE, SIDE), 1, np.uint8)
    mask[-8:] = 200
    tifffile.imwrite(folder / "masks" / "0.tif", mask, extratags=[(42113, "s", 0, "200", True)])
    sources = {
        "webdataset": lambda: {"urls": str(write_tar(folder, tmp_path / "a.tar")), "mask": "mask.tif"},
        "parquet": lambda: {"data_files": str(write_table(folder, tmp_path / "a.parquet")), "mask_column": "mask"},
        "folders": lambda: {
            "images": upload(folder / "images", f"memory:/{tmp_path}/images"),
            "masks": str(folder / "masks"),
        },
    }
    sample = read_first(folder, tmp_path, train={"kind": kind, **sources[kind]()})
    assert (sample.image[:, :8, :8] == 0).all()
    assert (sample.target[:8, :8] == 255).all() and (sample.target[-8:] == 255).all()
    assert (sample.target[8:-8] == 1).all()


def test_declared_values_of_bytes_are_filled(tmp_path):
    path = write_floats(tmp_path / "data", -9999, tag="-9999") / "images" / "0.tif"
    processor = SemanticSegmentationImageProcessor(
        do_resize=False, image_mean=[100.0, 100.0], image_std=[10.0, 10.0], rescale_factor=1.0
    )
    pixels, _, missing = load_file(ImageBytes("a", path.read_bytes()), 2, processor)
    assert (pixels[:, :8, :8] == 100).all() and missing is not None and missing.sum() == 64
