"""Shards as the rows of a dataset of Ray Data, segmented by a pool of actors on the machines of a cluster."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from hf_vit_seg.errors import HfVitSegError, error_sentence

from .preparation import Failure
from .processes import Event, Note, ShardProgress, Work, prepare_process
from .shard import ShardStatus

SHARD, STATUS, REFUSED = "shard", "status", "refused"
POLL_SECONDS = 0.5  # between the requests for the progress of all actors


class RayError(HfVitSegError):
    """Ray is not installed, its cluster cannot be reached, or an actor cannot segment a shard."""


class ShardCounts:
    """An actor that collects the number of images that are done in each shard."""

    def __init__(self) -> None:
        self.done: dict[int, int] = {}

    def record(self, index: int, done: int) -> None:
        """Set the number of images of a shard."""
        self.done[index] = done

    def take(self) -> dict[int, int]:
        """Return the shards whose count has changed since the last call."""
        changed, self.done = self.done, {}
        return changed


class ProgressRelay:
    """Passes events on, from the thread that polls the counts too; a shard that is finished has no more progress."""

    def __init__(self, note: Note):
        self.forward, self.finished, self.lock = note, set[int](), threading.Lock()

    def note(self, event: Event) -> None:
        """Pass on an event."""
        with self.lock:
            if isinstance(event, ShardStatus):
                self.finished.add(event.index)
            elif event.index in self.finished:
                return
            self.forward(event)

    def note_counts(self, counts: Mapping[int, int]) -> None:
        """Pass on the numbers of images that are done."""
        for index, done in counts.items():
            self.note(ShardProgress(index, done))


class ShardActor:
    """An actor with a model. Ray restarts one that ends, and repeats its shard. `counts` is a `ShardCounts`."""

    def __init__(self, work: Work, counts: Any):
        prepare_process()
        with suppress(OSError):  # relative paths are those of the command, on file systems that are shared
            os.chdir(work.folder)
        self.work, self.counts, self.refused = work, counts, ""
        try:
            self.segment = work.open().__enter__()
        except HfVitSegError as error:  # Ray would restart an actor that raises
            self.refused = error_sentence(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Segment shards, and return their status records."""
        return {STATUS: [self.segment_shard(int(index)) for index in batch[SHARD]]}

    def segment_shard(self, index: int) -> str:
        """Segment a shard, and return its status record as JSON, or a sentence that says why it is refused."""
        try:
            if not self.refused:
                return json.dumps(asdict(self.work.segment(self.segment, index, partial(self.count, index))))
        except HfVitSegError as error:
            self.refused = error_sentence(error)
        return json.dumps({REFUSED: self.refused})

    def count(self, index: int, done: int) -> None:
        """Record the number of images of a shard that are done, without waiting."""
        self.counts.record.remote(index, done)


def import_ray() -> Any:
    """Import Ray Data. Raises RayError if it is not installed."""
    try:
        import ray.data
    except ImportError as error:
        raise RayError(f"--engine ray requires Ray Data ({error}): pip install 'ray[data]'") from error
    return ray


def run_ray(
    work: Work, shards: Sequence[int], note: Note, address: str | None = None, actors: int | None = None
) -> None:
    """Segment shards on a cluster of Ray, a local one by default; `actors` is the largest number of processes.

    Each shard is a block, so that small runs are distributed too. Raises RayError.
    """
    if not shards:
        return
    ray = import_ray()
    connect(ray, address)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of all images
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    wants_gpu = work.options.device is None and ray.cluster_resources().get("GPU", 0) > 0
    resources = {"num_gpus": 1} if wants_gpu else {"num_cpus": max(work.settings.threads, 1)}
    rows = ray.data.from_items([{SHARD: index} for index in shards], override_num_blocks=len(shards))
    max_actors = min(actors or len(shards), len(shards))  # Ray starts as many of them as the cluster has room for
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max_actors, max_tasks_in_flight_per_actor=2)
    counts, relay = ray.remote(num_cpus=0)(ShardCounts).remote(), ProgressRelay(note)
    done = rows.map_batches(ShardActor, fn_constructor_args=(work, counts), compute=pool, batch_size=1, **resources)
    with poll(lambda: relay.note_counts(ray.get(counts.take.remote()))):
        for row in done.iter_rows():
            relay.note(read_row(row[STATUS]))
    ray.kill(counts)


@contextmanager
def poll(function: Callable[[], Any]) -> Iterator[None]:
    """Call a function in a thread every `POLL_SECONDS`; the first exception ends it, as only progress is lost."""
    stop = threading.Event()

    def run() -> None:
        with suppress(Exception):
            while not stop.wait(POLL_SECONDS):
                function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine."""
    if ray.is_initialized():
        return
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="error",
            include_dashboard=False if address is None else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RayError(f"cannot connect to the Ray cluster at {address}: {error}") from error


def read_row(text: str) -> ShardStatus:
    """Read a status record that an actor returned. Raises RayError for a shard that was refused."""
    fields = json.loads(text)
    if REFUSED in fields:
        raise RayError(fields[REFUSED])
    return ShardStatus(**fields | {"failures": tuple(Failure(**failure) for failure in fields["failures"])})


__all__ = ["RayError", "run_ray"]
