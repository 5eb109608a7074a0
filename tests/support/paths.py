"""Folders of the repository that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ORACLES = REPOSITORY / "tests" / "oracles"
EXAMPLES = REPOSITORY / "examples"
