"""Plugins come by entry point; a broken one is reported by name and takes no other down."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from hf_vit_seg import architectures, plugins
from hf_vit_seg import plugins as _public  # noqa: F401
from hf_vit_seg.plugins import GROUP, load

BROKEN = {
    "no_such_module": ("hf_vit_seg_absent.module:ARCHITECTURE", "ModuleNotFoundError"),
    "no_such_name": ("hf_vit_seg.plugins:ABSENT", "AttributeError"),
    "not_a_record": ("hf_vit_seg.plugins:GROUP", "expected a hf_vit_seg.plugins.Architecture, found str"),
}


def test_the_built_in_architectures_come_by_entry_point():
    found = {plugin.name: plugin for plugin in plugins()}
    assert found["segformer"].target == "hf_vit_seg.models.plugin_segformer:ARCHITECTURE"
    assert found["segformer"].origin.startswith("hf_vit_seg ")
    assert found["segformer"].error is None
    assert "segformer" in architectures()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_says_why_and_is_skipped(name, caplog):
    target, reason = BROKEN[name]
    plugin = load(EntryPoint(name=name, value=target, group=GROUP))
    assert plugin.architecture is None
    assert reason in (plugin.error or "")
    assert name in caplog.text and reason in caplog.text


def test_importing_is_free_of_what_only_some_commands_need():
    heavy = ("accelerate", "datasets", "evaluate", "gradio", "matplotlib", "onnx", "onnxruntime", "openvino", "timm")
    code = f"import sys, hf_vit_seg; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    baseline = (
        "import sys, transformers, torchvision; from transformers import AutoModel, AutoImageProcessor, pipeline; "
    )
    allowed = subprocess.run(
        [sys.executable, "-c", baseline + f"print([m for m in {heavy} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(eval(shown.stdout)) <= set(eval(allowed.stdout))
