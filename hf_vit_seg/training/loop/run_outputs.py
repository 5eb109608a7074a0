"""The figures and tables of a run that is in progress; only the main process writes them."""

import time

from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.figures.html_report import BATCHES, write_html_report
from hf_vit_seg.training.figures.plots import draw_plots, find_report
from hf_vit_seg.training.figures.sample_figures import write_figures
from hf_vit_seg.training.figures.training_batches import training_batch_figure
from hf_vit_seg.training.losses.objectives import Batch
from hf_vit_seg.training.reports.metrics_report import MetricsReport
from hf_vit_seg.training.reports.results_table import write_results

from .setup import TrainingComponents

MIN_INTERVAL = 5.0  # seconds between plots during a run
MAX_SHARE = 0.1  # maximum fraction of the run's time spent on plots


class RunOutputs:
    """Writes results.csv after every evaluation, and also plots and report.html, up to a tenth of the time.

    At the end of a run, all are written.
    """

    def __init__(self, parts: TrainingComponents, directory: RunDirectory):
        self.parts, self.directory = parts, directory
        self.drawn, self.duration = time.monotonic(), 0.0  # end and duration of the last plots

    def draw_batch(self, step: int, batch: Batch) -> None:
        """Draw a training batch as the model sees it."""
        train, task = self.parts.data.train, self.parts.recipe.task
        title = f"the first batch of step {step}, after transforms"
        figure = training_batch_figure(batch, task, train.class_table, self.parts.processor, title)
        write_figures(self.directory.plots, {f"{BATCHES}{step}": figure})

    def update(self, report: MetricsReport | None) -> None:
        """Write the outputs that are due after an evaluation."""
        write_results(self.directory.path)
        if time.monotonic() - self.drawn >= max(MIN_INTERVAL, self.duration / MAX_SHARE):
            self.draw(report)

    def draw(self, report: MetricsReport | None) -> None:
        """Draw plots and report.html."""
        start = time.monotonic()
        draw_plots(self.directory.path, report)
        write_html_report(self.directory.path, report)
        self.drawn = time.monotonic()
        self.duration = self.drawn - start

    def write_report(self) -> None:
        """Write report.html again, with the results on the test split."""
        write_html_report(self.directory.path, find_report(self.directory.path))

    def finish(self) -> None:
        """Write everything at the end of a run, with the scores of the best model."""
        write_results(self.directory.path)
        self.draw(find_report(self.directory.path))


__all__ = ["RunOutputs"]
