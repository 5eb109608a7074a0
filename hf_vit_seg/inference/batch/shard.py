"""Segment one shard of a run: a function of the manifest and the shard's number, which may be repeated at any time.

Results are written first and the status record last. A shard with a status record is not repeated.
"""

import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.directory_lock import lock_file
from hf_vit_seg.errors import OutOfMemory, WriteError, is_out_of_memory
from hf_vit_seg.inference.dense.pixel_maps import MapSelection
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, segmentation_report
from hf_vit_seg.inference.segmentation import Segmentation
from hf_vit_seg.inference.segmenter import Segmenter, view_sizes
from hf_vit_seg.local_paths import publishable_path

from .batches import BatchWindow
from .image_readers import Readers
from .manifest import FOLDER, Manifest, Row
from .outputs import Output, Result, open_output, result_savers
from .preparation import Failure, ImagePreparation, Prepared, Preparer, decoding_processes, failure

PER_IMAGE_ERRNOS = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL})  # others stop the run
NOT_REPORTED = ("timings_ms",)  # results do not depend on the duration


@dataclass(frozen=True)
class WorkSettings:
    """Settings of a process, which do not change the results.

    `batch_size` is the maximum number of images per forward pass; `readers` and `writers` are threads, `decoders`
    processes (0: the readers decode). `threads` is the number of torch's threads (0: torch's choice).
    """

    batch_size: int = 1
    readers: int = 2
    writers: int = 1
    decoders: int = 0
    threads: int = 0


@dataclass(frozen=True)
class ShardStatus:
    """The record of a shard: its images, those that were segmented now, and the failures.

    `seconds` and `model_seconds` are measured in this process. It is `complete` if no image has to be repeated.
    """

    index: int
    images: int
    segmented: int
    failures: tuple[Failure, ...]
    seconds: float
    model_seconds: float

    @property
    def complete(self) -> bool:
        """Whether every image has results or a permanent failure."""
        return not any(failure.lost for failure in self.failures)


def status_name(index: int) -> str:
    """Return the name of the status record of a shard."""
    return f"{FOLDER}/shards/{index:05d}.json"


def read_status(manifest: Manifest, index: int) -> ShardStatus | None:
    """Read the status record of a shard; None if it is not complete, or belongs to another run."""
    content = manifest.storage.read(status_name(index))
    if content is None:
        return None
    fields = json.loads(content)
    if fields.pop("run") != manifest.fingerprint:
        return None
    return ShardStatus(**fields | {"failures": tuple(Failure(**failure) for failure in fields["failures"])})


def write_status(manifest: Manifest, status: ShardStatus) -> None:
    """Write the status record of a shard."""
    text = json_text({"run": manifest.fingerprint, **asdict(status)}, indent=2)
    manifest.storage.write_text(status_name(status.index), text)


@contextmanager
def lock_shard(manifest: Manifest, index: int) -> Iterator[None]:
    """Hold the lock of a shard in a local output. InUseError if another process is writing it."""
    folder = manifest.storage.folder
    with nullcontext() if folder is None else lock_file(folder / status_name(index)):
        yield


def segment_shard(
    manifest: Manifest,
    index: int,
    segmenter: Segmenter,
    options: PredictOptions,
    work: WorkSettings | None = None,
    note: Callable[[int], Any] = lambda images: None,
) -> ShardStatus:
    """Segment the images of a shard, write their results and then the status record, and return it.

    A shard that is complete is not repeated; of one that was interrupted, finished images in a folder are kept. `note`
    gets the number of images of this shard that are done, after each of them. Images that cannot be segmented are
    listed in the status. Raises WriteError if the results cannot be written, and InUseError if another process works
    on the shard.
    """
    with ShardSegmenter(segmenter, options, work or WorkSettings()) as segment:
        return segment(manifest, index, note)


class ShardSegmenter:
    """A model with its worker threads and processes; calling it segments a shard, see `segment_shard`."""

    def __init__(self, segmenter: Segmenter, options: PredictOptions, work: WorkSettings):
        self.segmenter, self.options, self.work = segmenter, options, work
        self.preparation = ImagePreparation(segmenter.processor, segmenter.protocol, segmenter.channels, options)
        self.resources = ExitStack()
        self.opened: Readers | None = None

    def open_readers(self, manifest: Manifest) -> Readers:
        """Return the readers of a run, which are kept for its next shard."""
        if self.opened is None or self.opened.manifest is not manifest:
            self.opened = Readers(manifest)
        return self.opened

    def __enter__(self) -> "ShardSegmenter":
        work, enter = self.work, self.resources.enter_context
        self.processes = enter(decoding_processes(work.decoders, self.preparation))
        self.readers = enter(ThreadPoolExecutor(max(work.readers, work.decoders)))
        self.writers = enter(ThreadPoolExecutor(work.writers))
        return self

    def __exit__(self, *error: Any) -> None:
        self.resources.__exit__(*error)

    def __call__(self, manifest: Manifest, index: int, note: Callable[[int], Any] = lambda images: None) -> ShardStatus:
        """Segment a shard."""
        with lock_shard(manifest, index):
            status = read_status(manifest, index)
            if status is None:
                status = self.run(manifest, index, note)
                if status.complete:
                    write_status(manifest, status)
            note(status.images)
            return status

    def run(self, manifest: Manifest, index: int, note: Callable[[int], Any]) -> ShardStatus:
        """Segment the images of a shard that have no results yet; without a status record."""
        output = open_output(manifest, index, self.options, self.segmenter.names, self.segmenter.palette)
        try:
            return Pipeline(self, manifest, index, output, note).run(manifest.rows(index))
        except BaseException:
            output.discard()
            raise


