"""Reading images of visitors in processes of their own, which are ended when an image takes too long.

A decoder cannot be interrupted in its own process, and a small file can keep it busy for hours, or make it ask for all
memory. Two processes are kept ready; one visitor's image leaves the other process to the others.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from hf_vit_seg.data.images.files import ImageFileError, ImageSizeError
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.errors import HfVitSegError

from .uploads import MAX_UPLOAD_PIXELS

PROCESSES = 2
SECONDS_READING = 20  # time limit for one image
SECONDS_WAITING = 120  # time limit for a free process
MAX_BYTES = 2 * 2**30  # memory limit for one image


class TimeLimitError(HfVitSegError):
    """A request exceeded its time limit."""


class ReadingProcess:
    """A process that reads images one after the other."""

    def __init__(self) -> None:
        package = str(Path(__file__).parents[2])
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.requests = cast(IO[bytes], self.process.stdin)
        self.answers = cast(IO[bytes], self.process.stdout)
        self.answer()  # wait until it is ready, so that its start does not count for an image

    def answer(self) -> dict[str, Any]:
        """Read the header of an answer. Raises EOFError if the process has ended."""
        line = self.answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)

    def pixels(self, answer: dict[str, Any]) -> torch.Tensor:
        """Read the pixels that follow a header. Raises EOFError if the process ends before."""
        pixels = np.empty(answer["shape"], np.dtype(answer["dtype"]))
        view = pixels.reshape(-1).view(np.uint8).data
        while len(view):
            count = self.answers.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            view = view[count:]
        return torch.from_numpy(pixels)

    def read(self, path: Path, channels: int) -> torch.Tensor:
        """See `Readers.read`."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(SECONDS_READING, end)
        timer.start()
        try:
            self.requests.write(json.dumps([str(path), channels]).encode() + b"\n")
            self.requests.flush()
            answer = self.answer()
            if "failure" in answer:
                raise RuntimeError(f"reading an image failed: {answer['failure']}")
            if "error" in answer:
                raise ImageFileError(answer["error"])
            return self.pixels(answer)
        except (EOFError, OSError) as error:
            self.close()
            if late.is_set():
                raise TimeLimitError(f"{path}: reading the image takes longer than {SECONDS_READING} s") from None
            raise ImageFileError(f"{path}: the image cannot be decoded (its decoder crashed)") from error
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.answers.close()

    @property
    def runs(self) -> bool:
        """Whether it can read another image."""
        return self.process.poll() is None


class Readers:
    """A few reading processes, started when they are first needed, and replaced when they end."""

    def __init__(self, count: int):
        self.idle: queue.Queue[ReadingProcess | None] = queue.Queue()
        for _ in range(count):
            self.idle.put(None)
        atexit.register(self.close)

    def start(self) -> None:
        """Start the processes in the background."""
        for _ in range(self.idle.qsize()):
            threading.Thread(target=self.warm, daemon=True).start()

    def warm(self) -> None:
        """Start one process that does not run yet."""
        process = self.idle.get()
        try:
            process = ensure_running(process)
        finally:
            self.idle.put(process)

    def read(self, path: Path, channels: int) -> torch.Tensor:
        """Read an image file as pixels (C, H, W), within the demo's limits of size, memory and time.

        ImageFileError or TimeLimitError in one sentence.
        """
        try:
            process = self.idle.get(timeout=SECONDS_WAITING)
        except queue.Empty:
            raise TimeLimitError("the server is busy with other images: try again later") from None
        try:
            process = ensure_running(process)
            return process.read(path, channels)
        finally:
            self.idle.put(process)

    def close(self) -> None:
        """End the processes that are idle; a busy one ends with this process, whose requests it reads."""
        while not self.idle.empty():
            process = self.idle.get_nowait()
            if process is not None:
                process.close()


def ensure_running(process: ReadingProcess | None) -> ReadingProcess:
    """Return the process if it runs, or start a new one."""
    return process if process is not None and process.runs else ReadingProcess()


READERS = Readers(PROCESSES)


def limit_memory() -> None:
    """Limit the memory of this process to its current use plus `MAX_BYTES`, where the system supports it."""
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_BYTES, used + MAX_BYTES))
    except (ImportError, OSError, StopIteration):
        return


def read_image_answer(path: Path, channels: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """Read an image: the header of the answer, and the pixels that follow it."""
    try:
        pixels = read_pixels(path, channels, MAX_UPLOAD_PIXELS).contiguous().numpy()
    except ImageSizeError as error:
        return {"error": error.fact}, None
    except ImageFileError as error:
        return {"error": str(error)}, None
    except MemoryError:
        return {"error": f"{path}: reading the image takes more than {MAX_BYTES / 2**30:g} GiB of memory"}, None
    except Exception as error:
        traceback.print_exc()
        return {"failure": type(error).__name__}, None
    return {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels


def serve() -> None:
    """Read images until the requests end."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # output of libraries is not an answer
        limit_memory()
        answers.write(b"{}\n")
        answers.flush()
        for line in sys.stdin.buffer:
            path, channels = json.loads(line)
            header, pixels = read_image_answer(Path(path), channels)
            answers.write(json.dumps(header).encode() + b"\n")
            if pixels is not None:
                answers.write(pixels.reshape(-1).view(np.uint8).data)
            answers.flush()


if __name__ == "__main__":
    serve()


__all__ = ["READERS", "Readers", "TimeLimitError"]
