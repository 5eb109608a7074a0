"""Configs and image processors with values of other types are refused by one sentence, by every reader of models."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_models import save_tiny_model

from hf_vit_seg import load
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.hub.model_directory import model_directory
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.training.model.processor import load_pretrained_processor

CONFIGS: list[dict[str, Any]] = [
    {"hidden_sizes": "../../etc/passwd"},
    {"hidden_dropout_prob": -1},
    {"depths": {"a": 1}},
    {"train_num_points": -1},
    {"num_attention_heads": None},
    {"id2label": "abc"},
    {"id2label": [[1]]},
    {"out_indices": [[1]]},
    {"depths": [10**9] * 4},
    {"hidden_sizes": [10**12] * 4},
    {"auto_map": 3},
]
PROCESSORS: list[dict[str, Any]] = [
    {"image_processor_type": [1]},
    {"image_processor_type": {"a": 1}},
    {"auto_map": None},
    {"size": "x"},
    {"image_mean": {}},
]


@pytest.fixture
def model(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "model")


def edit(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def readers(model: Path) -> dict[str, Any]:
    return {
        "load": lambda: load(model),
        "Segmenter": lambda: Segmenter.from_pretrained(str(model)),
        "push": lambda: (model_directory(model).config, model_directory(model).processor),
    }


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_invalid_configs_are_one_sentence(model, changes):
    edit(model / "config.json", changes)
    for name, read in readers(model).items():
        with pytest.raises(HfVitSegError) as error:
            read()
        assert "\n" not in str(error.value), name
        assert next(iter(changes)) in str(error.value) or name == "push", (name, str(error.value))


@pytest.mark.parametrize("changes", PROCESSORS, ids=str)
def test_invalid_image_processors_are_one_sentence(model, changes):
    edit(model / "preprocessor_config.json", changes)
    training = {"training": lambda: load_pretrained_processor(str(model))}
    for name, read in (readers(model) | training).items():
        with pytest.raises(HfVitSegError) as error:
            read()
        assert "\n" not in str(error.value), name
