"""Pose evaluation of a data source, compared with pycocotools on the annotation file itself."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_people import COCO_NAMES, pose_recipe

from hf_vit_seg.data.datasets import RawDataset, open_split
from hf_vit_seg.records import read_record
from hf_vit_seg.training.evaluation import tasks
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.model.building import build_model
from hf_vit_seg.training.recipe.schema import Recipe

HEIGHT, WIDTH = 240, 320
KINDS = ("person", "person", "person", "person", "crowd", "empty", "flat")
SCORES = [f"{name}{part}" for name in ("oks_ap", "oks_ar") for part in ("", "_50", "_75", "_medium", "_large")]


def random_annotations(seed: int, names: Sequence[str] = COCO_NAMES, images: int = 5) -> list[dict[str, Any]]:
    """Persons small and large, of which many cross the image border, crowds, and persons without keypoints or area."""
    rng, rows = np.random.default_rng(seed), []
    for image in rng.permutation(images) + 1:
        for kind in ("person", *rng.choice(KINDS, rng.integers(1, 7))):
            size = rng.choice([30, 70, 150]) * rng.uniform(0.7, 1.3, 2)
            x, y = rng.uniform(-size / 2, (WIDTH, HEIGHT) - size / 2)
            points = rng.uniform((x, y), (x + size[0], y + size[1]), (len(names), 2))
            points = np.clip(points, 0, (WIDTH - 1, HEIGHT - 1))
            visible = rng.integers(0, 3, len(names)) * (kind != "empty")
            row = {"id": len(rows) + 1, "image_id": int(image), "category_id": 1, "iscrowd": int(kind == "crowd")}
            row |= {"bbox": [x, y, *size], "area": 0.0 if kind == "flat" else 0.7 * size.prod()}
            row |= {"keypoints": np.column_stack([points, visible]).flatten().tolist()}
            rows.append(row | {"num_keypoints": int((visible > 0).sum())})
    return rows


def write_annotations(folder: Path, rows: list[dict[str, Any]], names: Sequence[str] = COCO_NAMES) -> None:
    """An annotation file and its images."""
    numbers = sorted({row["image_id"] for row in rows})
    for number in numbers:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in numbers],
        "annotations": rows,
        "categories": [{"id": 1, "name": "person", "keypoints": list(names)}],
    }
    (folder / "people.json").write_text(json.dumps(content))


def noisy_predictions(seed: int, levels: Sequence[float] = (0.01, 0.05, 0.1, 0.3)):
    """A replacement of the model's predictions: labeled keypoints with noise; few scores, so that some are equal."""

    def persons(context: EvaluationContext, dataset: RawDataset, size: tuple[int, int]):
        rng = np.random.default_rng(seed)
        for index in range(len(dataset)):
            person: Any = dataset.read(index).target
            noise = rng.choice(levels) * person.box[3]
            points = person.keypoints[:, :2].numpy() + rng.normal(size=(len(person.keypoints), 2)) * noise
            yield person, points, rng.integers(0, 12) / 12

    return persons


def evaluate_people(folder: Path, data: dict[str, Any] | None = None, **source: Any):
    """The evaluation of the validation split, and the predictions in COCO's results format."""
    content = pose_recipe(folder)
    content["data"]["validation"] = content["data"]["validation"] | source
    content["data"] |= data or {}
    recipe = read_record(Recipe, content)
    dataset = open_split(recipe, "validation")
    assert dataset is not None
    built = build_model(recipe, dataset.class_table.names)
    context = EvaluationContext(built.model, built.processor, recipe, Accelerator(cpu=True))
    results = [
        {
            "image_id": person.image_id,
            "category_id": 1,
            "keypoints": np.column_stack([points, np.ones(len(points))]).flatten().tolist(),
            "score": score,
        }
        for person, points, score in sorted(
            tasks.persons(context, dataset, (64, 48)), key=lambda each: each[0].annotation_id
        )
    ]
    return evaluate(context, dataset), results


def coco_scores(folder: Path, results: list[dict[str, Any]], sigmas: Sequence[float] | None = None) -> dict[str, float]:
    """The scores of pycocotools for the annotation file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "people.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: np.nan if v == -1 else v for name, v in zip(SCORES, evaluation.stats.tolist(), strict=True)}


@pytest.mark.parametrize("seed", range(12))
def test_scores_match_pycocotools_on_the_annotation_file(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "persons", noisy_predictions(seed))
    rows = random_annotations(seed)
    write_annotations(tmp_path, rows)
    found, results = evaluate_people(tmp_path)
    assert found.scores == pytest.approx(coco_scores(tmp_path, results), abs=1e-9, nan_ok=True)
    assert 0 < found.scores["oks_ap"] < 1


def test_boxes_are_scored_as_annotated(tmp_path, monkeypatch):
    """Without `area`, the area is that of the whole box, of which half is outside the image."""
    monkeypatch.setattr(tasks, "persons", noisy_predictions(2, [0.06]))
    rows = random_annotations(0, images=1)[:1]
    rows[0] |= {"bbox": [-60, 20, 120, 160], "area": 120 * 160.0, "num_keypoints": 17}
    points = np.random.default_rng(0).uniform((0, 20), (60, 180), (17, 2))
    rows[0]["keypoints"] = np.column_stack([points, np.full(17, 2)]).flatten().tolist()
    write_annotations(tmp_path, rows)
    found, results = evaluate_people(tmp_path)
    whole = coco_scores(tmp_path, results)
    del rows[0]["area"]
    write_annotations(tmp_path, rows)
    assert evaluate_people(tmp_path)[0].scores == pytest.approx(whole, nan_ok=True)
    assert "uncut" in found.protocol
    rows[0]["area"] = 60 * 160.0
    write_annotations(tmp_path, rows)
    assert coco_scores(tmp_path, results)["oks_ap"] < whole["oks_ap"]  # the areas matter


def test_persons_below_the_least_number_of_keypoints_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "persons", noisy_predictions(3))
    rows = random_annotations(3)
    write_annotations(tmp_path, rows)
    found, results = evaluate_people(tmp_path, keypoints=12)
    empty = {"num_keypoints": 0, "keypoints": [0] * 3 * len(COCO_NAMES)}
    write_annotations(tmp_path, [row if row["num_keypoints"] >= 12 else row | empty for row in rows])
    assert found.scores == pytest.approx(coco_scores(tmp_path, results), abs=1e-9, nan_ok=True)
    assert len(results) == found.samples == sum(r["num_keypoints"] >= 12 and not r["iscrowd"] for r in rows)


def test_sigmas_of_other_keypoints_match_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "persons", noisy_predictions(4))
    names = ("snout", "left fin", "right fin", "tail")
    write_annotations(tmp_path, random_annotations(4, names), names)
    for given, sigmas in ((None, [0.05] * 4), ([0.1, 0.02, 0.03, 0.2], [0.1, 0.02, 0.03, 0.2])):
        found, results = evaluate_people(tmp_path, {"oks_sigmas": given})
        assert found.scores == pytest.approx(coco_scores(tmp_path, results, sigmas), abs=1e-9, nan_ok=True)
