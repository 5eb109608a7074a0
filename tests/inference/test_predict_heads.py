"""`hf-vit-seg predict` with classification and pose models."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from test_predict import photo, predict
from tiny_people import COCO_NAMES
from transformers import AutoModelForImageClassification, AutoModelForPoseEstimation

from hf_vit_seg import architectures
from hf_vit_seg.drawing.skeletons import Skeleton
from hf_vit_seg.inference import Classifier, PoseEstimator

PETS = ("cat", "dog", "fish, small", "bird", "horse", "cow")


def save(folder: Path, auto_class, names) -> Path:
    vit = architectures()["vit"]
    torch.manual_seed(0)
    config = vit.variant_config("tiny", num_labels=len(names), id2label=dict(enumerate(names)))
    auto_class.from_config(config).save_pretrained(folder)
    vit.image_processor["torchvision"](size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("classifier"), AutoModelForImageClassification, PETS)


@pytest.fixture(scope="module")
def poser(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("poser"), AutoModelForPoseEstimation, COCO_NAMES)


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    photo(90, 70).save(tmp_path / "in" / "a.png")
    photo(50, 60).save(tmp_path / "in" / "sub" / "b.png")
    return tmp_path / "in"


def read(path: Path):
    return json.loads(path.read_text())


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_classes_of_images_as_tables(classifier, images, tmp_path):
    out = tmp_path / "out"
    assert predict(classifier, images, "--out", out)[0] == 0
    assert names_in(out) == {"a.json", "sub/b.json", "classes.csv", "classes.json"}
    wanted = Classifier.from_pretrained(str(classifier))
    table = read(out / "classes.json")
    assert [entry["image"] for entry in table] == [str(images / "a.png"), str(images / "sub" / "b.png")]
    for entry in table:
        found = [(row["name"], row["score"]) for row in entry["classes"]]
        expected = wanted(entry["image"])
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    with (out / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], int(row["rank"]), row["class"], float(row["score"])) for row in rows] == [
        (entry["image"], rank, row["name"], row["score"])
        for entry in table
        for rank, row in enumerate(entry["classes"], start=1)
    ]
    report = read(out / "a.json")
    assert (report["height"], report["width"], report["dtype"]) == (90, 70, "float32")
    assert predict(classifier, images, "--out", tmp_path / "two", "--top-k", 2, "--dtype", "bfloat16")[0] == 0
    assert [len(entry["classes"]) for entry in read(tmp_path / "two" / "classes.json")] == [2, 2]
    assert read(tmp_path / "two" / "a.json")["dtype"] == "bfloat16"


def test_failed_images_are_listed_and_left_out_of_tables(classifier, images, tmp_path):
    (images / "broken.png").write_bytes(b"not an image")
    (images / "clip.mp4").write_bytes(b"")
    code, text = predict(classifier, images, images / "clip.mp4", "--out", tmp_path / "out")
    assert code == 1
    assert "broken.png" in text and "clip.mp4" in text and "2 of 4 images" in text and "Traceback" not in text
    assert len(read(tmp_path / "out" / "classes.json")) == 2


def test_existing_results_are_preserved_or_replaced(classifier, images, tmp_path):
    out = tmp_path / "out"
    assert predict(classifier, images / "a.png", "--out", out)[0] == 0
    before = (out / "a.json").read_bytes()
    assert predict(classifier, images / "a.png", "--out", out)[0] == 2
    code, text = predict(classifier, images / "sub" / "b.png", "--out", out)
    assert code == 2 and "classes.csv" in text
    assert predict(classifier, images / "sub" / "b.png", "--out", out, "--skip-existing")[0] == 0
    assert [Path(entry["image"]).name for entry in read(out / "classes.json")] == ["a.png", "b.png"]
    assert predict(classifier, images, "--out", out, "--skip-existing")[0] == 0
    assert (out / "a.json").read_bytes() == before
    (out / "classes.csv").unlink()
    assert predict(classifier, images / "a.png", "--out", out, "--skip-existing")[0] == 0  # only the tables are written
    assert len((out / "classes.csv").read_text().splitlines()) == 1 + 2 * 5
    assert predict(classifier, images / "a.png", "--out", out, "--overwrite", "--top-k", 1)[0] == 0
    assert [len(entry["classes"]) for entry in read(out / "classes.json")] == [1]
    (images / "a.png").write_bytes(b"not an image")
    assert predict(classifier, images, "--out", out, "--overwrite")[0] == 1
    assert [Path(entry["image"]).name for entry in read(out / "classes.json")] == ["b.png"]


def test_tables_and_reports_have_different_names(classifier, tmp_path):
    photo().save(tmp_path / "classes.png")
    assert predict(classifier, tmp_path / "classes.png", "--out", tmp_path / "out")[0] == 0
    assert names_in(tmp_path / "out") == {"classes_png.json", "classes.csv", "classes.json"}


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("classifier", ("--window", 32), "--window"),
        ("classifier", ("--polygons", "coco"), "--polygons"),
        ("classifier", ("--boxes", "people.json"), "--boxes"),
        ("poser", ("--scores", "--tile", 512), "--scores, --tile"),
        ("poser", ("--boxes", "absent.json"), "absent.json"),
    ],
)
def test_options_of_other_tasks_raise(kind, options, words, images, tmp_path, request):
    code, text = predict(request.getfixturevalue(kind), images, "--out", tmp_path / "out", *options)
    assert code == 2
    assert words in text and "Traceback" not in text
    assert not names_in(tmp_path / "out") if (tmp_path / "out").exists() else True


def test_whole_images_are_persons_by_default(poser, images, tmp_path):
    out = tmp_path / "out"
    assert predict(poser, images, "--out", out)[0] == 0
    assert names_in(out) == {"a.json", "a.overlay.png", "sub/b.json", "sub/b.overlay.png", "keypoints.json"}
    wanted = PoseEstimator.from_pretrained(str(poser))
    results = read(out / "keypoints.json")
    assert [(entry["image_id"], entry["category_id"]) for entry in results] == [(1, 1), (2, 1)]
    for entry in results:
        points = np.array(entry["keypoints"]).reshape(17, 3)
        expected = wanted(entry["file_name"]).numpy()
        assert points == pytest.approx(expected, abs=1e-3)
        assert entry["score"] == pytest.approx(expected[:, 2].mean(), abs=1e-5)
    assert Image.open(out / "a.overlay.png").size == (70, 90)
    assert read(out / "a.json")["persons"][0]["box"] == [0, 0, 70, 90]
    assert predict(poser, images, "--out", tmp_path / "plain", "--no-overlay")[0] == 0
    assert not list((tmp_path / "plain").rglob("*.png"))


def annotations(folder: Path, **category) -> Path:
    people = [
        {"id": 1, "image_id": 40, "category_id": 3, "bbox": [-5, 10, 40, 60]},
        {"id": 2, "image_id": 40, "category_id": 3, "bbox": [20, 5, 30, 80]},
        {"id": 3, "image_id": 40, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 4, "image_id": 40, "category_id": 1, "bbox": [1, 1, 9, 9]},
        {"id": 5, "image_id": 40, "category_id": 3, "bbox": [70, 5, 9, 9]},
    ]
    content = {
        "images": [
            {"id": 40, "file_name": "a.png", "height": 90, "width": 70},
            {"id": 7, "file_name": "sub/b.png", "height": 50, "width": 60},
        ],
        "annotations": people,
        "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "person", **category}],
    }
    (folder / "people.json").write_text(json.dumps(content))
    return folder / "people.json"


def test_boxes_of_annotations(poser, images, tmp_path):
    out = tmp_path / "out"
    assert predict(poser, images, "--out", out, "--boxes", annotations(tmp_path))[0] == 0
    results = read(out / "keypoints.json")
    assert [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in results] == [
        (40, 3, [0, 10, 35, 60]),  # cut by the image border
        (40, 3, [20, 5, 30, 80]),
    ]
    estimator = PoseEstimator.from_pretrained(str(poser))
    for entry in results:
        expected = estimator(images / "a.png", tuple(entry["bbox"])).numpy().flatten()
        assert entry["keypoints"] == pytest.approx(expected, abs=1e-3)
    assert read(out / "sub" / "b.json")["persons"] == []
    assert sorted(COCO(tmp_path / "people.json").loadRes(str(out / "keypoints.json")).getImgIds()) == [7, 40]
    photo().save(images / "c.png")
    code, text = predict(poser, images, "--out", tmp_path / "more", "--boxes", tmp_path / "people.json")
    assert code == 1 and "c.png: the image is not listed" in text


def test_boxes_of_results(poser, images, tmp_path):
    (images / "a.png").rename(images / "000123.png")
    rows = [
        {"image_id": 123, "category_id": 1, "bbox": [5, 6, 30, 40], "score": 0.5},
        {"image_id": "x", "category_id": 1, "bbox": [1, 2, 20, 30], "score": 0.25, "file_name": "sub/b.png"},
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    assert predict(poser, images, "--out", tmp_path / "out", "--boxes", tmp_path / "found.json")[0] == 0
    results = read(tmp_path / "out" / "keypoints.json")
    assert [entry["image_id"] for entry in results] == [123, "x"]
    for entry, row in zip(results, rows, strict=True):
        scores = np.array(entry["keypoints"]).reshape(17, 3)[:, 2]
        assert entry["score"] == pytest.approx(scores.mean() * row["score"], abs=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        "{}",
        "3",
        '[{"image_id": 1}]',
        '[{"image_id": 1, "bbox": [1, 2, 3]}]',
        '[{"image_id": 1, "bbox": [1, 2, NaN, 3]}]',
        '[{"image_id": 1, "bbox": [30, 40, -20, -30]}]',
        '[{"image_id": 1, "bbox": [1, 2, 3, 3]}, {"image_id": 1, "bbox": [1, 2, 3, 3], "category_id": 2}]',
        '[{"image_id": "elsewhere", "bbox": [1, 2, 3, 3]}]',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}',
    ],
)
def test_invalid_boxes_are_reported(poser, images, tmp_path, content):
    (tmp_path / "boxes.json").write_text(content)
    code, text = predict(poser, images, "--out", tmp_path / "out", "--boxes", tmp_path / "boxes.json")
    assert code == 2
    assert "boxes.json" in text and "Traceback" not in text


def test_bones_of_the_annotations_are_drawn(images, tmp_path, monkeypatch):
    names = ("snout", "L_fin", "R_fin")
    model = save(tmp_path / "fish", AutoModelForPoseEstimation, names)
    drawn = []
    monkeypatch.setattr(
        "hf_vit_seg.inference.files.classification_and_pose.draw_persons",
        lambda found, skeleton: drawn.append(skeleton) or found.image.shown,
    )
    boxes = annotations(tmp_path, keypoints=list(names), skeleton=[[1, 2], [1, 3]])
    assert predict(model, images, "--out", tmp_path / "out", "--boxes", boxes)[0] == 0
    assert drawn[0].bones == ((0, 1), (0, 2))
    assert isinstance(drawn[0], Skeleton)


def test_ids_of_images_are_preserved(poser, images, tmp_path):
    out = tmp_path / "out"
    assert predict(poser, images / "sub" / "b.png", "--out", out)[0] == 0
    assert predict(poser, images, "--out", out, "--skip-existing")[0] == 0
    found = {Path(entry["file_name"]).name: entry["image_id"] for entry in read(out / "keypoints.json")}
    assert found == {"b.png": 1, "a.png": 2}
