"""Looking at every file of every split before the first step, so that no file stops a run in its middle.

`check` reads everything and reports; `refuse_bad_data` is the same for a run that is about to start, and may be told
to read a part of large data.
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
from hf_vit_seg.errors import HfVitSegError

from .report import CheckReport, SplitFacts
from .sample_facts import FactsFile, SampleFacts, facts_key, facts_of, source_stamp

SPLITS: tuple[Split, ...] = get_args(Split)
MOST_THREADS = 16
SHOWN = 3  # problems in the sentence that refuses
# Fields of a processor by which a recipe says how images of any depth are normalized.
NORMALISING = frozenset({"image_mean", "rescale_factor", "do_rescale", "do_normalize"})


class BadDataError(HfVitSegError):
    """Data that a run would stumble over: what is wrong, in one sentence."""


def check(
    recipe: RunSettings, splits: Sequence[Split] = SPLITS, cache: Path | None = None, progress: bool = False
) -> CheckReport:
    """Read every sample of a recipe's splits, those that it has.

    `cache` is a JSON file that remembers what was found in files that do not change. SourceError, ClassTableError or
    RecordError for data that cannot be opened at all.
    """
    return check_datasets(recipe, {split: open_split(recipe, split) for split in splits}, cache, progress)


def check_datasets(
    recipe: RunSettings, datasets: Mapping[Split, RawDataset | None], cache: Path | None = None, progress: bool = False
) -> CheckReport:
    """Read every sample of opened splits; None stands for a split that there is not."""
    memory = FactsFile(cache)
    found = {}
    try:
        for split, dataset in datasets.items():
            if dataset is not None:
                settings = getattr(recipe.data, split) or recipe.data.train  # a share of the training source
                stamp = source_stamp(settings, recipe.data.channels, dataset)
                found[split] = SplitFacts(split, dataset, scan(split, dataset, stamp, memory, progress))
    except BaseException:  # also when interrupted: the next look begins where this one ended
        memory.write(whole=False)
        raise
    memory.write()
    scaled = recipe.model.from_pretrained is not None or not NORMALISING.isdisjoint(recipe.processor)
    return CheckReport(recipe.task, found, scaled)


def refuse_bad_data(
    recipe: RunSettings, datasets: Mapping[Split, RawDataset | None], cache: Path | None = None, progress: bool = False
) -> CheckReport:
    """Read samples of opened splits, all unless `data.check` says less; BadDataError where one would spoil the run."""
    most = recipe.data.check
    parts: dict[Split, RawDataset | None] = {
        name: split.part(most) if split and most else split for name, split in datasets.items()
    }
    report = check_datasets(recipe, parts, cache, progress)
    if problems := report.problems:
        more = f"; and {len(problems) - SHOWN} more, which hf-vit-seg check-data shows" if len(problems) > SHOWN else ""
        raise BadDataError(f"the data cannot be used as they are: {'; '.join(problems[:SHOWN])}{more}")
    return report


def scan(split: str, dataset: RawDataset, stamp: str, memory: FactsFile, progress: bool) -> tuple[SampleFacts, ...]:
    """Facts of all samples of a split, in order; `stamp` is that of its source."""

    def look(index: int) -> SampleFacts:
        key = facts_key(stamp, dataset, index)
        facts = memory.recall(key)
        if facts is None:
            facts = facts_of(dataset, index)
            if facts.fault is None:  # faults may pass without a change of the file: permissions, memory, a library
                memory.keep(key, facts)
        return facts

    return tuple(tracked(in_threads(look, range(len(dataset))), len(dataset), f"checking {split}", progress))


def in_threads(work: Callable[[int], SampleFacts], indexes: Sequence[int]) -> Iterator[SampleFacts]:
    """Results in order; decoders run side by side, as they leave Python's lock."""
    with single_threaded_torch():
        pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
        try:
            yield from pool.map(work, indexes)
        finally:  # also when interrupted: what has not begun is not waited for
            pool.shutdown(cancel_futures=True)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Let torch compute in the calling threads alone: a team of threads for each of them would be far too many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def tracked(results: Iterable[SampleFacts], total: int, title: str, shown: bool) -> Iterator[SampleFacts]:
    """Results under a progress bar on a terminal, which disappears at the end."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        yield from bar.track(results, total=total)


__all__ = ["SPLITS", "BadDataError", "check", "check_datasets", "refuse_bad_data"]
