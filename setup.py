"""Find the packages: the top-level folders conversion, configs, ... are installed under hf_vit_seg."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

PYPROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR = PYPROJECT["tool"]["setuptools"]["package-dir"]


def packages() -> list[str]:
    """Names of all packages, those in the folders of `package-dir` included."""
    found = find_packages(include=["hf_vit_seg*"])
    for name, folder in PACKAGE_DIR.items():
        found += [name, *(f"{name}.{package}" for package in find_packages(folder))]
    return found


setup(packages=packages())
