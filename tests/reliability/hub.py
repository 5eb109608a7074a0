"""A Hub that fails at each request of a push and of a load, or changes between two requests of a load.

A push must leave the old revision or the new one, and say which; a load must give the weights of one revision, or one
sentence. The same call must succeed when the Hub answers again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from unittest.mock import patch

import torch
from hub_models import contents, save_tiny_model
from hub_server import Cut, HalfAnswer, Hub, Refusal, connect, serve
from safetensors.torch import load_file

import hf_vit_seg
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.hub.push import push
from hf_vit_seg.hub.repository import Target

from . import record
from .record import bullet_list, command_text

TITLE = "A Hub that fails"
ABOUT = (
    "Each request of a push and of a load fails in turn, once or from then on, and for a load the repository gets a "
    "new revision before each request. A push must leave all files of the old revision or all of the new one, and a "
    "load must give the model and image processor of one revision, or one sentence. The same call must succeed when "
    "the Hub answers again. Pauses between retries are skipped."
)
FIXED = (
    "A connection that was cut during a load ended with a traceback of httpx (16 of 216 loads).",
    "Where the Hub answered the request for the image processor with an error, the model was loaded without one, or "
    "with a message of several lines (11 of 216).",
    "A model whose repository got a new revision during the load could have the image processor of the new one (10 of "
    "18).",
)
REPO = "me/model"
OLD_SIZE, NEW_SIZE = 64, 96  # of the image processors
FAULTS: dict[str, Exception] = {
    "connection cut": Cut(),
    "answer cut in the middle": HalfAnswer(),
    "429": Refusal(429, "", "too many requests"),
    "500": Refusal(500, "", "internal error"),
    "503": Refusal(503, "", "unavailable"),
    "403": Refusal(403, "", "the token has no right to this"),
}
ONCE, ALWAYS = "one request", "all requests from one on"


@dataclass(frozen=True)
class Try:
    """What happened with one fault: `done`, `refused`, or a failure, described by its text."""

    work: str
    fault: str
    request: int
    outcome: str

    @property
    def failed(self) -> bool:
        return self.outcome not in ("done", "refused")


class FailingHub:
    """A Hub with a model, and two model directories, the second as its new revision."""

    def __init__(self, hub: Hub, folder: Path):
        self.hub, self.folder = hub, folder
        self.models = [save_tiny_model(folder / f"model{seed}", seed=seed) for seed in range(2)]
        settings = self.models[1] / "preprocessor_config.json"
        settings.write_text(settings.read_text().replace(str(OLD_SIZE), str(NEW_SIZE)))
        self.connections = 0
        self.files = [self.published(version) for version in range(2)]

    def published(self, version: int) -> dict[str, bytes]:
        """Return the files of a push to an empty repository."""
        with self.connected():
            self.publish(version)
            return contents(self.hub, REPO)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Empty the Hub, and forget all downloads."""
        self.connections += 1
        with connect(self.hub, self.folder / f"cache{self.connections}"), patch.object(time, "sleep", lambda _: None):
            yield

    def publish(self, version: int) -> None:
        """Push one of the two models."""
        push(self.models[version], Target(REPO))

    def before_requests(self, act: Callable[[int], object]) -> None:
        """Call a function before each request, with its number from 0."""
        numbers = count()
        self.hub.fault = lambda method, path: act(next(numbers))

    def fail(self, fault: Exception, request: int, always: bool) -> None:
        """Raise a fault at a request, and with `always` at those after it."""

        def act(number: int) -> None:
            if number == request or (always and number > request):
                raise fault

        self.before_requests(act)

    def change(self, request: int) -> None:
        """Publish the new revision before a request; a push would wait for the request that it is called from."""

        def act(number: int) -> None:
            if number == request:
                repo = self.hub.repo(REPO)
                repo.commits["1" * 40], repo.refs["main"] = self.files[1], "1" * 40

        self.before_requests(act)

    def heal(self) -> None:
        """Answer all requests."""
        self.hub.fault = lambda method, path: None


