"""Complete runs of a few steps: output files, gradients, and errors."""

import json
import math
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_people import pose_recipe, write_people
from tiny_runs import (
    difference,
    finish,
    forget_accelerate,
    log,
    run,
    settings,
    start,
    weights,
    write_data,
    write_images,
    write_recipe,
)
from torch.multiprocessing import reductions
from transformers import AutoImageProcessor, AutoModelForPoseEstimation, AutoModelForSemanticSegmentation

from hf_vit_seg.data.checks.check import BadDataError
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.error_reporting import STOPPED
from hf_vit_seg.errors import HfVitSegError, OutOfMemory, error_sentence
from hf_vit_seg.inference import Segmenter
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.main_process import PreparationError
from hf_vit_seg.training.checkpoints.run_directory import RunDirectoryError
from hf_vit_seg.training.checkpoints.state import checkpoints
from hf_vit_seg.training.evaluate_saved import evaluate_model
from hf_vit_seg.training.loop import optimizer_step
from hf_vit_seg.training.loop import setup as preparation
from hf_vit_seg.training.loop import trainer as run_module
from hf_vit_seg.training.loop.process_errors import KilledProcessError, is_killed_worker, is_lost_process
from hf_vit_seg.training.loop.trainer import RunStatus, TrainingError
from hf_vit_seg.training.recipe.metric_names import METRICS
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.run_log import read_run_log as read_log
from hf_vit_seg.training.train_commands import evaluate_command, run_command, train_command


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(data, tmp_path) -> Path:
    return write_recipe(tmp_path, settings(data))


# Saves the weights that each process evaluates.
NOTING = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from hf_vit_seg.training.loop import trainer as run
from hf_vit_seg.training.train_commands import train_command
recipe, out, *settings = sys.argv[1:]
evaluate = run.evaluate
def evaluate_and_save(context, dataset):
    save_file(context.model.state_dict(), Path(out) / f"measured_{context.accelerator.process_index}.safetensors")
    return evaluate(context, dataset)
run.evaluate = evaluate_and_save
sys.exit(train_command(recipe, settings, Path(out), False, False))
"""


# FSDP2 with the default answers of accelerate's questionnaire, which needs devices, so CPUs are declared as such.
SHARDING = """
import os, sys
from pathlib import Path
from accelerate import DistributedType
from accelerate.state import PartialState
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
begin = PartialState.__init__
def init_on_devices(self, *arguments, **settings):
    begin(self, *arguments, **settings)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = init_on_devices
