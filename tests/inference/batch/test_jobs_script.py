"""The script for HF Jobs, run as two jobs against the tests' Hub."""

import runpy
import tomllib

import datasets
import pytest
from huggingface_hub import HfApi, HfFileSystem
from many_images import write_photos
from paths import REPOSITORY
from tiny_segmenters import save_segmenter

from hf_vit_seg.error_reporting import DONE

SCRIPT = REPOSITORY / "examples" / "jobs" / "segment_dataset.py"


@pytest.fixture
def files(hub, tmp_path):
    """A model and a dataset of photos on the Hub."""
    HfApi().create_repo("me/model")
    HfApi().upload_folder(repo_id="me/model", folder_path=save_segmenter(tmp_path / "model"))
    HfApi().create_repo("me/photos", repo_type="dataset")
    folder = write_photos(tmp_path / "photos", 20)
    HfApi().upload_folder(repo_id="me/photos", repo_type="dataset", folder_path=folder)
    HfFileSystem.clear_instance_cache()
    yield hub
    HfFileSystem.clear_instance_cache()


def run_job(monkeypatch, rank: int, jobs: int) -> int:
    """Run a job in this process, as the script does on the command line."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("NUM_SHARDS", str(jobs))
    monkeypatch.setattr("hf_vit_seg.inference.batch.run.MAX_PROCESSES", 1)
    names = runpy.run_path(str(SCRIPT))
    return names["run"](names["read_arguments"](["me/model", "hf://datasets/me/photos", "--push", "me/labels"]))


def test_jobs_share_the_shards_and_the_last_one_publishes(files, monkeypatch, tmp_path):
    assert run_job(monkeypatch, 1, 2) == DONE
    parts = files.repo("me/labels-parts", "dataset")
    assert parts.private and "dataset/me/labels" not in files.repos
    first = {name for name in parts.files() if name.endswith(".parquet") and name.startswith("data/")}
    commits = len(parts.titles)
    assert len(first) == 1
    assert run_job(monkeypatch, 1, 2) == DONE
    assert len(parts.titles) == commits  # nothing is repeated
    assert run_job(monkeypatch, 0, 2) == DONE
    repo = files.repo("me/labels", "dataset")
    assert len(repo.titles) == 1
    tables = {name: content for name, content in repo.files().items() if name.endswith(".parquet")}
    assert len(tables) == 2 and not any(name.startswith(".manifest") for name in repo.files())
    for name, content in tables.items():
        path = tmp_path / "pulled" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    data = datasets.load_dataset(str(tmp_path / "pulled"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 20 and data[0]["label_map"].size == data[0]["image"].size


def test_script_declares_its_dependencies():
    lines = SCRIPT.read_text().splitlines()
    assert lines[0] == "# /// script"
    block = lines[1 : lines.index("# ///")]
    found = tomllib.loads("\n".join(line.removeprefix("# ") for line in block))
    assert found["dependencies"] == ["hf_vit_seg"]
