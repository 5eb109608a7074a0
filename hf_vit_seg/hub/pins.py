"""Pin the installed versions for a Space, because the newest versions of all packages are often incompatible."""

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from hf_vit_seg.entry_points import PACKAGE

SDK = "gradio"  # the Space installs the `sdk_version` of its README


def extra_requirements(extra: str) -> list[Requirement]:
    """Return this package's requirements with one of its extras."""
    requirements = map(Requirement, requires(PACKAGE) or ())
    active = [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    ]
    return sorted(active, key=lambda requirement: requirement.name.lower())


def installed_version(name: str) -> str | None:
    """Return the installed version of a package, without its build label (`+cpu`); None if it is not installed."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def pins(others: Iterable[str] = ()) -> list[str]:
    """Return the lines of requirements.txt: the demo's requirements and `others` at the installed versions."""
    names = [requirement.name for requirement in extra_requirements("demo") if requirement.name != SDK] + [
        name for name in others if name != PACKAGE
    ]
    return [f"{name}=={version}" for name in dict.fromkeys(names) if (version := installed_version(name)) is not None]


def python_version() -> str:
    """Return the Python version for a Space's README."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


__all__ = ["SDK", "extra_requirements", "installed_version", "pins", "python_version"]