from accelerate import Accelerator
from hf_vit_seg.training.train_commands import train_command
recipe, out, *settings = sys.argv[1:]
code = train_command(recipe, settings, Path(out), True, False)
assert Accelerator().distributed_type == DistributedType.FSDP
sys.exit(code)
"""


# Output of a run


def test_saved_models_load_and_reproduce_the_reported_scores(recipe, tmp_path):
    out = tmp_path / "run"
    assert run(recipe, out, "loop.ema.decay=0.5", "evaluation.boundary_iou=true") is RunStatus.finished
    assert sorted(path.name for path in out.iterdir()) == [
        "best", "checkpoints", "data_facts.json", "last", "log.jsonl", "plots", "recipe.yaml", "report.html",
        "results.csv", "samples",
    ]  # fmt: skip
    assert list((out / "plots").glob("*.png")) and list((out / "samples").glob("*.png"))
    assert [step for step, _ in log(out)] == list(range(1, 9))
    assert [step for step, _ in log(out, "evaluation")] == [4, 8]
    for name in ("best", "last"):
        model = AutoModelForSemanticSegmentation.from_pretrained(out / name)
        assert list(model.config.id2label.values()) == ["ground", "disc", "bar"]
        AutoImageProcessor.from_pretrained(out / name)
        report = json.loads((out / name / "metrics.json").read_text())
        forget_accelerate()
        found = evaluate_model(str(out / name), load_recipe(out / name / "recipe.yaml"), "validation", tmp_path / name)
        assert found.scores["mean_iou"] == report["scores"]["mean_iou"] > 0
        assert (
            tuple(name for name, value in found.scores.items() if isinstance(value, float)) == METRICS["segmentation"]
        )
        assert np.array_equal(found.confusion, report["confusion_matrix"])
    assert load_recipe(out / "recipe.yaml").loop.steps == 8


def test_best_model_is_evaluated_on_the_test_split_at_the_end(data, tmp_path, capsys):
    changes = settings(data)
    changes["data"]["test"] = changes["data"]["train"]
    recipe, out = write_recipe(tmp_path, changes), tmp_path / "run"
    assert train_command(str(recipe), ["loop.steps=1"], out, resume=False, overwrite=False) == 0
    assert "10 images of the test split" in " ".join(capsys.readouterr().out.split())
    assert json.loads((out / "test" / "metrics.json").read_text())["images"] == 10


def test_ema_weights_are_saved(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.ema.decay=0.5", "loop.steps=3")
    checkpoint = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    average = {name.removeprefix("module."): value for name, value in load_average(checkpoint).items()}
    saved, trained = weights(tmp_path / "run" / "last"), weights(checkpoint)
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert not all(torch.equal(saved[name], trained[name]) for name in saved)


def load_average(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "average.safetensors")


def test_training_decreases_the_loss(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.steps=40", "loop.batch_size=4", "optimizer.learning_rate=5e-3")
    losses = [loss for _, loss in log(tmp_path / "run")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2


def test_without_validation_only_the_last_model_is_saved(data, tmp_path):
    changes = settings(data, loop={"steps": 1, "batch_size": 2})
    del changes["data"]["validation"]
    run(write_recipe(tmp_path, changes), tmp_path / "run")
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "best").exists()


# Steps


def test_binary_model_with_a_single_output(data, tmp_path):
    both = {"classes": ["ground", {"name": "shape", "values": [1, 2]}]}
    base = settings(data)
    base |= {"data": base["data"] | both, "model": base["model"] | {"single_output": True}}
    recipe = write_recipe(tmp_path, base)
    out, losses = tmp_path / "run", ["loss.dice.weight=0.5", "loss.binary_cross_entropy.weight=1"]
    assert run(recipe, out, *losses, "loss.cross_entropy=null") is RunStatus.finished
    model = AutoModelForSemanticSegmentation.from_pretrained(out / "best")
    assert model.config.id2label == {0: "shape"} and model.decode_head.classifier.out_channels == 1
    report = json.loads((out / "best" / "metrics.json").read_text())
    assert [row["name"] for row in report["classes"]] == ["ground", "shape"]
    assert Segmenter.from_pretrained(out / "best").names == ("background", "shape")


def test_single_output_requires_two_classes(recipe, tmp_path):
    with pytest.raises(RecordError, match=r"found segmentation with 3 classes, expected segmentation with two"):
        run(recipe, tmp_path / "run", "model.single_output=true")


def test_steps_per_epoch_are_rounded_up(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.steps=null", "loop.epochs=0.7", "loop.batch_size=3")
    assert [step for step, _ in log(tmp_path / "run")] == [1, 2, 3]  # 7 of 10 samples are 2 steps and a third


def test_accumulation_matches_one_large_batch(recipe, tmp_path):
    """The images have different numbers of ignored pixels; some crops have only ignored pixels."""
    small = ["loop.steps=3", "loss.dice.weight=0.5", "loss.cross_entropy.label_smoothing=0.1", "optimizer.name=sgd"]
    run(recipe, tmp_path / "whole", *small, "loop.batch_size=8")
    run(recipe, tmp_path / "parts", *small, "loop.batch_size=2", "loop.accumulation=4")
    assert difference(tmp_path / "whole" / "last", tmp_path / "parts" / "last") < 1e-6
    pairs = zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True)
    assert all(one == pytest.approx(other, rel=1e-6) for one, other in pairs)


@pytest.mark.slow
def test_two_processes_match_one_with_a_doubled_batch(recipe, tmp_path):
    same = ["loop.steps=10", "loop.evaluate_every=5", "optimizer.name=sgd", "optimizer.learning_rate=1e-2"]
    same += ["loop.clip_norm=1.0", "evaluation.boundary_iou=true"]
    one, two = tmp_path / "one", tmp_path / "two"
    run(recipe, one, *same, "loop.batch_size=4")
    finish(start([str(recipe), *same, "loop.batch_size=2", "--out", str(two)], processes=2))
    for key in ("loss", "grad_norm", "learning_rate"):
        pairs = zip(log(one, key), log(two, key), strict=True)
        assert all(ours == pytest.approx(theirs, rel=1e-5 if key == "grad_norm" else 1e-6) for ours, theirs in pairs)
    assert [(step, found["mean_iou"]) for step, found in log(one, "evaluation")] == [
        (step, pytest.approx(found["mean_iou"], rel=1e-4)) for step, found in log(two, "evaluation")
    ]
    matrices = [json.loads((out / "last" / "metrics.json").read_text())["confusion_matrix"] for out in (one, two)]
    assert np.sum(matrices[0]) == np.sum(matrices[1])  # three images on two processes: each counts once


@pytest.mark.slow
@pytest.mark.parametrize("average", ["null", "{decay: 0.5}"])
def test_two_processes_evaluate_the_saved_model(recipe, tmp_path, average):
    """With BatchNorm, whose running statistics are local to each process."""
    (tmp_path / "evaluate_and_save.py").write_text(NOTING)
    command = [str(recipe), str(tmp_path / "run"), "model.norm=batch", "loop.steps=2", f"loop.ema={average}"]
    finish(start(command, processes=2, script=str(tmp_path / "evaluate_and_save.py")))
    saved = weights(tmp_path / "run" / "last")
    for process in range(2):
        measured = load_file(tmp_path / "run" / f"measured_{process}.safetensors")
        assert measured.keys() == saved.keys()
        assert all(torch.equal(measured[name], saved[name]) for name in saved)


@pytest.mark.slow
def test_sharded_weights_train_as_full_weights(recipe, tmp_path):
    """FSDP2 and DDP, with BatchNorm; the sharded run resumes from its checkpoint."""
    (tmp_path / "scattering.py").write_text(SHARDING)
    same = ["model.norm=batch", "loop.steps=4", "schedule.name=constant", "optimizer.name=sgd"]
    scattered, whole = tmp_path / "scattered", tmp_path / "whole"
    finish(start([str(recipe), *same, "--out", str(whole)], processes=2))
    for steps in (2, 4):
        command = [str(recipe), str(scattered), *same, f"loop.steps={steps}"]
        finish(start(command, processes=2, script=str(tmp_path / "scattering.py")))
    assert log(scattered) == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in log(whole)]
    assert difference(scattered / "last", whole / "last") < 1e-5


def test_workers_do_not_change_results(recipe, tmp_path):
    for workers in (0, 2):
        run(recipe, tmp_path / str(workers), "loop.steps=2", f"data.workers={workers}")
    assert difference(tmp_path / "0" / "last", tmp_path / "2" / "last") == 0


def test_bfloat16(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.steps=2", "loop.precision=bf16")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").loop.precision == "bf16"
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "run" / "last").values())


def test_early_stopping(recipe, tmp_path):
    patient = ["loop.evaluate_every=1", "loop.early_stop.patience=2", "loop.early_stop.min_delta=1"]
    assert run(recipe, tmp_path / "run", *patient) is RunStatus.early_stop
    assert [step for step, _ in log(tmp_path / "run", "evaluation")] == [1, 2, 3]  # the first is the reference score
    assert (tmp_path / "run" / "last").exists()
    assert run(recipe, tmp_path / "run", *patient, resume=True) is RunStatus.early_stop


def test_computed_statistics_and_class_weights(recipe, tmp_path):
    measured = ["processor.image_mean=computed", "processor.image_std=computed", "loop.steps=1"]
    run(recipe, tmp_path / "run", *measured, "loss.cross_entropy.class_weights=balanced")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "last")
    folder = load_recipe(recipe).data.train["images"]
    pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in sorted(Path(folder).glob("*.png"))])
    assert processor.image_mean == pytest.approx((pixels / 255).mean(0))
    assert processor.image_std == pytest.approx((pixels / 255).std(0))


# Errors


class Faulty:
    """A loss that is not finite from a step on."""

    def __init__(self, objective, first: int, last: float = math.inf):
        self.objective, self.first, self.last, self.calls = objective, first, last, 0

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def totals(self, model, batch):
        self.calls += 1
        totals = self.objective.totals(model, batch)
        return totals * (math.nan if self.first <= self.calls <= self.last else 1)


def with_fault(monkeypatch, first: int, last: float = math.inf) -> None:
    prepare = run_module.prepare_training

    def faulty(*arguments):
        parts = prepare(*arguments)
        object.__setattr__(parts, "objective", Faulty(parts.objective, first, last))
        return parts

    monkeypatch.setattr(run_module, "prepare_training", faulty)


def test_step_with_non_finite_loss_is_skipped(recipe, tmp_path, monkeypatch):
    with_fault(monkeypatch, 2, 3)
    assert run(recipe, tmp_path / "run", "loop.steps=4") is RunStatus.finished
    losses = [loss for _, loss in log(tmp_path / "run")]
    assert losses[1:3] == [None, None] and all(losses[i] > 0 for i in (0, 3))
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run" / "last").values())


def test_too_many_non_finite_losses_raise_with_step_and_samples(recipe, tmp_path, monkeypatch):
    with_fault(monkeypatch, 2)
    with pytest.raises(
        TrainingError,
        match=r"nan \(with \d\d\.png, \d\d\.png\) in 5 consecutive steps, last in step 6; .*learning_rate \(now \d",
    ):
        run(recipe, tmp_path / "run", "loop.evaluate_every=3")
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000003"]


def test_out_of_memory_error_names_the_settings_to_reduce(recipe, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(optimizer_step, "accumulate", full)
    with pytest.raises(OutOfMemory, match=r"loop\.batch_size=1 loop\.accumulation=2, or .*gradient_checkpointing"):
        run(recipe, tmp_path / "run")


def test_batch_size_is_found(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.steps=1", "loop.batch_size=auto")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").loop.batch_size == 8  # a power of two within ten images


def test_norms_are_synchronized_after_the_trial_steps(recipe, tmp_path, monkeypatch):
    """Each process runs its trial steps alone, also on a CPU, where SyncBatchNorm raises or waits for the others."""
    tried = []

    def try_out(model, *arguments):
        tried.append(has_norm(model, torch.nn.SyncBatchNorm))
        return 2

    monkeypatch.setattr(preparation, "find_batch_size", try_out)
    loaded = load_recipe(recipe, ["model.norm=sync", "loop.batch_size=auto"])
    accelerator = preparation.build_accelerator(loaded, tmp_path)
    parts = preparation.prepare_training(loaded, accelerator, tmp_path / "facts.json", None)
    assert tried == [False] and has_norm(parts.model, torch.nn.SyncBatchNorm)


def has_norm(model: torch.nn.Module, kind: type) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def test_bad_data_raises_before_anything_is_written(data, tmp_path):
    changes = settings(data)
    changes["data"]["classes"] = ["ground", "disc"]
    with pytest.raises(BadDataError, match=r"\b2\b"):
        run(write_recipe(tmp_path, changes), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_test_split_is_checked_before_anything_is_written(data, tmp_path):
    changes = settings(data)
    changes["data"]["test"] = changes["data"]["train"] | {"masks": "nowhere"}
    with pytest.raises(SourceError, match=r"data\.test: masks: nowhere: the folder does not exist"):
        run(write_recipe(tmp_path, changes), tmp_path / "run")
    write_images(tmp_path / "test", 2)
    Image.new("L", (5, 5)).save(tmp_path / "test" / "masks" / "01.png")
    folders = {part: str(tmp_path / "test" / part) for part in ("images", "masks")}
    changes["data"]["test"] |= folders
    with pytest.raises(BadDataError, match=r"01\.png: the mask has 5x5 pixels"):
        run(write_recipe(tmp_path, changes), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_failed_final_evaluation_reports_the_model_path(data, tmp_path, monkeypatch):
    def failing(*arguments):
        raise HfVitSegError("the disk is full")

    monkeypatch.setattr(run_module, "write_evaluation", failing)
    changes = settings(data)
    changes["data"]["test"] = changes["data"]["validation"]
    with pytest.raises(TrainingError, match=r"trained model is in .*run/best, .*: the disk is full; .* evaluate"):
        run(write_recipe(tmp_path, changes), tmp_path / "run", "loop.steps=1")
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


def test_run_replaces_nothing_without_overwrite(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.steps=1")
    with pytest.raises(RunDirectoryError, match=r"--resume.*--overwrite"):
        run(recipe, tmp_path / "run", "loop.steps=1")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run(recipe, tmp_path / "run", "loop.steps=1", "seed=1", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(RunDirectoryError, match=r"contains no run"):
        run(recipe, tmp_path / "other", overwrite=True)


def test_evaluation_without_a_split_raises(data, tmp_path):
    changes = settings(data)
    del changes["data"]["validation"]
    with pytest.raises(RecordError, match=r"data\.validation_share"):
        run(write_recipe(tmp_path, changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("evaluation.metric=mean_iuo", r"unknown metric 'mean_iuo' .* did you mean 'mean_iou'"),
        ("evaluation.metric=accuracy", r"unknown metric 'accuracy'"),
        ("evaluation.metric=mean_boundary_iou", r"unknown metric 'mean_boundary_iou'"),
    ],
)
def test_unknown_metric_raises_before_the_first_step(recipe, tmp_path, override, reason):
    with pytest.raises(RecordError, match=reason):
        run(recipe, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_keypoints_without_their_sigmas_raise_before_the_first_step(tmp_path, split):
    write_people(tmp_path, 1, [f"point {number}" for number in range(5)])
    recipe = pose_recipe(tmp_path)
    recipe["model"]["fields"] = {"pose_flip_pairs": [[1, 2]]}
    del recipe["data"]["validation"]
    run(write_recipe(tmp_path, recipe), tmp_path / "unmeasured")
    recipe["data"][split] = recipe["data"]["train"]
    recipe["data"]["oks_sigmas"] = [0.1] * 4
    with pytest.raises(RecordError, match=r"data\.oks_sigmas: found 4 sigmas for 5 keypoints"):
        run(write_recipe(tmp_path, recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Console output


def test_commands_print_results_and_errors(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert train_command(str(recipe), ["loop.steps=2"], out, resume=False, overwrite=False) == 0
    printed, noted = capsys.readouterr()
    assert "loss: cross_entropy" in noted
    assert "mIoU" in printed and "disc" in printed and f"hf-vit-seg predict {out / 'best'}" in printed
    assert "3 images of the validation split" in printed
    forget_accelerate()
    assert evaluate_command(str(out / "best"), [], None, "train", None) == 0
    assert "10 images of the train split" in " ".join(capsys.readouterr().out.split())
    assert (out / "best" / "evaluation_train" / "metrics.json").exists()
    assert train_command(str(recipe), ["loop.stepz=2"], out, resume=False, overwrite=False) == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err
    assert evaluate_command(str(out / "best"), [], None, "test", None) == 2
    assert "data.test is missing" in capsys.readouterr().err
    assert evaluate_command(str(out / "plots"), [], None, "test", None) == 2
    assert "--recipe" in capsys.readouterr().err


def test_second_ctrl_c_exits_immediately(recipe, tmp_path, monkeypatch, capsys):
    def raise_interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimizer_step, "accumulate", raise_interrupt)
    assert train_command(str(recipe), [], tmp_path / "run", resume=False, overwrite=False) == STOPPED
    assert "--resume" in capsys.readouterr().out


@pytest.mark.parametrize(("process", "name"), [("0", " (process 0)"), ("1", " (process 1)"), (None, "")])
def test_error_is_reported_by_the_failing_process(monkeypatch, capsys, process, name):
    for variable, value in (("WORLD_SIZE", process and "2"), ("RANK", process)):
        monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable, raising=False)

    def error_output(error):
        def failing():
            raise error

        assert run_command(failing) == 2
        return capsys.readouterr().err

    assert error_output(HfVitSegError("a.png: cannot be read")) == f"hf-vit-seg{name}: a.png: cannot be read\n"
    assert bool(error_output(PreparationError("as the main process says"))) == (process != "1")


# After the first step, the file size limit is below that of a checkpoint.
FULL_DISK = """
import resource, sys
from pathlib import Path
from hf_vit_seg.training.loop import optimizer_step as steps
from hf_vit_seg.training.train_commands import train_command
recipe, out, limit, *settings = sys.argv[1:]
take = steps.OptimizerStep.take
def filling(self, step, window, request):
    if step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    return take(self, step, window, request)
