"""A killed and resumed run is bit-identical to an uninterrupted one; checkpoints that cannot be resumed raise."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate.utils import load
from safetensors.torch import load_file
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
    write_recipe,
)

from hf_vit_seg.errors import OutOfMemory, WriteError
from hf_vit_seg.text_files import parse
from hf_vit_seg.training.checkpoints.resume import check_same_run
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.checkpoints.state import CheckpointError, checkpoints, read_manifest
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.recipe.overrides import override_setting
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.train_commands import print_results, train_command

# Dies as by `kill -9` in the middle of a step, after logging the step number.
KILLED = """
import os, signal, sys
from hf_vit_seg.training.loop import optimizer_step as steps
from hf_vit_seg.training.train_commands import train_command
from pathlib import Path
recipe, out, last = sys.argv[1:]
take = steps.OptimizerStep.take
def dying(self, step, window, request):
    if step == int(last) + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, step, window, request)
steps.OptimizerStep.take = dying
train_command(recipe, [], Path(out), False, False)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Ten images, three per step: step 5 of 8 is in the middle of the second epoch. With all sources of randomness."""
    folder = tmp_path_factory.mktemp("resume")
    loop = {
        "steps": 8,
        "batch_size": 3,
        "log_every": 2,
        "evaluate_every": 4,
        "checkpoint_every": 5,
        "ema": {"decay": 0.9},
        "early_stop": {"patience": 5},
        "clip_norm": 1.0,
    }
    changes = settings(write_data(folder), loop=loop)
    changes["model"]["fields"] = {"drop_path_rate": 0.2, "decode_head_dropout_prob": 0.2}
    changes["transforms"].append({"photometric": {}})
    return write_recipe(folder, changes)


@pytest.fixture(scope="module")
def two_steps(recipe) -> Path:
    """A run of two steps."""
    run(recipe, recipe.parent / "run", "loop.steps=2")
    return recipe.parent / "run"


@pytest.fixture
def checkpoint(two_steps, tmp_path) -> Path:
    """The checkpoint of step 2 in a run directory."""
    shutil.copytree(two_steps, tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "step-000002"


def same(one, other) -> bool:
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else one == other


def metrics_without_times(path: Path) -> dict[str, object]:
    """A metrics.json without the values that depend on the speed of the machine."""
    found = json.loads(path.read_text())
    return {key: value for key, value in found.items() if key not in ("seconds_per_image", "training_seconds")}


def assert_same_run(one: Path, other: Path, processes: int = 1) -> None:
    """All states of the last checkpoint, the logs, and the models."""
    last, other_last = (checkpoints(path / "checkpoints")[-1] for path in (one, other))
    names = sorted(path.name for path in last.iterdir())
    assert names == sorted(path.name for path in other_last.iterdir())
    assert {"model.safetensors", "average.safetensors", "optimizer.bin", "scheduler.bin"} < set(names)
    assert [name for name in names if name.startswith("random_states")] == [
        f"random_states_{process}.pkl" for process in range(processes)
    ]
    for name in names:
        if name.endswith(".safetensors"):
            assert same(load_file(last / name), load_file(other_last / name)), name
        elif name == "metrics.json":
            assert metrics_without_times(last / name) == metrics_without_times(other_last / name)
        elif name != "manifest.json":
            assert same(load(last / name), load(other_last / name)), name
    assert read_manifest(last).model_copy(update={"seconds": 0.0}) == read_manifest(other_last).model_copy(
        update={"seconds": 0.0}
    )
    for model in ("best", "last"):
        assert same(weights(one / model), weights(other / model)), model
        assert metrics_without_times(one / model / "metrics.json") == metrics_without_times(
            other / model / "metrics.json"
        )
    for key in ("loss", "learning_rate", "grad_norm", "evaluation"):
        assert log(one, key) == log(other, key) != [], key


def test_resume_after_kill_is_bit_identical(recipe, tmp_path):
    assert run(recipe, tmp_path / "whole") is RunStatus.finished
    (tmp_path / "killed.py").write_text(KILLED)
    killed = start([str(recipe), str(tmp_path / "parts"), "7"], script=str(tmp_path / "killed.py"))
    finish(killed, -signal.SIGKILL)
    assert [path.name for path in checkpoints(tmp_path / "parts" / "checkpoints")] == ["step-000005"]
    assert [step for step, _ in log(tmp_path / "parts")] == [1, 2, 4, 6]
    assert run(recipe, tmp_path / "parts", resume=True) is RunStatus.finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_resume_after_kill_with_two_processes(recipe, tmp_path):
    """With BatchNorm, whose running statistics are local to each process."""
    (tmp_path / "killed.py").write_text(KILLED)
    recipe = write_recipe(tmp_path, override_setting(parse(recipe.read_text()), ["model", "norm"], "batch"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start([str(recipe), "--out", str(whole)], processes=2))
    finish(start([str(recipe), str(parts), "7"], processes=2, script=str(tmp_path / "killed.py")), expected=1)
    assert [path.name for path in checkpoints(parts / "checkpoints")] == ["step-000005"]
    finish(start([str(recipe), "--out", str(parts), "--resume"], processes=2))
    assert_same_run(whole, parts, processes=2)


def test_ctrl_c_saves_a_checkpoint_and_prints_the_resume_command(recipe, tmp_path):
    out = tmp_path / "run"
    long = ["loop.steps=100000", "loop.evaluate_every=100000", "data.workers=1"]
    process = start([str(recipe), *long, "--out", str(out)])
    while not (out / "log.jsonl").exists():
        time.sleep(0.05)
        assert process.poll() is None
    for number in (signal.SIGINT, signal.SIGTERM):  # to loader processes as well, and again by a launcher
        os.killpg(process.pid, number)
    output = finish(process, expected=130)
    assert f"hf-vit-seg train {out}/recipe.yaml --out {out} --resume" in output
    last = read_manifest(checkpoints(out / "checkpoints")[-1])
    assert last.samples == 3 * last.step
    assert not list((out / "checkpoints").glob(".*"))
    steps = f"loop.steps={last.step + 1}"
    assert run(out / "recipe.yaml", out, steps, "loop.evaluate_every=100000", resume=True) is RunStatus.finished
    assert read_manifest(checkpoints(out / "checkpoints")[-1]).step == last.step + 1


def test_resume_runs_a_pending_evaluation(recipe, tmp_path, monkeypatch):
    from hf_vit_seg.training.loop import trainer as module

    run(recipe, tmp_path / "whole")
    take = module.OptimizerStep.take

    def stopping(self, step, window, request):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, step, window, request)

    with monkeypatch.context() as patch:
        patch.setattr(module.OptimizerStep, "take", stopping)
        assert run(recipe, tmp_path / "parts") is RunStatus.interrupted
    manifest = read_manifest(checkpoints(tmp_path / "parts" / "checkpoints")[-1])
    assert (manifest.step, manifest.evaluation_done) == (4, False)
    assert not log(tmp_path / "parts", "evaluation")
    run(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_failed_evaluation_loses_no_step(recipe, tmp_path, monkeypatch):
    from hf_vit_seg.training.loop import trainer as module

    every = "loop.checkpoint_every=null"  # at evaluations
    run(recipe, tmp_path / "whole", every)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_sample_images", full)
        with pytest.raises(OutOfMemory):
            run(recipe, tmp_path / "parts", every)
    manifest = read_manifest(checkpoints(tmp_path / "parts" / "checkpoints")[-1])
    assert (manifest.step, manifest.evaluation_done) == (4, False)
    run(recipe, tmp_path / "parts", every, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_longer_run_after_failed_evaluation_saves_its_last_model(recipe, tmp_path, monkeypatch):
    from hf_vit_seg.training.loop import trainer as module

    run(recipe, tmp_path / "whole", "loop.checkpoint_every=null")
    run(recipe, tmp_path / "parts", "loop.checkpoint_every=null", "loop.steps=4")
    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_sample_images", full)
        with pytest.raises(OutOfMemory):
            run(recipe, tmp_path / "parts", "loop.checkpoint_every=null", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", lambda *arguments: saved.append(arguments))
        assert run(recipe, tmp_path / "parts", "loop.checkpoint_every=null", resume=True) is RunStatus.finished
    assert json.loads((tmp_path / "parts" / "last" / "metrics.json").read_text())["step"] == 8
    assert not saved  # only the evaluation was missing
    assert read_manifest(checkpoints(tmp_path / "parts" / "checkpoints")[-1]).evaluation_done


def test_full_disk_does_not_block_the_next_run(recipe, tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(WriteError, match="No space left"):
            run(recipe, tmp_path / "run", "loop.steps=1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-data_facts.json").touch()  # as left by a kill
    assert run(recipe, tmp_path / "run", "loop.steps=1") is RunStatus.finished
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_recipe_without_loss_resumes_with_the_saved_default(recipe, tmp_path):
    run(recipe, tmp_path / "run", "loop.steps=1", "loss={}")
    assert run(tmp_path / "run" / "recipe.yaml", tmp_path / "run", "loop.steps=2", resume=True) is RunStatus.finished


def full(*arguments, **options):
    raise OutOfMemory("memory ran out")


def test_run_can_be_extended(recipe, checkpoint):
    out = checkpoint.parent.parent
    assert run(recipe, out, "loop.steps=3", "loop.log_every=1", "loop.keep_checkpoints=1", resume=True)
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-000003"]
    assert [step for step, _ in log(out)] == [1, 2, 3]


def test_resuming_a_finished_run_changes_nothing(recipe, checkpoint):
    out = checkpoint.parent.parent
    recipes = {path: recipe_without_place(path) for path in out.rglob("*.yaml")}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".safetensors", ".jsonl")}
    report = json.loads((out / "last" / "metrics.json").read_text())
    assert run(recipe, out, "loop.steps=2", resume=True) is RunStatus.finished
    assert {path: path.read_bytes() for path in before} == before
    assert {path: recipe_without_place(path) for path in recipes} == recipes
    assert json.loads((out / "last" / "metrics.json").read_text()) == report


@pytest.fixture(scope="module")
def finished_run(recipe) -> Path:
    """A run of two steps with a test split, and a copy of its directory."""
    changes = parse(recipe.read_text())
    changes["data"]["test"] = changes["data"]["validation"]
    folder = recipe.parent / "tested"
    folder.mkdir()
    run(write_recipe(folder, changes), folder / "run", "loop.steps=2")
    return folder / "run"


def recipe_without_place(path: Path) -> dict[str, object]:
    """The settings of a recipe, without the paths relative to the file: the run was copied from another folder."""
    return {name: value for name, value in parse(path.read_text()).items() if name != "saved_paths"}


def content(out: Path) -> dict[str, object]:
    """All files of a run, without values that depend on the speed of the machine and the order of its threads.

    The figures of training batches are drawn by the first steps alone, and report.html embeds them.
    """
    special = {
        "recipe.yaml": recipe_without_place,
        "metrics.json": metrics_without_times,
        "data_facts.json": lambda path: json.loads(path.read_text()),
    }
    files = [path for path in out.rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "report.html" and not path.name.startswith("training_batch_")]
    return {str(path.relative_to(out)): special.get(path.name, digest)(path) for path in files}


def digest(path: Path) -> str:
    """The hash of a file, because pytest compares the bytes of figures for minutes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remove(out: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()


def change_manifest(out: Path, **changes: object) -> None:
    path = checkpoints(out / "checkpoints")[-1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


BEFORE_LAST = ("last", "plots", "test")
AFTER_LAST = ("last/README.md", "last/metrics.json", "best/config.json", "plots/training.png", "samples/00.png")


@pytest.mark.parametrize(
    ("completed", "missing", "left"),
    [
        (False, BEFORE_LAST, (".tmp-last/config.json", "plots/.tmp-training.png")),  # killed while writing the model
        (False, ("plots", "test"), ("plots/.tmp-measure.png",)),
        (False, ("test",), ()),
        (True, ("test/plots", "test/samples"), ("test/plots/.tmp-metrics.png",)),
        (True, (*BEFORE_LAST, "best", "samples", "recipe.yaml", "data_facts.json"), ()),
        (True, (*AFTER_LAST, "test/metrics.json"), ()),
    ],
)
def test_finished_run_is_completed_without_training(finished_run, tmp_path, monkeypatch, completed, missing, left):
    from hf_vit_seg.training.loop import trainer as module

    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    remove(out, *missing)
    for name in left:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    change_manifest(out, completed=completed)
    monkeypatch.setattr(module.OptimizerStep, "take", full)
    assert run(finished_run.parent / "recipe.yaml", out, "loop.steps=2", resume=True) is RunStatus.finished
    assert content(out) == content(finished_run)


def test_sample_images_show_the_best_model(finished_run, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    manifest = read_manifest(checkpoints(out / "checkpoints")[-1])
    change_manifest(out, best_tracker=manifest.best_tracker.model_dump() | {"best_step": 1})
    remove(out, "samples", "test")
    command = [str(finished_run.parent / "recipe.yaml"), ["loop.steps=2"], out, True, False]
    assert train_command(*command) == 0
    assert {name: part for name, part in content(out).items() if "manifest" not in name} == {
        name: part for name, part in content(finished_run).items() if "manifest" not in name
    }
    remove(out, "best", "samples")
    capsys.readouterr()
    forget_accelerate()
    assert train_command(*command) == 0
    printed = capsys.readouterr()
    assert not (out / "best").exists() and f"the last model is in {out / 'last'}" in printed.out
    assert "the best model, that of step 1, cannot be restored" in " ".join(printed.err.split())


def test_metrics_of_an_earlier_best_model_are_recomputed(finished_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    manifest = read_manifest(checkpoints(out / "checkpoints")[-1])
    change_manifest(out, best_tracker=manifest.best_tracker.model_dump() | {"best_step": 1})
    remove(out, "best/metrics.json", "best/README.md", "best/preprocessor_config.json", "best/recipe.yaml")
    assert run(finished_run.parent / "recipe.yaml", out, "loop.steps=2", resume=True) is RunStatus.finished
    restored, expected = content(out), content(finished_run)
    assert restored["best/metrics.json"] == {**expected["best/metrics.json"], "step": 1}
    cards = [(run_directory / "best/README.md").read_text() for run_directory in (out, finished_run)]
    assert cards[0].count("at step 1,") == 1 == cards[1].count("at step 2,")
    for name in ("preprocessor_config.json", "recipe.yaml", "model.safetensors"):
        assert restored[f"best/{name}"] == expected[f"best/{name}"]


def test_user_folder_in_last_model_is_preserved(finished_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    (out / "last" / "evaluation_test").mkdir()
    (out / "last" / "evaluation_test" / "metrics.json").write_text("{}")
    (out / "last" / "README.md").write_text("mine")
    run(finished_run.parent / "recipe.yaml", out, "loop.steps=2", resume=True)
    assert (out / "last" / "evaluation_test" / "metrics.json").read_text() == "{}"
    assert (out / "last" / "README.md").read_text() == "mine"


def test_outdated_last_model_is_replaced(recipe, checkpoint, monkeypatch):
    """Killed between the last checkpoint of an extended run and its last model."""
    from hf_vit_seg.training.loop import trainer as module

    out = checkpoint.parent.parent
    with monkeypatch.context() as patch:
        patch.setattr(module.Run, "complete", full)
        with pytest.raises(OutOfMemory):
            run(recipe, out, "loop.steps=3", resume=True)
    assert json.loads((out / "last" / "metrics.json").read_text())["step"] == 2
    run(recipe, out, "loop.steps=3", resume=True)
    assert json.loads((out / "last" / "metrics.json").read_text())["step"] == 3
    average = load_file(checkpoints(out / "checkpoints")[-1] / "average.safetensors")
    saved = weights(out / "last")
    assert same(saved, {name: average[f"module.{name}"] for name in saved})


# Dies as by `kill -9` just before it writes the model of the last step.
KILLED_AT_THE_END = """
import os, sys
from pathlib import Path
from hf_vit_seg.training.loop import trainer as run
from hf_vit_seg.training.train_commands import train_command
recipe, out = sys.argv[1:]
write_model = run.Run.write_model
def write_model_or_die(self, target, *arguments, **options):
    if target.name == "last":
        os._exit(9)
    return write_model(self, target, *arguments, **options)
run.Run.write_model = write_model_or_die
train_command(recipe, ["loop.steps=2"], Path(out), False, False)
"""


def test_resume_after_kill_at_the_last_checkpoint(finished_run, tmp_path):
    recipe, out = finished_run.parent / "recipe.yaml", tmp_path / "run"
    (tmp_path / "killed.py").write_text(KILLED_AT_THE_END)
    finish(start([str(recipe), str(out)], script=str(tmp_path / "killed.py")), expected=9)
    assert not (out / "last").exists() and not (out / "plots" / "training.png").exists()
    assert run(recipe, out, "loop.steps=2", resume=True) is RunStatus.finished
    assert content(out).keys() == content(finished_run).keys()
    assert_same_run(out, finished_run)
    assert metrics_without_times(out / "test" / "metrics.json") == metrics_without_times(
        finished_run / "test" / "metrics.json"
    )


def test_early_stopped_run_is_not_resumed(recipe, tmp_path, monkeypatch):
    from hf_vit_seg.training.loop import trainer as module

    never = ["loop.evaluate_every=1", "loop.early_stop.patience=1", "loop.early_stop.min_delta=10"]
    assert run(recipe, tmp_path / "run", *never) is RunStatus.early_stop
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002"]
    before = content(tmp_path / "run")
    remove(tmp_path / "run", "last", "plots")
    monkeypatch.setattr(module.OptimizerStep, "take", full)
    assert run(recipe, tmp_path / "run", *never, resume=True) is RunStatus.early_stop
    assert content(tmp_path / "run") == before


def test_only_existing_outputs_are_listed(tmp_path, capsys):
    directory = RunDirectory(tmp_path)
    (tmp_path / "last").mkdir()
    loaded = load_recipe("nuclei", [])
    print_results(directory, RunStatus.finished, loaded)
    assert str(directory.plots) not in capsys.readouterr().out
    directory.plots.mkdir()
    (directory.plots / "training.png").touch()
    print_results(directory, RunStatus.finished, loaded)
    assert str(directory.plots) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.learning_rate=2e-3", r"optimizer\.learning_rate = 0\.001, but the recipe has 0\.002"),
        ("loop.batch_size=4", r"loop\.batch_size \* loop\.accumulation \* processes = 3, but the recipe has 4"),
        ("transforms.0.random_crop.size=[40,40]", r"transforms\.0\.random_crop\.size\.0 = 32"),
        ("model.freeze=[encoder]", r"model\.freeze"),
        ("seed=1", r"seed = 0"),
    ],
)
def test_checkpoint_of_another_recipe_raises(recipe, checkpoint, override, named):
    with pytest.raises(CheckpointError, match=named):
        run(recipe, checkpoint.parent.parent, "loop.steps=2", override, resume=True)


def test_settings_outside_the_training_state_can_change(recipe, checkpoint):
    free = ["loop.log_every=3", "loop.keep_checkpoints=1", "data.workers=1", "evaluation.samples=0", "name=other"]
    assert run(recipe, checkpoint.parent.parent, "loop.steps=2", *free, resume=True) is RunStatus.finished


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["loop.batch_size=1", "loop.accumulation=3"],
            "loop.batch_size = 1 (was 3): the run is not bit-identical from here on",
        ),
        (
            ["model.gradient_checkpointing=true"],
            "model.gradient_checkpointing = True (was False): the run is not bit-identical",
        ),
        (["evaluation.protocol.window=[32,32]"], "the best model so far is not compared"),
        (["evaluation.batch_size=2", "loop.evaluate_every=1"], ""),
    ],
)
def test_memory_saving_settings_can_change(recipe, checkpoint, capsys, overrides, note):
    out = checkpoint.parent.parent
    assert run(recipe, out, "loop.steps=3", *overrides, resume=True) is RunStatus.finished
    noted = " ".join(capsys.readouterr().err.split())
    assert "loop.steps = 3 (was 2): the learning rate follows the new length from here on" in noted
    assert note in noted and noted.count("the run is not bit-identical") == note.count(
        "the run is not bit-identical"
    ) * len(overrides)


