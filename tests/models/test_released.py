"""Models that released versions wrote are loaded with equal outputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from log_records import collect_messages
from paths import REPOSITORY
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from hf_vit_seg import __version__, architectures
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models import layers
from tests.released.make import BACKBONE, MODELS, RESUMED, RUN, resume
from tests.released.outputs import ABOUT, OUTPUTS, assert_close_to, outputs_of

RELEASED = REPOSITORY / "tests" / "released"
DIRECTORIES = sorted(path.parent for path in RELEASED.glob(f"*/*/{ABOUT}"))


def name_of(directory: Path) -> str:
    return "-".join(directory.parts[-2:])


def class_index(folder: Path) -> Any:
    """The class that loads a model: its Auto class, or the model's own for backbones, which transformers 5.24 only
    loads from the Hub."""
    about = json.loads((folder / ABOUT).read_text())
    own = architectures()[about["architecture"]].models
    return own[BACKBONE] if about["auto"] == BACKBONE else getattr(transformers, about["auto"])


def assert_equal_outputs(directory: Path, folder: Path) -> None:
    """The model in a directory has the outputs that are frozen in `folder`."""
    model, info = class_index(folder).from_pretrained(str(directory), dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found, expected = outputs_of(model), load_file(folder / OUTPUTS)
    assert found.keys() >= expected.keys()
    assert_close_to(expected, found)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=name_of)
def test_released_models_have_equal_outputs(directory, tmp_path):
    assert_equal_outputs(directory, directory)
    class_index(directory).from_pretrained(str(directory), dtype=torch.float32).save_pretrained(tmp_path)
    assert_equal_outputs(tmp_path, directory)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=name_of)
def test_released_image_processors_are_equal(directory, tmp_path):
    processor = AutoImageProcessor.from_pretrained(directory)
    written = json.loads((directory / "preprocessor_config.json").read_text())
    processor.save_pretrained(tmp_path)
    found = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: found[name] for name in written} == written


@pytest.mark.parametrize("directory", sorted(RELEASED.glob(f"*/{RUN}")), ids=lambda path: path.parent.name)
def test_released_runs_are_resumed(directory, tmp_path):
    expected = load_file(directory / RESUMED)
    found = resume(Path(shutil.copytree(directory, tmp_path / "moved")))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0.02 * float(tensor.std()), msg=name)


def test_every_type_and_head_of_this_version_is_frozen():
    frozen = {path.name for path in DIRECTORIES if path.parent.name == __version__}
    assert frozen == {name for name, *_ in MODELS}
    for name, architecture in architectures().items():
        made = {auto for _, own, auto, _ in MODELS if own == name}
        assert made | {"AutoModel", BACKBONE, "AutoModelForInstanceSegmentation"} >= set(architecture.models), name


def test_renamed_fields_of_a_released_config_are_named(tmp_path):
    """Until a table of migrations is needed, a field of an older format is an error and not ignored."""
    shutil.copytree(DIRECTORIES[0], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_hidden_size": 16}))
    with pytest.raises(ValueError, match="decode_head_hidden_size"):
        transformers.AutoConfig.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", architectures())
def test_configs_have_the_version_of_the_package(name, tmp_path):
    assert __version__ == layers.FORMAT_VERSION
    config = architectures()[name].variant_config("tiny")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[layers.FORMAT_FIELD] == __version__
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict() and not hasattr(loaded, layers.FORMAT_FIELD)


@pytest.mark.parametrize(
    ("written", "expected"), [("0.0.9", ["0.1.0", "0.2.0"]), ("0.1.0", ["0.2.0"]), ("0.2.0", []), ("0.10.0", [])]
)
def test_only_later_changes_are_applied(monkeypatch, written, expected):
    applied = []

    def change(version):
        return version, lambda fields: fields | {"changed_in": applied.append(version) or version}

    monkeypatch.setattr(layers, "MIGRATIONS", (change("0.1.0"), change("0.2.0")))
    monkeypatch.setattr(layers, "FORMAT_VERSION", "0.2.0")
    given = {"hidden_size": 16, layers.FORMAT_FIELD: written}
    found = layers.migrate_fields(given, "Config")
    assert applied == expected and found.pop("changed_in", None) == (expected or [None])[-1]
    assert found == {"hidden_size": 16} and layers.FORMAT_FIELD in given


@pytest.mark.parametrize(("written", "warns"), [("0.1.0", False), ("99.0", True)])
def test_newer_configs_are_reported(written, warns, tmp_path):
    with collect_messages(layers.logger.name) as found:
        layers.migrate_fields({layers.FORMAT_FIELD: written}, "Config")
    assert bool(found) == warns


@pytest.mark.parametrize("version", ["newest", 7, None, ["0.1.0"]])
def test_invalid_versions_raise(version):
    with pytest.raises(HfVitSegError, match=layers.FORMAT_FIELD):
        layers.migrate_fields({layers.FORMAT_FIELD: version}, "Config")
