"""Classification with any number of classes per image, from the data to the saved model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import log, run, write_recipe
from transformers import AutoModelForImageClassification, pipeline

from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.data.labels.class_table import UnknownValueError
from hf_vit_seg.data.samples import Labels
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.inference import Classifier
from hf_vit_seg.metrics.multi_label import MultiLabelScores, average_precision
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.recipe.location import RecipeFileError
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.train_commands import evaluate_command

COLORS = {"red": 0, "green": 1, "blue": 2}


def write_images(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """Images whose channels are bright if they have the class, and a list of their labels."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        present = [name for name in COLORS if generator.random() < 0.5]
        pixels = generator.integers(0, 60, (32, 32, 3))
        for name in present:
            pixels[..., COLORS[name]] += 180
        path = folder / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append({"image": path.name, "label": "; ".join(present)})
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "label"])
        table.writeheader()
        table.writerows(rows)
    return folder / "labels.csv"


@pytest.fixture
def recipe(tmp_path) -> Path:
    sources = {
        split: {"kind": "list", "file": str(write_images(tmp_path / split, seed=seed)), "separator": ";"}
        for split, seed in (("train", 0), ("validation", 1))
    }
    return write_recipe(
        tmp_path,
        {
            "task": "classification",
            "model": {"architecture": "vit", "variant": "tiny", "fields": {"image_size": 32}},
            "processor": {"do_resize": False},
            "data": {**sources, "multi_label": True, "workers": 0},
            "optimizer": {"learning_rate": 3e-3},
            "loop": {"steps": 40, "batch_size": 6, "log_every": 10, "evaluate_every": 40},
        },
    )


def test_training_learns_several_classes(recipe, tmp_path):
    out = tmp_path / "run"
    assert run(recipe, out) is RunStatus.finished
    metrics = json.loads((out / "best" / "metrics.json").read_text())
    assert metrics["scores"]["mean_average_precision"] > 0.9 and metrics["scores"]["exact_match"] > 0.5
    assert {"average_precision", "f1"} <= metrics["classes"][0].keys()
    model = AutoModelForImageClassification.from_pretrained(out / "best")
    assert model.config.problem_type == "multi_label_classification"
    image = tmp_path / "validation" / "00.png"
    found = dict(Classifier.from_pretrained(str(out / "best"), "cpu")(image))
    theirs = pipeline("image-classification", str(out / "best"), device="cpu")(str(image))
    assert found == pytest.approx({row["label"]: row["score"] for row in theirs}, abs=1e-5)
    assert (out / "samples" / "predictions.png").exists()
    assert evaluate_command(str(out / "best"), [], None, "validation", tmp_path / "scores") == 0
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert 0 < metrics["scores"].pop("loss") < 1  # of evaluations during the training alone
    assert again["scores"] == pytest.approx(metrics["scores"])
    assert len(log(out)) >= 4


