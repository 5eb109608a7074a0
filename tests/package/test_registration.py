"""`import hf_vit_seg` is enough for every Auto class and pipeline, in any order, and loads no large library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from plugin_environment import write_distribution

import hf_vit_seg
from hf_vit_seg.entry_points import installed_versions

LARGE = ("torch", "torchvision", "transformers")
# The last statement of each script prints the name of a class.
CONFIG = "from transformers import AutoConfig; found = AutoConfig.for_model('segformer_seg')"
USES = {
    "config": CONFIG,
    "model": f"{CONFIG}; from transformers import AutoModelForSemanticSegmentation as A; found = A.from_config(found)",
    "backbone": f"{CONFIG}; from transformers import AutoBackbone; found = AutoBackbone.from_config(found)",
    "processor": """
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
found = IMAGE_PROCESSOR_MAPPING[SegFormerConfig]["pil"]()
""",
    "nested config": """
from transformers import UperNetConfig
found = UperNetConfig(backbone_config={"model_type": "segformer_seg"}).backbone_config
""",
    "module": "import transformers.models.auto.configuration_auto as m; found = m.CONFIG_MAPPING['segformer_seg']()",
    "pipeline": """
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
kind = PIPELINE_REGISTRY.check_task("semantic-segmentation")[1]["impl"]
found = kind.__new__(kind)
""",
}
FOUND = {
    "config": "SegFormerConfig",
    "model": "SegFormerForSemanticSegmentation",
    "backbone": "SegFormerBackbone",
    "processor": "SemanticSegmentationImageProcessorPil",
    "nested config": "SegFormerConfig",
    "module": "SegFormerConfig",
    "pipeline": "SemanticSegmentationPipeline",
}
ORDERS = {
    "package": "import hf_vit_seg",
    "AutoConfig, package": "from transformers import AutoConfig; import hf_vit_seg",
    "AutoModel, package": "from transformers import AutoModelForSemanticSegmentation; import hf_vit_seg",
    "pipeline, package": "from transformers import pipeline; import hf_vit_seg",
    "PreTrainedModel, package": "from transformers import PreTrainedModel; import hf_vit_seg",
    "package, PreTrainedModel": "import hf_vit_seg; from transformers import PreTrainedModel, BaseImageProcessor",
    "module of a model": "import hf_vit_seg.models.modeling_segformer",
    "module of a config": "import hf_vit_seg.models.configuration_backbone_seg",
    "record": "import hf_vit_seg.models.plugin_vit",
    "module of the pipeline": "import hf_vit_seg.inference.pipeline",
    "listing": "import hf_vit_seg.plugin_listing",
    "architectures": "import hf_vit_seg; hf_vit_seg.architectures()",
    "reload": "import importlib, hf_vit_seg; importlib.reload(hf_vit_seg)",
}
EVERY_USE = "\n".join(f"{code}\nprint(type(found).__name__)" for code in USES.values())


def run(code: str, *arguments: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables} | ({} if path is None else {"PYTHONPATH": str(path)})
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


def output(code: str, *arguments: str, **options) -> list[str]:
    ran = run(code, *arguments, **options)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_import_loads_no_large_library():
    assert output(f"import sys, hf_vit_seg; print([name for name in {LARGE} if name in sys.modules])") == ["[]"]


def test_import_with_transformers_does_not_load_torch():
    code = "import sys, transformers, hf_vit_seg; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    assert output(code) == ["False False"]


COMMAND = """
import sys
from hf_vit_seg.cli import app
sys.argv[0] = "hf-vit-seg"
code = 0
try:
    app()
except SystemExit as error:
    code = error.code
print()
print(code, [name for name in ("torch", "torchvision", "transformers") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        ((), 2),
        (("predict", "--help"), 0),
        (("train", "--help"), 0),
        (("predict",), 2),
        (("predict", "model", "image.png", "--out", "folder", "--opacity", "7"), 2),
        (("models", "--absent"), 2),
        (("absent",), 2),
        (("--absent",), 2),
    ],
)
def test_help_and_usage_errors_load_no_large_library(arguments, code):
    assert output(COMMAND, *arguments)[-1] == f"{code} []"


def test_completion_loads_no_large_library():
    variables = {"_HF_VIT_SEG_COMPLETE": "complete_bash", "COMP_WORDS": "hf-vit-seg push", "COMP_CWORD": "1"}
    *completions, loaded = output(COMMAND, **variables)
    assert loaded == "0 []"
    assert {"push", "push-space"} <= set(completions)


def test_version_matches_the_package():
    import hf_vit_seg

    assert output(COMMAND, "--version")[0] == f"hf-vit-seg {hf_vit_seg.__version__}"


@pytest.mark.parametrize("module", ["hf_vit_seg.cli", "hf_vit_seg.training"])
def test_modules_run_as_commands(module):
    ran = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert ran.returncode == 0 and "Usage:" in ran.stdout, ran.stderr


@pytest.mark.parametrize("use", USES)
def test_first_use_registers(use):
    assert output(f"import hf_vit_seg\n{USES[use]}\nprint(type(found).__name__)") == [FOUND[use]]


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_imports_does_not_matter(order):
    ran = run(f"{ORDERS[order]}\n{EVERY_USE}")
    assert ran.stdout.splitlines() == list(FOUND.values()), ran.stderr
    assert "hf_vit_seg plugin" not in ran.stderr


