"""Progress of single images while Ray's actors segment shards."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from many_images import write_photos
from tiny_segmenters import save_segmenter

from hf_vit_seg.inference.batch import ray_engine
from hf_vit_seg.inference.batch.manifest import RunSettings, plan_manifest
from hf_vit_seg.inference.batch.processes import ShardProgress, Work
from hf_vit_seg.inference.batch.ray_engine import ProgressRelay, ShardActor, ShardCounts, poll, read_row
from hf_vit_seg.inference.batch.shard import ShardStatus, WorkSettings
from hf_vit_seg.inference.batch.storage import Storage
from hf_vit_seg.inference.files.prediction import PredictOptions


def work_of(folder: Path, shards: int) -> Work:
    model = save_segmenter(folder / "model")
    photos = write_photos(folder / "photos", 4)
    settings = RunSettings(str(model), "", (str(photos),), shards=shards)
    manifest = plan_manifest(settings, Storage(str(folder / "out")))
    return Work(manifest, PredictOptions(model=str(model), device="cpu", overlay=False), WorkSettings())


def test_actor_counts_each_image(tmp_path):
    found: list[tuple[int, int]] = []
    counts = SimpleNamespace(record=SimpleNamespace(remote=lambda *numbers: found.append(numbers)))
    actor = ShardActor(work_of(tmp_path, 1), counts)
    status = read_row(actor.segment_shard(0))
    actor.segment.__exit__(None, None, None)
    assert status.images == 4 and sorted(set(found)) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_counts_are_taken_once():
    counts = ShardCounts()
    for number in (1, 2):
        counts.record(0, number)
        counts.record(5, 7)
    assert counts.take() == {0: 2, 5: 7}
    assert counts.take() == {}


def test_finished_shards_have_no_more_progress():
    found: list[Any] = []
    relay = ProgressRelay(found.append)
    status = ShardStatus(1, 4, 4, (), 0.0, 0.0)
    relay.note_counts({1: 2})
    relay.note(status)
    relay.note_counts({1: 3, 2: 1})
    assert found == [ShardProgress(1, 2), status, ShardProgress(2, 1)]


def test_polling_ends_with_an_exception(monkeypatch):
    monkeypatch.setattr(ray_engine, "POLL_SECONDS", 0)
    called = threading.Event()

    def fail() -> None:
        called.set()
        raise ConnectionError("the actor is gone")

    with poll(fail):
        assert called.wait(60)


@pytest.mark.slow
def test_ray_reports_statuses_and_progress(tmp_path, monkeypatch):
    """The counting actor of a real cluster; images that are polled are a subset of those that are done."""
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_engine, "POLL_SECONDS", 0.01)
    found: list[Any] = []
    ray_engine.run_ray(work_of(tmp_path, 2), range(2), found.append, actors=1)
    statuses = [event for event in found if isinstance(event, ShardStatus)]
    assert sorted(status.index for status in statuses) == [0, 1]
    assert {(e.index, e.done) for e in found if isinstance(e, ShardProgress)} <= {
        (i, n) for i in (0, 1) for n in (1, 2)
    }
