"""Labels: the label set of a converted model, and its origin in the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_vit_seg.conversion.convert import convert, export
from hf_vit_seg.conversion.settings import labels
from paths import ORACLES
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor

ORACLE_FILE = ORACLES / "nvlabs_segformer" / "segformer.tiny.7cls.pth"


def checkpoint(folder: Path, classes: int, **meta: Any) -> Path:
    """The oracle with another number of classes."""
    state: dict[str, Tensor] = torch.load(ORACLE_FILE, weights_only=True)["state_dict"]
    state["decode_head.linear_pred.weight"] = torch.randn(classes, 48, 1, 1)
    state["decode_head.linear_pred.bias"] = torch.randn(classes)
    torch.save({"meta": meta, "state_dict": state}, folder / "model.pth")
    return folder / "model.pth"


def load_config(folder: Path) -> Any:
    return AutoConfig.from_pretrained(folder)


def test_label_sets_are_valid() -> None:
    sets = labels.label_sets()
    assert {name: len(s.names) for name, s in sets.items()} == {
        "ade20k": 150,
        "cityscapes": 19,
        "coco-keypoints": 17,
        "imagenet-1k": 1000,
    }
    for label_set in sets.values():
        assert len(set(label_set.names)) == len(label_set.names)
        assert len(label_set.palette) in (0, len(label_set.names))
    assert (sets["ade20k"].names[0], sets["ade20k"].palette[0]) == ("wall", (120, 120, 120))
    assert (sets["cityscapes"].names[0], sets["cityscapes"].palette[0]) == ("road", (128, 64, 128))
    assert (sets["ade20k"].reduce_zero_label, sets["cityscapes"].reduce_zero_label) == (True, False)


def test_generated_palette_equals_pascal_voc() -> None:
    palette = labels.generate_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[15] == (192, 128, 128)
    assert len(set(palette)) == 256


@pytest.mark.parametrize(
    ("classes", "word", "first", "side", "reduce"),
    [
        (150, "ade20k, assumed", "wall", 512, True),
        (19, "cityscapes, assumed", "road", 1024, False),
        (4, "no names found", "LABEL_0", 512, False),
    ],
)
def test_label_set_is_inferred_from_class_count(
    tmp_path: Path, classes: int, word: str, first: str, side: int, reduce: bool
) -> None:
    report = convert(checkpoint(tmp_path, classes), tmp_path / "out")
    assert word in report.labels
    assert any("labels: " in line and word in line for line in report.lines())
    config = load_config(tmp_path / "out")
    assert (config.num_labels, config.id2label[0], config.label2id[first]) == (classes, first, 0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], processor.size["width"]) == (side, side)
    assert processor.do_reduce_labels is reduce
    assert len(processor.palette) == classes


def test_meta_overrides_class_count_and_round_trips(tmp_path: Path) -> None:
    names, palette = tuple(f"class {k}" for k in range(19)), [[k, k, k] for k in range(19)]
    report = convert(checkpoint(tmp_path, 19, CLASSES=names, PALETTE=palette), tmp_path / "out")
    assert "meta" in report.labels
    assert load_config(tmp_path / "out").id2label[3] == "class 3"
    assert list(map(list, AutoImageProcessor.from_pretrained(tmp_path / "out").palette)) == palette
    export(tmp_path / "out", tmp_path / "back.pth", to="nvlabs")
    meta = torch.load(tmp_path / "back.pth", weights_only=True)["meta"]
    assert (tuple(meta["CLASSES"]), [list(c) for c in meta["PALETTE"]]) == (names, palette)


def test_newer_meta_format(tmp_path: Path) -> None:
    dataset = {"classes": ("a", "b"), "palette": [[1, 2, 3], [4, 5, 6]]}
    convert(checkpoint(tmp_path, 2, dataset_meta=dataset), tmp_path / "out")
    assert load_config(tmp_path / "out").id2label == {0: "a", 1: "b"}


def test_known_class_names_imply_their_palette(tmp_path: Path) -> None:
    names = [f" {name.upper()}" for name in labels.label_sets()["ade20k"].names]
    convert(checkpoint(tmp_path, 150, CLASSES=names), tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.do_reduce_labels
    assert tuple(map(tuple, processor.palette)) == labels.label_sets()["ade20k"].palette


def test_explicit_labels_take_precedence(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, 2, CLASSES=["x", "y"])
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"names": ["cat", "dog"], "palette": [[9, 9, 9], [8, 8, 8]], "reduce_zero_label": True}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_reduce_labels": False, "size": 256}))
    report = convert(source, tmp_path / "out", labels=file)
    assert "as requested" in report.labels
    assert load_config(tmp_path / "out").id2label == {0: "cat", 1: "dog"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.do_reduce_labels
    assert processor.size["height"] == 256
    assert convert(source, tmp_path / "other").labels == "2 classes, from the checkpoint's meta"
    assert AutoImageProcessor.from_pretrained(tmp_path / "other").do_reduce_labels is False


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"names": 3}', '{"names": ["a", "b"], "palette": [[1, 2]]}', '{"palette": []}']
)
def test_invalid_label_files_raise(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(labels.ConversionError, match=r"mine\.json"):
        convert(checkpoint(tmp_path, 2), tmp_path / "out", labels=tmp_path / "mine.json")
    assert not (tmp_path / "out").exists()


def test_palette_length_mismatch_raises(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, 2, CLASSES=["x", "y"], PALETTE=[[1, 2, 3]])
    with pytest.raises(labels.ConversionError, match="1 colors for 2 classes"):
        convert(source, tmp_path / "out")