steps.OptimizerStep.take = filling
sys.exit(train_command(recipe, settings, Path(out), False, False))
"""


@pytest.mark.skipif(os.name != "posix", reason="the system does not limit files")
@pytest.mark.parametrize(
    ("limit", "overrides", "what"),
    [
        ("50000", ["loop.checkpoint_every=1"], "checkpoints/step-000002"),
        ("50000", ["loop.evaluate_every=2", "loop.checkpoint_every=5"], "best"),
    ],
)
def test_full_disk_is_reported(recipe, tmp_path, limit, overrides, what):
    (tmp_path / "full.py").write_text(FULL_DISK)
    out = tmp_path / "run"
    output = finish(start([str(recipe), str(out), limit, *overrides], script=str(tmp_path / "full.py")), expected=2)
    assert f"hf-vit-seg: {out / what} cannot be written (" in output and "Traceback" not in output
    assert not list(out.rglob(".tmp-*"))
    if what == "best":
        assert "no checkpoint has been saved yet" in output
        return
    assert f"the last checkpoint is {out}/checkpoints/step-000001; resume with" in output
    assert run(recipe, out, *overrides, resume=True) is RunStatus.finished


# The worker is killed with the third batch, as when memory runs out.
KILLED_WORKER = """
import os, signal, sys
from pathlib import Path
from hf_vit_seg.data.collation import Collator
from hf_vit_seg.training.train_commands import train_command
from torch.utils.data import get_worker_info
collate, batches = Collator.__call__, []
def killing(self, samples):
    batches.append(samples)
    if get_worker_info() is not None and len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return collate(self, samples)
