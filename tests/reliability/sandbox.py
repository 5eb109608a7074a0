"""Run hostile cases in a process of their own, with limits of time and memory, and judge their outcomes.

A case may be accepted or refused by HfVitSegError. Anything else is a failure: another exception, a crash, too much
time or memory, code that runs, files that are left.
"""

import json
import multiprocessing
import os
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import peak_rss, reset_peak
from hf_vit_seg.errors import HfVitSegError

SECONDS = 5.0
GRACE = 10.0  # until a case that does not return is killed
MEMORY = 500 * 2**20  # bytes beyond twice the file
ADDRESS_SPACE = 6 * 2**30  # beyond what the process has: no case may take the memory of the machine
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class Case:
    """Something to try: its kind, the bytes of its files, and what reads it. `run` gets a folder of its own."""

    kind: str
    size: int
    run: Callable[[Path], Any]


@dataclass
class Outcomes:
    """Numbers of cases by kind and outcome, and the failures."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, number: int, kind: str, found: dict[str, Any]) -> None:
        self.counts[kind, found["outcome"]] += 1
        if found["outcome"] not in (ACCEPTED, REFUSED):
            self.failures.append({"case": number, "kind": kind} | found)


def judge(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case in this process; `folder` must be empty but for what the case writes itself."""
    before, start = reset_peak(), os.times().elapsed
    try:
        case.run(folder)
        found: dict[str, Any] = {"outcome": ACCEPTED}
    except HfVitSegError as error:
        found = {"outcome": REFUSED}
        if not str(error) or "\n" in str(error):
            found = {"outcome": "not one sentence", "text": str(error)[:300]}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}"[:300]
        found = {"outcome": "exception", "text": text, "place": f"{Path(last.filename).name}:{last.name}"}
    seconds, bytes_ = os.times().elapsed - start, peak_rss() - before
    if seconds > SECONDS:
        found = {"outcome": "slow", "text": f"{seconds:.1f} s, {found}"}
    elif bytes_ > MEMORY + 2 * case.size:
        found = {"outcome": "memory", "text": f"{bytes_ / 2**20:.0f} MiB, {found}"}
    return found | {"seconds": round(seconds, 2)}


def work(cases: Callable[[int], Case], folder: Path, pipe: Connection) -> None:
    """Run the cases whose numbers are sent, until None."""
    torch.set_num_threads(1)
    limit = peak_rss() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    while (number := pipe.recv()) is not None:
        case = cases(number)
        pipe.send(json.dumps({"kind": case.kind}))
        place = folder / str(number)
        place.mkdir()
        pipe.send(json.dumps(judge(case, place)))


def run_cases(
    cases: Callable[[int], Case], numbers: Iterable[int], folder: Path, check: Callable[[Path], str | None]
) -> Outcomes:
    """Run cases by number in a child process, which is replaced when one kills it.

    `check` says after each case what it left behind that it must not, or None.
    """
    context, outcomes = multiprocessing.get_context("fork"), Outcomes()
    child: Any = None
    pipe: Any = None
    for number in numbers:
        if child is None or not child.is_alive():
            pipe, theirs = context.Pipe()
            child = context.Process(target=work, args=(cases, folder, theirs), daemon=True)
            child.start()
            theirs.close()
        kind, found = ask(pipe, number, child)
        if (left := check(folder / str(number))) is not None:
            found = {"outcome": "left behind", "text": left}
        outcomes.add(number, kind, found)
    if child is not None and child.is_alive():
        pipe.send(None)
        child.join(GRACE)
    return outcomes


def ask(pipe: Any, number: int, child: Any) -> tuple[str, dict[str, Any]]:
    """Send one case to the child and wait for its outcome; a child that does not answer is killed."""
    kind = "unknown"
    try:
        pipe.send(number)
        if pipe.poll(4 * GRACE):
            kind = json.loads(pipe.recv())["kind"]
            if pipe.poll(SECONDS + GRACE):
                return kind, json.loads(pipe.recv())
        found = {"outcome": "slow", "text": f"no answer in {SECONDS + GRACE:g} s"}
    except (EOFError, OSError):
        child.join(GRACE)
        found = {"outcome": "crash", "text": f"exit code {child.exitcode}"}
    child.kill()
    child.join()
    return kind, found
