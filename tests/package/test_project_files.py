"""Project files besides the code: continuous integration, workflows, citation, templates, licenses, the built wheel."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from paths import REPOSITORY

from tests.reliability.licenses import (
    NOTICE,
    PACKAGE,
    UNKNOWN,
    dependencies,
    direct_requirements,
    license_of,
)

STEPS = ("lint", "types", "build", "docs", "oldest", "test")
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
ISSUE_FORMS = sorted(
    set((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    - set((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("config.yml"))
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # `on` is a key, not true


def jobs(name: str) -> dict[str, Any]:
    return load(REPOSITORY / ".github" / "workflows" / name)["jobs"]


def called_scripts(text: str) -> list[str]:
    return re.findall(r"^\s*(?:- run: )?(\.ci/\w+)\b", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def check_wheel() -> ModuleType:
    spec = spec_from_file_location("check_wheel", REPOSITORY / ".ci" / "check_wheel.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ci_runs_every_step_and_the_tests_last():
    assert called_scripts((REPOSITORY / ".ci" / "run").read_text()) == [f".ci/{step}" for step in STEPS]


@pytest.mark.parametrize("step", ["run", *STEPS])
def test_ci_scripts_are_executable_and_stop_at_the_first_failure(step):
    path = REPOSITORY / ".ci" / step
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text().splitlines()
    subprocess.run(["bash", "-n", path], check=True)


def test_failing_command_fails_its_step(tmp_path):
    """`ruff` fails here; the step must exit with its status and start nothing else."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "lint", tmp_path / ".ci")
    for name, status in (("ruff", 3), ("check-jsonschema", 0)):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho "$0" >> "{tmp_path}/calls"\nexit {status}\n')
        tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    assert subprocess.run([tmp_path / ".ci" / "lint"], env=environment).returncode == 3
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_ci_run_scripts(path):
    workflow = load(path)
    assert {"name", "on", "permissions", "jobs"} <= workflow.keys()
    scripts = called_scripts(path.read_text())
    assert scripts and set(scripts) <= {f".ci/{step}" for step in STEPS}
    for job in workflow["jobs"].values():
        assert "uses" in job or int(job["timeout-minutes"]) > 0
        for step in job.get("steps", ()):
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), step
            assert "${{" not in step.get("run", ""), "an expression in a command can be injected: use env"


def test_workflows_call_every_step():
    called = {script for path in WORKFLOWS for script in called_scripts(path.read_text())}
    assert called == {f".ci/{step}" for step in STEPS}


def test_release_publishes_the_tested_files():
    release = jobs("release.yml")
    assert load(REPOSITORY / ".github" / "workflows" / "release.yml")["on"] == {"push": {"tags": ["v*"]}}
    assert set(release["publish"]["needs"]) == {"tests", "build"}
    assert release["publish"]["permissions"] == {"id-token": "write"}
    assert release["publish"]["environment"]["name"] == "pypi"
    assert '.ci/build "${GITHUB_REF_NAME#v}"' in [step.get("run") for step in release["build"]["steps"]]
    assert not any("run" in step for step in release["publish"]["steps"])
    assert "workflow_call" in load(REPOSITORY / ".github" / "workflows" / "tests.yml")["on"]


