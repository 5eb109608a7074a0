"""`hf-vit-seg predict` by shards: formats, resumption, errors, several processes, and the Hub."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from many_images import encoded, label_maps, results, write_parquet, write_photos, write_tar
from PIL import Image
from tiny_segmenters import save_segmenter
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.error_reporting import DONE, FAILED, REFUSED
from hf_vit_seg.hub.dataset import push_dataset
from hf_vit_seg.hub.repository import PushError, Target
from hf_vit_seg.inference import Segmenter
from hf_vit_seg.inference.batch import batch_console
from hf_vit_seg.inference.batch import run as run_module
from hf_vit_seg.inference.batch.batch_console import requires_shards, share_of_processes, summary_lines
from hf_vit_seg.inference.batch.processes import ShardProgress
from hf_vit_seg.inference.batch.run import BatchRun, RunError, RunObserver, RunSummary, resources, segment_images
from hf_vit_seg.inference.files.prediction import PredictOptions

ONE = ("--workers", "1", "--no-overlay")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos")


def predict(model: Path, *arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["predict", str(model), *map(str, arguments)])
    return done.exit_code, done.output


def run_process(model: Path, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_vit_seg.cli", "predict", str(model), *map(str, arguments)]
    return start(command, environment)


def start(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
    own = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=own, start_new_session=True, text=True, **pipes)


def test_shards_give_the_label_maps_of_predict(model, photos, tmp_path):
    assert predict(model, photos, "-o", tmp_path / "plain", "--no-overlay")[0] == DONE
    code, text = predict(model, photos, "-o", tmp_path / "out", "--shards", 3, *ONE)
    assert code == DONE and "8 of 8 images" in text and "images/s" in text
    plain, found = label_maps(tmp_path / "plain"), label_maps(tmp_path / "out")
    assert plain.keys() == found.keys() and all(np.array_equal(plain[name], found[name]) for name in plain)
    assert len(list((tmp_path / "out/.manifest/shards").glob("*.json"))) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_threads_is_kept(model, photos, tmp_path, workers):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        options = PredictOptions(model=str(model))
        segment_images(BatchRun(options, (str(photos),), str(tmp_path / "out"), shards=1, workers=workers))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_same_command_resumes(model, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    code, text = predict(model, photos, "-o", out, "--shards", 3, *ONE)
    assert code == FAILED and "broken.jpg" in text
    with (out / "errors.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == str(photos / "broken.jpg") and row["kind"] == "ImageFileError"
    before = results(out)
    (out / ".manifest/shards/00001.json").unlink()
    code, text = predict(model, photos, "-o", out, "--shards", 3, *ONE)
    assert code == FAILED and results(out) == before


def test_other_settings_are_refused(model, photos, tmp_path):
    out = tmp_path / "out"
    assert predict(model, photos, "-o", out, *ONE)[0] == DONE
    for other in (("--scores",), ("--size", "own"), ("--format", "parquet"), ("--shards", 2)):
        assert predict(model, photos, "-o", out, *ONE, *other)[0] == REFUSED
    assert predict(model, photos, "-o", out, *ONE, "--batch-size", 3)[0] == DONE
    assert predict(model, photos, "-o", out, *ONE, "--shards", 2, "--overwrite")[0] == DONE


def test_changed_inputs_are_refused(model, photos, tmp_path):
    command = ("-o", tmp_path / "out", *ONE)
    assert predict(model, photos, *command)[0] == DONE
    first, second = sorted(photos.glob("*.png"))[:2]
    planned = (tmp_path / "out/.manifest/manifest.json").stat().st_mtime_ns
    Image.new("RGB", (31, 17)).save(first)
    os.utime(first, ns=(0, 0))  # as a file that was copied with its time
    code, text = predict(model, photos, *command)
    assert code == REFUSED and first.name in text and second.name not in text
    os.utime(second, ns=(planned + 10**9, planned + 10**9))  # as a file of the same size that was written later
    code, text = predict(model, photos, *command)
    assert code == REFUSED and first.name in text and second.name in text
    assert predict(model, photos, *command, "--overwrite")[0] == DONE


def test_deleted_inputs_keep_their_results(model, photos, tmp_path):
    command = ("-o", tmp_path / "out", *ONE)
    assert predict(model, photos, *command)[0] == DONE
    before = results(tmp_path / "out")
    min(photos.glob("*.png")).unlink()
    assert predict(model, photos, *command)[0] == DONE and results(tmp_path / "out") == before


def test_changed_containers_are_refused(model, photos, tmp_path):
    tar = write_tar(tmp_path / "photos.tar", {"0.png": encoded(0), "1.png": encoded(1)})
    command = ("-o", tmp_path / "out", *ONE)
    assert predict(model, tar, *command)[0] == DONE and predict(model, tar, *command)[0] == DONE
    later = tar.stat().st_mtime_ns + 10**12
    os.utime(tar, ns=(later, later))
    assert predict(model, tar, *command)[0] == REFUSED


def test_other_package_versions_are_reported(model, photos, tmp_path, monkeypatch):
    command = ("-o", tmp_path / "out", *ONE)
    assert predict(model, photos, *command)[0] == DONE
    header = tmp_path / "out/.manifest/manifest.json"
    written = json.loads(header.read_text())
    header.write_text(json.dumps(written | {"packages": written["packages"] | {"torch": "1.0"}}))
    messages = []
    monkeypatch.setattr(run_module.logger, "warning", lambda text, *values: messages.append(text % values))
    assert predict(model, photos, *command)[0] == DONE
    assert len(messages) == 1 and "torch 1.0" in messages[0]


def test_results_of_another_format_are_not_replaced(model, photos, tmp_path):
    assert predict(model, photos, "-o", tmp_path / "out", *ONE)[0] == DONE
    before = results(tmp_path / "out")
    code, text = predict(model, photos, "-o", tmp_path / "out", *ONE, "--format", "parquet", "--overwrite")
    assert code == REFUSED and "folder" in text and results(tmp_path / "out") == before


def test_skip_existing_is_refused(model, photos, tmp_path):
    assert predict(model, photos, "-o", tmp_path / "out", *ONE, "--skip-existing")[0] == REFUSED


def test_overwrite_replaces_results(model, photos, tmp_path):
    out = tmp_path / "out"
    assert predict(model, photos, "-o", out, *ONE)[0] == DONE
    other = save_segmenter(tmp_path / "other", seed=2)
    assert predict(other, photos, "-o", out, *ONE, "--overwrite")[0] == DONE
    assert predict(other, photos, "-o", tmp_path / "fresh", *ONE)[0] == DONE
    assert results(out) == results(tmp_path / "fresh")


def test_overwrite_leaves_no_files_of_other_shards(model, photos, tmp_path):
    out = tmp_path / "out"
    for shards in (3, 2):
        arguments = ("-o", out, *ONE, "--format", "parquet", "--shards", shards, "--overwrite")
        assert predict(model, photos, *arguments)[0] == DONE
    assert len(list((out / "data").iterdir())) == 2


def test_equal_names_in_two_folders(model, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    assert predict(model, photos, tmp_path / "copy", "-o", tmp_path / "out", *ONE)[0] == DONE
    found = [path for path in results(tmp_path / "out") if str(path).endswith(".json") and ".manifest" not in str(path)]
    assert len(found) == 2 * sum(path.is_file() for path in photos.rglob("*"))


def test_unfinished_run_is_not_pushed(model, photos, tmp_path):
    out = tmp_path / "out"
    assert predict(model, photos, "-o", out, *ONE, "--format", "parquet", "--shards", 2)[0] == DONE
    (out / ".manifest/shards/00001.json").unlink()
    with pytest.raises(PushError):
        push_dataset(out, Target("me/labels"))


def test_changed_model_is_refused(photos, tmp_path):
    model = save_segmenter(tmp_path / "model")
    assert predict(model, photos, "-o", tmp_path / "out", *ONE)[0] == DONE
    config = model / "config.json"
    config.write_text(config.read_text().replace("thing 0", "other"))
    assert predict(model, photos, "-o", tmp_path / "out", *ONE)[0] == REFUSED


def test_folder_with_files_is_refused(model, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("keep")
    assert predict(model, photos, "-o", tmp_path / "out", *ONE)[0] == REFUSED
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "parquet", "--polygons", "geojson"),
        ("--tile", "512", "--workers", "1"),
        ("--push-dataset", "me/data"),
        ("--engine", "ray", "--frames"),
    ],
)
def test_options_that_exclude_each_other(model, photos, tmp_path, options):
    assert predict(model, photos, "-o", tmp_path / "out", *options)[0] == REFUSED
    assert not (tmp_path / "out/.manifest").exists()


def test_only_segmentation_models_have_shards(tmp_path, photos):
    from hub_models import save_tiny_model

    classifier = save_tiny_model(tmp_path / "classifier", auto="AutoModelForImageClassification")
    assert predict(classifier, photos, "-o", tmp_path / "out", "--workers", 1)[0] == REFUSED


def test_tar_and_parquet_inputs(model, tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"1.png": encoded(1)})
    table = write_parquet(tmp_path / "b.parquet", 2)
    assert predict(model, tar, table, "-o", tmp_path / "out", "--no-overlay", "--workers", 1)[0] == DONE
    expected = Segmenter.from_pretrained(str(model))
    found = label_maps(tmp_path / "out")
    assert found.keys() == {"a/1", "b/00000000", "b/00000001"}
    for name, number in (("a/1", 1), ("b/00000000", 0), ("b/00000001", 1)):
        assert np.array_equal(found[name], expected(encoded(number)).label_map)


def test_push_dataset_in_one_commit(model, photos, tmp_path, hub):
    options = ("--format", "parquet", "--push-dataset", "me/labels", "--shards", 2, *ONE)
    assert predict(model, photos, "-o", tmp_path / "out", *options)[0] == DONE
    repo = hub.repo("me/labels", "dataset")
    files = repo.files()
    assert {name for name in files if name.endswith(".parquet")} == {
        f"data/train-0000{index}-of-00002.parquet" for index in range(2)
    }
    assert len(repo.titles) == 1
    text = b"".join(files.values())
    assert str(tmp_path).encode() not in text
    assert b"| 0 | thing 0 | #" in files["README.md"]


def test_shards_of_several_commands(model, photos, tmp_path):
    """As jobs of HF Jobs do: both plan, each segments its shards."""
    out = tmp_path / "out"
    options = PredictOptions(model=str(model))
    settings = {"options": options, "inputs": (str(photos),), "out": str(out), "shards": 4, "workers": 1}
    first = segment_images(BatchRun(**settings, rank=1, world=2))
    assert (first.images, first.finished) == (8, 4)
    second = segment_images(BatchRun(**settings, rank=0, world=2))
    assert second.finished == 8
    segment_images(BatchRun(**settings | {"out": str(tmp_path / "one")}))
    assert results(out) == results(tmp_path / "one")


def test_observer_counts_images(model, photos, tmp_path):
    class Counting(RunObserver):
        def __init__(self):
            self.events = []

        def on_plan(self, images):
            self.events.append(("planned", images))

        def on_start(self, images, done):
            self.events.append(("started", images, done))

    run = BatchRun(PredictOptions(model=str(model)), (str(photos),), str(tmp_path / "out"), workers=1, shards=2)
    for done in (0, 8):
        observer = Counting()
        segment_images(run, observer)
        assert observer.events[-1] == ("started", 8, done)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "NUM_SHARDS": "8"}, (3, 4)),
        ({"RANK": "5", "NUM_SHARDS": "8"}, (5, 8)),
        ({"NUM_SHARDS": "8"}, (0, 1)),
    ],
)
def test_share_of_processes(environment, expected):
    assert share_of_processes(environment) == expected


@pytest.mark.parametrize("environment", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_impossible_ranks_are_refused(environment):
    with pytest.raises(RunError):
        share_of_processes(environment)


@pytest.mark.parametrize(
    ("inputs", "out", "options", "expected"),
    [
        (["photos"], "out", [None], False),
        (["photos"], "out", [None, 1], True),
        (["s3://bucket/photos"], "out", [], True),
        (["a.tar"], "out", [], True),
        (["datasets://me/photos"], "out", [], True),
        (["file:///photos"], "out", [], False),
        (["photos"], "hf://datasets/me/out", [], True),
    ],
)
def test_commands_that_require_shards(inputs, out, options, expected):
    assert requires_shards(inputs, out, options) is expected


def test_processes_of_a_launcher_share_the_cores():
    run = BatchRun(PredictOptions(model="model", device="cpu"), ("photos",), "out")
    alone = resources(run, {})
    shared = resources(run, {"LOCAL_WORLD_SIZE": "1000"})
    assert alone[0] >= 1 and alone[1] == "cpu" and (alone[2].threads, alone[2].batch_size) == (1, 1)
    assert shared[0] == 1 and shared[2].threads == 1


def test_summary_reports_remaining_images():
    run = BatchRun(PredictOptions(model="model"), ("photos",), "out")
    lines = summary_lines(run, RunSummary(10, 6, (), 6, 2.0, 1.5), 1.0)
    assert "6.00 images/s" in lines[0] and "75%" in lines[0] and lines[1].startswith("4 images")


def test_progress_without_a_terminal_is_printed_as_lines(monkeypatch, capsys):
    monkeypatch.setattr(batch_console, "LINE_SECONDS", 0)
    progress = batch_console.BatchProgress(hidden=False)
    with progress.bar:
        progress.on_start(10, 4)
        progress.on_event(ShardProgress(0, 1))
        time.sleep(0.01)
        progress.on_event(ShardProgress(0, 3))
    lines = capsys.readouterr().err.split("\n")
    assert any(line.startswith("7 of 10 images") and "images/s" in line and "left" in line for line in lines)


def test_every_job_shows_its_progress_and_one_process_of_a_launcher(monkeypatch):
    hidden = []

    def segment(run: BatchRun, observer: batch_console.BatchProgress) -> RunSummary:
        hidden.append(observer.bar.disable)
        return RunSummary(1, 1, (), 0, 0.0, 0.0)

    monkeypatch.setattr(batch_console, "segment_images", segment)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    run = BatchRun(PredictOptions(model="model"), ("photos",), "out", rank=1, world=2)
    batch_console.run_batch(run)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    batch_console.run_batch(run)
    assert hidden == [False, True]


# Several processes


@pytest.mark.slow
def test_engines_give_the_same_bytes(model, tmp_path):
    pytest.importorskip("ray")
    photos = write_photos(tmp_path / "photos", 24, broken=True)
    common = (photos, "--format", "parquet", "--shards", 5)
    commands = {
        "one": ("--workers", 1),
        "two": ("--workers", 2, "--batch-size", 3),
        "ray": ("--engine", "ray", "--workers", 2),
    }
    for name, options in commands.items():
        process = run_process(model, *common, "-o", tmp_path / name, *options)
        output, _ = process.communicate(timeout=500)
        assert process.returncode == FAILED, output
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]
    command = [*launch, "hf_vit_seg.cli", "predict", str(model), *map(str, common), "-o", str(tmp_path / "launched")]
    process = start(command, {"MASTER_PORT": "0"})
    output, _ = process.communicate(timeout=500)
    found = {name: results(tmp_path / name) for name in (*commands, "launched")}
    assert len(found["one"]) == 6, output
    assert found["one"] == found["two"] == found["ray"] == found["launched"], output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_processes_are_replaced_or_resumed(model, tmp_path):
    """Workers, or all processes, are killed while they write results; the same command resumes."""
    photos, out = write_photos(tmp_path / "photos", 300, broken=True), tmp_path / "out"
    options = (photos, "-o", out, "--workers", 2, "--shards", 12)
    moments = random.Random(0)
    process = run_process(model, *options)
    for _ in range(3):  # the command continues with new workers
        wait_for_results(out, process)
        time.sleep(moments.uniform(0, 0.5))
        kill([pid for pid in children(process.pid) if is_worker(pid)][:1])
    wait_for_results(out, process)
    kill([process.pid, *children(process.pid)])
    process.communicate(timeout=100)
    process = run_process(model, *options)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == FAILED, output
    run = BatchRun(PredictOptions(model=str(model)), (str(photos),), str(tmp_path / "whole"), workers=1, shards=12)
    assert segment_images(run).finished == 301
    assert results(out) == results(tmp_path / "whole")
    assert not list(out.rglob(".tmp-*"))


def wait_for_results(out: Path, process: subprocess.Popen) -> None:
    """Wait until more images have results, or the command has ended."""
    before = len(list(out.rglob("*.json")))
    for _ in range(600):
        if process.poll() is not None or len(list(out.rglob("*.json"))) > before:
            return
        time.sleep(0.1)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.slow
def test_interrupted_command_resumes(model, tmp_path):
    photos = write_photos(tmp_path / "photos", 1000)
    options = (photos, "-o", tmp_path / "out", "--workers", 2, "--shards", 8)
    process = run_process(model, *options)
    for _ in range(1200):
        time.sleep(0.05)
        if len(list((tmp_path / "out").glob("*.json"))) > 5:
            break
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    process = run_process(model, *options)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == DONE, output
    run = BatchRun(PredictOptions(model=str(model)), (str(photos),), str(tmp_path / "whole"), workers=1, shards=8)
    segment_images(run)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_status_records_are_json(model, photos, tmp_path):
    predict(model, photos, "-o", tmp_path / "out", "--shards", 1, *ONE)
    status = json.loads((tmp_path / "out/.manifest/shards/00000.json").read_text())
    assert (status["images"], status["segmented"], status["failures"]) == (8, 8, [])
    assert 0 < status["model_seconds"] <= status["seconds"]
    header = json.loads((tmp_path / "out/.manifest/manifest.json").read_text())
    assert header["packages"].keys() >= {"torch", "transformers"}
    assert header["settings"]["model_digest"]