def requests(failing: FailingHub, work: Callable[[], object]) -> int:
    """Count the requests of a call."""
    asked: list[int] = []
    failing.before_requests(asked.append)
    work()
    failing.heal()
    return len(asked)


def attempt(work: Callable[[], str | None]) -> str:
    """Return `done` or `refused`, or a text about another outcome."""
    try:
        return work() or "done"
    except HfVitSegError as error:
        return "refused" if str(error) and "\n" not in str(error) else f"not one sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def try_push(failing: FailingHub, fault: Exception, request: int, always: bool) -> str:
    """Push a new revision while the Hub fails."""
    old, new = failing.files
    with failing.connected():
        failing.publish(0)
        failing.fail(fault, request, always)
        outcome = attempt(lambda: failing.publish(1))
        failing.heal()
        found = contents(failing.hub, REPO)
        if found not in (old, new):
            return "half published"
        if outcome == "done" and found != new:
            return "done, but nothing is published"
        again = attempt(lambda: failing.publish(1))
        return outcome if again == "done" and contents(failing.hub, REPO) == new else f"then {again}"


def load(failing: FailingHub) -> str:
    """Load the model and its image processor; the text is empty if they are those of one revision."""
    model, processor = hf_vit_seg.load(REPO)
    size = NEW_SIZE if equal_weights(model, failing.models[1]) else OLD_SIZE
    if size == OLD_SIZE and not equal_weights(model, failing.models[0]):
        return "weights of no revision"
    return "" if processor.size["height"] == size else "weights and image processor of different revisions"


def equal_weights(model: torch.nn.Module, folder: Path) -> bool:
    """Return whether a model has the weights of a directory."""
    weights, saved = model.state_dict(), load_file(folder / "model.safetensors")
    return all(torch.equal(weights[name], value) for name, value in saved.items())


def try_load(failing: FailingHub, fault: Exception, request: int, always: bool) -> str:
    """Load a model while the Hub fails, without earlier downloads."""
    with failing.connected():
        failing.publish(0)
        failing.fail(fault, request, always)
        outcome = attempt(lambda: load(failing))
        failing.heal()
        again = attempt(lambda: load(failing))
        return outcome if again == "done" else f"then {again}"


def try_change(failing: FailingHub, request: int) -> str:
    """Load a model that gets a new revision before a request."""
    with failing.connected():
        failing.publish(0)
        failing.change(request)
        return attempt(lambda: load(failing))


def run(folder: Path) -> list[Try]:
    """Try all faults at all requests."""
    tries: list[Try] = []
    with serve() as hub:
        failing = FailingHub(hub, folder)
        with failing.connected():
            failing.publish(0)
            counts = {"push": requests(failing, lambda: failing.publish(1))}
        with failing.connected():
            failing.publish(0)
            counts["load"] = requests(failing, lambda: hf_vit_seg.load(REPO))
        for work, function in (("push", try_push), ("load", try_load)):
            for name, fault in FAULTS.items():
                for mode in (ONCE, ALWAYS):
                    for request in range(counts[work]):
                        outcome = function(failing, fault, request, mode == ALWAYS)
                        tries.append(Try(work, f"{name}, {mode}", request, outcome))
        for request in range(counts["load"]):
            tries.append(Try("load", "a new revision", request, try_change(failing, request)))
    return tries


def section(tries: Sequence[Try]) -> str:
    """The text of the section in docs/reliability.md."""
    rows = ["| call | fault | cases | done | refused | failures |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for each in tries:
        kind = "failed" if each.failed else each.outcome
        counts.setdefault((each.work, each.fault), Counter())[kind] += 1
    for (work, fault), found in counts.items():
        row = [work, fault, found.total(), found["done"], found["refused"], found["failed"]]
        rows.append("| " + " | ".join(map(str, row)) + " |")
    failures = [f"{each.work}, {each.fault}, request {each.request}: {each.outcome}" for each in tries if each.failed]
    lists = [*bullet_list(record.FAILURES, failures), *bullet_list(record.FIXED, FIXED)]
    return "\n\n".join([command_text("hub"), ABOUT, "\n".join(rows), *lists])
