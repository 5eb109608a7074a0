"""Segmenter, linear and mask transformer: match the paper's model in float64 and round-trip losslessly."""

from pathlib import Path

import pytest
import torch
from conversion_references import TOLERANCE, assert_equal_states, assert_refused, largest_difference, load_converted
from conversion_segmenter import Segmenter, segmenter_state
from hf_vit_seg.conversion.convert import convert, export
from transformers import AutoImageProcessor
from transformers import AutoModelForSemanticSegmentation as AutoSegmenter

HEADS = {"linear": False, "mask_transformer": True}


@pytest.mark.parametrize("distilled", [False, True], ids=["vit", "deit"])
@pytest.mark.parametrize("head", HEADS)
def test_parity_and_round_trip(tmp_path: Path, head: str, distilled: bool) -> None:
    state = segmenter_state(mask=HEADS[head], distilled=distilled)
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    report = convert(tmp_path / "checkpoint.pth", tmp_path / "out")
    assert report.source.startswith("vit/segmenter")
    unused = {name for name in state if name.startswith("encoder.head")}
    assert {name for name, _ in report.dropped} == unused
    model = load_converted(AutoSegmenter, tmp_path / "out")
    assert model.config.decode_head == head
    for size in ((64, 64), (48, 80)):
        image = torch.randn(2, 3, *size, dtype=torch.float64)
        assert largest_difference(model, image, Segmenter(state).logits(image)) < TOLERANCE
    assert export(tmp_path / "out", tmp_path / "back.pth", to="segmenter").notes == ()
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert_equal_states(back, {k: v for k, v in state.items() if k not in unused})


@pytest.mark.parametrize("field", ["layer_norm_eps", "decode_head_norm_eps"])
def test_every_epsilon_changes_the_output(tmp_path: Path, field: str) -> None:
    state = segmenter_state(mask=True)
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "out", settings={field: 1e-6})
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert (
        largest_difference(load_converted(AutoSegmenter, tmp_path / "out"), image, Segmenter(state).logits(image))
        > 1e-8
    )


def test_preprocessing(tmp_path: Path) -> None:
    torch.save({"model": segmenter_state(mask=False)}, tmp_path / "checkpoint.pth")
    report = convert(tmp_path / "checkpoint.pth", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], list(processor.image_mean)) == (64, [0.5, 0.5, 0.5])
    assert any("mean [0.5, 0.5, 0.5]" in note for note in report.notes)


def test_unsupported_checkpoints_raise(tmp_path: Path) -> None:
    state = segmenter_state(mask=True)
    del state["decoder.proj_patch"]
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    assert_refused(tmp_path, "lacks 'decoder.proj_patch'", tmp_path / "checkpoint.pth")