def test_best_model_is_reset_when_evaluation_changes(recipe, checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"best_tracker": {"best": 2.0, "best_step": 1}}))
    shutil.copytree(checkpoint.parent.parent, checkpoint.parent.parent.with_name("other"))
    for out, overrides in (
        (checkpoint.parent.parent, []),
        (checkpoint.parent.parent.with_name("other"), ["evaluation.metric=mean_dice"]),
    ):
        run(recipe, out, "loop.steps=3", *overrides, resume=True)
        assert (read_manifest(checkpoints(out / "checkpoints")[-1]).best_tracker.best_step == 3) == bool(overrides)


def test_extended_run_uses_its_new_schedule(recipe, checkpoint, tmp_path):
    every = "loop.log_every=1"
    run(recipe, checkpoint.parent.parent, "loop.steps=4", every, resume=True)
    run(recipe, tmp_path / "whole", "loop.steps=4", every)
    assert log(checkpoint.parent.parent, "learning_rate")[-2:] == log(tmp_path / "whole", "learning_rate")[-2:]


@pytest.mark.parametrize(("change", "found"), [("add", "found 11"), ("rename", "other names")])
def test_checkpoint_of_other_data_raises(tmp_path, change, found):
    data = write_data(tmp_path / "data")
    recipe = write_recipe(tmp_path, settings(data))
    run(recipe, tmp_path / "run", "loop.steps=1")
    for kind in ("images", "masks"):
        path = data / "train" / kind / "00.png"
        shutil.copy(path, path.with_name("99.png"))
        if change == "rename":
            path.unlink()
    with pytest.raises(CheckpointError, match=rf"step 1 was written with 10 samples .* {found}"):
        run(recipe, tmp_path / "run", "loop.steps=2", resume=True)


