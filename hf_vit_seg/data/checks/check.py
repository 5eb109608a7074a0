"""Validation of every file of every split before the first training step.

`check` reads all samples and returns a report; `require_valid_data` raises instead, and reads at most `data.check`
samples of each split.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hf_vit_seg.data.datasets import RawDataset, RunSettings, Split, open_split
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.errors import HfVitSegError

from .report import CheckReport, SplitFacts
from .sample_facts import FactsFile, SampleFacts, facts_key, read_sample_facts, source_stamp

SPLITS: tuple[Split, ...] = get_args(Split)
MAX_THREADS = 16
SHOWN = 3  # problems in an error message
# Processor fields that define the normalization of images with more than 8 bits.
NORMALIZATION_FIELDS = frozenset({"image_mean", "rescale_factor", "do_rescale", "do_normalize"})


class BadDataError(HfVitSegError):
    """Data that would fail during training."""


def check(
    recipe: RunSettings, splits: Sequence[Split] = SPLITS, cache: Path | None = None, progress: bool = False
) -> CheckReport:
    """Read every sample of the recipe's splits; splits that it does not define are skipped.

    `cache` is a JSON file with the results for unchanged files. Raises SourceError, ClassTableError or RecordError if
    the data cannot be opened.
    """
    return check_datasets(recipe, {split: open_split(recipe, split) for split in splits}, cache, progress)


def check_datasets(
    recipe: RunSettings, datasets: Mapping[Split, RawDataset | None], cache: Path | None = None, progress: bool = False
) -> CheckReport:
    """Read every sample of opened splits; splits that are None are skipped."""
    memory = FactsFile(cache)
    parts = {}
    try:
        for split, dataset in datasets.items():
            if dataset is not None:
                settings = getattr(recipe.data, split) or recipe.data.train  # a share of the training source
                stamp = source_stamp(settings, recipe.data.channels, dataset)
                part = SplitFacts(split, dataset, scan(split, dataset, stamp, memory, progress))
                parts[split] = skip_unusable(part, recipe.data.max_skipped) if skips(recipe) else part
    except BaseException:  # also when interrupted, so that the next check continues
        memory.write(whole=False)
        raise
    memory.write()
    normalized = not NORMALIZATION_FIELDS.isdisjoint(recipe.processor)
    scaled = normalized or recipe.model.from_pretrained is not None
    return CheckReport(recipe.task, parts, scaled, normalized)


def require_valid_data(
    recipe: RunSettings, datasets: Mapping[Split, RawDataset | None], cache: Path | None = None, progress: bool = False
) -> CheckReport:
    """Read samples of opened splits, at most `data.check` of each, and raise BadDataError if some are unusable.

    With `data.on_error: skip`, all samples are read, and the datasets of the report are without unusable samples.
    """
    max_samples = None if skips(recipe) else recipe.data.check
    parts: dict[Split, RawDataset | None] = {
        name: split.subset(max_samples) if split and max_samples else split for name, split in datasets.items()
    }
    report = check_datasets(recipe, parts, cache, progress)
    if problems := report.problems:
        more = f"; {len(problems) - SHOWN} more are shown by hf-vit-seg check-data" if len(problems) > SHOWN else ""
        raise BadDataError(f"the data cannot be used: {'; '.join(problems[:SHOWN])}{more}")
    return report


def skips(recipe: RunSettings) -> bool:
    """Return whether unusable samples are left out."""
    return recipe.data.on_error == "skip"


def skip_unusable(part: SplitFacts, max_share: float) -> SplitFacts:
    """Leave unusable samples out of a split. BadDataError if they are more than `max_share`."""
    usable = [index for index, facts in enumerate(part.facts) if facts.fault is None]
    skipped = [facts for facts in part.facts if facts.fault is not None]
    if len(skipped) > max_share * len(part.facts):
        raise BadDataError(
            f"data.{part.split}: {len(skipped)} of {len(part.facts)} samples are unusable, more than the share "
            f"{max_share:g} that data.max_skipped allows: {format_list(part.faults, SHOWN)}"
        )
    if not skipped:
        return part
    return SplitFacts(part.split, part.dataset.select(usable), [part.facts[index] for index in usable], skipped)


def scan(split: str, dataset: RawDataset, stamp: str, memory: FactsFile, progress: bool) -> tuple[SampleFacts, ...]:
    """Read the facts of all samples of a split, in order; `stamp` identifies the source's settings."""

    def read_facts(index: int) -> SampleFacts:
        key = facts_key(stamp, dataset, index)
        facts = memory.get(key)
        if facts is None:
            facts = read_sample_facts(dataset, index)
            memory.add(key, facts)
        return facts

    return tuple(
        track_progress(map_in_threads(read_facts, range(len(dataset))), len(dataset), f"checking {split}", progress)
    )


def map_in_threads(work: Callable[[int], SampleFacts], indexes: Sequence[int]) -> Iterator[SampleFacts]:
    """Map in threads, with results in order; decoders release the GIL."""
    with single_threaded_torch():
        pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
        try:
            yield from pool.map(work, indexes)
        finally:  # also when interrupted: pending samples are dropped
            pool.shutdown(cancel_futures=True)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Set torch to one thread, to avoid oversubscription when called from a thread pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def track_progress(results: Iterable[SampleFacts], total: int, title: str, shown: bool) -> Iterator[SampleFacts]:
    """Yield results under a transient progress bar, if `shown` and on a terminal."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        yield from bar.track(results, total=total)


__all__ = ["SPLITS", "BadDataError", "check", "check_datasets", "require_valid_data"]
