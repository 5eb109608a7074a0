"""COCO annotations as masks and as people."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as drawing
from pycocotools.coco import COCO

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.raw_values import IGNORED_VALUE
from hf_vit_seg.data.sources.source_registry import SourceError, open_source

HEIGHT, WIDTH = 8, 10


def rectangle(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def pixels(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def run_lengths(mask: np.ndarray, compressed: bool) -> dict:
    encoded = drawing.encode(np.asfortranarray(mask))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = np.concatenate([[0], mask.flatten(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts if flat[1] == 0 else [0, *counts]}


def annotation(number: int, category: int, shape, area: float, image: int = 1, **fields) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": shape,
        "area": area,
        "bbox": [1, 1, 2, 2],
        "iscrowd": 0,
        **fields,
    }


def write_coco(folder: Path, annotations: list[dict], **content) -> dict:
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(folder / "b.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    document = {
        "images": [
            {"id": 1, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        **content,
    }
    (folder / "annotations.json").write_text(json.dumps(document))
    return {"annotations": str(folder / "annotations.json"), "images": str(folder)}


def masks(folder: Path, annotations: list[dict], **settings):
    return open_source({"kind": "coco_masks", **write_coco(folder, annotations), **settings}, "segmentation")


def test_smaller_instances_are_drawn_on_top_and_crowds_ignored(tmp_path):
    source = masks(
        tmp_path,
        [
            annotation(1, 3, rectangle(2, 2, 4, 4), 4),
            annotation(2, 7, rectangle(0, 0, 6, 6), 36),
            annotation(3, 3, rectangle(3, 3, 5, 5), 4),
            annotation(4, 7, run_lengths(pixels(0, 5, 8, 7), False), 16, iscrowd=1),
        ],
    )
    assert source.class_names == ("background", "cat", "dog")
    expected = np.zeros((HEIGHT, WIDTH), np.int64)
    for part, value in ((pixels(0, 0, 6, 6), 2), (pixels(2, 2, 4, 4), 1), (pixels(3, 3, 5, 5), 1)):
        expected[part == 1] = value
    expected[pixels(0, 5, 8, 7) == 1] = IGNORED_VALUE
    sample = source.read(1)
    assert sample.name == source.name(1) == "b.png"
    assert np.array_equal(sample.target.numpy(), expected)
    assert sample.image.shape == (3, HEIGHT, WIDTH)
    assert source.read(0).target.unique().tolist() == [0]


@pytest.mark.parametrize("area", [None, 0, 1])
def test_drawing_order_ignores_area_fields(tmp_path, area):
    small, large = rectangle(2, 2, 4, 4), rectangle(0, 0, 6, 6)
    annotations = [annotation(1, 3, small, 4), annotation(2, 7, large, area)]
    mask = masks(tmp_path, annotations).read(1).target
    assert mask.flatten().bincount().tolist() == [HEIGHT * WIDTH - 36, 4, 32]
    for each in annotations:
        del each["area"]
    assert torch.equal(masks(tmp_path, annotations).read(1).target, mask)


@pytest.mark.parametrize("compressed", [True, False])
def test_all_segmentation_encodings_give_the_same_mask(tmp_path, compressed):
    place = (1, 2, 6, 9)
    ways = [rectangle(*place), run_lengths(pixels(*place), compressed)]
    found = [masks(tmp_path, [annotation(1, 7, way, 35)]).read(1).target for way in ways]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], 2 * torch.from_numpy(pixels(*place)).long())


def test_categories_keep_given_order_and_background_is_optional(tmp_path):
    shapes = [annotation(1, 7, rectangle(0, 0, 2, 2), 4), annotation(2, 3, rectangle(4, 4, 6, 6), 4)]
    both = masks(tmp_path, shapes, categories=["dog", "cat"], background=None)
    assert both.class_names == ("dog", "cat")
    assert both.read(1).target[::4, ::4].tolist()[0] == [0, IGNORED_VALUE, IGNORED_VALUE]
    assert both.read(1).target[5, 5] == 1
    one = masks(tmp_path, shapes, categories=["dog"], background="none")
    assert one.class_names == ("none", "dog")
    assert one.read(1).target.flatten().bincount().tolist() == [HEIGHT * WIDTH - 4, 4]


@pytest.mark.parametrize(
    ("annotations", "settings", "reason"),
    [
        ([annotation(5, 7, [], 4)], {}, "1 of 1 annotations have no segmentation: 5"),
        ([annotation(5, 7, rectangle(0, 0, 2, 2), 4)], {"categories": ["cow"]}, "no category 'cow'; it has dog, cat"),
        (
            [annotation(5, 7, rectangle(0, 0, 2, 2), 4, image=9)],
            {},
            "annotations of unknown images: 5",
        ),
        ([{"id": 5, "category_id": 7}], {}, "entry without 'image_id'"),
        ([annotation(5, 9, rectangle(0, 0, 2, 2), 4)], {}, "annotations of unknown categories: 5"),
        (
            [annotation(5, None, [], 4)],
            {},
            r"annotations\.0\.category_id should be a valid integer or a valid string, found None",
        ),
        ([annotation(5, 7, [], 4, bbox="wide")], {}, r"annotations\.0\.bbox should be .*, found 'wide'"),
    ],
)
def test_annotations_without_masks(tmp_path, annotations, settings, reason):
    with pytest.raises(SourceError, match=reason):
        masks(tmp_path, annotations, **settings)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("x", "expected a list of polygons"),
        ([1, 2, 3, 4, 5, 6], "expected a list of polygons"),
        ({"size": [3, 3], "counts": [0, 9]}, r"has the size \[3, 3\], but its image has"),
    ],
)
def test_invalid_segmentations_raise_with_id(tmp_path, shape, reason):
    source = masks(tmp_path, [annotation(55, 7, shape, 4)])
    with pytest.raises(SourceError, match=reason) as error:
        source.read(1)
    assert "annotation 55" in str(error.value)


def test_non_coco_files_raise(tmp_path):
    settings = write_coco(tmp_path, [])
    path = Path(settings["annotations"])

    def open_coco():
        return open_source({"kind": "coco_masks", **settings}, "segmentation")

    for text, reason in (
        ("{", "not valid JSON"),
        ("[]", "expected the lists images"),
        ('{"images": []}', "expected the lists"),
    ):
        path.write_text(text)
        with pytest.raises(SourceError, match=reason):
            open_coco()
    write_coco(tmp_path, [])
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match=r"lists 2 files, of which 1 do not exist: .*/a\.png"):
        open_coco()


def test_image_size_mismatch_raises(tmp_path):
    source = masks(tmp_path, [])
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "b.png")
    with pytest.raises(ImageFileError, match=r"b\.png: the image has 10x8 pixels .* are for 8x10"):
        source.read(1)


def people(folder: Path, annotations: list[dict], channels: int = 3, **settings):
    names = ["nose", "tail"]
    files = write_coco(folder, annotations, categories=[{"id": 7, "name": "dog", "keypoints": names}])
    return open_source({"kind": "coco_keypoints", "category": "dog", **files, **settings}, "pose", channels)


def person(number: int, points: list[float], **fields) -> dict:
    return annotation(number, 7, [], 11.5, keypoints=points, num_keypoints=2, **fields)


def test_people_with_labeled_keypoints_are_samples(tmp_path):
    points = [3, 4, 2, 5, 6, 1]
    source = people(
        tmp_path,
        [
            person(1, points, bbox=[-2, 1, 6, 30]),
            person(2, [0] * 6),
            person(3, points, iscrowd=1),
            person(4, [3, 4, 2, 0, 0, 0], image=2),
            person(5, points, bbox=[WIDTH, 0, 4, 4]),
            person(6, [3, 4, 1, 0, 0, 0]),
        ],
    )
    assert source.class_names == ("nose", "tail")
    assert [source.name(i) for i in range(len(source))] == ["a.png#4", "b.png#1", "b.png#6"]
    assert [source.group(i) for i in range(len(source))] == [2, 1, 1]
    target = source.read(1).target
    assert target.box == (0, 1, 4, HEIGHT - 1)
    assert target.keypoints.tolist() == [[3, 4, 2], [5, 6, 1]]
    assert (target.area, target.image_id, target.annotation_id) == (11.5, 1, 1)
    target.keypoints.zero_()
    assert source.read(1).target.keypoints.sum() > 0
    assert len(people(tmp_path, [person(1, points), person(6, [3, 4, 1, 0, 0, 0])], keypoints=2)) == 1


def test_ids_can_be_strings(tmp_path):
    drawn = [annotation("5f3e", 7, rectangle(0, 0, 2, 2), 4, bbox=[math.nan] * 4)]
    assert (masks(tmp_path, drawn).read(1).target != 0).any()


def test_invalid_people_raise(tmp_path):
    with pytest.raises(SourceError, match="no 'dog' has 1 or more labeled keypoints"):
        people(tmp_path, [person(1, [0] * 6)])
    with pytest.raises(SourceError, match="annotation 1 has 3 keypoint numbers and 4 bbox numbers, expected 6 and 4"):
        people(tmp_path, [person(1, [1, 1, 2])])
    with pytest.raises(SourceError, match=r"annotation 1 has 6 keypoint numbers and 0 bbox numbers"):
        people(tmp_path, [person(1, [3, 4, 2, 5, 6, 1], bbox=None)])
    for invalid in (person(1, [math.nan, 4, 2, 5, 6, 1]), person(1, [3, 4, 2, 5, 6, 1], bbox=[0, 0, math.inf, 1])):
        with pytest.raises(SourceError, match="annotation 1 has numbers that are not finite"):
            people(tmp_path, [invalid])
    with pytest.raises(
        SourceError,
        match="ids of annotations and images must be integers of at most 64 bits for keypoints, found 'Rex'",
    ):
        people(tmp_path, [person("Rex", [3, 4, 2, 5, 6, 1])])
    with pytest.raises(SourceError, match="has no keypoints"):
        open_source({"kind": "coco_keypoints", "category": "cat", **write_coco(tmp_path, [])}, "pose")


@pytest.mark.shared
def test_people_match_pycocotools_on_real_data(shared):
    folder = shared / "data/coco_pose_mini"
    files = {"annotations": str(folder / "person_keypoints.json"), "images": str(folder / "images")}
    source = open_source({"kind": "coco_keypoints", **files}, "pose")
    assert len(source) == 29
    coco = COCO(files["annotations"])
    for index in range(len(source)):
        sample = source.read(index)
        reference = coco.anns[sample.target.annotation_id]
        assert sample.target.keypoints.flatten().tolist() == reference["keypoints"]
        assert sample.target.area == reference["area"]
        assert sample.target.box == pytest.approx(reference["bbox"], abs=0.01)
        inside = sample.target.keypoints[sample.target.keypoints[:, 2] > 0]
        assert (inside[:, 0] < sample.image.shape[2]).all() and (inside[:, 1] < sample.image.shape[1]).all()
    assert len({source.group(index) for index in range(len(source))}) == 10


@pytest.mark.shared
def test_masks_match_pycocotools_on_real_data(shared):
    folder = shared / "data/coco_pose_mini"
    files = {"annotations": str(folder / "person_keypoints.json"), "images": str(folder / "images")}
    source = open_source({"kind": "coco_masks", **files}, "segmentation")
    coco = COCO(files["annotations"])
    for index in range(len(source)):
        sample = source.read(index)
        image = next(i for i in coco.imgs.values() if i["file_name"] == sample.name)
        shapes = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        crowd, persons = (
            np.any(
                [np.zeros(sample.target.shape, bool), *[coco.annToMask(a) == 1 for a in shapes if a["iscrowd"] == k]], 0
            )
            for k in (1, 0)
        )
        expected = np.where(crowd, IGNORED_VALUE, persons)
        assert np.array_equal(sample.target.numpy(), expected)


def test_all_annotations_are_labels_of_the_evaluation(tmp_path):
    points = [3, 4, 2, 5, 6, 1]
    rows = [
        person(1, points, bbox=[-2, 1, 6, 30]),
        person(2, [0] * 6),
        person(3, points, iscrowd=1),
        person(4, [3, 4, 2, 0, 0, 0], image=2),
        person(5, points) | {"area": 0},
    ]
    del rows[0]["area"]
    source = people(tmp_path, rows, keypoints=2)
    assert [source.name(i) for i in range(len(source))] == ["b.png#1", "b.png#5"]
    found = {each.annotation_id: each for each in source.labeled_persons([1])}
    assert list(found) == [1, 2, 3, 5]
    assert (found[1].box, found[1].area) == ((-2, 1, 6, 30), 180)
    assert [each.crowd for each in found.values()] == [False, False, True, False]
    assert [int((each.keypoints[:, 2] > 0).sum()) for each in source.labeled_persons([1, 2])] == [0, 2, 0, 2, 2]
    assert [bool(source.read(i).notes) for i in range(2)] == [False, True]  # an area of 0
