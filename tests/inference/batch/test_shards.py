"""A shard of batch inference: results in every format, batches, failures, and repeated runs."""

import errno
import io
import json
import os
import random
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow.parquet
import pytest
import torch
import webdataset
from many_images import encoded, label_maps, results, write_photos
from PIL import Image
from tiny_segmenters import segmenter

from hf_vit_seg.directory_lock import InUseError
from hf_vit_seg.errors import WriteError
from hf_vit_seg.inference import Protocol, Segmenter
from hf_vit_seg.inference.batch.manifest import Manifest, RunSettings, plan_manifest
from hf_vit_seg.inference.batch.shard import (
    ShardSegmenter,
    ShardStatus,
    WorkSettings,
    lock_shard,
    read_status,
    segment_shard,
)
from hf_vit_seg.inference.batch.storage import Storage
from hf_vit_seg.inference.files.prediction import PredictOptions

LABELS_ONLY = PredictOptions(overlay=False)
BATCHES = WorkSettings(batch_size=4, readers=3, writers=2)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return segmenter()


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos")


def planned(photos: Path, out: Path | str, kind: str = "folder", shards: int = 1, **settings: Any) -> Manifest:
    return plan_manifest(
        RunSettings("model", "", (str(photos),), format=kind, shards=shards, **settings), Storage(str(out))
    )


def segment_all(
    manifest: Manifest, model: Segmenter, options: PredictOptions = LABELS_ONLY, work: WorkSettings = BATCHES
) -> list[ShardStatus]:
    return [segment_shard(manifest, index, model, options, work) for index in range(manifest.shards)]


def test_label_maps_equal_those_of_single_images(photos, tmp_path, model):
    (status,) = segment_all(planned(photos, tmp_path / "out"), model)
    assert (status.images, status.segmented, status.failures) == (8, 8, ())
    found = label_maps(tmp_path / "out")
    assert found.keys() == {"0", "2", "4", "6", "sub/1", "sub/3", "sub/5", "sub/7"}
    for name, labels in found.items():
        assert np.array_equal(labels, model(photos / f"{name}.png").label_map)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_results_do_not_depend_on_batches_and_workers(photos, tmp_path, model, kind):
    works = [WorkSettings(), BATCHES, WorkSettings(batch_size=8, readers=1, writers=3)]
    found = []
    for number, work in enumerate(works):
        segment_all(planned(photos, tmp_path / str(number), kind, shards=2), model, PredictOptions(), work)
        found.append(results(tmp_path / str(number)))
    assert found[0] and found[0] == found[1] == found[2]


@pytest.mark.slow
def test_decoding_processes_give_the_same_results(photos, tmp_path, model):
    segment_all(planned(photos, tmp_path / "threads"), model)
    segment_all(planned(photos, tmp_path / "processes"), model, work=WorkSettings(batch_size=2, decoders=1))
    assert results(tmp_path / "threads") == results(tmp_path / "processes")


def test_windows_and_optional_maps(photos, tmp_path):
    model = segmenter(Protocol(window=(32, 32)))
    options = PredictOptions(scores=True, entropy=True, geojson=True)
    segment_all(planned(photos, tmp_path / "out"), model, options)
    kinds = {"png", "overlay.png", "scores.png", "entropy.png", "geojson", "json"}
    assert {name.partition(".")[2] for name in results(tmp_path / "out")} == kinds
    assert np.array_equal(label_maps(tmp_path / "out")["0"], model(photos / "0.png").label_map)


def test_report_has_no_timings(photos, tmp_path, model):
    segment_all(planned(photos, tmp_path / "out"), model, PredictOptions(model="tiny", overlay=False))
    report = json.loads((tmp_path / "out/0.json").read_text())
    assert report["image"] == str(photos / "0.png") and report["model"] == "tiny"
    assert sum(each["pixels"] for each in report["classes"]) == report["height"] * report["width"]
    assert "timings_ms" not in report


def test_without_reports(photos, tmp_path, model):
    manifest = planned(photos, tmp_path / "out", reports=False)
    segment_all(manifest, model)
    assert all(name.endswith(".png") for name in results(tmp_path / "out"))


def test_webdataset_without_reports(photos, tmp_path, model):
    segment_all(planned(photos, tmp_path / "out", "webdataset", shards=1, reports=False), model)
    with tarfile.open(tmp_path / "out/data/train-00000-of-00001.tar") as tar:
        assert not any(name.endswith(".json") for name in tar.getnames())


