"""Weights of training samples, for drawing some more often than others.

Shapes: N samples, K classes.
"""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from hf_vit_seg.data.checks.report import SplitFacts
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.text_files import read_text

COLUMNS = ("name", "weight")


def rare_class_weights(part: SplitFacts, temperature: float) -> np.ndarray:
    """Return the weights (N,) of rare class sampling (DAFormer, arXiv 2111.14887).

    A class is drawn with probability softmax((1 - f) / temperature) of its frequency f, and then one of the samples
    that contain it. Samples without a class have weight 0. Classes that do not occur are left out.
    """
    present = [found for found in part.classes if found.count]
    if not present:
        raise SourceError(f"data.sampling: no sample of {part.split} has a class")
    counts = np.array([found.count for found in present], np.float64)
    exponents = (1 - counts / counts.sum()) / temperature
    probabilities = np.exp(exponents - exponents.max())
    weights = np.zeros(len(part.facts))
    for probability, found in zip(probabilities / probabilities.sum(), present, strict=True):
        weights[list(found.samples)] += probability / len(found.samples)
    return weights


def read_weights(path: Path, names: Sequence[str]) -> np.ndarray:
    """Read the weights (N,) of the samples `names` from a CSV file with the columns name and weight.

    Raises SourceError for missing samples, and weights that are not finite and 0 or more.
    """
    reader = csv.DictReader(StringIO(read_text(path), newline=""), skipinitialspace=True)
    if missing := [column for column in COLUMNS if column not in (reader.fieldnames or [])]:
        raise SourceError(f"data.sampling.file: {path} has no column '{missing[0]}', expected name and weight")
    by_name: dict[str, float] = {}
    for row in reader:
        name = (row["name"] or "").strip()
        if name in by_name:
            raise SourceError(f"data.sampling.file: {path} lists {name} more than once")
        by_name[name] = parse_weight(row["weight"] or "", f"{path}, line {reader.line_num}")
    if absent := [name for name in names if name not in by_name]:
        raise SourceError(
            f"data.sampling.file: {path} has no weight for {len(absent)} of {len(names)} samples: {format_list(absent)}"
        )
    weights = np.array([by_name[name] for name in names])
    if not weights.any():
        raise SourceError(f"data.sampling.file: all weights in {path} are 0")
    return weights


def parse_weight(text: str, where: str) -> float:
    """Parse a weight. Raises SourceError."""
    try:
        weight = float(text)
    except ValueError:
        weight = np.nan
    if not 0 <= weight < np.inf:
        raise SourceError(f"data.sampling.file: {where}: found the weight '{text.strip()}', expected a number from 0")
    return weight


__all__ = ["rare_class_weights", "read_weights"]
