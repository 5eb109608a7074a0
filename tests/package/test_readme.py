"""Runs the commands of the README, unchanged, in a temporary folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from snippets import PROGRAM, snippets

import hf_vit_seg
from hf_vit_seg.training.reports.metrics_report import read_report

README = (REPOSITORY / "README.md").read_text()
FIRST, QUICK, TESTS = (
    next(snippet for snippet in snippets(README) if snippet.mark == mark)
    for mark in ("run", "quick", "not run: these are the tests")
)
INSTALL = ["pip", "install", "."]
CODE_MAP, MODELS = ((REPOSITORY / "docs" / name).read_text() for name in ("code_map.md", "reference/models.md"))


@pytest.fixture
def empty_folder(reader):
    """The reader without the repository: with their own photos only."""
    Path("examples").unlink()
    return reader


def run_unchanged(commands: list[list[str]]) -> None:
    """Run commands in processes, as a user does; the package is already installed."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for words in commands:
        if words == INSTALL:
            continue
        assert words[0] == PROGRAM
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("empty_folder")
def test_first_command_reaches_the_documented_score():
    run_unchanged(FIRST.commands)
    assert len(list(Path("out/predictions").glob("*.overlay.png"))) == 60
    assert json.loads(Path("out/test/metrics.json").read_text())["scores"]["mean_iou"] >= 0.88


@pytest.mark.slow
@pytest.mark.usefixtures("empty_folder")
def test_quick_example_finds_nuclei():
    run_unchanged(QUICK.commands)
    report = read_report(Path("quick/test/metrics.json"))
    assert dict(zip(report.names, report.class_columns()["iou"], strict=True))["nucleus"] > 0.2


@pytest.mark.usefixtures("segformer_on_hub")
def test_snippets_run(empty_folder):
    """In a folder without the repository; what needs a download is served by the test Hub."""
    for snippet in snippets(README):
        if snippet.is_run and snippet != FIRST:
            empty_folder.read(snippet)
    assert Path("quick/test/metrics.json").exists() and Path("data-check").is_dir()
    assert Path("overlay.png").stat().st_size > 1000


def test_first_command_installs_the_package():
    assert FIRST.commands[0] == INSTALL and len(FIRST.text.splitlines()) == 1


def test_continuous_integration_runs_the_test_command():
    lines = (REPOSITORY / ".ci" / "test").read_text().splitlines()
    assert all(part.strip() in lines for part in TESTS.text.split("&&"))


def test_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_snippets_that_load_from_the_hub_are_marked():
    for snippet in snippets(README):
        assert ("from_pretrained(" in snippet.text or "load(" in snippet.text) == (snippet.mark == "needs a download")


def test_folders_exist():
    tree = CODE_MAP.split("## Repository layout")[1].split("```")[1]
    for name in re.findall(r"^([a-z_]+/) ", tree, flags=re.MULTILINE):
        assert (REPOSITORY / name).is_dir(), name


def test_all_variants_are_listed():
    for architecture in hf_vit_seg.architectures().values():
        assert f"`{architecture.config.model_type}`" in MODELS
        for variant in architecture.variant_rows():
            stem = variant.removesuffix("-distilled").removesuffix("-registers")  # "each also"
            assert variant.startswith("tiny") or re.search(rf"\b{stem}\b", MODELS, flags=re.IGNORECASE), variant
