"""Training progress: a bar in a terminal, plain lines elsewhere, such as in CI logs; nothing on other processes.

with Progress(total=steps, start=first, enabled=accelerator.is_main_process, log_every=10) as progress:
    progress.update(step, epoch=1.5, loss=0.4, learning_rate=6e-5, images_per_second=40.0)  # all optional
    with progress.evaluation_progress(images) as advance:
        advance(1)
    progress.show_score("mean_iou", 0.71, best=True)
    progress.log("a line above the bar")
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

from hf_vit_seg.error_reporting import is_quiet

SMOOTHING = 0.9  # decay of the moving average of the loss
# Values of a step, in the order of display.
SHOWN: dict[str, Callable[[float], str]] = {
    "epoch": lambda value: f"epoch {value:.2f}",
    "loss": lambda value: f"loss {value:.4f}",
    "learning_rate": lambda value: f"lr {value:.2e}",
    "images_per_second": lambda value: f"{value:.1f} images/s",
}


def is_logged(step: int, steps: int, every: int) -> bool:
    """Return whether a step (from 1) has a line in the log: the first, every `every`-th, and the last of `steps`."""
    return step in (1, steps) or step % every == 0


class MovingAverage:
    """An exponential moving average with bias correction; NaN is skipped."""

    def __init__(self, decay: float = SMOOTHING):
        self.decay, self.total, self.weight = decay, 0.0, 0.0

    def update(self, value: float) -> float:
        """Add a value and return the average; NaN if there was no value yet."""
        if math.isfinite(value):
            self.total = self.decay * self.total + (1 - self.decay) * value
            self.weight = self.decay * self.weight + (1 - self.decay)
        return self.total / self.weight if self.weight else math.nan


class Bar(bars.Progress):
    """Progress bars with a line about the last step below."""

    about = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bars and the line."""
        yield from super().get_renderables()
        if self.about:
            yield Text(self.about, style="dim", overflow="ellipsis", no_wrap=True)


class Progress:
    """The progress of a run with `total` steps, resumed after step `start`."""

    def __init__(
        self, total: int, start: int = 0, *, log_every: int = 10, enabled: bool = True, console: Console | None = None
    ):
        """Plain lines are printed at step 1 and every `log_every` steps, the bar is updated in every step.

        The default console is stderr, and prints nothing in the quiet mode of commands.
        """
        self.total, self.start, self.step, self.log_every, self.enabled = total, start, start, log_every, enabled
        self.console = console or Console(stderr=True, highlight=False, quiet=is_quiet())
        self.values: dict[str, float] = {}
        self.loss = MovingAverage()
        self.score = ""
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
        """Show that `step` steps are done. Values that are missing or None are not updated.

        Values are epoch, loss (smoothed for display), learning_rate and images_per_second.
        """
        self.step = step
        if not self.enabled:
            return
        for name, value in values.items():
            if value is not None:
                self.values[name] = self.loss.update(value) if name == "loss" else value
        if self.bar is not None and self.task is not None:
            self.bar.about = self._about()
            self.bar.update(self.task, completed=step, left=self._time_left())
        elif is_logged(step, self.total, self.log_every):
            self.log(" · ".join(filter(None, [f"step {step}/{self.total}", self._about(), self._time_left()])))

    def show_score(self, name: str, value: float, best: bool = False) -> None:
        """Show the `value` of metric `name` from an evaluation, and whether it is the best so far."""
        self.score = f"{name} {value:.4f}{' (best)' if best else ''}"
        self.log(f"step {self.step}/{self.total} · {self.score}")

    @contextmanager
    def evaluation_progress(self, images: int, title: str = "evaluating") -> Iterator[Callable[[int], None]]:
        """Show a second bar over `images`; call the yielded function with the number of new images."""
        if self.bar is None:
            yield lambda done: None
            return
        bar, task = self.bar, self.bar.add_task(title, total=images, left="")
        try:
            yield lambda done: bar.advance(task, done)
        finally:
            bar.remove_task(task)

    def log(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.enabled:
            self.console.print(text, markup=False, soft_wrap=True)

    def _about(self) -> str:
        parts = [show(self.values[name]) for name, show in SHOWN.items() if name in self.values]
        return " · ".join([*parts, self.score] if self.score else parts)

    def _time_left(self) -> str:
        """Estimate the remaining time from the mean time per step, including evaluations."""
        done = self.step - self.start
        if done <= 0 or self.step >= self.total:
            return ""
        seconds = (time.monotonic() - self.began) / done * (self.total - self.step)
        return f"{timedelta(seconds=round(seconds))} left"
