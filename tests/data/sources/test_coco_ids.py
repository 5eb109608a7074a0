"""Ids in COCO files: duplicates, mixed types, and several files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vit_seg.data.checks.sample_facts import source_stamp
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.sources.source_registry import SourceError, open_source

SIDE = 8
KEYPOINTS = ["nose", "tail"]


def square(left: int, top: int, side: int) -> list[list[int]]:
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def export(folder: Path, name: str, files: list[str], category: str, corner: int, **changes) -> Path:
    """Write an export whose ids start at 1, with one square on each image."""
    for file in files:
        Image.new("RGB", (SIDE, SIDE)).save(folder / file)
    content = {
        "images": [{"id": i, "file_name": f, "height": SIDE, "width": SIDE} for i, f in enumerate(files, 1)],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "segmentation": square(corner, corner, 2),
                "bbox": [corner, corner, 2, 2],
                "keypoints": [corner, corner, 2, 0, 0, 0],
            }
            for i in range(1, len(files) + 1)
        ],
        "categories": [{"id": 1, "name": category, "keypoints": KEYPOINTS}],
        **changes,
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def open_masks(folder: Path, annotations):
    return open_source({"kind": "coco_masks", "annotations": annotations, "images": str(folder)}, "segmentation")


@pytest.fixture
def exports(tmp_path) -> list[str]:
    cats = export(tmp_path, "cats.json", ["cat1.png", "cat2.png"], "cat", 0)
    dogs = export(tmp_path, "dogs.json", ["dog1.png", "dog2.png"], "dog", 4)
    return [str(cats), str(dogs)]


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("kind", ["coco_masks", "coco_keypoints"])
def test_duplicate_ids_raise_with_names(tmp_path, exports, part, kind):
    content, other = (json.loads(Path(path).read_text()) for path in exports)
    content[part] += other[part]
    both = tmp_path / "both.json"
    both.write_text(json.dumps(content))
    task = "pose" if kind == "coco_keypoints" else "segmentation"
    with pytest.raises(SourceError) as error:
        open_source({"kind": kind, "annotations": str(both), "images": str(tmp_path)}, task)
    names = {"images": ("cat1.png", "dog1.png"), "annotations": ("image 1",), "categories": ("cat", "dog")}[part]
    assert all(name in str(error.value) for name in names)


def test_image_file_with_two_ids_raises(tmp_path):
    entry = {"file_name": "a.png", "height": SIDE, "width": SIDE}
    path = export(tmp_path, "a.json", ["a.png"], "cat", 0, images=[{"id": 1, **entry}, {"id": 2, **entry}])
    with pytest.raises(SourceError, match=r"a\.png \(id 1, id 2\)"):
        open_masks(tmp_path, str(path))


def test_spellings_of_a_file_name_are_one_image(tmp_path):
    entry = {"height": SIDE, "width": SIDE}
    images = [{"id": 1, "file_name": "a.png", **entry}, {"id": 2, "file_name": "./a.png", **entry}]
    path = export(tmp_path, "a.json", ["a.png"], "cat", 0, images=images)
    with pytest.raises(SourceError, match=r"a\.png \(id 1, id 2\)"):
        open_masks(tmp_path, str(path))
    first, second = (
        export(tmp_path, f"{corner}.json", ["a.png"], "cat", corner, images=[images[place]])
        for place, corner in enumerate((0, 4))
    )
    content = json.loads(second.read_text())
    content["annotations"][0]["image_id"] = 2
    second.write_text(json.dumps(content))
    source = open_masks(tmp_path, [str(first), str(second)])
    assert [source.name(i) for i in range(len(source))] == ["a.png"]
    assert int(source.read(0).target.sum()) == 8  # a square of 2x2 pixels of each file


def test_category_name_with_two_ids_raises(tmp_path):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    path = export(tmp_path, "a.json", ["a.png"], "cat", 0, categories=categories)
    with pytest.raises(SourceError, match=r"cat \(id 1, id 2\)"):
        open_masks(tmp_path, str(path))


def test_several_files_keep_their_ids_apart(tmp_path, exports):
    source = open_masks(tmp_path, exports)
    assert source.class_names == ("background", "cat", "dog")
    assert [source.name(i) for i in range(len(source))] == ["cat1.png", "cat2.png", "dog1.png", "dog2.png"]
    for index in range(4):
        expected = np.zeros((SIDE, SIDE), np.int64)
        corner, value = (0, 1) if index < 2 else (4, 2)
        expected[corner : corner + 2, corner : corner + 2] = value
        assert np.array_equal(source.read(index).target.numpy(), expected)


def test_several_files_share_images_and_categories_by_name(tmp_path):
    first = export(tmp_path, "first.json", ["a.png"], "cat", 0)
    second = export(tmp_path, "second.json", ["b.png", "a.png"], "cat", 4)
    source = open_masks(tmp_path, [str(first), str(second)])
    assert source.class_names == ("background", "cat")
    assert [source.name(i) for i in range(len(source))] == ["a.png", "b.png"]
    assert source.read(0).target.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [4, 4], [4, 5], [5, 4], [5, 5]]


@pytest.mark.parametrize("kind", ["coco_masks", "coco_keypoints"])
def test_each_file_may_have_its_own_folder(tmp_path, kind):
    folders = [tmp_path / name for name in ("first", "second/images")]
    for folder in folders:
        folder.mkdir(parents=True)
    paths = [export(folder, "a.json", ["a.png"], "cat", corner) for folder, corner in zip(folders, (0, 4), strict=True)]
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(folders[1] / "a.png")
    settings = {"kind": kind, "annotations": [str(path) for path in paths], "images": [str(each) for each in folders]}
    task = "segmentation"
    if kind == "coco_keypoints":
        task, settings["category"] = "pose", "cat"
    source = open_source(settings, task)
    assert len(source) == 2 and source.name(0) != source.name(1)
    assert [source.files(index)[0] for index in range(2)] == [folder / "a.png" for folder in folders]
    assert [int(source.read(index).image[0].max()) for index in range(2)] == [0, 255]
    if task == "segmentation":
        assert [source.read(index).target.nonzero()[0].tolist() for index in range(2)] == [[0, 0], [4, 4]]


def test_other_number_of_folders_raises(tmp_path, exports):
    with pytest.raises(SourceError):
        open_source(
            {"kind": "coco_masks", "annotations": exports, "images": [str(tmp_path)] * 3},
            "segmentation",
        )


def test_people_of_several_files_have_separate_ids(tmp_path):
    paths = [export(tmp_path, f"{name}.json", [f"{name}.png"], "cat", 2) for name in "ab"]
    source = open_source(
        {
            "kind": "coco_keypoints",
            "annotations": [str(path) for path in paths],
            "images": str(tmp_path),
            "category": "cat",
        },
        "pose",
    )
    targets = [source.read(index).target for index in range(len(source))]
    assert [(t.image_id, t.annotation_id) for t in targets] == [(1, 1), (2, 2)]


def test_files_that_contradict_each_other_raise(tmp_path):
    first = export(tmp_path, "first.json", ["a.png"], "cat", 0)
    sizes = [{"id": 1, "file_name": "a.png", "height": SIDE, "width": 9}]
    second = export(tmp_path, "second.json", ["a.png"], "cat", 0, images=sizes)
    with pytest.raises(SourceError, match="8x9"):
        open_masks(tmp_path, [str(first), str(second)])
    third = export(tmp_path, "third.json", ["a.png"], "cat", 0, categories=[{"id": 1, "name": "cat"}])
    with pytest.raises(SourceError, match="keypoints"):
        open_masks(tmp_path, [str(first), str(third)])


def test_ids_of_mixed_type_are_sorted(tmp_path):
    categories = [{"id": "b", "name": "dog"}, {"id": 1, "name": "cat"}, {"id": "a", "name": "cow"}]
    path = export(tmp_path, "a.json", ["a.png"], "cat", 0, categories=categories)
    assert open_masks(tmp_path, str(path)).class_names == ("background", "cat", "cow", "dog")


def test_cached_facts_depend_on_each_annotation_file(tmp_path, exports):
    settings = {"kind": "coco_masks", "annotations": exports, "images": str(tmp_path)}
    table = ClassTable(("background", "cat", "dog"), ((0, 0), (1, 1), (2, 2)))
    dataset = RawDataset(open_masks(tmp_path, exports), table)
    before = source_stamp(settings, 3, dataset)
    assert source_stamp(settings, 3, dataset) == before
    Path(exports[1]).write_text(Path(exports[1]).read_text() + " ")
    assert source_stamp(settings, 3, dataset) != before
