"""Checks a wheel that was installed into a folder: python .ci/check_wheel.py FOLDER [VERSION].

An editable install hides what a wheel lacks: it reads the repository's own folders. Here every Python file of the
packages, and every file that the package reads when it runs, has to be in the installed tree.
"""

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "hf_vit_seg"
# Read by the package when it runs, as patterns in the repository; each matches at least one file.
DATA_FILES = (
    "hf_vit_seg/py.typed",
    "hf_vit_seg/demo/view/*",
    "hf_vit_seg/hub/*.md",
    "hf_vit_seg/training/figures/*.j2",
    "configs/models/*.yaml",
    "configs/recipes/*.yaml",
    "configs/labels/*.json",
    "examples/nuclei/model/*",
    "examples/nuclei/model/*/*.json",
    "examples/nuclei/model/*/*/*.png",
    "examples/nuclei/data/*/*/*",
    "spaces/segmentation/*.md",
    "spaces/segmentation/*.txt",
)


def package_folders(repository: Path) -> dict[str, str]:
    """Folders of the repository that are installed, and their places in the installed tree."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    mapped: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    return {PACKAGE: PACKAGE} | {folder: name.replace(".", "/") for name, folder in mapped.items() if name != PACKAGE}


def required_files(repository: Path) -> Iterator[Path]:
    """Files of the repository that the wheel must contain."""
    for folder in package_folders(repository):
        yield from sorted((repository / folder).rglob("*.py"))
    for pattern in DATA_FILES:
        found = sorted(path for path in repository.glob(pattern) if path.is_file())
        if not found:
            raise SystemExit(f"{pattern} matches no file of the repository: update DATA_FILES in {__file__}")
        yield from found


def missing_files(repository: Path, installed: Path) -> list[str]:
    """Required files that are not in the installed tree with the same content, as paths in the repository."""
    folders = package_folders(repository)
    missing = []
    for path in required_files(repository):
        name = path.relative_to(repository).as_posix()
        folder = max((each for each in folders if name.startswith(f"{each}/")), key=len)
        copy = installed / folders[folder] / path.relative_to(repository / folder)
        if not copy.is_file() or copy.read_bytes() != path.read_bytes():
            missing.append(name)
    return missing


def problems(repository: Path, installed: Path, version: str | None) -> list[str]:
    """What is wrong with the installed tree, a sentence each."""
    found = [f"the wheel lacks {name}" for name in missing_files(repository, installed)]
    strangers = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} - {PACKAGE, "bin"}
    found += [f"the wheel also installs {name}" for name in sorted(strangers)]
    versions = [each.version for each in distributions(path=[str(installed)])]
    if version is not None and versions != [version]:
        found.append(f"the wheel has version {versions}, expected {version}: change pyproject.toml or the tag")
    return found


if __name__ == "__main__":
    found = problems(REPOSITORY, Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    print("\n".join(found) or f"the wheel has every package and data file of {', '.join(package_folders(REPOSITORY))}")
    raise SystemExit(1 if found else 0)