class Pipeline:
    """Reads, segments and writes the images of a shard concurrently."""

    def __init__(
        self, owner: ShardSegmenter, manifest: Manifest, index: int, output: Output, note: Callable[[int], Any]
    ):
        self.manifest, self.index, self.output, self.note = manifest, index, output, note
        self.segmenter, self.options, self.work = owner.segmenter, owner.options, owner.work
        self.writers = owner.writers
        ahead = self.work.batch_size + max(self.work.readers, self.work.decoders)
        self.preparer = Preparer(owner.open_readers(manifest), owner.preparation, owner.readers, owner.processes, ahead)
        options = self.options
        self.selection = MapSelection(options.scores, options.entropy, options.top_k)
        self.order: deque[Row] = deque()  # rows whose results are not yet added
        self.results: dict[int, Future[Any] | Failure] = {}
        self.failures: list[Failure] = []
        self.model_seconds, self.done = 0.0, 0

    def run(self, rows: Sequence[Row]) -> ShardStatus:
        """Segment all rows."""
        start = time.perf_counter()
        pending = [row for row in rows if not self.output.done(row)]
        self.done = len(rows) - len(pending)
        self.order.extend(pending)
        window = BatchWindow[tuple[Row, Prepared]](self.work.batch_size)
        for row, prepared in self.preparer.rows(pending):
            if isinstance(prepared, Failure):
                self.results[row.index] = prepared
            else:
                for batch in window.add(self.batch_key(prepared), (row, prepared)):
                    self.segment(batch)
            self.add_results(self.work.batch_size + self.work.writers)
        for batch in window.rest():
            self.segment(batch)
        self.add_results(0)
        failures = tuple(self.failures)
        status = ShardStatus(
            self.index,
            len(rows),
            len(pending) - len(failures),
            failures,
            time.perf_counter() - start,
            self.model_seconds,
        )
        self.output.finish() if status.complete else self.output.discard()
        return status

    def batch_key(self, prepared: Prepared) -> tuple[Any, ...]:
        """Return the sizes that must be equal in a batch: those of the views and, with windows, of the image."""
        size = None if self.segmenter.protocol.window is None else prepared.image.size
        return size, view_sizes(prepared.image)

    def segment(self, batch: Sequence[tuple[Row, Prepared]]) -> None:
        """Segment a batch and start to write its results; one that fails is divided, so that only one image fails."""
        images = [prepared.image for _, prepared in batch]
        start = time.perf_counter()
        try:
            segmentations = self.segmenter.segment_batch(images, self.selection)
        except Exception as error:
            self.model_seconds += time.perf_counter() - start
            if len(batch) > 1:
                half = len(batch) // 2
                self.segment(batch[:half])
                self.segment(batch[half:])
            else:
                self.results[batch[0][0].index] = self.model_failure(batch[0][0], error)
            return
        self.model_seconds += time.perf_counter() - start
        for (row, prepared), segmentation in zip(batch, segmentations, strict=True):
            self.results[row.index] = self.writers.submit(self.write, row, prepared, segmentation)

    def model_failure(self, row: Row, error: Exception) -> Failure:
        """Describe the failure of the model on an image."""
        if is_out_of_memory(error):
            error = OutOfMemory("out of memory: use smaller windows (--window 512)")
        return failure(self.manifest.locate(row), error)

    def write(self, row: Row, prepared: Prepared, result: Segmentation) -> Any:
        """Encode the results of an image, or write them."""
        facts, name = prepared.facts, self.manifest.locate(row)
        if facts.missing is not None:
            result = result.hide(facts.missing)
        job = Job(ImageFile(Path(name), Path(row.path)), Path(row.target))
        content = segmentation_report(self.segmenter, job, result, facts, self.options) | {"image": name}
        if self.output.portable:
            content |= {"image": self.manifest.publishable_name(row), "model": publishable_path(self.options.model)}
        kept = {key: value for key, value in content.items() if key not in NOT_REPORTED}
        savers = result_savers(result, job, facts, self.options)
        return self.output.encode(Result(row, savers, kept, prepared.encoded))

    def add_results(self, max_pending: int) -> None:
        """Add results to the output in the order of the rows; wait until at most `max_pending` are being written."""
        while self.order and self.order[0].index in self.results:
            result = self.results[self.order[0].index]
            if isinstance(result, Future) and not result.done() and len(self.results) <= max_pending:
                return
            row = self.order.popleft()
            del self.results[row.index]
            self.add(row, result)

    def add(self, row: Row, result: "Future[Any] | Failure") -> None:
        """Add the results of an image, or its failure."""
        if isinstance(result, Future):
            try:
                self.output.add(result.result())
            except Exception as error:
                if isinstance(error, WriteError) and getattr(error.__cause__, "errno", None) not in PER_IMAGE_ERRNOS:
                    raise
                result = failure(self.manifest.locate(row), error)
        if isinstance(result, Failure):
            self.failures.append(result)
        self.done += 1
        self.note(self.done)


def failed_shard(manifest: Manifest, index: int, reason: str) -> ShardStatus:
    """Return the status of a shard whose process ended without one."""
    lost = Failure(f"shard {index}", "ProcessEnded", reason, lost=True)
    return ShardStatus(index, manifest.shard_size(index), 0, (lost,), 0.0, 0.0)


__all__ = ["ShardSegmenter", "ShardStatus", "WorkSettings", "failed_shard", "read_status", "segment_shard"]
