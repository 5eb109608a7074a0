"""Reading, decoding, resizing and normalizing images while the model works, by threads or by processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from hf_vit_seg.data.images.files import ImageBytes
from hf_vit_seg.data.storage.addresses import ConnectionLost
from hf_vit_seg.error_reporting import traceback_text
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, prepare_pixels
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.prediction import FileFacts, PredictOptions, read_image

from .image_readers import Readers
from .manifest import Row


class DecoderError(HfVitSegError):
    """A process that decodes images was killed."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be segmented, and why.

    It is `lost` if it has to be repeated, as after a failure of the connection; `bug` is the traceback of an exception
    other than HfVitSegError, or empty.
    """

    image: str
    kind: str
    reason: str
    lost: bool = False
    bug: str = ""


class Prepared(NamedTuple):
    """A preprocessed image, what is known about its file, and the encoded file."""

    image: PreparedImage
    facts: FileFacts
    encoded: Path | ImageBytes


def failure(name: str, error: Exception) -> Failure:
    """Describe the failure of an image."""
    reason, kind = error_sentence(error).removeprefix(f"{name}: "), type(error).__name__
    if isinstance(error, HfVitSegError):
        return Failure(name, kind, reason, isinstance(error, ConnectionLost))
    return Failure(name, kind, f"prediction failed with {kind}: {reason}", bug=traceback_text(error))


@dataclass(frozen=True)
class ImagePreparation:
    """The settings for preprocessing images, without the model, for worker processes."""

    processor: Any
    protocol: Protocol
    channels: int
    options: PredictOptions

    def prepare_pixels(self, pixels: torch.Tensor, shown: Image.Image | None = None) -> PreparedImage:
        """Resize and normalize pixels (C, H, W); the picture is kept for overlays only."""
        return prepare_pixels(pixels, shown if self.options.overlay else None, self.protocol, self.processor)

    def __call__(self, file: Path | ImageBytes, name: str) -> tuple[PreparedImage, FileFacts] | Failure:
        """Read and preprocess an image."""
        try:
            return read_image(self, file, self.options)
        except Exception as error:  # decoders of broken files raise anything, and one image must not stop the others
            return failure(name, error)


class Preparer:
    """Preprocesses rows in advance, in order; at most `ahead` images are buffered.

    Threads read files; they also decode, or have `processes` do it.
    """

    def __init__(
        self, readers: Readers, preparation: ImagePreparation, threads: Executor, processes: Executor | None, ahead: int
    ):
        self.readers, self.preparation, self.ahead = readers, preparation, ahead
        self.threads, self.processes = threads, processes

    def prepare(self, row: Row) -> Prepared | Failure:
        """Read and preprocess a row."""
        name = self.readers.manifest.locate(row)
        try:
            encoded = self.readers.read(row)
        except HfVitSegError as error:
            return failure(name, error)
        if self.processes is None:
            prepared = self.preparation(encoded, name)
        else:
            try:
                prepared = self.processes.submit(prepare_in_process, encoded, name).result()
            except BrokenExecutor as error:
                raise DecoderError(
                    "a process that decodes images was killed, possibly for lack of memory: run the same command again"
                ) from error
        return prepared if isinstance(prepared, Failure) else Prepared(*prepared, encoded)

    def rows(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Prepared | Failure]]:
        """Iterate over preprocessed rows."""
        return read_ahead(rows, self.prepare, self.threads, self.ahead)


def read_ahead(
    rows: Sequence[Row], function: Callable[[Row], Any], executor: Executor, ahead: int
) -> Iterator[tuple[Row, Any]]:
    """Apply a function to rows, of which `ahead` are started in advance."""
    started: deque[tuple[Row, Future[Any]]] = deque()
    try:
        for row in rows:
            started.append((row, executor.submit(function, row)))
            if len(started) > ahead:
                first, future = started.popleft()
                yield first, future.result()
        while started:
            first, future = started.popleft()
            yield first, future.result()
    finally:
        for _, future in started:
            future.cancel()


# Processes that decode

_preparation: ImagePreparation | None = None  # set in processes that decode


def start_process(preparation: ImagePreparation) -> None:
    """Set up a process that decodes: images are decoded side by side, each by one thread.

    The process that uses it handles Ctrl-C, and may be killed.
    """
    global _preparation
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _preparation = preparation


def end_with_parent() -> None:
    """End this process when the one that started it has ended; a process of a pool would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def prepare_in_process(file: Path | ImageBytes, name: str) -> tuple[PreparedImage, FileFacts] | Failure:
    """Preprocess an image in a process of `decoding_processes`."""
    assert _preparation is not None
    return _preparation(file, name)


@contextmanager
def decoding_processes(count: int, preparation: ImagePreparation) -> Iterator[Executor | None]:
    """Start processes that decode; None if their number is 0. Tensors are returned in shared memory."""
    if count == 0:
        yield None
        return
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, start_process, (preparation,)) as processes:
        yield processes


__all__ = ["DecoderError", "Failure", "ImagePreparation", "Prepared", "Preparer", "decoding_processes", "failure"]
