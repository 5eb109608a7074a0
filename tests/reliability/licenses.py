"""The licenses of the packages that this one can use, from their installed metadata; `NOTICE` lists them."""

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOTICE = ROOT / "NOTICE"
PACKAGE = "hf_vit_seg"
HEAD = """hf_vit_seg is licensed under the Apache License 2.0, see LICENSE.

It uses the following packages, which are installed separately, each under its own license. Those of an extra are only
needed for it. `python -m tests.reliability licenses` writes this list from the metadata of the installed packages.
"""
MAX_NAME_LENGTH = 60  # of a license's name; some packages give its text
UNKNOWN = "not stated in its metadata"
ABSENT = "unknown, as it was not installed"


def direct_requirements() -> dict[str, list[str]]:
    """The names of the required packages, and of those of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text).name for text in texts] for extra, texts in groups.items()}


def find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def license_of(found: Distribution) -> str:
    """The license's name: the expression of the metadata, its classifiers, or its license field if that is short."""
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith("License ::")]
    names = [text.rpartition(":: ")[2] for text in classifiers if not text.endswith("OSI Approved")]
    field = " ".join((metadata.get("License") or "").split())
    return " or ".join(names) or (field if 0 < len(field) <= MAX_NAME_LENGTH else UNKNOWN)


def dependencies(names: Iterable[str]) -> dict[str, Distribution]:
    """The installed packages of these names and everything that they require."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        package = find(name)
        if key in found or package is None:
            continue
        found[key] = package
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def notice_lines() -> Iterator[str]:
    """A line for each direct requirement."""
    groups = direct_requirements()
    used: dict[str, list[str]] = {}
    for extra, names in groups.items():
        for name in names:
            if name != PACKAGE:
                used.setdefault(name, []).append(extra)
    for name, extras in sorted(used.items(), key=lambda item: item[0].lower()):
        package = find(name)
        shown = ABSENT if package is None else license_of(package)
        where = "" if "" in extras else f" (extra {', '.join(sorted(set(extras)))})"
        yield f"- {name}: {shown}{where}"


def notice() -> str:
    return HEAD + "\n" + "\n".join(notice_lines()) + "\n"
