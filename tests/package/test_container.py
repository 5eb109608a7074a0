"""The Dockerfile, checked without docker: its files, extras and commands, and those of the guide."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch

import pytest
import typer.main
from paths import REPOSITORY

from hf_vit_seg.cli import app

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
GUIDE = REPOSITORY / "docs" / "guides" / "endpoints.md"


def instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [(words[0], words[1].strip()) for line in lines if line and line[0] != "#" and (words := line.split(" ", 1))]


def value_of(name: str) -> str:
    (found,) = [value for instruction, value in instructions() if instruction == name]
    return found


def is_copied(path: str) -> bool:
    """Whether .dockerignore lets a path in: the last line that matches it or a folder above it decides."""
    parts = path.split("/")
    places = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    ignored = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = line.removeprefix("!").startswith("**/")
        tried = parts if anywhere else places
        if line and line[0] != "#" and any(fnmatch(each, pattern) and (anywhere or pattern != "*") for each in tried):
            ignored = not line.startswith("!")
        elif line == "*":
            ignored = True
    return not ignored


def parse(arguments: list[str]) -> None:
    """Parse a command as the console does, without running it."""
    group = typer.main.get_command(app)
    command = group.get_command(group.make_context("hf-vit-seg", [], resilient_parsing=True), arguments[0])  # type: ignore[attr-defined]
    assert command is not None, arguments[0]
    command.make_context(arguments[0], arguments[1:])


def test_all_packages_are_copied_and_nothing_else():
    folders = {"hf_vit_seg", *PROJECT["tool"]["setuptools"]["package-dir"].values()}
    for folder in folders:
        assert (REPOSITORY / folder).is_dir() and is_copied(f"{folder}/__init__.py"), folder
    for name in ("pyproject.toml", PROJECT["project"]["readme"], "LICENSE"):
        assert (REPOSITORY / name).is_file() and is_copied(name), name
    for name in (
        ".git/config",
        "tests/conftest.py",
        "docs/index.md",
        "hf_vit_seg/cli/__pycache__/app.pyc",
        "out/x",
        ".env",
    ):
        assert not is_copied(name), name


def test_extras_exist():
    (extras,) = re.findall(r'"/source\[(.*?)\]"', value_of("RUN"))
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert "demo" in extras.split(",")


def test_python_is_supported():
    version = re.search(r"python:(\d+\.\d+)-slim", value_of("FROM"))
    assert version is not None and tuple(map(int, version[1].split("."))) >= (3, 11)


def test_default_command_serves_the_exposed_port():
    entry, arguments = json.loads(value_of("ENTRYPOINT")), json.loads(value_of("CMD"))
    assert entry == list(PROJECT["project"]["scripts"])
    parse(arguments)
    assert arguments[arguments.index("--port") + 1] == value_of("EXPOSE")
    assert "GRADIO_SERVER_NAME=0.0.0.0" in value_of("ENV").split()  # otherwise only the container itself is answered
    assert value_of("USER") != "root"


def test_commands_of_the_guide_are_valid():
    runs = [line for line in GUIDE.read_text().splitlines() if line.startswith("docker run")]
    assert len(runs) >= 2
    for line in runs:
        words = shlex.split(line)
        arguments = words[words.index("hf-vit-seg") + 1 :]
        if arguments:
            parse(arguments)


@pytest.mark.parametrize("name", ["TORCH_INDEX"])
def test_build_arguments_of_the_guide_exist(name):
    assert name in GUIDE.read_text() and value_of("ARG").startswith(f"{name}=")
