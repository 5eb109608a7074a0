"""Environments with other plugins: generated packages, and commands that run with them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Several commands in one process, which takes seconds to start; then the logits of directories, by Auto class.
SCRIPT = """
import json, sys
import torch
from typer.testing import CliRunner
from hf_vit_seg.cli import app
commands, directories, report = json.loads(sys.argv[1])
outcomes = []
for command in commands:
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    outcomes.append([result.exit_code, result.stdout, result.stderr])
from transformers import AutoModelForSemanticSegmentation
for directory in directories:
    model = AutoModelForSemanticSegmentation.from_pretrained(directory).eval()
    with torch.no_grad():
        torch.save(model(torch.ones(1, 3, 40, 56)).logits, f"{directory}.pt")
json.dump(outcomes, open(report, "w"))
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str
    errors: str


def write_distribution(
    folder: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], modules: Mapping[str, str]
) -> Path:
    """An installed package as seen by importlib.metadata: entry points by group and name, and module sources."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, targets in entry_points.items():
        lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in targets.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


def environment(home: Path, path: Path | None = None) -> dict[str, str]:
    """Variables of a single-threaded process with caches in `home`; modules in `path` take precedence."""
    paths = {} if path is None else {"PYTHONPATH": str(path)}
    return {**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **paths}


def run_commands(
    commands: Sequence[Sequence[str]],
    home: Path,
    directories: Sequence[Path] = (),
    python: str = sys.executable,
    path: Path | None = None,
) -> list[Outcome]:
    """The output of `hf-vit-seg` for each of these arguments; the logits of `directories` are written next to them."""
    home.mkdir(exist_ok=True)
    report = home / "outcomes.json"
    options = json.dumps([[list(map(str, command)) for command in commands], list(map(str, directories)), str(report)])
    ran = subprocess.run([python, "-c", SCRIPT, options], env=environment(home, path), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return [Outcome(*outcome) for outcome in json.loads(report.read_text())]
