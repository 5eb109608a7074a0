"""An environment with transformers, torch and image support, but without the other installed packages.

Its packages are links to those of the running interpreter, which is started without site-packages (`-S`).
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOTS = ("transformers", "torch", "torchvision", "pillow")
READER = Path(__file__).with_name("bare_reader.py")


def collect_requirements(name: str, found: dict[str, Distribution]) -> None:
    """Collect a package and its dependencies."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        found[key] = distribution(name)
    except PackageNotFoundError:
        return  # for another platform
    for text in found[key].requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            collect_requirements(requirement.name, found)


def bare_packages(folder: Path) -> Path:
    """A folder for `sys.path`."""
    found: dict[str, Distribution] = {}
    for root in ROOTS:
        collect_requirements(root, found)
    for package in found.values():
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link, target = folder / top, Path(str(package.locate_file(top)))
            if target.exists() and not link.exists():
                link.symlink_to(target)
    return folder


def read_bare(packages: Path, cases: list[dict[str, Any]], **environment: str) -> None:
    """Run cases with `bare_reader.py` in a separate environment; raise AssertionError with its output on failure."""
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(READER), str(packages)],
        input=json.dumps(cases),
        env=plain | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"} | environment,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
