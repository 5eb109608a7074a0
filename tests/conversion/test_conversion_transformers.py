"""Segformer of transformers in all name spellings matches in float64 and round-trips losslessly."""

from pathlib import Path

import pytest
import torch
import transformers
from conversion_references import (
    CLASSES,
    IMAGE,
    TOLERANCE,
    assert_equal_states,
    largest_difference,
    load_converted,
    transformers_model,
)
from hf_vit_seg.conversion.convert import convert, export
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForSemanticSegmentation as AutoSegmenter

HEADS = {
    "SemanticSegmentation": AutoSegmenter,
    "ImageClassification": AutoModelForImageClassification,
    "Model": AutoModel,
}


SPELLINGS = ("save_pretrained", "pytorch_model.bin", "memory.bin", "memory.safetensors", "sharded")


def save_spelling(model: transformers.PreTrainedModel, spelling: str, folder: Path) -> Path:
    """Save a transformers model with the names of either generation; return the path to convert."""
    if spelling == "sharded":
        model.save_pretrained(folder, max_shard_size="100KB")
        assert (folder / "model.safetensors.index.json").exists()
        return folder
    if spelling == "save_pretrained":
        model.save_pretrained(folder)
        return folder
    folder.mkdir()
    state = dict(model.state_dict())
    if spelling == "pytorch_model.bin":
        model.save_pretrained(folder)
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
    (save_file if spelling.endswith("safetensors") else torch.save)(state, folder / spelling)
    return folder if spelling == "pytorch_model.bin" else folder / spelling


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_transformers_parity(tmp_path: Path, head: str, spelling: str) -> None:
    reference = transformers_model(head)
    convert(save_spelling(reference, spelling, tmp_path / "there"), tmp_path / "out")
    expected = reference.double()(IMAGE)
    expected = expected.last_hidden_state if head == "Model" else expected.logits
    assert largest_difference(load_converted(HEADS[head], tmp_path / "out"), IMAGE, expected.detach()) < TOLERANCE


@pytest.mark.parametrize("head", HEADS)
def test_transformers_round_trip(tmp_path: Path, head: str) -> None:
    reference = transformers_model(head)
    reference.save_pretrained(tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "out")
    report = export(tmp_path / "out", tmp_path / "back", to="transformers")
    assert report.notes == ()
    assert_equal_states(
        load_file(tmp_path / "back" / "model.safetensors"),
        load_file(tmp_path / "there" / "model.safetensors"),
    )
    again = load_converted(type(reference), tmp_path / "back")
    expected = reference.double()(IMAGE)
    expected = expected.last_hidden_state if head == "Model" else expected.logits
    assert largest_difference(again, IMAGE, expected.detach()) == 0


def test_sidecar_config_is_used(tmp_path: Path) -> None:
    model = transformers_model("SemanticSegmentation")
    model.config.id2label = {k: f"thing {k}" for k in range(CLASSES)}
    model.config.num_attention_heads = [2, 4, 5, 4]
    model.config.drop_path_rate = 0.25
    model.save_pretrained(tmp_path / "there")
    processor = {"size": 320, "reduce_labels": True, "image_mean": [0.1, 0.2, 0.3], "resample": 3}
    transformers.SegformerImageProcessor(**processor).save_pretrained(tmp_path / "there")
    report = convert(tmp_path / "there", tmp_path / "out")
    config = load_converted(AutoSegmenter, tmp_path / "out").config
    assert config.id2label == model.config.id2label
    assert config.label2id == {name: k for k, name in config.id2label.items()}
    assert list(config.num_attention_heads) == [2, 4, 5, 4]
    assert config.drop_path_rate == 0.25
    assert "config.json" in report.labels
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], processor.size["width"]) == (320, 320)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor.resample == 3
    assert len(processor.palette) == CLASSES
