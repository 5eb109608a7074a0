"""Long runs whose memory must stay flat: predictions, a training, and requests to a demo, each in its own process.

The resident memory of the process and its children is sampled while it works. The median after a quarter of the time,
when caches and pools are filled, is compared with that at the end.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import psutil
from gradio_client import Client, handle_file
from PIL import Image
from tiny_runs import settings, write_data, write_recipe

from hf_vit_seg.demo.catalogue import NUCLEI

from .predictions import SIDES
from .record import command_text

TITLE = "Long runs"
ABOUT = (
    "The resident memory of each process and its children, in MiB: the median of the samples between 25 and 35 % of "
    "the time, and of the last 10 %. It must not grow by more than 5 %."
)
PREDICTIONS, STEPS, REQUESTS = 2000, 500, 200
MAX_GROWTH = 0.05
INTERVAL = 0.25  # seconds between samples
PATIENCE = 120.0  # seconds until a process has started


@dataclass(frozen=True)
class LongRun:
    """Memory samples in bytes of a process that has done `count` things."""

    name: str
    count: int
    seconds: float
    samples: tuple[int, ...]

    def median(self, first: float, last: float) -> float:
        """The median of a part of the samples, in MiB."""
        start, stop = (int(share * len(self.samples)) for share in (first, last))
        return statistics.median(self.samples[start : max(stop, start + 1)]) / 2**20

    @property
    def growth(self) -> float:
        return self.median(0.9, 1.0) / self.median(0.25, 0.35) - 1

    @property
    def failed(self) -> bool:
        return self.growth > MAX_GROWTH

    def row(self) -> str:
        early, late = self.median(0.25, 0.35), self.median(0.9, 1.0)
        return f"| {self.name} | {self.count:,} | {self.seconds:.0f} | {early:.0f} | {late:.0f} | {self.growth:+.1%} |"


def resident_memory(process: psutil.Process) -> int:
    """The resident memory of a process and its children, in bytes; 0 once it has ended."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            try:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:  # a child that has ended meanwhile
                continue
    except psutil.NoSuchProcess:
        return 0
    return total


def observe(name: str, count: int, process: psutil.Process, is_running: Callable[[], bool]) -> LongRun:
    """Sample the memory of a process while it works."""
    start, samples = time.monotonic(), list[int]()
    while is_running():
        if memory := resident_memory(process):
            samples.append(memory)
        time.sleep(INTERVAL)
    return LongRun(name, count, time.monotonic() - start, tuple(samples))


@contextmanager
def started(
    command: list[str], is_ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Python command, with additional environment variables, and wait until it is ready."""
    variables = os.environ | dict(environment or {})
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, env=variables)
    try:
        end = time.monotonic() + PATIENCE
        while not is_ready():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command)} has not started")
            time.sleep(INTERVAL)
        yield process
    finally:
        process.terminate()
        process.wait()


def observe_predictions(folder: Path, count: int) -> LongRun:
    ready = folder / "ready"
    command = ["-m", "tests.reliability.predictions", str(count), str(ready)]
    with started(command, ready.exists) as process:
        return finished("predictions, 64 to 512 pixels a side", count, process)


def observe_training(folder: Path, count: int) -> LongRun:
    recipe = settings(write_data(folder / "data"))
    recipe["loop"] |= {"steps": count, "evaluate_every": 50, "log_every": 10}
    path, out = write_recipe(folder, recipe), folder / "run"
    with started(["-m", "hf_vit_seg.cli", "train", str(path), "-o", str(out)], (out / "log.jsonl").exists) as process:
        return finished("training steps, an evaluation every 50", count, process)


def finished(name: str, count: int, process: subprocess.Popen[bytes]) -> LongRun:
    """Observe a process until it ends, which must be without an error."""
    run = observe(name, count, psutil.Process(process.pid), lambda: process.poll() is None)
    if process.returncode:
        raise RuntimeError(f"{name}: the process ended with exit code {process.returncode}")
    return run


def observe_demo(folder: Path, count: int) -> LongRun:
    port, draw, photos = unused_port(), random.Random(0), []
    for number in range(20):
        photos.append(folder / f"{number}.png")
        Image.effect_noise((draw.randint(*SIDES), draw.randint(*SIDES)), 60).convert("RGB").save(photos[-1])
    with started(["-m", "hf_vit_seg.cli", "demo", "--port", str(port), "--quiet"], lambda: is_open(port)) as process:
        client, answered = Client(f"http://127.0.0.1:{port}", verbose=False), 0

        def send_next() -> bool:
            nonlocal answered
            if answered == count:
                return False
            photo = handle_file(str(photos[answered % len(photos)]))
            areas, *_ = client.predict(photo, NUCLEI, api_name="/segment")
            assert areas["data"]
            answered += 1
            return True

        return observe("requests to the demo", count, psutil.Process(process.pid), send_next)


def unused_port() -> int:
    """Return a port of this machine that no process uses."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_open(port: int) -> bool:
    """Return whether a port of this machine accepts connections."""
    with socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def section(runs: list[LongRun]) -> str:
    """The text of the section in docs/reliability.md."""
    head = ["| work | count | seconds | early | late | growth |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    return "\n\n".join([command_text("soak"), ABOUT, "\n".join([*head, *(run.row() for run in runs)])])


def run(folder: Path, share: float = 1.0) -> list[LongRun]:
    """Observe all long runs, or a `share` of their lengths."""
    parts = ((observe_predictions, PREDICTIONS), (observe_training, STEPS), (observe_demo, REQUESTS))
    runs = []
    for part, count in parts:
        place = folder / part.__name__
        place.mkdir()
        runs.append(part(place, max(int(count * share), 1)))
        print(json.dumps({"name": runs[-1].name, "growth": round(runs[-1].growth, 4)}), flush=True)
    return runs