def test_webdataset(photos, tmp_path, model):
    (photos / "a.b.jpg").write_bytes(encoded(9, "JPEG"))
    segment_all(planned(photos, tmp_path / "out", "webdataset", shards=2), model)
    files = sorted(map(str, (tmp_path / "out/data").glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == ["0", "2", "4", "6", "a_b", "sub/1", "sub/3", "sub/5", "sub/7"]
    for sample in samples:
        image = sample.get("png") or sample["jpg"]
        assert sample["json"]["image"].startswith("photos/") and image.mode == "RGB"
        data = next(member for member in read_tar(files) if member[0] == f"{sample['__key__']}.seg.png")[1]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), model(image).label_map)


def read_tar(files: list[str]) -> list[tuple[str, bytes]]:
    found = []
    for path in files:
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    return found


def test_results_are_inputs_again(photos, tmp_path, model):
    """Label maps in tar files are not taken for images."""
    segment_all(planned(photos, tmp_path / "out", "webdataset"), model)
    again = planned(tmp_path / "out/data/train-00000-of-00001.tar", tmp_path / "again")
    assert again.images == 8


def test_parquet_is_a_dataset(photos, tmp_path, model):
    options = PredictOptions(overlay=False, scores=True)
    segment_all(planned(photos, tmp_path / "out", "parquet", shards=2), model, options)
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {name for name, kind in data.features.items() if isinstance(kind, datasets.Image)} == {
        "image",
        "label_map",
        "scores",
    }
    assert data["name"][:] == ["0", "2", "4", "6", "sub/1", "sub/3", "sub/5", "sub/7"]
    for row in data:
        expected = model(row["image"])
        assert np.array_equal(np.asarray(row["label_map"]), expected.label_map)
        assert [(each["id"], each["name"], each["pixels"]) for each in row["classes"]] == [
            (count.index, count.name, count.pixels) for count in expected.counts()
        ]
        assert row["source"] == f"photos/{row['name']}.png"
    about = json.loads(pyarrow.parquet.read_schema(next((tmp_path / "out/data").glob("*"))).metadata[b"hf_vit_seg"])
    assert about["names"] == list(model.names) and np.array_equal(about["palette"], model.palette)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_output_at_an_address(photos, tmp_path, model, kind):
    memory = fsspec.filesystem("memory")
    try:
        manifest = planned(photos, "memory://results/run", kind)
        segment_all(manifest, model, PredictOptions())
        segment_all(planned(photos, tmp_path / "out", kind), model, PredictOptions())
        memory.get("/results/run", str(tmp_path / "copy"), recursive=True)
        assert results(tmp_path / "copy") == results(tmp_path / "out")
        assert read_status(manifest, 0) is not None
    finally:
        memory.rm("/results", recursive=True)


# Repeated runs


def test_finished_shard_is_not_repeated(photos, tmp_path, model):
    manifest = planned(photos, tmp_path / "out")
    first = segment_all(manifest, model)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    (photos / "0.png").unlink()
    assert segment_all(manifest, model) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == times


def test_finished_images_of_an_interrupted_shard_are_kept(photos, tmp_path, model):
    manifest = planned(photos, tmp_path / "out")

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_shard(manifest, 0, model, LABELS_ONLY, note=stop)
    assert read_status(manifest, 0) is None
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json") if ".manifest" not in str(path)
    }
    assert 3 <= len(kept) < 8
    status = segment_shard(manifest, 0, model, LABELS_ONLY)
    assert status.segmented == 8 - len(kept)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    segment_all(planned(photos, tmp_path / "whole"), model)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_interrupted_shard_leaves_no_file(photos, tmp_path, model, kind):
    manifest = planned(photos, tmp_path / "out", kind)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_shard(manifest, 0, model, LABELS_ONLY, note=stop)
    assert results(tmp_path / "out") == {} and not list((tmp_path / "out/.manifest/temporary").iterdir())


def test_status_of_another_run_does_not_count(photos, tmp_path, model):
    segment_all(planned(photos, tmp_path / "out"), model)
    other = planned(photos, tmp_path / "out", options={"overlay": True})
    assert read_status(other, 0) is None