Collator.__call__ = killing
recipe, out, *settings = sys.argv[1:]
sys.exit(train_command(recipe, settings, Path(out), False, False))
"""


def test_killed_worker_is_reported_and_the_run_is_resumed(recipe, tmp_path):
    (tmp_path / "killing.py").write_text(KILLED_WORKER)
    out, settings = tmp_path / "run", ["loop.steps=4", "loop.checkpoint_every=1", "data.workers=1"]
    output = finish(start([str(recipe), str(out), *settings], script=str(tmp_path / "killing.py")), expected=2)
    assert "data.workers" in output and not (out / "error.log").exists()
    run(recipe, out, *settings, resume=True)
    run(recipe, tmp_path / "whole", *settings)
    assert difference(out / "last", tmp_path / "whole" / "last") == 0


def test_lost_process_is_not_a_bug(recipe, tmp_path, monkeypatch):
    def take(self, step, window, request):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(optimizer_step.OptimizerStep, "take", take)
    with pytest.raises(KilledProcessError, match="another process"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "error.log").exists()


@pytest.mark.parametrize(
    ("message", "worker", "process"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", True, False),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", True, False),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", False, False),
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", False, True),
        ("ncclRemoteError: A call failed possibly due to a remote process exiting prematurely.", False, True),
        ("mat1 and mat2 shapes cannot be multiplied", False, False),
    ],
)
def test_errors_of_killed_processes_are_recognized(message, worker, process):
    error = RuntimeError(message)
    assert is_killed_worker(error) == worker and is_lost_process(error) == process
    assert not is_killed_worker(ValueError(message)) and not is_lost_process(ValueError(message))


def test_broken_connections_to_workers_are_recognized():
    """A tensor is received after its worker was killed."""
    with pytest.raises(OSError) as received:  # noqa: PT011
        reductions.rebuild_storage_fd(torch.UntypedStorage, FailingDescriptor(), 4)
    assert is_killed_worker(received.value)
    assert not is_killed_worker(ConnectionResetError()) and not is_killed_worker(FileNotFoundError("a.png"))


class FailingDescriptor:
    """A file descriptor in a process that does not exist any more."""

    def detach(self):
        raise ConnectionResetError(104, "Connection reset by peer")


def test_worker_errors_are_reported_without_traceback():
    error = HfVitSegError(
        "Caught ImageFileError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nhf_vit_seg.data.image_files.ImageFileError: a.png: cannot be read: cut short\n'
    )
    assert error_sentence(error) == "a.png: cannot be read: cut short"


def test_failed_run_leaves_no_workers(tmp_path):
    changes = settings(write_data(tmp_path / "data"))
    (tmp_path / "data" / "train" / "images" / "03.png").write_bytes(b"no image")
    with pytest.raises(ImageFileError, match=r"03\.png"):
        run(write_recipe(tmp_path, changes), tmp_path / "run", "data.check=2", "data.workers=2")
    assert not multiprocessing.active_children()


# Other tasks and features


def test_adapters_are_merged_into_saved_weights(recipe, data, tmp_path):
    run(recipe, tmp_path / "first", "loop.steps=1")
    start_from = settings(data, model={"from_pretrained": str(tmp_path / "first" / "last"), "lora": {"rank": 2}})
    run(write_recipe(tmp_path, start_from), tmp_path / "run", "loop.steps=3", "optimizer.learning_rate=1e-2")
    assert weights(tmp_path / "first" / "last").keys() == weights(tmp_path / "run" / "last").keys()
    expected = json.loads((tmp_path / "run" / "last" / "metrics.json").read_text())["scores"]["mean_iou"]
    forget_accelerate()
    model = str(tmp_path / "run" / "last")
    found = evaluate_model(model, load_recipe(tmp_path / "run" / "recipe.yaml"), "validation", tmp_path / "out")
    assert found.scores["mean_iou"] == pytest.approx(expected, abs=1e-4)


def test_counts_of_parameters_and_the_first_loss_are_reported(recipe, tmp_path, capsys):
    rule = r"stages\.0\."
    run(recipe, tmp_path / "run", "loop.steps=3", "loop.log_every=2", f"model.freeze=['{rule}']")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "last")
    matched = [parameter.numel() for key, parameter in model.named_parameters() if re.search(rule, key)]
    counts = json.loads((tmp_path / "run" / "last" / "metrics.json").read_text())["parameters"]
    assert counts["freeze"] == {rule: len(matched)} and counts["frozen"] == sum(matched) > 0
    assert counts["total"] == counts["trainable"] + counts["frozen"] == model.num_parameters()
    shown = capsys.readouterr().err
    assert f"{counts['trainable']:,} trainable, {counts['frozen']:,} frozen, {counts['total']:,} in total" in shown
    assert f"'{rule}' matches {len(matched)} tensors" in shown
    logged = [line["step"] for line in read_log(tmp_path / "run") if "loss" in line]
    assert logged == [1, 2, 3] and "step 1/3" in shown


def test_classification(tmp_path):
    recipe = {
        "task": "classification",
        "model": {
            "architecture": "vit",
            "variant": "tiny",
            "fields": {"image_size": [8, 8], "patch_size": [2, 2]},
        },
        "processor": {"size": {"height": 8, "width": 8}},
        "data": {
            "train": {"kind": "sklearn_digits", "split": "train"},
            "validation": {"kind": "sklearn_digits", "split": "test"},
            "workers": 0,
        },
        "batch_transforms": ["mixup"],
        "loop": {"steps": 3, "batch_size": 16, "log_every": 1},
        "evaluation": {"batch_size": 64, "samples": 4},
    }
    run(write_recipe(tmp_path, recipe), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert tuple(report["scores"]) == (*METRICS["classification"], "loss")
    assert report["images"] == 360 == np.sum(report["confusion_matrix"])
    assert report["scores"]["accuracy"] <= report["scores"]["top_5_accuracy"]
    forget_accelerate()
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    found = evaluate_model(str(tmp_path / "run" / "best"), again, "validation", tmp_path / "again")
    assert found.scores["accuracy"] == report["scores"]["accuracy"]
    assert (tmp_path / "again" / "plots" / "reliability.png").exists()


def test_pose(tmp_path):
    write_people(tmp_path, images=4)
    run(write_recipe(tmp_path, pose_recipe(tmp_path)), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert 0 <= report["scores"]["oks_ap"] <= 1
    assert tuple(report["scores"]) == METRICS["pose"]
    assert report["images"] == 8
    assert AutoModelForPoseEstimation.from_pretrained(tmp_path / "run" / "best").config.num_labels == 17