def test_finder_is_removed_and_leaves_no_trace():
    code = """
import sys, types, hf_vit_seg, transformers
from transformers import pipeline, AutoModel
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("hf_vit_seg")]
for name, module in list(sys.modules.items()):
    if name.startswith(("transformers", "hf_vit_seg")):
        spec = getattr(module, "__spec__", None)
        loader = type(getattr(spec, "loader", None))
        assert not loader.__module__.startswith("hf_vit_seg."), name
        assert not type(module).__module__.startswith("hf_vit_seg."), name
"""
    output(code)


THREADS = """
import threading
import hf_vit_seg, transformers  # transformers itself cannot be imported by several threads
AUTO = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoBackbone")
NAMES = (*AUTO, "AutoConfig", "AutoImageProcessor", "AutoProcessor", "pipeline", "PreTrainedModel") * 2
start, correct = threading.Barrier(len(NAMES)), []

def use(name):
    start.wait()
    found = getattr(transformers, name)
    config = transformers.AutoConfig.for_model("segformer_seg", depths=(1, 1, 1, 1))
    if name in AUTO:
        assert type(found.from_config(config)).__name__.startswith("SegFormer")
    if name == "pipeline":
        found.__globals__["PIPELINE_REGISTRY"].check_task("semantic-segmentation")
    correct.append(name)

threads = [threading.Thread(target=use, args=(name,)) for name in NAMES]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(correct) == sorted(NAMES))
"""


def test_threads_wait_for_the_registration():
    ran = run(THREADS)
    assert ran.stdout.splitlines() == ["True"], ran.stderr


@pytest.mark.parametrize(
    "first", ["conv_token.modeling_conv_token", "conv_token.configuration_conv_token", "conv_token.top_down_head"]
)
def test_modules_of_a_plugin_can_be_imported_first(first, tmp_path):
    groups = {
        "hf_vit_seg.architectures": {"conv_token": "conv_token.plugin_conv_token:ARCHITECTURE"},
        "hf_vit_seg.heads": {"top_down": "conv_token.top_down_head:TopDownHead"},
    }
    site = write_distribution(tmp_path, "conv_token", groups, {})
    code = f"""
import sys
sys.path[:0] = {[str(site), str(REPOSITORY / "examples" / "plugin" / "src")]}
import {first}
from transformers import AutoConfig, AutoModelForSemanticSegmentation
print(type(AutoModelForSemanticSegmentation.from_config(AutoConfig.for_model("conv_token_seg"))).__name__)
from hf_vit_seg.plugins import heads, plugins
print([plugin.error for plugin in (*heads(), *plugins()) if plugin.error])
"""
    assert output(code) == ["ConvTokenForSemanticSegmentation", "[]"]


CLASH = """
from transformers import AutoConfig, AutoModel, PreTrainedConfig
class Foreign(PreTrainedConfig):
    model_type = "vit_seg"
AutoConfig.register("vit_seg", Foreign)
import hf_vit_seg
print(type(AutoConfig.for_model("vit_seg")).__name__)
print(type(AutoModel.from_config(AutoConfig.for_model("segformer_seg"))).__name__)
print([plugin.name for plugin in hf_vit_seg.plugins() if plugin.error])
"""


def test_taken_model_type_skips_one_architecture():
    ran = run(CLASH)
    assert ran.stdout.splitlines() == ["Foreign", "SegFormerModel", "['vit']"], ran.stderr
    assert len([line for line in ran.stderr.splitlines() if "'vit_seg'" in line and "__main__.Foreign" in line]) == 1


def test_registration_does_not_replace_an_existing_pipeline():
    code = f"""
from transformers import ImageSegmentationPipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
class Foreign(ImageSegmentationPipeline): pass
PIPELINE_REGISTRY.register_pipeline("semantic-segmentation", Foreign)
import hf_vit_seg
print(PIPELINE_REGISTRY.check_task("semantic-segmentation")[1]["impl"].__name__)
{CONFIG}
print(type(found).__name__)
"""
    ran = run(code)
    assert ran.stdout.splitlines() == ["Foreign", "SegFormerConfig"], ran.stderr
    assert len([line for line in ran.stderr.splitlines() if "__main__.Foreign" in line]) == 1


def test_second_installed_version_is_named(tmp_path):
    site = write_distribution(tmp_path, "hf_vit_seg", {}, {})  # version 1.0
    code = f"import sys; sys.path.append({str(site)!r}); import hf_vit_seg\n{CONFIG}\nprint(type(found).__name__)"
    ran = run(code)
    assert ran.stdout.splitlines() == ["SegFormerConfig"], ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if str(site) in line]
    assert all(version in line for version in installed_versions())
    assert "1.0" in line


def test_repeated_registration_changes_nothing():
    code = f"""
import importlib, sys, hf_vit_seg
{CONFIG}
from transformers import CONFIG_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING as MODELS
before = [*CONFIG_MAPPING.keys()], len(MODELS), hf_vit_seg.plugins()
for _ in range(2):
    importlib.reload(hf_vit_seg)
    hf_vit_seg.plugins.cache_clear()
    hf_vit_seg.plugins()
assert before == ([*CONFIG_MAPPING.keys()], len(MODELS), hf_vit_seg.plugins())
print(type(AutoConfig.for_model("segformer_seg")) is type(found))
"""
    ran = run(code)
    assert ran.stdout.splitlines() == ["True"] and "skipped" not in ran.stderr, ran.stderr


def test_public_names_exist_and_are_listed():
    assert set(hf_vit_seg.__all__) <= set(dir(hf_vit_seg))
    assert all(getattr(hf_vit_seg, name) is not None for name in hf_vit_seg.__all__)
    with pytest.raises(AttributeError, match="segment_everything"):
        _ = hf_vit_seg.segment_everything  # pyright: ignore[reportAttributeAccessIssue]
