"""How far training is: a bar in a terminal, plain lines elsewhere (in the log of a CI run), nothing on other processes.

with Progress(total=steps, start=first, enabled=accelerator.is_main_process, log_every=10) as progress:
    progress.update(step, epoch=1.5, loss=0.4, learning_rate=6e-5, images_per_second=40.0)  # what is known
    with progress.evaluating(images) as advance:
        advance(1)
    progress.evaluated("mean_iou", 0.71, best=True)
    progress.say("a line above the bar")
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich import progress as bars
from rich.console import Console, RenderableType
from rich.text import Text

SMOOTHING = 0.9  # share of the earlier losses in the shown one
# What a step may tell, in the order in which it is shown.
SHOWN: dict[str, Callable[[float], str]] = {
    "epoch": lambda value: f"epoch {value:.2f}",
    "loss": lambda value: f"loss {value:.4f}",
    "learning_rate": lambda value: f"lr {value:.2e}",
    "images_per_second": lambda value: f"{value:.1f} images/s",
}


class Smoothed:
    """The exponential moving average of what was given, without a bias towards zero; NaN is passed over."""

    def __init__(self, decay: float = SMOOTHING):
        self.decay, self.total, self.weight = decay, 0.0, 0.0

    def after(self, value: float) -> float:
        """The average with one more value; NaN as long as there was none."""
        if math.isfinite(value):
            self.total = self.decay * self.total + (1 - self.decay) * value
            self.weight = self.decay * self.weight + (1 - self.decay)
        return self.total / self.weight if self.weight else math.nan


class Bar(bars.Progress):
    """Bars, and below them a line about the last step."""

    about = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn."""
        yield from super().get_renderables()
        if self.about:
            yield Text(self.about, style="dim", overflow="ellipsis", no_wrap=True)


class Progress:
    """The steps of a run: `total` in all, of which `start` were done before."""

    def __init__(
        self, total: int, start: int = 0, *, log_every: int = 10, enabled: bool = True, console: Console | None = None
    ):
        """`log_every` steps make a plain line; the bar follows every step. By default it is drawn on stderr."""
        self.total, self.start, self.step, self.log_every, self.enabled = total, start, start, log_every, enabled
        self.console = console or Console(stderr=True, highlight=False)
        self.values: dict[str, float] = {}
        self.loss = Smoothed()
        self.measured = ""
        self.began = time.monotonic()
        self.bar: Bar | None = None
        self.task: bars.TaskID | None = None

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        if self.enabled and self.console.is_terminal:
            columns = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(bar_width=None),
                bars.MofNCompleteColumn(),
                bars.TextColumn("{task.fields[left]}"),
            )
            self.bar = Bar(*columns, console=self.console, expand=True, transient=True)
            self.task = self.bar.add_task("training", total=self.total, completed=self.start, left="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def update(self, step: int, **values: float | None) -> None:
        """The run has done `step` steps. Values that are not given, or None, stay as they were shown.

        Known are epoch, loss (shown smoothed), learning_rate and images_per_second.
        """
        self.step = step
        if not self.enabled:
            return
        for name, value in values.items():
            if value is not None:
                self.values[name] = self.loss.after(value) if name == "loss" else value
        if self.bar is not None and self.task is not None:
            self.bar.about = self._about()
            self.bar.update(self.task, completed=step, left=self._left())
        elif step % self.log_every == 0 or step == self.total:
            self.say(" · ".join(filter(None, [f"step {step}/{self.total}", self._about(), self._left()])))

    def evaluated(self, name: str, value: float, best: bool = False) -> None:
        """An evaluation gave `value` for the measure `name`, the `best` so far or not."""
        self.measured = f"{name} {value:.4f}{' (best)' if best else ''}"
        self.say(f"step {self.step}/{self.total} · {self.measured}")

    @contextmanager
    def evaluating(self, images: int, title: str = "evaluating") -> Iterator[Callable[[int], None]]:
        """A second bar over `images`; call what is given with the number that were just done."""
        if self.bar is None:
            yield lambda done: None
            return
        bar, task = self.bar, self.bar.add_task(title, total=images, left="")
        try:
            yield lambda done: bar.advance(task, done)
        finally:
            bar.remove_task(task)

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self.enabled:
            self.console.print(text, markup=False, soft_wrap=True)

    def _about(self) -> str:
        parts = [show(self.values[name]) for name, show in SHOWN.items() if name in self.values]
        return " · ".join([*parts, self.measured] if self.measured else parts)

    def _left(self) -> str:
        """The time that is left if it goes on as since the start, evaluations included."""
        done = self.step - self.start
        if done <= 0 or self.step >= self.total:
            return ""
        seconds = (time.monotonic() - self.began) / done * (self.total - self.step)
        return f"{timedelta(seconds=round(seconds))} left"
