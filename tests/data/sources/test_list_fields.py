"""Labels and paths of lists as other programs write them."""

import json

import datasets
import pytest
from PIL import Image

from hf_vit_seg.data.sources.source_registry import SourceError, open_source


def save(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3)).save(path)


def open_list(folder, text: str, name: str = "l.csv", task: str = "classification"):
    for image in "abc":
        save(folder / f"{image}.png")
    (folder / name).write_text(text, encoding="utf-8")
    return open_source({"kind": "list", "file": str(folder / name)}, task)


def labels(source) -> list:
    names = source.class_names
    return [names[target] if names else target for target in (source.read(i).target for i in range(len(source)))]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("1", "10", [1, 10]),
        ("-1", "0", [-1, 0]),
        ("1_0", "10", ["1_0", "10"]),
        ("01", "1", ["01", "1"]),
        ("１", "1", ["１", "1"]),
        ("+1", "1", ["+1", "1"]),
        ("1.0", "1", ["1.0", "1"]),
        (" 1 ", "2 ", [1, 2]),
        ("dog ", "dog", ["dog", "dog"]),
        ("dog\t", " dog", ["dog", "dog"]),
    ],
)
def test_labels_are_strict_integers_or_stripped_names(tmp_path, first, second, expected):
    assert labels(open_list(tmp_path, f"image,label\na.png,{first}\nb.png,{second}\n")) == expected


def test_fields_and_header_are_stripped(tmp_path):
    source = open_list(tmp_path, "image , label \na.png ,cat\n b.png,dog\n")
    assert [source.name(i) for i in range(2)] == ["a.png", "b.png"]


def test_too_many_fields_raise(tmp_path):
    with pytest.raises(SourceError, match="line 3"):
        open_list(tmp_path, "image,label\na.png,cat\nb.png,cat,dog\n")


def test_image_by_two_paths_raises(tmp_path):
    with pytest.raises(SourceError, match="more than once"):
        open_list(tmp_path, "image,label\na.png,cat\n./a.png,dog\n")


@pytest.mark.parametrize(("name", "delimiter"), [("l.csv", ","), ("l.tsv", "\t"), ("l.txt", " ")])
def test_backslashes_separate_folders(tmp_path, name, delimiter):
    save(tmp_path / "images/x/a.png"), save(tmp_path / "masks/a.png")
    header = "" if name == "l.txt" else f"image{delimiter}mask\n"
    source = open_list(tmp_path, rf"{header}images\x\a.png{delimiter}masks\a.png", name, "segmentation")
    assert source.read(0).target.shape == (3, 4)
    assert source.name(0) == "images/x/a.png"


def test_file_name_with_a_backslash_is_kept(tmp_path):
    save(tmp_path / r"x\a.png"), save(tmp_path / "x/a.png")
    assert open_list(tmp_path, "image,label\nx\\a.png,cat\n").name(0) == r"x\a.png"


def test_coco_paths_and_category_names(tmp_path):
    save(tmp_path / "x/a.png")
    content = {
        "images": [{"id": 1, "file_name": r"x\a.png", "height": 3, "width": 4}],
        "annotations": [],
        "categories": [{"id": 1, "name": "dog "}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    places = {"annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    source = open_source({"kind": "coco_masks", **places}, "segmentation")
    assert source.read(0).name == "x/a.png"
    assert source.class_names == ("background", "dog")


def test_string_labels_of_rows_are_stripped(tmp_path):
    rows = {"image": [[[0]], [[0]], [[0]]], "label": ["dog", "dog ", "cat"]}
    datasets.Dataset.from_dict(rows, split="train").save_to_disk(str(tmp_path / "rows"))
    source = open_source({"kind": "huggingface", "name": str(tmp_path / "rows"), "split": "train"}, "classification")
    assert labels(source) == ["dog", "dog", "cat"]
