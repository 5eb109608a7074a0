"""Readers fuzzed by atheris, which keeps the inputs that reach new code. It needs `pip install atheris`."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoints import RECIPE, Checkpoints
from .record import bullet_list, command_text

TITLE = "Readers fuzzed by coverage"
ABOUT = (
    "atheris changes valid files so that they reach new code of the package and of PyYAML. Each input must be read, or "
    "refused by one of our errors, within 5 s and 4 GiB in all."
)
FIXED: tuple[str, ...] = ()
SECONDS = 60  # for each reader
LIMITS = ("-timeout=5", "-rss_limit_mb=4096", "-max_len=200000", "-verbosity=1")
DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
COVERAGE = re.compile(r"\bcov: (\d+)")


@dataclass(frozen=True)
class GuidedRun:
    """The result of fuzzing one reader. `inputs` is 0 if it ended early."""

    reader: str
    inputs: int
    coverage: tuple[int, int]  # branches reached at the start and at the end
    error: str

    @property
    def failed(self) -> bool:
        return bool(self.error)

    def row(self) -> str:
        first, last = self.coverage
        return f"| {self.reader} | {self.inputs:,} | {first:,} | {last:,} | {int(self.failed)} |"


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Valid files for each reader."""
    valid = Checkpoints(folder, 0)
    jsons = {
        name: [(model / name).read_bytes() for model in valid.models.values()]
        for name in ("config.json", "preprocessor_config.json")
    }
    return {
        ".npz": [valid.files[".npz"]],
        ".pth": [valid.files[".pth"], valid.files["legacy .pth"]],
        ".safetensors": [valid.files[".safetensors"]],
        "recipe.yaml": [RECIPE.encode()],
        **jsons,
    }


def fuzz(reader: str, contents: Sequence[bytes], folder: Path, seconds: int) -> GuidedRun:
    """Fuzz one reader in a process of its own."""
    corpus = folder / reader
    corpus.mkdir()
    for number, content in enumerate(contents):
        (corpus / str(number)).write_bytes(content)
    command = [sys.executable, "-m", "tests.reliability.guided_target", reader, str(corpus)]
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", *LIMITS]
    done = subprocess.run([*command, *options], capture_output=True, text=True, errors="replace")
    match, coverage = DONE.search(done.stderr), [int(count) for count in COVERAGE.findall(done.stderr)] or [0]
    output = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    lines = [line for line in output if "Error" in line or "ERROR" in line]
    error = "" if done.returncode == 0 else "; ".join(lines[:3]) or f"exit code {done.returncode}"
    return GuidedRun(reader, int(match[1]) if match else 0, (coverage[0], coverage[-1]), error[:400])


def run(folder: Path, seconds: int = SECONDS) -> list[GuidedRun]:
    """Fuzz all readers."""
    runs = []
    for reader, contents in seeds(folder).items():
        runs.append(fuzz(reader, contents, folder, seconds))
        print(runs[-1].row(), runs[-1].error, file=sys.stderr, flush=True)
    return runs


def section(runs: Sequence[GuidedRun]) -> str:
    """The text of the section in docs/reliability.md."""
    head = [
        "| reader | inputs | branches at the start | at the end | failures |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    parts = [command_text("guided"), ABOUT, "\n".join([*head, *(result.row() for result in runs)])]
    parts += bullet_list(
        "Failures of this run", [f"{result.reader}: {result.error}" for result in runs if result.failed]
    )
    return "\n\n".join([*parts, *bullet_list("Found by this command and fixed", FIXED)])
