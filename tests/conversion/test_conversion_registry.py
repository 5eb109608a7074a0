"""The registry and the report: sources come from the installed architectures, and a broken one is skipped."""

import dataclasses
import io
from pathlib import Path

import pytest
import rich.console
from hf_vit_seg.conversion import registry
from hf_vit_seg.conversion.convert import convert
from hf_vit_seg.conversion.settings import variants
from paths import ORACLES
from transformers import AutoConfig

from hf_vit_seg import architectures

ORACLE_FILE = ORACLES / "nvlabs_segformer" / "segformer.tiny.7cls.pth"


def test_all_registered_sources_load() -> None:
    found = [registry.full_name(*pair) for pair in registry.all_sources()]
    declared = [place for architecture in architectures().values() for place in architecture.conversions]
    assert len(found) == len(set(found)) == len(declared)
    assert {"segformer/nvlabs", "segformer/mmseg", "segformer/transformers", "segformer/smp"} <= set(found)


def test_broken_source_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    places = (
        "no.such.module:SOURCE",
        "hf_vit_seg.conversion.rules:rename",
        "hf_vit_seg.conversion.segformer.segmentation_models_pytorch:SOURCE",
    )
    architecture = dataclasses.replace(architectures()["segformer"], conversions=places)
    assert [source.name for source in registry.load_sources(architecture)] == ["smp"]
    assert "no.such.module:SOURCE" in caplog.text
    assert "expected a hf_vit_seg.conversion.source.Source, found function" in caplog.text


@pytest.mark.parametrize("source", ["nvlabs", "segformer/nvlabs"])
def test_source_can_be_selected_by_name(tmp_path: Path, source: str) -> None:
    assert convert(ORACLE_FILE, tmp_path / "out", source=source).source.startswith("segformer/nvlabs")


def test_variants_are_detected_from_their_weights() -> None:
    for architecture in (a for a in architectures().values() if a.conversions):
        for name, row in variants.rows(architecture).items():
            assert variants.find_variant(architecture, architecture.config(**row), row) == (name, {})


def test_decoder_width_does_not_select_a_variant() -> None:
    architecture = architectures()["segformer"]
    row = variants.rows(architecture)["b2"]
    config = architecture.config(**{**row, "decode_head_hidden_size": 256})
    assert variants.find_variant(architecture, config, row) == ("b2", {"decode_head_hidden_size": 768})
    assert variants.find_variant(architecture, config, {}) == ("b2", {})


def test_overrides_take_precedence(tmp_path: Path) -> None:
    overrides = {"layer_norm_eps": 1e-3, "num_attention_heads": [2, 2, 2, 2], "strides": [4, 2, 2, 2]}
    report = convert(ORACLE_FILE, tmp_path / "out", settings=overrides)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.layer_norm_eps == 1e-3
    assert list(config.num_attention_heads) == [2, 2, 2, 2]
    assert not any(note.startswith("assumed") for note in report.notes)


def test_report_is_formatted(tmp_path: Path) -> None:
    report = convert(ORACLE_FILE, tmp_path / "out")
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    assert "238,815" in text
    assert "decode_head.conv_seg.weight" in text
    assert len(report.lines()) == len(report.rows())
