"""Columns that hold something else than the task needs."""

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_vit_seg.data.sources.source_registry import SourceError, open_source


@pytest.fixture
def rows(tmp_path) -> str:
    picture = Image.new("RGB", (4, 3))
    columns = {
        "image": [picture] * 2,
        "mask": [Image.new("L", (4, 3))] * 2,
        "array": [np.zeros((3, 4), np.int32).tolist()] * 2,
        "label": [0, 1],
        "name": ["cat", "dog"],
        "share": [0.5, 0.5],
        "class": [0, 1],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "array": datasets.Array2D((3, 4), "int32"),
            "label": datasets.Value("int64"),
            "name": datasets.Value("string"),
            "share": datasets.Value("float32"),
            "class": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    datasets.Dataset.from_dict(columns, features=features, split="train").save_to_disk(str(tmp_path / "rows"))
    return str(tmp_path / "rows")


def open_rows(rows: str, task: str = "segmentation", **settings):
    return open_source({"kind": "huggingface", "name": rows, "split": "train", **settings}, task)


@pytest.mark.parametrize("column", ["label", "name", "share", "class"])
@pytest.mark.parametrize("setting", ["mask_column", "image_column"])
def test_labels_as_pixels_raise(rows, column, setting):
    with pytest.raises(SourceError, match=f"{setting} to one of image, mask, array"):
        open_rows(rows, **{"mask_column": "mask", setting: column})


@pytest.mark.parametrize("column", ["image", "array", "share"])
def test_pixels_as_labels_raise(rows, column):
    with pytest.raises(SourceError, match=f"column '{column}'.*expected labels"):
        open_rows(rows, "classification", label_column=column)
    with pytest.raises(SourceError, match="image_column"):
        open_rows(rows, "classification", image_column="name", label_column="label")


@pytest.mark.parametrize("column", ["mask", "array"])
def test_pixels_as_masks_are_read(rows, column):
    assert open_rows(rows, mask_column=column).read(0).target.shape == (3, 4)


def test_files_as_labels_of_a_list_raise(tmp_path):
    for name in ("a.png", "b.png", "m.png"):
        Image.new("L", (4, 3)).save(tmp_path / name)
    (tmp_path / "l.csv").write_text("image,mask,label\na.png,m.png,cat\nb.png,m.png,dog\n")
    settings = {"kind": "list", "file": str(tmp_path / "l.csv")}
    with pytest.raises(SourceError, match="target_column"):
        open_source({**settings, "target_column": "mask"}, "classification")
    with pytest.raises(SourceError, match="do not exist"):
        open_source({**settings, "target_column": "label"}, "segmentation")
    assert open_source(settings, "classification").class_names == ("cat", "dog")
    assert len(open_source(settings, "segmentation")) == 2