def test_types_hook_checks_the_current_tree():
    hooks = [hook for repo in load(REPOSITORY / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["entry"] for hook in hooks if hook["id"] == "pyright"} == {".ci/types"}
    commands = (REPOSITORY / ".ci" / "types").read_text().splitlines()
    install = next(i for i, line in enumerate(commands) if line.startswith("pip install"))
    assert "--target build/typed ." in commands[install] and commands.index("pyright") > install
    assert commands[install - 1].startswith("rm -rf build/typed build/lib")


def test_citation_has_the_current_version():
    citation = load(REPOSITORY / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == [{"name": "The hf_vit_seg authors"}]


@pytest.mark.parametrize("path", ISSUE_FORMS, ids=lambda path: path.name)
def test_issue_forms_are_complete(path):
    form = load(path)
    assert {"name", "description", "body"} <= form.keys()
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    ids = [element["id"] for element in fields]
    assert ids and len(ids) == len(set(ids))
    for element in fields:
        assert element["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert element["attributes"]["label"]
        assert element["type"] != "dropdown" or element["attributes"]["options"]


def test_changelog_groups_one_line_per_change():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE)[0] == "Unreleased"
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"
    }  # fmt: skip
    assert not re.search(r"^- .*\n +\S", text, flags=re.MULTILINE)


@pytest.fixture
def small_repository(tmp_path, check_wheel, monkeypatch) -> tuple[Path, Path]:
    """A repository and its installed tree, complete."""
    repository, installed = tmp_path / "repository", tmp_path / "site"
    for name in ("hf_vit_seg/__init__.py", "hf_vit_seg/data/labels.py", "hf_vit_seg/py.typed", "configs/labels/a.json"):
        for path in (repository / name, installed / name.replace("configs", "hf_vit_seg/configs")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    (repository / "pyproject.toml").write_text('[tool.setuptools.package-dir]\n"hf_vit_seg.configs" = "configs"\n')
    metadata = installed / "hf_vit_seg-1.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.4\nName: hf_vit_seg\nVersion: 1.2\n")
    monkeypatch.setattr(check_wheel, "DATA_FILES", ("hf_vit_seg/py.typed", "configs/labels/*.json"))
    return repository, installed


def test_complete_wheel_passes(check_wheel, small_repository):
    assert check_wheel.problems(*small_repository, "1.2") == []
    assert check_wheel.problems(*small_repository, None) == []


@pytest.mark.parametrize("name", ["data/labels.py", "py.typed", "configs/labels/a.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("stale")], ids=["missing", "stale"])
def test_incomplete_wheel_is_detected(check_wheel, small_repository, name, damage):
    repository, installed = small_repository
    damage(installed / "hf_vit_seg" / name)
    (missing,) = check_wheel.missing_files(repository, installed)
    assert missing == (name if name.startswith("configs") else f"hf_vit_seg/{name}")


def test_wheel_with_wrong_version_or_packages_is_detected(check_wheel, small_repository):
    repository, installed = small_repository
    (installed / "tests").mkdir()
    assert len(check_wheel.problems(repository, installed, "1.3")) == 2


def test_package_data_patterns_match_files(check_wheel):
    required = {path.relative_to(REPOSITORY).as_posix() for path in check_wheel.required_files(REPOSITORY)}
    assert {"hf_vit_seg/py.typed", "configs/recipes/nuclei.yaml", "hf_vit_seg/demo/view/view.js"} <= required
    assert {"conversion/convert.py", "spaces/segmentation/app.py", "examples/nuclei/model/config.json"} <= required


def test_example_in_the_wheel_is_smaller_than_9_mb():
    files = [path for path in (REPOSITORY / "examples/nuclei").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") < 9_000_000


def test_check_exits_with_1_for_missing_files(tmp_path):
    tmp_path.joinpath("hf_vit_seg").mkdir()
    command = [sys.executable, REPOSITORY / ".ci" / "check_wheel.py", tmp_path]
    assert subprocess.run(command, capture_output=True).returncode == 1


AFFERO = re.compile(r"\bAGPL|Affero", re.IGNORECASE)
GROUPS = direct_requirements()


def stated_licenses(package) -> str:
    """All that the metadata states; without the text of a license, which may name others."""
    metadata = package.metadata
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith("License")]
    first = (metadata.get("License") or "").strip().partition("\n")[0]
    return " ".join([metadata.get("License-Expression") or "", first, *classifiers])


@pytest.mark.parametrize("extra", GROUPS, ids=lambda name: name or "required")
def test_no_dependency_is_under_the_agpl(extra):
    """Its terms would reach whoever serves a model with this package."""
    found = dependencies(name for name in GROUPS[extra] if name != PACKAGE)
    assert found or extra == "track"
    bad = {name: stated_licenses(package) for name, package in found.items() if AFFERO.search(stated_licenses(package))}
    assert bad == {}


def test_notice_lists_every_requirement_once():
    listed = re.findall(r"^- ([\w.-]+): ", NOTICE.read_text(), re.MULTILINE)
    wanted = {name for names in GROUPS.values() for name in names if name != PACKAGE}
    assert sorted(listed) == sorted(wanted)


def test_most_licenses_are_known():
    packages = dependencies(name for names in GROUPS.values() for name in names if name != PACKAGE)
    unknown = [name for name, package in packages.items() if license_of(package) == UNKNOWN]
    assert len(unknown) < len(packages) / 10, unknown


def test_recipes_and_example_are_small():
    """They are part of the wheel."""
    folders = [REPOSITORY / "configs", REPOSITORY / "examples" / "nuclei"]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert 5e6 < sum(path.stat().st_size for path in files) < 9e6
