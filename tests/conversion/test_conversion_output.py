"""Output is written completely or not at all, and replaces no existing files."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conversion_mmseg import mmseg_state
from conversion_references import ORACLE_FILE, assert_refused, transformers_model
from hf_vit_seg.conversion.convert import ConversionError, convert, export
from transformers import AutoModelForSemanticSegmentation

from hf_vit_seg.atomic_io import atomic_path


def test_existing_output_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        assert_refused(tmp_path, "is a file, expected a directory", ORACLE_FILE, "file", overwrite=overwrite)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert_refused(tmp_path, "is not empty", ORACLE_FILE)
    with pytest.raises(ConversionError):
        convert(tmp_path / "nothing", out, overwrite=True)
    assert (out / "mine").read_text() == "mine"
    convert(ORACLE_FILE, out, overwrite=True)
    assert not (out / "mine").exists()
    AutoModelForSemanticSegmentation.from_pretrained(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_output_containing_the_input_raises(tmp_path: Path) -> None:
    """Replacing the folder of the checkpoint would delete the checkpoint."""
    (tmp_path / "in").mkdir()
    file = Path(shutil.copy(ORACLE_FILE, tmp_path / "in" / "model.pth"))
    assert_refused(tmp_path, "which would be replaced", file, "in", overwrite=True)
    convert(file, tmp_path / "in" / "deeper" / ".." / "ours")
    with pytest.raises(ConversionError, match="would be replaced"):
        export(tmp_path / "in" / "ours", tmp_path / "in", to="transformers", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["model.pth", "ours"]


def test_native_format_is_not_converted(tmp_path: Path) -> None:
    convert(ORACLE_FILE, tmp_path / "ours")
    assert_refused(tmp_path, "already in this package's format", tmp_path / "ours")


def test_failed_conversion_leaves_no_partial_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine").write_text("mine")
    with pytest.raises(OSError, match="full"):
        write_half(tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "mine"]
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: real(a, b) if "mine" in os.listdir(a) else fail())
    with pytest.raises(OSError, match="gone"), atomic_path(tmp_path / "old") as place:
        place.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "mine"]


def write_half(target: Path) -> None:
    with atomic_path(target) as place:
        place.mkdir()
        (place / "half").write_text("half")
        raise OSError("disk full")


def fail() -> None:
    raise OSError("gone")


def test_invalid_export_raises(tmp_path: Path) -> None:
    torch.save({"state_dict": mmseg_state()}, tmp_path / "mmseg.pth")
    convert(tmp_path / "mmseg.pth", tmp_path / "ours")
    convert(ORACLE_FILE, tmp_path / "others")
    (tmp_path / "file").write_text("mine")
    cases = [
        ("ours", "out", "nvlabs", "decode_head_flavor 'mmseg', but nvlabs supports only 'nvlabs'"),
        ("ours", "out", "transformers", "transformers supports only 'nvlabs'"),
        ("ours", "out", "caffe", "cannot be exported to 'caffe'; its formats are nvlabs, mmseg, transformers, smp"),
        ("ours", "file", "mmseg", "exists"),
        ("ours", "others", "mmseg", "is a directory"),
        ("others", "file", "transformers", "is a file"),
        ("mmseg.pth", "out", "mmseg", "expected one of this package (cvt_seg, segformer_seg, vit_seg)"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for model, out, to, sentence in cases:
        with pytest.raises(ConversionError) as error:
            export(tmp_path / model, tmp_path / out, to=to)
        assert sentence in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_export_of_a_classifier_to_mmseg(tmp_path: Path) -> None:
    transformers_model("ImageClassification").save_pretrained(tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "ours")
    with pytest.raises(ConversionError, match="does not support SegFormerForImageClassification"):
        export(tmp_path / "ours", tmp_path / "out", to="mmseg")
