"""Worker processes of one machine, each with its own model. A killed process is replaced, and its shard repeated."""

import logging as python_logging
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from hf_vit_seg.directory_lock import InUseError
from hf_vit_seg.error_reporting import quiet_libraries, traceback_text
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.inference.files.prediction import PredictOptions
from hf_vit_seg.inference.segmenter import Segmenter

from .manifest import Manifest
from .preparation import DecoderError
from .shard import ShardSegmenter, ShardStatus, WorkSettings, failed_shard

ATTEMPTS = 3  # processes that may end while they work on the same shard


class WorkerError(HfVitSegError):
    """A worker process that cannot continue, such as on a full disk."""


class ShardProgress(NamedTuple):
    """The number of images of a shard that are done."""

    index: int
    done: int


Event = ShardProgress | ShardStatus
Note = Callable[[Event], Any]


@dataclass(frozen=True)
class Work:
    """The work of a process: the manifest, options and settings, the model's revision, and the working folder."""

    manifest: Manifest
    options: PredictOptions
    settings: WorkSettings
    revision: str | None = None
    folder: str = field(default_factory=os.getcwd)

    def load_model(self) -> Segmenter:
        """Load the model. Raises ModelError."""
        options, hub = self.options, {} if self.revision is None else {"revision": self.revision}
        return Segmenter.from_pretrained(
            options.model, options.device, options.dtype, options.protocol, convert=options.convert, **hub
        )

    def open(self) -> ShardSegmenter:
        """Set the number of torch's threads and load the model; threads for files start when it is entered.

        Raises ModelError.
        """
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        return ShardSegmenter(self.load_model(), self.options, self.settings)

    def segment(self, segment: ShardSegmenter, index: int, note: Any) -> ShardStatus:
        """Segment a shard; one that another process is writing is left out."""
        try:
            return segment(self.manifest, index, note)
        except InUseError as error:
            return failed_shard(self.manifest, index, error_sentence(error))


def run_here(work: Work, shards: Sequence[int], note: Note) -> None:
    """Segment shards in this process; `note` gets the progress of shards, and their status records.

    The number of torch's threads is restored at the end.
    """
    threads = torch.get_num_threads()
    try:
        with work.open() as segment:
            for index in shards:
                note(work.segment(segment, index, lambda done, index=index: note(ShardProgress(index, done))))
    finally:
        torch.set_num_threads(threads)


def run_processes(work: Work, shards: Sequence[int], note: Note, count: int) -> None:
    """Segment shards in `count` processes, each of which takes the next shard when it has finished one.

    Raises WorkerError if a process cannot continue.
    """
    if count <= 1 or len(shards) <= 1:
        run_here(work, shards, note)
        return
    with ProcessGroup(work, shards, note) as group:
        group.run(min(count, len(shards)))


class ProcessGroup:
    """Processes that segment shards. Each has its own pipe, so that a killed process cannot hold a lock."""

    def __init__(self, work: Work, shards: Sequence[int], note: Note):
        self.work, self.upcoming, self.note = work, deque(shards), note
        self.processes: dict[Connection, BaseProcess] = {}
        self.working_on: dict[Connection, int] = {}
        self.ended = Counter[int]()  # processes that ended while they worked on a shard

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self.processes.items():
            process.terminate()
            process.join()
            connection.close()

    def run(self, count: int) -> None:
        """Segment all shards."""
        for _ in range(count):
            self.start()
        while self.processes:
            for connection in wait(list(self.processes)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    self.replace(connection)
                else:
                    self.receive(connection, *message)

    def start(self) -> None:
        """Start a worker process, connected by a pipe."""
        context = get_context("spawn")
        connection, other = context.Pipe()
        process = context.Process(target=serve, args=(other, self.work), daemon=not self.work.settings.decoders)
        process.start()
        other.close()
        self.processes[connection] = process

    def receive(self, connection: Connection, kind: str, content: Any) -> None:
        """Handle a message of a process."""
        if kind == "refused":
            raise WorkerError(content)
        if kind == "bug":
            raise RuntimeError(f"in a worker process:\n{content}")
        if kind == "progress":
            self.note(ShardProgress(*content))
            return
        if kind == "done":
            del self.working_on[connection]
            self.note(content)
        if self.upcoming:
            self.working_on[connection] = self.upcoming.popleft()
            with suppress(OSError):  # it was killed; the next `wait` reports it
                connection.send(self.working_on[connection])
        else:
            self.forget(connection)

    def forget(self, connection: Connection) -> None:
        """Let a process end."""
        process = self.processes.pop(connection)
        with suppress(OSError):
            connection.send(None)
        connection.close()
        process.join()

    def replace(self, connection: Connection) -> None:
        """Start a process in the place of one that was killed; a shard is tried `ATTEMPTS` times."""
        process = self.processes.pop(connection)
        process.join()
        connection.close()
        index = self.working_on.pop(connection, None)
        if index is None:
            raise WorkerError(f"a worker process exited with code {process.exitcode} before its first shard")
        self.ended[index] += 1
        if self.ended[index] < ATTEMPTS:
            self.upcoming.appendleft(index)
        else:
            reason = (
                f"{ATTEMPTS} worker processes ended, the last with code {process.exitcode}, possibly for lack of memory"
            )
            self.note(failed_shard(self.work.manifest, index, reason))
        if self.upcoming:
            self.start()


def serve(connection: Connection, work: Work) -> None:
    """Segment the shards that another process asks for; the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the first process has ended
        try:
            prepare_process()
            with work.open() as segment:
                connection.send(("ready", None))
                while (index := connection.recv()) is not None:

                    def note(done: int, index: int = index) -> None:
                        connection.send(("progress", (index, done)))

                    connection.send(("done", work.segment(segment, index, note)))
        except DecoderError:  # end this process; it is replaced like one that was killed
            return
        except HfVitSegError as error:
            connection.send(("refused", error_sentence(error)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            connection.send(("bug", traceback_text(error)))


def prepare_process() -> None:
    """Hide messages that the first process has shown."""
    quiet_libraries()
    logging.set_verbosity_error()
    python_logging.disable(python_logging.WARNING)


__all__ = ["Event", "Note", "ShardProgress", "Work", "WorkerError", "run_processes"]
