"""The versions that are installed here, as a Space shall have them: the newest of everything seldom fits."""

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from hf_vit_seg.entry_points import PACKAGE

SDK = "gradio"  # installed by the Space itself, at the `sdk_version` of its README


def needed(extra: str) -> list[Requirement]:
    """What this package needs, with one of its extras."""
    found = map(Requirement, requires(PACKAGE) or ())
    wanted = [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]
    return sorted(wanted, key=lambda each: each.name.lower())


def installed(name: str) -> str | None:
    """The version of a package that is installed, without the label of its build (`+cpu`)."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def pins(others: Iterable[str] = ()) -> list[str]:
    """Lines of requirements.txt: what the demo needs, and `others`, at the versions installed here."""
    names = [each.name for each in needed("demo") if each.name != SDK] + [name for name in others if name != PACKAGE]
    return [f"{name}=={found}" for name in dict.fromkeys(names) if (found := installed(name)) is not None]


def python_version() -> str:
    """As a Space's README gives it."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


__all__ = ["SDK", "installed", "needed", "pins", "python_version"]