def test_shard_has_one_writer(photos, tmp_path, model):
    manifest = planned(photos, tmp_path / "out")
    with lock_shard(manifest, 0), pytest.raises(InUseError):
        segment_shard(manifest, 0, model, LABELS_ONLY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_process_killed_at_random_moments_loses_nothing(photos, tmp_path, model, kind, kills):
    manifest = planned(photos, tmp_path / "out", kind, shards=4)
    torch.set_num_threads(1)  # a forked process has no other threads
    moments = random.Random(kills)
    for _ in range(kills):
        pid = os.fork()
        if pid == 0:
            segment_all(manifest, model)
            os._exit(0)
        time.sleep(moments.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert any(read_status(manifest, index) for index in range(manifest.shards))  # they have worked
    assert all(status.complete for status in segment_all(manifest, model))
    segment_all(planned(photos, tmp_path / "whole", kind, shards=4), model)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


# Failures


def test_broken_images_do_not_stop_a_batch(photos, tmp_path, model):
    bomb = Image.new("1", (20000, 20000))
    bomb.save(photos / "bomb.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "cut.png").write_bytes(encoded(1)[:200])
    (photos / "gone.png").symlink_to(photos / "nothing")
    status = segment_shard(planned(photos, tmp_path / "out"), 0, model, LABELS_ONLY, BATCHES)
    assert (status.images, status.segmented, status.complete) == (12, 8, True)
    failed = {Path(each.image).name: each for each in status.failures}
    assert failed.keys() == {"bomb.png", "broken.jpg", "cut.png", "gone.png"}
    assert failed["bomb.png"].kind == "ImageSizeError"
    assert not any(each.bug or each.lost for each in status.failures)
    assert len(label_maps(tmp_path / "out")) == 8


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_model_that_fails_on_one_image_of_a_batch(photos, tmp_path, kind):
    model, classes = segmenter(), model_names()
    forward = model.logits
    worst = model.prepare(photos / "4.png").pixel_values

    def logits(pixels):
        if any((each == worst[0]).all() for each in pixels):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(pixels)

    model.logits = logits
    status = segment_shard(planned(photos, tmp_path / "out", kind), 0, model, LABELS_ONLY, BATCHES)
    assert [(Path(each.image).name, each.kind) for each in status.failures] == [("4.png", "OutOfMemory")]
    assert status.segmented == 7 and classes == model.names


def model_names() -> tuple[str, ...]:
    return tuple(f"thing {number}" for number in range(4))


def test_bug_has_a_traceback(photos, tmp_path):
    model = segmenter()

    def logits(pixels):
        raise ZeroDivisionError("a bug")

    model.logits = logits
    status = segment_shard(planned(photos, tmp_path / "out"), 0, model, LABELS_ONLY, BATCHES)
    assert len(status.failures) == 8
    assert all(each.kind == "ZeroDivisionError" and "def logits" not in each.reason for each in status.failures)
    assert "Traceback" in status.failures[0].bug


def test_lost_connection_is_repeated(photos, tmp_path, model, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/photos", recursive=True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    manifest = planned("memory://photos", tmp_path / "out")
    read = type(memory).cat_file

    def refuse(self, path, **options):
        if path.endswith("/4.png"):
            raise ConnectionResetError("reset by peer")
        return read(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", refuse)
        status = segment_shard(manifest, 0, model, LABELS_ONLY, BATCHES)
    assert not status.complete and len(status.failures) == 1 and read_status(manifest, 0) is None
    status = segment_shard(manifest, 0, model, LABELS_ONLY, BATCHES)
    assert status.complete and status.segmented == 1
    memory.rm("/photos", recursive=True)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_full_disk_stops_the_shard(photos, tmp_path, model, monkeypatch, kind):
    """The third result cannot be written; nothing is left half written, and the same call resumes."""
    manifest = planned(photos, tmp_path / "out", kind)
    calls = []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if kind != "folder" or len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WriteError):
            segment_shard(manifest, 0, model, LABELS_ONLY)
    assert calls and read_status(manifest, 0) is None
    assert not [path for path in (tmp_path / "out").rglob(".tmp-*")]
    assert segment_shard(manifest, 0, model, LABELS_ONLY).complete
    segment_all(planned(photos, tmp_path / "whole", kind), model)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_full_temporary_folder_is_no_failure_of_an_image(tmp_path):
    def save(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError):
        Storage(f"memory://{tmp_path.name}").write({"a.png": save})


def test_long_file_name_fails_only_that_image(photos, tmp_path, model):
    (photos / f"{'n' * 250}.png").write_bytes(encoded(0))
    status = segment_shard(planned(photos, tmp_path / "out"), 0, model, LABELS_ONLY, BATCHES)
    assert status.segmented == 8 and len(status.failures) == 1


def test_progress_counts_every_image_once(photos, tmp_path, model):
    (photos / "broken.jpg").write_bytes(b"no image")
    seen: list[int] = []
    with ShardSegmenter(model, LABELS_ONLY, BATCHES) as segment:
        segment(planned(photos, tmp_path / "out"), 0, seen.append)
    assert seen == [*range(1, 10), 9]
