"""Trainings that meet a fault: a worker or process that dies, a full disk, a wrong clock, damaged data, NaN.

Each training stops or continues as documented. Once the cause is removed, the same command with `--resume` ends with
the weights of a training without a fault.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file
from tiny_runs import finish, settings, start, write_data, write_recipe

from .kills import children, differing_names, steps_in
from .record import bullet_list, command_text

TITLE = "Trainings with faults"
ABOUT = (
    "Each training meets one fault while it runs, and must end with the documented exit code, not as a bug, and "
    "with a whole last checkpoint and no temporary files. Then the same command with `--resume` must give the weights "
    "of a training without a fault, bit by bit."
)
FIXED = (
    "A killed worker of the loader ended the training as a bug, with a traceback. It is one sentence now, with the "
    "setting to change, the last checkpoint and the command to resume. So is the loss of another process.",
    "At the end of a training with several processes, torch 2.8 can wait forever: the process group was destroyed with "
    "DistributedDataParallel, which holds the GIL while it waits for a thread that needs it. The model is now freed "
    "before.",
)
MESSAGE = re.compile(r"hf-vit-seg(?: \(process \d+\))?: ")
STEPS = 60
PATIENCE = 240.0  # seconds until a command must have ended
STARTED = 3  # steps before a fault
CLOCK = """
import itertools, runpy, sys, time
true_time, calls = time.time, itertools.count()
time.time = lambda: true_time() + (86400 if next(calls) // 5 % 2 else -86400)
sys.argv[0] = "hf_vit_seg.training"
runpy.run_module("hf_vit_seg.training", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Fault:
    """The end of a training with a fault, and of its resumption."""

    name: str
    expected_codes: tuple[int, ...]
    code: int
    seconds: float  # from the fault to the end of the command
    message: str  # the last line of the output
    problems: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return bool(self.problems) or self.code not in self.expected_codes

    def row(self) -> str:
        message = self.message.replace("|", "\\|")
        return f"| {self.name} | {self.code} | {self.seconds:.0f} | {message} | {len(self.problems)} |"


class Trainings:
    """Trainings of one recipe in a folder, compared with one without a fault."""

    def __init__(self, folder: Path):
        self.folder = folder
        recipe = settings(write_data(folder / "data"))
        recipe["loop"] |= {"steps": STEPS, "evaluate_every": STEPS, "checkpoint_every": 1}
        recipe["data"] |= {"workers": 1, "check": 2}
        self.recipe = write_recipe(folder, recipe)
        self.expected = {processes: self.train_without_fault(processes) for processes in (1, 2)}

    def train_without_fault(self, processes: int) -> Path:
        """Train, and return the directory of the last model."""
        out = self.folder / f"whole_{processes}"
        finish(self.start(out, processes=processes))
        return out / "last"

    def start(self, out: Path, *options: str, processes: int = 1, script: str | None = None) -> subprocess.Popen[str]:
        """Start a training."""
        return start([str(self.recipe), *options, "--out", str(out)], processes, script)

    def wait_for_steps(self, out: Path, process: subprocess.Popen[str], steps: int = STARTED) -> float:
        """Wait until a training has done some steps, and return the time."""
        deadline = time.monotonic() + PATIENCE
        while steps_in(out) < steps:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the training did not reach step {steps}: {process.communicate()[0][-2000:]}")
            time.sleep(0.05)
        return time.monotonic()

    def examine(
        self, name: str, out: Path, process: subprocess.Popen[str], since: float, codes: Sequence[int] = (2,)
    ) -> Fault:
        """Wait for the end of a training, and look at what it left."""
        output, _ = process.communicate(timeout=PATIENCE)
        seconds = time.monotonic() - since
        problems = ["it was reported as a bug"] if "this is a bug" in output else []
        problems += [f"{path} is not whole" for path in out.glob("checkpoints/step-*") if not is_whole(path)]
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        message = next((line for line in lines if MESSAGE.match(line)), "")
        message = message.replace(str(self.folder), "FOLDER")[:300]
        return Fault(name, tuple(codes), process.returncode, seconds, message, tuple(problems))

    def resume(self, fault: Fault, out: Path, processes: int = 1) -> Fault:
        """Resume a training, and compare its last model."""
        finish(self.start(out, "--resume", processes=processes))
        return self.compare(fault, out, processes)

    def compare(self, fault: Fault, out: Path, processes: int = 1) -> Fault:
        """Add temporary files, and tensors that differ from those of the training without a fault, to the problems."""
        found, expected = (load_file(path / "model.safetensors") for path in (out / "last", self.expected[processes]))
        problems = [f"{name} differs" for name in differing_names(found, expected, torch.equal)]
        problems += [f"temporary file {path}" for path in out.rglob(".tmp-*")]
        return replace(fault, problems=(*fault.problems, *problems))


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint's model can be read and is finite."""
    try:
        tensors = load_file(checkpoint / "model.safetensors")
    except Exception:
        return False
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())


def kill_worker(trainings: Trainings) -> Fault:
    """Kill the process that reads images."""
    out = trainings.folder / "worker"
    process = trainings.start(out)
    since = trainings.wait_for_steps(out, process)
    workers = [child for child in children(psutil.Process(process.pid)) if child.is_running()]
    workers[-1].kill()
    return trainings.resume(trainings.examine("a loader's worker is killed", out, process, since), out)


def kill_process(trainings: Trainings) -> Fault:
    """Kill the second of two processes."""
    out = trainings.folder / "process"
    launcher = trainings.start(out, processes=2)
    since = trainings.wait_for_steps(out, launcher)
    ranks = [child for child in children(psutil.Process(launcher.pid)) if child.environ().get("LOCAL_RANK") == "1"]
    ranks[0].kill()
    fault = trainings.examine("one of two processes is killed", out, launcher, since, codes=(1,))
    return trainings.resume(fault, out, processes=2)


def fill_disk(trainings: Trainings) -> Fault | None:
    """Train into a file system of 3 MiB, which is enlarged before the resumption; None if it cannot be mounted."""
    disk = trainings.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        return None
    try:
        out = disk / "run"
        process, since = trainings.start(out), time.monotonic()
        fault = trainings.examine("the disk is full (tmpfs of 3 MiB)", out, process, since)
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        return trainings.resume(fault, out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def change_clock(trainings: Trainings) -> Fault:
    """Let the clock jump by two days, forward and back, every few calls."""
    out, script = trainings.folder / "clock", trainings.folder / "clock.py"
    script.write_text(CLOCK)
    process, since = trainings.start(out, script=str(script)), time.monotonic()
    fault = trainings.examine("the clock jumps by two days, back and forth", out, process, since, codes=(0,))
    return trainings.compare(fault, out)


def damage_image(trainings: Trainings) -> Fault:
    """Damage an image in the middle of the first epoch, and restore it."""
    out = trainings.folder / "image"
    images = sorted((trainings.folder / "data" / "train" / "images").iterdir())
    contents = {path: path.read_bytes() for path in images}
    process = trainings.start(out, "data.workers=0")
    since = trainings.wait_for_steps(out, process, 2)
    try:
        for path, content in contents.items():
            path.write_bytes(content[: len(content) // 2])
        fault = trainings.examine("images are cut short during the first epoch", out, process, since)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    return trainings.resume(fault, out)


def start_twice(trainings: Trainings) -> Fault:
    """Start a second training in the directory of a running one."""
    out = trainings.folder / "twice"
    first = trainings.start(out)
    since = trainings.wait_for_steps(out, first)
    second = trainings.start(out, "--resume")
    fault = trainings.examine("a second training in the same directory", out, second, since)
    finish(first)
    return trainings.compare(fault, out)


def diverge(trainings: Trainings) -> Fault:
    """Train with a learning rate at which the loss is not finite."""
    out = trainings.folder / "nan"
    process, since = trainings.start(out, "optimizer.learning_rate=1e9"), time.monotonic()
    return trainings.examine("the loss becomes NaN", out, process, since)


FAULTS: tuple[Callable[[Trainings], Fault | None], ...] = (
    kill_worker,
    kill_process,
    fill_disk,
    change_clock,
    damage_image,
    start_twice,
    diverge,
)


def run(folder: Path) -> list[Fault]:
    """Train with each fault."""
    trainings, faults = Trainings(folder), []
    for cause in FAULTS:
        if (fault := cause(trainings)) is not None:
            print(fault.row(), *fault.problems, file=sys.stderr, flush=True)
            faults.append(fault)
    return faults


def section(faults: Sequence[Fault]) -> str:
    """The text of the section in docs/reliability.md."""
    head = ["| fault | exit code | seconds to the end | message | problems |", "| --- | ---: | ---: | --- | ---: |"]
    failures = [f"{fault.name}: {problem}" for fault in faults for problem in fault.problems]
    parts = [command_text("faults"), ABOUT, "\n".join([*head, *(fault.row() for fault in faults)])]
    parts += bullet_list("Failures of this run", failures)
    return "\n\n".join([*parts, *bullet_list("Found and fixed", FIXED)])
