"""Training of heads that predict objects, on class maps: every family, accumulation, resuming, two processes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import difference, finish, log, run, settings, start, weights, write_data, write_recipe
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.models import mask_loss
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.losses.objectives import OBJECTIVES, HeadObjective, LogitsObjective
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe

QUERY = {"decode_head": "query", "num_queries": 5, "train_num_points": 64}
DECODER = QUERY | {"query_num_heads": 4, "query_num_layers": 2}
FAMILIES = {
    "vit": QUERY | {"num_query_blocks": 2, "num_register_tokens": 1},
    "segformer": DECODER | {"drop_path_rate": 0.0},
    "cvt": DECODER,
    "backbone": DECODER,
}


def query_settings(data: Path, name: str, **changes) -> dict:
    recipe = settings(data, **changes)
    recipe["model"] = {"architecture": name, "variant": "tiny", "norm": "group", "fields": FAMILIES[name]}
    return recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("query"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains(name, data, tmp_path):
    recipe = write_recipe(tmp_path, query_settings(data, name))
    assert run(recipe, tmp_path / "run", "loop.steps=4", "loop.evaluate_every=2") is RunStatus.finished
    losses = [value for _, value in log(tmp_path / "run")]
    assert len(losses) == 4 and all(value > 0 for value in losses)
    best = RunDirectory(tmp_path / "run").best
    for auto in (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation):
        model, info = auto.from_pretrained(best, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert model.config.decode_head == "query" and model.config.num_labels == 3


@pytest.mark.parametrize("name", ["vit", "segformer"])
def test_resumed_run_is_identical(name, data, tmp_path):
    """Of a run with mask annealing, which follows the steps of the whole run."""
    loop = {"steps": 6, "batch_size": 2, "log_every": 1, "checkpoint_every": 3}
    recipe = write_recipe(tmp_path, query_settings(data, name, loop=loop))
    run(recipe, tmp_path / "whole")
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    finish(start([str(recipe), str(tmp_path / "parts")], script=str(script)))
    assert [step for step, _ in log(tmp_path / "parts")] == [1, 2, 3]
    run(recipe, tmp_path / "parts", resume=True)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert difference(RunDirectory(tmp_path / "parts").last, RunDirectory(tmp_path / "whole").last) == 0


# Receives a stop signal in step 3.
INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from hf_vit_seg.training.loop import optimizer_step as steps
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.loop.trainer import train
from hf_vit_seg.training.recipe_loading import load_recipe
take = steps.OptimizerStep.take
def stopping(self, step, window, request):
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return take(self, step, window, request)
steps.OptimizerStep.take = stopping
train(load_recipe(Path(sys.argv[1]), []), RunDirectory(Path(sys.argv[2])))
"""


def test_two_processes(data, tmp_path):
    recipe = write_recipe(tmp_path, query_settings(data, "vit"))
    finish(start([str(recipe), "--out", str(tmp_path / "run"), "loop.steps=3"], processes=2))
    assert len(log(tmp_path / "run")) == 3


@pytest.mark.slow
def test_two_processes_with_other_numbers_of_objects_match_one(tmp_path, monkeypatch):
    """Sums are divided by the objects of all processes; the images have 0 to 3."""
    settings = object_settings(write_objects(tmp_path / "data"), "instance", "segformer")
    settings["model"]["fields"] = FAMILIES["segformer"] | {"decode_head_dropout_prob": 0.0}
    settings["transforms"] = [{"random_crop": {"size": [64, 64]}}]
    recipe = write_recipe(tmp_path, settings)
    same = ["loop.steps=1", "loop.evaluate_every=null"]
    monkeypatch.setattr(mask_loss, "random_points", fixed_points)
    run(recipe, tmp_path / "one", *same, "loop.batch_size=6")
    script = tmp_path / "fixed.py"
    script.write_text(FIXED)
    finish(start([str(recipe), str(tmp_path / "two"), *same, "loop.batch_size=3"], processes=2, script=str(script)))
    for key in ("loss", "grad_norm"):
        ((_, one),), ((_, two),) = log(tmp_path / "one", key), log(tmp_path / "two", key)
        assert two == pytest.approx(one, rel=1e-4)


