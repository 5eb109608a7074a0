"""Processes that are killed at random moments while they write: batch inference, also with Ray, and a training.

The same command is started again until it ends. Its files must then be those of a run that was never interrupted.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any

import psutil
import torch
from many_images import results, write_photos
from safetensors.torch import load_file
from tiny_runs import settings, write_data, write_recipe
from tiny_segmenters import save_segmenter

from .record import command_text

TITLE = "Killed processes"
ABOUT = (
    "Processes are ended with SIGKILL at random moments, and the same command is started again until it has finished. "
    "The files must be those of a run that was never interrupted, byte by byte for label maps, and bit by bit for the "
    "weights of a training."
)
KILLS, RAY_KILLS, PHOTOS = 50, 20, 600
ACTOR = "ray::MapWorker"  # the title that Ray gives to the processes of its actors
MAX_PAUSE = 8.0  # seconds between kills; a worker takes about half of it to start
COMMAND = [sys.executable, "-m", "hf_vit_seg.cli"]
END = 300.0  # seconds of a command that is not killed


@dataclass(frozen=True)
class KilledRun:
    """A run whose processes were killed: how often, how many commands it took, and how its files differ."""

    name: str
    kills: int
    commands: int
    differences: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return bool(self.differences)

    def row(self) -> str:
        return f"| {self.name} | {self.kills} | {self.commands} | {len(self.differences)} |"


def start(command: Sequence[str]) -> psutil.Popen:
    """Start a command without output."""
    return psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process: psutil.Popen) -> None:
    """Kill a command and its children."""
    for each in [*process.children(recursive=True), process]:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


def wait_for_change(count: Callable[[], int], process: psutil.Popen) -> bool:
    """Wait until there are more files than now; return whether the command is still running."""
    before, stop = count(), time.monotonic() + END
    while process.poll() is None and count() <= before:
        if time.monotonic() > stop:
            end(process)
            raise RuntimeError(f"no progress for {END:.0f} s")
        time.sleep(0.02)
    return process.poll() is None


def differing_names(
    found: Mapping[str, Any], expected: Mapping[str, Any], equal: Callable[[Any, Any], bool] = eq
) -> tuple[str, ...]:
    """Return the names of files or tensors that are missing, added or different."""
    names = sorted(found.keys() | expected.keys())
    common = found.keys() & expected.keys()
    return tuple(name for name in names if name not in common or not equal(found[name], expected[name]))


def kill_predict(
    folder: Path, kills: int, name: str, options: Sequence[str], kill: Callable[[psutil.Popen, int], bool]
) -> KilledRun:
    """Kill processes of `predict` by shards. `kill` takes the number of kills before, and returns whether it did.

    A run that has finished is followed by another one, until there were enough kills.
    """
    moments, done, commands, runs = random.Random(0), 0, 0, 0
    differences: list[str] = []
    model, photos = save_segmenter(folder / "model"), write_photos(folder / "photos", PHOTOS)
    arguments = [*COMMAND, "predict", str(model), str(photos), "--shards", "20", "--no-overlay", "--workers"]
    subprocess.run([*arguments, "1", "-o", str(folder / "whole")], check=True, capture_output=True)
    expected = results(folder / "whole")
    while done < kills:
        out, runs = folder / f"out{runs}", runs + 1
        command = [*arguments, "2", *options, "-o", str(out)]
        commands, process = commands + 1, start(command)
        while process.poll() != 0:
            if process.poll() is not None:
                commands, process = commands + 1, start(command)
            time.sleep(moments.uniform(0, MAX_PAUSE))
            if done < kills and process.poll() is None:
                done += kill(process, done)
        differences += differing_names(results(out), expected)
        differences += [str(path) for path in out.rglob(".tmp-*")]
    return KilledRun(name, done, commands, tuple(differences))


def kill_workers(folder: Path, kills: int) -> KilledRun:
    """Kill one of two workers of `predict` by shards, and every fifth time the whole command."""

    def kill(process: psutil.Popen, done: int) -> bool:
        workers = [each for each in children(process) if "spawn_main" in command_line(each)]
        if workers and done % 5 == 4:
            end(process)
        elif workers:
            workers[done % len(workers)].kill()
        return bool(workers)

    return kill_predict(folder, kills, "`predict` by shards, workers", (), kill)


def kill_ray_actors(folder: Path, kills: int) -> KilledRun:
    """Kill an actor of `predict --engine ray`, or on a GPU a process that decodes images for one."""

    def kill(process: psutil.Popen, done: int) -> bool:
        actors = [each for each in children(process, recursive=True) if ACTOR in command_line(each)]
        decoders = [each for actor in actors for each in children(actor) if "spawn_main" in command_line(each)]
        victims = [*actors, *decoders]
        try:
            if victims:
                victims[done % len(victims)].kill()
        except psutil.NoSuchProcess:
            return False
        return bool(victims)

    return kill_predict(folder, kills, "`predict --engine ray`, actors", ("--engine", "ray"), kill)


def children(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
    """Return the children of a process, and with `recursive` theirs; none if it has ended."""
    try:
        return process.children(recursive)
    except psutil.NoSuchProcess:
        return []


def command_line(process: psutil.Process) -> str:
    """Return the command of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kill_training(folder: Path, kills: int) -> KilledRun:
    """Kill a training that writes a checkpoint after each step."""
    moments, out = random.Random(0), folder / "out"
    recipe = settings(write_data(folder / "data"))
    steps = 10 * kills  # several between two kills
    recipe["loop"] |= {"steps": steps, "evaluate_every": steps, "checkpoint_every": 1}
    arguments = [*COMMAND, "train", str(write_recipe(folder, recipe)), "-o"]
    subprocess.run([*arguments, str(folder / "whole")], check=True, capture_output=True)
    done, commands, process = 0, 1, start([*arguments, str(out)])
    while done < kills:
        if not wait_for_change(lambda: steps_in(out), process):
            break
        time.sleep(moments.uniform(0, 0.2))  # about a step: often while a checkpoint is written
        end(process)
        done, commands, process = done + 1, commands + 1, start([*arguments, str(out), "--resume"])
    if process.wait() != 0:
        raise RuntimeError(f"the training ended with exit code {process.returncode}")
    found, expected = (load_file(each / "last" / "model.safetensors") for each in (out, folder / "whole"))
    differences = differing_names(found, expected, torch.equal)
    return KilledRun("`train`, a checkpoint after each step", done, commands, differences)


def steps_in(out: Path) -> int:
    """Return the last step in the log of a run."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line).get("step", 0) for line in lines if line.endswith("}")]
    return max(steps, default=0)


def section(runs: Sequence[KilledRun]) -> str:
    """The text of the section in docs/reliability.md."""
    head = ["| work | kills | commands | files or tensors that differ |", "| --- | ---: | ---: | ---: |"]
    return "\n\n".join([command_text("kills"), ABOUT, "\n".join([*head, *(run.row() for run in runs)])])


def run(folder: Path, kills: int = KILLS) -> list[KilledRun]:
    """Kill all kinds of runs."""
    runs = []
    for part, count in ((kill_workers, kills), (kill_ray_actors, min(kills, RAY_KILLS)), (kill_training, kills)):
        place = folder / part.__name__
        place.mkdir()
        runs.append(part(place, count))
        print(runs[-1].row(), *runs[-1].differences[:5], flush=True)
    return runs
