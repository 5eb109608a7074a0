"""Objects and segments of COCO and Cityscapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.datasets import RawDataset, open_split
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.class_table import ClassTableError
from hf_vit_seg.data.samples import Segments
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.records import read_record
from hf_vit_seg.training.recipe.schema import Recipe

HEIGHT, WIDTH = 12, 16


def recipe(task: str, source: dict, **data) -> Recipe:
    model = {"architecture": "segformer", "variant": "tiny", "fields": {"decode_head": "query", "num_queries": 2}}
    return read_record(Recipe, {"task": task, "model": model, "loop": {"steps": 1}, "data": {"train": source, **data}})


def read_segments(dataset: RawDataset, index: int) -> Segments:
    target = dataset.read(index).target
    assert isinstance(target, Segments)
    return target


def opened(task: str, source: dict, **data) -> RawDataset:
    dataset = open_split(recipe(task, source, **data), "train")
    assert dataset is not None
    return dataset


def rectangle(top: int, left: int, bottom: int, right: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number: int, category: int, polygon: Any, crowd: int = 0) -> dict:
    if crowd:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        x, y = np.array(polygon[0]).reshape(-1, 2).T
        mask[min(y) : max(y), min(x) : max(x)] = 1
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
        polygon = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *changes, HEIGHT * WIDTH]).tolist()}
    return {"id": number, "image_id": 1, "category_id": category, "segmentation": polygon, "iscrowd": crowd}


def write_coco(root: Path, annotations: list[dict]) -> dict:
    (root / "images").mkdir()
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / f"images/{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2)]
    categories = [{"id": 7, "name": "car"}, {"id": 3, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return {"kind": "coco_masks", "annotations": str(root / "instances.json"), "images": str(root / "images")}


def test_coco_objects(tmp_path):
    pytest.importorskip("pycocotools")
    source = write_coco(
        tmp_path,
        [
            annotation(1, 7, rectangle(1, 1, 4, 5)),  # 12 pixels, on top of the larger one
            annotation(2, 3, rectangle(0, 0, 6, 8)),
            annotation(3, 7, rectangle(8, 8, 12, 16), crowd=1),
            annotation(4, 3, rectangle(7, 7, 9, 9)),  # its last pixel is in the crowd
        ],
    )
    dataset = opened("instance", source)
    assert dataset.class_table.names == ("person", "car")
    target = dataset.read(0).target
    assert target.classes == (0, 1, 0)  # the largest is drawn first
    assert target.areas().tolist() == [48 - 12, 12, 3]
    assert (target.ids == -1).sum() == 32 and (target.ids == 0).sum() == HEIGHT * WIDTH - 48 - 32 - 3
    assert dataset.raw(0).target.overlaps == 12 + 1
    nothing = dataset.read(1).target
    assert nothing.classes == () and not nothing.ids.any()
    assert opened("instance", {**source, "categories": ["car"]}).read(0).target.classes == (0,)


def test_check_counts_tiny_split_covered_and_overlapping_objects(tmp_path):
    pytest.importorskip("pycocotools")
    source = write_coco(
        tmp_path,
        [
            annotation(1, 7, rectangle(0, 0, 2, 2)),  # 4 pixels
            annotation(2, 3, [*rectangle(4, 0, 8, 3), *rectangle(4, 6, 8, 9)]),
            annotation(3, 7, rectangle(9, 9, 12, 14)),
            annotation(4, 7, rectangle(9, 9, 12, 14)),
        ],
    )
    report = check(recipe("instance", source))
    facts = report.splits["train"].facts[0].objects
    assert (facts.count, facts.tiny, facts.split, facts.hidden, facts.overlaps) == (4, 1, 1, 1, 15)
    assert report.splits["train"].facts[1].objects.count == 0
    assert report.problems == []
    assert report.class_counts() == [1, 3]
    assert len([text for text in report.warnings if "4 objects" in text]) == 3
    assert report.query_warnings(4) == [] and report.query_warnings(None) == []
    (warning,) = report.query_warnings(2)
    assert "1 of 2 samples" in warning and "(2)" in warning and "at most 4" in warning


def test_facts_of_objects_are_cached(tmp_path):
    pytest.importorskip("pycocotools")
    source = write_coco(tmp_path, [annotation(1, 7, rectangle(0, 0, 2, 2))])
    first, second = (check(recipe("instance", source), cache=tmp_path / "facts.json") for _ in range(2))
    assert first.splits["train"].facts == second.splits["train"].facts


COLORS = {"sky": 5, "car": 256 + 7, "other car": 65536, "crowd": 3, "void": 0}


def write_panoptic(root: Path, **changes) -> dict:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.jpg")
    ids = np.full((HEIGHT, WIDTH), COLORS["sky"])
    ids[0, :4], ids[2:6, 0:4], ids[2:6, 6:10], ids[8:] = 0, COLORS["car"], COLORS["other car"], COLORS["crowd"]
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(root / "masks/a.png")
    segments = [
        {"id": COLORS["sky"], "category_id": 9},
        {"id": COLORS["car"], "category_id": 4, "iscrowd": 0},
        {"id": COLORS["other car"], "category_id": 4},
        {"id": COLORS["crowd"], "category_id": 4, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 9, "name": "sky", "isthing": 0}, {"id": 4, "name": "car", "isthing": 1}],
    }
    (root / "panoptic.json").write_text(json.dumps(content | changes))
    places = {"annotations": "panoptic.json", "images": "images", "masks": "masks"}
    return {"kind": "coco_panoptic", **{name: str(root / place) for name, place in places.items()}}


def test_coco_panoptic(tmp_path):
    dataset = opened("panoptic", write_panoptic(tmp_path))
    assert dataset.class_table.names == ("car", "sky") and dataset.class_table.stuff == {1}
    target = dataset.read(0).target
    kinds = sorted(zip(target.classes, target.areas().tolist(), strict=True))
    assert kinds == [(0, 16), (0, 16), (1, 8 * WIDTH - 4 - 32)]
    assert (target.ids == -1).sum() == 4 + 4 * WIDTH  # void and the crowd
    assert [path.name for path in dataset.files(0)] == ["a.jpg", "a.png"]


def test_coco_panoptic_for_instances_has_things_only(tmp_path):
    dataset = opened("instance", write_panoptic(tmp_path))
    assert dataset.class_table.names == ("car",)
    target = dataset.read(0).target
    assert target.classes == (0, 0) and target.areas().tolist() == [16, 16]
    assert (target.ids == 0).sum() == 8 * WIDTH - 4 - 32 and (target.ids == -1).sum() == 4 + 4 * WIDTH


def test_classes_of_a_recipe_may_overrule_things(tmp_path):
    classes = [{"name": "car", "thing": False}, {"name": "sky", "thing": False}]
    dataset = opened("panoptic", write_panoptic(tmp_path), classes=classes)
    target = dataset.read(0).target
    assert sorted(target.classes) == [0, 1]
    assert not (target.ids == -1).all() and (target.ids == -1).sum() == 4  # a region of stuff is no crowd


def test_invalid_panoptic_files_raise(tmp_path):
    source = write_panoptic(tmp_path)
    content = json.loads((tmp_path / "panoptic.json").read_text())
    first = content["annotations"][0]
    for wrong in (
        {"annotations": []},
        {"annotations": [first, first]},
        {"annotations": [{**first, "image_id": 5}]},
        {"annotations": [{"image_id": 1, "file_name": "a.png"}]},
        {"annotations": [{**first, "file_name": "b.png"}]},
        {"categories": content["categories"][:1]},
        {"images": content["images"] * 2},
        {
            "annotations": [
                {**first, "segments_info": [*first["segments_info"], {**first["segments_info"][1], "category_id": 9}]}
            ]
        },
        {
            "images": [*content["images"], {**content["images"][0], "id": 2, "file_name": "./a.jpg"}],
            "annotations": [first, {**first, "image_id": 2}],
        },
    ):
        write_panoptic(tmp_path, **wrong)
        with pytest.raises(SourceError):
            opened("panoptic", source)
    write_panoptic(tmp_path, annotations=[{**first, "segments_info": first["segments_info"][1:]}])
    with pytest.raises(ImageFileError):
        opened("panoptic", source).read(0)


def write_cityscapes(root: Path) -> dict:
    ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
    ids[0], ids[1] = 3, 11
    ids[4:8, :4], ids[4:8, 6:10], ids[10, :5], ids[11, :2] = 26000, 26001, 26, 24007
    for place, array in (
        ("leftImg8bit/val/ulm/ulm_000_leftImg8bit.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        ("gtFine/val/ulm/ulm_000_gtFine_instanceIds.png", ids),
        ("gtFine/val/ulm/ulm_000_gtFine_labelIds.png", ids.astype(np.uint8)),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / place)
    return {"kind": "cityscapes", "root": str(root), "split": "val"}


def test_cityscapes(tmp_path):
    source = write_cityscapes(tmp_path)
    dataset = opened("panoptic", source)
    names = dataset.class_table.names
    assert len(names) == 19 and {names[index] for index in dataset.class_table.stuff} >= {"road", "sky"}
    assert len(dataset.class_table.stuff) == 11
    assert dataset.name(0) == "ulm/ulm_000_leftImg8bit.png"
    target = read_segments(dataset, 0)
    found = sorted(zip((names[i] for i in target.classes), target.areas().tolist(), strict=True))
    road = HEIGHT * WIDTH - 2 * WIDTH - 32 - 5 - 2
    assert found == [("building", WIDTH), ("car", 16), ("car", 16), ("person", 2), ("road", road)]
    assert (target.ids == -1).sum() == WIDTH + 5  # label 3, and a group of cars
    assert opened("panoptic", source, classes="cityscapes").read(0).target.classes == target.classes


def test_cityscapes_for_instances(tmp_path):
    dataset = opened("instance", write_cityscapes(tmp_path), classes="cityscapes")
    assert len(dataset.class_table.names) == 8 and not dataset.class_table.stuff
    target = read_segments(dataset, 0)
    assert sorted(dataset.class_table.names[i] for i in target.classes) == ["car", "car", "person"]
    assert (target.ids == -1).sum() == WIDTH + 5
    assert target.ids[3, 0] == 0 and target.ids[1, 0] == 0
    assert torch.equal(opened("instance", write_cityscapes(tmp_path)).read(0).target.ids, target.ids)


def test_stuff_of_instances_raises(tmp_path):
    classes = [{"name": "car"}, {"name": "road", "thing": False}]
    with pytest.raises(ClassTableError):
        opened("instance", write_cityscapes(tmp_path), classes=classes)