# Trains with the points of `fixed_points`.
FIXED = """
import sys
from pathlib import Path
import torch
from hf_vit_seg.models import mask_loss
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.loop.trainer import train
from hf_vit_seg.training.recipe_loading import load_recipe
def fixed_points(count, number, like):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, number, 2, generator=generator, dtype=like.dtype).expand(count, -1, -1)
mask_loss.random_points = fixed_points
train(load_recipe(Path(sys.argv[1]), sys.argv[3:]), RunDirectory(Path(sys.argv[2])))
"""


def fixed_points(count: int, number: int, like: torch.Tensor) -> torch.Tensor:
    """The same points for every mask."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, number, 2, generator=generator, dtype=like.dtype).expand(count, -1, -1)


@pytest.mark.parametrize("auto", ["AutoModelForUniversalSegmentation", "AutoModelForSemanticSegmentation"])
@pytest.mark.parametrize("name", ["vit", "segformer"])
def test_accumulated_gradient_matches_the_whole_batch(name, auto, monkeypatch, data):
    monkeypatch.setattr(mask_loss, "random_points", fixed_points)
    fields = FAMILIES[name] | {"num_labels": 3, "decode_head_norm": "group", "decode_head_dropout_prob": 0.0}
    architecture = architectures()[name]
    torch.manual_seed(0)
    model = architecture.models[auto](architecture.variant_config("tiny", **fields)).double().train()
    labels = torch.randint(0, 3, (3, 64, 64))
    labels[0] = 255  # an image without objects
    batch = {"pixel_values": torch.randn(3, 3, 64, 64, dtype=torch.float64), "labels": labels}
    task = "segmentation"
    if "Universal" in auto:
        task, batch = "instance", {"pixel_values": batch["pixel_values"]} | objects(3)
    recipe = Recipe.model_validate(query_settings(data, name) | {"loss": {"cross_entropy": None}})
    gradients = []
    for parts in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        copied = copy.deepcopy(model)
        objective = OBJECTIVES[task](recipe, 3, 255, None, copied)
        assert isinstance(objective, HeadObjective)
        batches = [{key: value[part] for key, value in batch.items()} for part in parts]
        units = sum(objective.units(each) for each in batches)
        for each in batches:
            objective.combine(objective.totals(copied, each), units).backward()
        gradients.append([parameter.grad for parameter in copied.parameters() if parameter.grad is not None])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-8, atol=1e-10)


def objects(count: int) -> dict:
    counts = [0, 2, 4][:count]
    return {
        "mask_labels": [torch.rand(n, 64, 64) > 0.5 for n in counts],
        "class_labels": [torch.randint(0, 3, (n,)) for n in counts],
        "ignore_mask": torch.rand(count, 64, 64) > 0.9,
    }


def test_other_losses_match_the_recipe(data):
    """A recipe's losses, if set, are computed on the semantic logits."""
    architecture = architectures()["segformer"]
    config = architecture.variant_config("tiny", num_labels=3, **FAMILIES["segformer"])
    model = architecture.models["AutoModelForSemanticSegmentation"](config)
    recipe = Recipe.model_validate(query_settings(data, "segformer") | {"loss": {"dice": {}}})
    assert isinstance(OBJECTIVES["segmentation"](recipe, 3, 255, None, model), LogitsObjective)


def test_default_of_other_models_is_unchanged(data, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, settings(data)), [])
    assert isinstance(OBJECTIVES["segmentation"](recipe, 3, 255, None, None), LogitsObjective)


