"""Fixtures shared by all tests."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import sleep

from paths import REPOSITORY

if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # thread pools of parallel tests would compete for the cores

import hypothesis
import pytest
import torch
from hub_server import Hub, connect, serve
from huggingface_hub import HfApi
from tiny_runs import forget_accelerate
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from transformers.utils import logging as hf_logging

import hf_vit_seg  # noqa: F401  (registers the architectures)
from hf_vit_seg.inference import Segmenter

# Shells ignore Ctrl-C in commands that run in the background, and processes that these start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The duration of an example depends on the machine.
hypothesis.settings.register_profile(
    "untimed",
    parent=hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_accelerator():
    """accelerate keeps the settings of the first test of a process."""
    forget_accelerate()


@pytest.fixture(autouse=True)
def _own_log_levels():
    """Commands and worker processes hide messages of libraries until their process ends."""
    disabled, verbosity, bars = (
        logging.root.manager.disable,
        hf_logging.get_verbosity(),
        hf_logging.is_progress_bar_enabled(),
    )
    yield
    logging.disable(disabled)
    hf_logging.set_verbosity(verbosity)
    (hf_logging.enable_progress_bar if bars else hf_logging.disable_progress_bar)()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder of real weights and photos, which cannot be committed."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"the founders' folder {folder} is not on this machine")
    return folder


@pytest.fixture(scope="session")
def hub_server():
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(hub_server: Hub, tmp_path) -> Iterator[Hub]:
    """An empty Hub, set as the endpoint of this process."""
    with connect(hub_server, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def slow_segmenter(monkeypatch) -> list[object]:
    """Inputs of segmenters; each image takes half a second longer."""
    seen, segment = [], Segmenter.segment

    def slowly(own, prepared):
        seen.append(prepared)
        sleep(0.5)
        return segment(own, prepared)

    monkeypatch.setattr(Segmenter, "segment", slowly)
    return seen


@pytest.fixture
def segformer_on_hub(hub: Hub, tmp_path) -> None:
    """A small Segformer of transformers under the id of a known one."""
    config = SegformerConfig(hidden_sizes=[8, 16, 40, 64], depths=[1] * 4, decoder_hidden_size=16, num_labels=150)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "segformer")
    name = "nvidia/segformer-b0-finetuned-ade-512-512"
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=tmp_path / "segformer")


@pytest.fixture
def reader(hub: Hub, tmp_path, monkeypatch):
    """A snippet runner in a folder with files, connected to the test Hub."""
    from snippets import Reader, write_files

    monkeypatch.chdir(write_files(tmp_path / "reader"))
    return Reader({"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")})
