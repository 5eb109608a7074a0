"""The environment for bug reports: versions, processor, devices and options, without user names or paths."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.table import Table

from hf_vit_seg.entry_points import PACKAGE, PREFIX
from hf_vit_seg.local_paths import is_local_path

from .pins import installed_version

EXTRA = re.compile(r"extra\s*==\s*[\"']([\w-]+)[\"']")
CPUINFO = Path("/proc/cpuinfo")
# Variables that change results or speed. Their values are shown unless they contain a path.
VARIABLES = re.compile(
    r"(OMP|MKL|OPENBLAS)_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|(PYTORCH|TORCH)_\w+"
    r"|(HF_HUB|TRANSFORMERS)_OFFLINE|HF_HUB_DISABLE_\w+|WORLD_SIZE|ACCELERATE_\w+|HF_VIT_SEG_\w+"
)
HIDDEN = "(set)"


def describe_environment() -> dict[str, Any]:
    """Return versions, system, devices and options, as JSON values. No text has a path or the name of a user."""
    return {
        "version": own_version(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": describe_system(),
        "torch": describe_torch(),
        "packages": dependency_versions(),
        "missing": missing_extras(),
        "plugins": other_plugins(),
        "variables": set_variables(os.environ),
    }


def own_version() -> str:
    """Return the version of this package."""
    from hf_vit_seg import __version__

    return __version__


def describe_system() -> dict[str, Any]:
    """Return the operating system, processor, its logical cores that this process may use, and memory in GiB."""
    return {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib(),
    }


def processor_name() -> str:
    """Return the model of the processor, or its architecture if unknown."""
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Return the physical memory in GiB; None if unknown."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def describe_torch() -> dict[str, Any]:
    """Return the threads, instruction set and devices of torch."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "devices": list(devices()),
    }


def devices() -> Iterator[str]:
    """Yield the names of accelerators."""
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        yield "mps"


def requirements() -> dict[str, list[str]]:
    """Return the packages of each extra; those that are always required under an empty name."""
    specifiers: dict[str, list[str]] = {}
    for text in requires(PACKAGE) or ():
        extra = EXTRA.search(text)
        specifiers.setdefault(extra.group(1) if extra else "", []).append(Requirement(text).name)
    return specifiers


def dependency_versions() -> dict[str, str]:
    """Return the installed versions of the packages that this one can use."""
    names = {name for group in requirements().values() for name in group if name != PACKAGE}
    versions = {name: installed_version(name) for name in sorted(names, key=str.lower)}
    return {name: found for name, found in versions.items() if found is not None}


def missing_extras() -> dict[str, list[str]]:
    """Return the packages that are not installed, by extra."""
    missing = {
        extra: sorted(name for name in names if name != PACKAGE and installed_version(name) is None)
        for extra, names in requirements().items()
    }
    return {extra or "required": names for extra, names in sorted(missing.items()) if names}


def other_plugins() -> list[str]:
    """Return the names and packages of plugins of other packages, without loading them."""
    return sorted(
        f"{entry.group.removeprefix(PREFIX)} {entry.name} of {distribution.metadata['Name']} {distribution.version}"
        for distribution in distributions()
        for entry in distribution.entry_points
        if entry.group.startswith(PREFIX) and distribution.metadata["Name"].replace("-", "_") != PACKAGE
    )


def set_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that change results or speed; values that may be paths or names are hidden."""
    chosen = {name: value for name, value in sorted(variables.items()) if VARIABLES.fullmatch(name)}
    return {name: HIDDEN if has_private(value) else value for name, value in chosen.items()}


def has_private(value: str) -> bool:
    """Return whether a value may contain a path or a name: anything but numbers and short words."""
    return is_local_path(value) or re.fullmatch(r"[\w.,:+-]{0,40}", value) is None or "/" in value


def environment_view(environment: Mapping[str, Any]) -> Table:
    """Return a table of a description."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in environment.items():
        for label, text in rows(name, value):
            table.add_row(label, text)
    return table


def rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the rows of one entry."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            shown = ", ".join(map(str, each)) if isinstance(each, list) else str(each)
            yield f"{name}: {key}", shown or "none"
        return
    yield name, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


__all__ = ["describe_environment", "environment_view"]