def write_objects(folder: Path) -> Path:
    """Both splits: images of discs of two classes with instance maps and class maps; the first has no object."""
    for split, count, seed in (("train", 6, 0), ("validation", 2, 1)):
        random = np.random.default_rng(seed)
        rows, columns = np.mgrid[:64, :64]
        for kind in ("images", "instances", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            ids, classes = np.zeros((64, 64), np.uint16), np.zeros((64, 64), np.uint8)
            for place in range(3 if number else 0):
                y, x = random.integers(10, 54, 2)
                disc = ((rows - y) ** 2 + (columns - x) ** 2 < 36) & (ids == 0)
                ids[disc], classes[disc] = place + 1, 1 + place % 2
            image = np.array([[40, 60, 90], [220, 80, 60], [90, 200, 120]])[classes]
            image = image + random.integers(-20, 20, (64, 64, 3))
            arrays = {"images": image.clip(0, 255).astype(np.uint8), "instances": ids, "masks": classes}
            for kind, array in arrays.items():
                Image.fromarray(array).save(folder / split / kind / f"{number}.png")
    return folder


def object_settings(data: Path, task: str, name: str) -> dict:
    kinds = ("images", "instances", "masks")
    classes = [{"name": "disc", "values": [1]}, {"name": "ball", "values": [2]}]
    if task == "panoptic":
        classes = [{"name": "ground", "values": [0], "thing": False}, *classes]
    recipe = query_settings(data, name)
    splits = {
        split: {"kind": "folders"} | {kind: str(data / split / kind) for kind in kinds}
        for split in ("train", "validation")
    }
    unknown = {"unknown": "ignore"} if task == "instance" else {}
    return recipe | {"task": task, "data": splits | {"classes": classes, "workers": 0} | unknown}


@pytest.mark.parametrize("task", ["instance", "panoptic"])
@pytest.mark.parametrize("name", FAMILIES)
def test_objects_are_trained_and_evaluated(name, task, tmp_path):
    """Also with crops without objects, and an image without any."""
    recipe = write_recipe(tmp_path, object_settings(write_objects(tmp_path / "data"), task, name))
    run(recipe, tmp_path / "run", "loop.steps=4", "loop.evaluate_every=2")
    assert len(log(tmp_path / "run")) == 4
    best = RunDirectory(tmp_path / "run").best
    assert '"pq"' in (best / "metrics.json").read_text()
    model = AutoModelForUniversalSegmentation.from_pretrained(best)
    assert type(model).__name__.endswith("ForUniversalSegmentation")
    assert AutoModelForSemanticSegmentation.from_pretrained(best).config.num_labels == 2 + (task == "panoptic")


def test_more_objects_than_queries_are_reported(tmp_path, capsys):
    settings = object_settings(write_objects(tmp_path / "data"), "instance", "segformer")
    settings["model"]["fields"] = FAMILIES["segformer"] | {"num_queries": 2}
    run(write_recipe(tmp_path, settings), tmp_path / "run", "loop.steps=1", "loop.evaluate_every=null")
    shown = " ".join(capsys.readouterr().err.split())
    assert "5 of 6 samples have more objects than the model has queries (2), at most 3" in shown


def test_row_of_no_object_is_preserved_for_other_classes(tmp_path):
    """The rows of known classes and that of no object are those of the checkpoint, but not its stuff."""
    data = write_objects(tmp_path / "data")
    first = object_settings(data, "panoptic", "vit")
    run(write_recipe(tmp_path, first), tmp_path / "first", "loop.steps=1", "loop.evaluate_every=null")
    last = RunDirectory(tmp_path / "first").last
    second = object_settings(data, "instance", "vit")
    second["model"] = {"from_pretrained": str(last), "norm": "group"}
    overrides = ("loop.steps=1", "loop.evaluate_every=null", "optimizer.learning_rate=1e-12")
    run(write_recipe(tmp_path, second), tmp_path / "second", *overrides)
    old, new = weights(last), weights(RunDirectory(tmp_path / "second").last)
    name = "decode_head.class_head.weight"
    assert old[name].shape[0] == 4 and new[name].shape[0] == 3
    torch.testing.assert_close(new[name], old[name][1:], rtol=0, atol=1e-6)
    processors = [AutoImageProcessor.from_pretrained(RunDirectory(tmp_path / run).last) for run in ("first", "second")]
    assert [processor.label_ids_to_fuse for processor in processors] == [[0], None]
