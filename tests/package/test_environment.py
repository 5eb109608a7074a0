"""`hf-vit-seg env`: versions, processor and devices for bug reports, without names or paths of the machine."""

import getpass
import json
import os
import platform
import socket
from importlib.metadata import version

import pytest
import torch
from typer.testing import CliRunner

from hf_vit_seg import __version__
from hf_vit_seg.cli import app
from hf_vit_seg.hub.environment import dependency_versions, describe_environment, set_variables


def test_json_has_versions_and_the_processor():
    done = CliRunner().invoke(app, ["env", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["version"] == __version__ and found["python"].endswith(platform.python_version())
    assert found["packages"]["torch"] == version("torch").partition("+")[0] and found["packages"][
        "transformers"
    ] == version("transformers")
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert found["system"]["processor"] and found["system"]["cores"] >= 1
    assert len(found["torch"]["devices"]) == torch.cuda.device_count() + torch.backends.mps.is_available()


def test_table_has_every_value():
    done = CliRunner().invoke(app, ["env"], env={"COLUMNS": "400"})
    assert done.exit_code == 0
    for name, number in dependency_versions().items():
        assert f"packages: {name}" in done.output and number in done.output


def test_no_names_or_paths(monkeypatch, tmp_path):
    secret = "carolina-private"
    for name in ("HOME", "USER", "LOGNAME", "HF_HOME", "VIRTUAL_ENV", "PYTORCH_KERNEL_CACHE_PATH", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / secret))
    monkeypatch.setenv("HF_VIT_SEG_MODELS", f"nuclei,{tmp_path / secret}")
    monkeypatch.setenv("HF_TOKEN", f"hf_{secret}")
    text = json.dumps(describe_environment())
    for private in (secret, str(tmp_path), os.getcwd(), socket.gethostname(), os.path.expanduser("~"), "hf_"):
        assert private not in text.replace("hf_vit_seg", "")
    assert "HF_TOKEN" not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("OMP_NUM_THREADS", "2", "2"),
        ("CUDA_VISIBLE_DEVICES", "0,1", "0,1"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "expandable_segments:True"),
        ("TORCH_HOME", "models/x", "(set)"),
        ("HF_VIT_SEG_MODELS", "~/models", "(set)"),
        ("TORCH_LOGS", r"C:\Users\me", "(set)"),
    ],
)
def test_values_that_may_be_paths_are_hidden(name, value, shown):
    assert set_variables({name: value, "AWS_SECRET": "x", "HF_TOKEN": "y"}) == {name: shown}