def test_other_process_count_requires_equal_samples_per_step(recipe, checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"processes": 4}))
    with pytest.raises(CheckpointError, match=r"processes = 12, but the recipe has 3"):
        run(recipe, checkpoint.parent.parent, "loop.steps=2", resume=True)


def test_other_process_count_of_sharded_weights_raises(recipe, checkpoint):
    manifest = read_manifest(checkpoint).model_copy(update={"processes": 3})
    loop = manifest.recipe["loop"] | {"batch_size": 3 * manifest.batch_size}
    same_step = Recipe.model_validate(manifest.recipe | {"loop": loop})
    check_same_run(checkpoint, manifest, same_step, 1, sharded=False)
    with pytest.raises(CheckpointError, match="sharded"):
        check_same_run(checkpoint, manifest, same_step, 1, sharded=True)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_on_another_number_of_processes(tmp_path, before, after):
    """Without dropout and with GroupNorm the run is the same, except for rounding."""
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    every = ["loop.log_every=1", "loop.evaluate_every=4", "optimizer.name=sgd", "optimizer.learning_rate=1e-2"]
    every += ["schedule.name=constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(recipe, whole, *every, "loop.batch_size=4", "loop.steps=8")
    for processes, steps, resume in ((before, 4, []), (after, 8, ["--resume"])):
        command = [str(recipe), *every, f"loop.batch_size={4 // processes}", f"loop.steps={steps}", *resume]
        finish(start([*command, "--out", str(parts)], processes=processes))
    assert read_manifest(checkpoints(parts / "checkpoints")[-1]).samples == 32
    assert [number for number, _ in log(parts)] == list(range(1, 9))
    assert log(parts) == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in log(whole)]
    assert difference(whole / "last", parts / "last") < 1e-5


def test_partial_checkpoint_is_not_used(recipe, checkpoint):
    half = checkpoint.with_name("step-000099")
    half.mkdir()
    left = checkpoint.with_name(".tmp-step-000003")
    left.mkdir()
    assert checkpoints(checkpoint.parent) == [checkpoint]
    run(recipe, checkpoint.parent.parent, "loop.steps=2", resume=True)
    assert not left.exists()


class Evil:
    """Writes a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"])
def test_checkpoint_pickles_execute_no_code(recipe, checkpoint, tmp_path, name):
    evil = {"state": Evil(tmp_path / "was_here")}
    if name == "random_states_0.pkl":
        with (checkpoint / name).open("wb") as file:
            pickle.dump(evil, file)
    else:
        torch.save(evil, checkpoint / name)
    with pytest.raises(CheckpointError, match=r"step-000002"):
        run(recipe, checkpoint.parent.parent, "loop.steps=2", resume=True)
    assert not (tmp_path / "was_here").exists()


def test_resume_without_checkpoint_starts_a_new_run(recipe, tmp_path):
    assert run(recipe, tmp_path / "run", "loop.steps=1", resume=True) is RunStatus.finished