def test_labels_are_read_as_sets(recipe):
    dataset = open_split(load_recipe(recipe), "train")
    assert dataset.class_table.names == ("blue", "green", "red")
    with (recipe.parent / "train" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        names = [dataset.class_table.names[place] for place in dataset.read(index).target.indices]
        assert names == sorted(part.strip() for part in row["label"].split(";") if part)


def test_check_counts_each_label(recipe):
    part = check(load_recipe(recipe), ["train"]).splits["train"]
    dataset = open_split(load_recipe(recipe), "train")
    targets = [set(dataset.read(index).target.indices) for index in range(len(dataset))]
    assert [found.count for found in part.classes] == [sum(k in target for target in targets) for k in range(3)]
    assert not list(part.problems())


def test_unknown_labels_raise_or_are_ignored(recipe):
    classes = "data.classes=[red, green]"
    with pytest.raises(Exception, match="blue"):
        open_split(load_recipe(recipe, [classes]), "train")
    dataset = open_split(load_recipe(recipe, [classes, "data.unknown=ignore"]), "train")
    assert {index for i in range(len(dataset)) for index in dataset.read(i).target.indices} <= {0, 1}


def test_unknown_indices_raise(recipe):
    dataset = open_split(load_recipe(recipe), "train")
    with pytest.raises(UnknownValueError):
        dataset.class_table.class_indices([0, 7])


def test_lists_of_labels_require_the_setting_and_the_reverse(recipe):
    with pytest.raises(SourceError, match="multi_label"):
        open_split(load_recipe(recipe, ["data.multi_label=false", "loss={cross_entropy: null}"]), "train")
    rows = (recipe.parent / "train" / "labels.csv").read_text().splitlines()
    (recipe.parent / "train" / "labels.csv").write_text("\n".join([rows[0], "00.png,red", "01.png,blue"]))
    with pytest.raises(SourceError, match="separator"):
        open_split(load_recipe(recipe, ["data.train.separator=null"]), "train")


@pytest.mark.parametrize("overrides", [["loss={cross_entropy: null}"], ["loss={focal: null}"], ["task=segmentation"]])
def test_losses_of_one_class_are_rejected(recipe, overrides):
    with pytest.raises(RecipeFileError):
        load_recipe(recipe, overrides)


def test_default_loss_follows_overrides(recipe):
    plain = load_recipe(recipe, ["data.multi_label=false"])
    assert set(plain.loss) == {"cross_entropy"}
    file = recipe.with_name("plain.yaml")
    file.write_text(recipe.read_text().replace("multi_label: true", "multi_label: false"))
    assert set(load_recipe(file, ["data.multi_label=true"]).loss) == {"binary_cross_entropy"}
    weighted = load_recipe(file, ["loss.binary_cross_entropy.weight=2", "data.multi_label=true"])
    assert weighted.loss["binary_cross_entropy"]["weight"] == 2


def test_batch_transforms_mix_lists_of_labels(recipe, tmp_path):
    mixed = "batch_transforms=[{mixup: {probability: 0.5}},{cutmix: {probability: 0.5}}]"
    assert run(recipe, tmp_path / "run", mixed, "loop.steps=4", "loop.evaluate_every=4") is RunStatus.finished


def test_datasets_with_lists_of_labels(tmp_path, recipe):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=["red", "green", "blue"]))}
    )
    images = [str(recipe.parent / "train" / f"{index:02}.png") for index in range(4)]
    table = {"image": images, "label": [[0, 2], [], [1], [2, 0, 1]]}
    for name, each in (("indices", features), ("names", None)):
        rows = table if each else {**table, "label": [["red", "blue"], [], ["green"], ["blue", "red", "green"]]}
        folder = tmp_path / name
        found = datasets.Dataset.from_dict(rows, each).cast_column("image", datasets.Image())
        datasets.DatasetDict({"train": found}).save_to_disk(folder)
        source = f"data.train={{kind: huggingface, name: {folder}, split: train}}"
        dataset = open_split(load_recipe(recipe, [source, "data.validation=null", "loop.evaluate_every=null"]), "train")
        names = dataset.class_table.names
        read = [{names[index] for index in dataset.read(i).target.indices} for i in range(4)]
        assert read == [{"red", "blue"}, set(), {"green"}, {"red", "green", "blue"}]
        assert isinstance(dataset.read(0).target, Labels)


# Scores


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_average_precision_matches_scikit_learn(rows):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, labels = np.array([score / 5 for score, _ in rows]), np.array([label for _, label in rows])
    if not labels.any():
        assert np.isnan(average_precision(scores, labels))
    else:
        assert average_precision(scores, labels) == pytest.approx(sklearn.average_precision_score(labels, scores))


def test_f1_and_exact_match_match_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    probabilities, labels = generator.random((40, 4)).astype(np.float32), generator.random((40, 4)) < 0.3
    scores = MultiLabelScores()
    for part in (slice(0, 15), slice(15, 40)):
        scores.update(torch.from_numpy(probabilities[part]), torch.from_numpy(labels[part]).float())
    found, predicted = scores.scores(), probabilities >= 0.5
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert found["micro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="micro"))
    assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert found["mean_average_precision"] == pytest.approx(
        sklearn.average_precision_score(labels, probabilities, average="macro")
    )
