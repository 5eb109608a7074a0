"""Files that are written whole or not at all have the permissions of the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_vit_seg.atomic_io import atomic_directory, atomic_path, write_files, write_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def save(path: Path) -> None:
    """Write weights; safetensors creates files for the owner alone."""
    save_file({"a": torch.zeros(1)}, path)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    expected = 0o666 & ~umask
    write_files({tmp_path / "a.safetensors": save, tmp_path / "b.txt": lambda path: path.write_text("b")})
    write_text(tmp_path / "c.txt", "c")
    with atomic_path(tmp_path / "d.safetensors") as path:
        save(path)
    assert {path.name: mode_of(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.safetensors", "b.txt", "c.txt", "d.safetensors"), expected
    )


def test_files_of_directories_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    with atomic_directory(tmp_path / "model") as folder:
        save(folder / "model.safetensors")
        (folder / "inner").mkdir()
        save(folder / "inner" / "adapter.safetensors")
    with atomic_directory(tmp_path / "model", only_missing=True) as folder:
        save(folder / "more.safetensors")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {mode_of(path) for path in files} == {0o666 & ~umask}
    assert mode_of(tmp_path / "model") == 0o777 & ~umask


def test_executable_files_and_links_are_preserved(tmp_path: Path, umask: int) -> None:
    (tmp_path / "other").touch(0o600)
    before = mode_of(tmp_path / "other")
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "run").touch()
        (folder / "run").chmod(0o755)
        (folder / "link").symlink_to(tmp_path / "other")
    assert mode_of(tmp_path / "model" / "run") == 0o755 | (0o666 & ~umask)
    assert mode_of(tmp_path / "other") == before
