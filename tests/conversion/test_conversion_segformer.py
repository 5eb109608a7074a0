"""Every SegFormer source matches its reference in float64 and round-trips losslessly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conversion_mmseg import MMSeg, mmseg_state
from conversion_references import (
    IMAGE,
    ORACLE,
    ORACLE_FILE,
    TOLERANCE,
    assert_equal_states,
    largest_difference,
    load_converted,
    nvlabs_state,
    smp_model,
    smp_quarter_logits,
)
from hf_vit_seg.conversion.convert import convert, export
from hf_vit_seg.conversion.settings.labels import label_sets
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForSemanticSegmentation as AutoSegmenter


def nvlabs_encoder() -> dict[str, Tensor]:
    state = nvlabs_state()
    return {name[len("backbone.") :]: t for name, t in state.items() if name.startswith("backbone.")}


def test_nvlabs_parity(tmp_path: Path) -> None:
    report = convert(ORACLE_FILE, tmp_path / "out")
    arrays = np.load(ORACLE / "io.npz")
    image = torch.from_numpy(arrays["input"]).double()
    model = load_converted(AutoSegmenter, tmp_path / "out")
    assert largest_difference(model, image, torch.from_numpy(arrays["output_f64"])) < TOLERANCE
    assert (report.variant, report.model) == ("custom", "SegFormerForSemanticSegmentation")
    assert {name for name, _ in report.dropped} == {
        "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias",
    }
    assert report.mapped == 156
    assert any("num_attention_heads" in note for note in report.notes)


@pytest.mark.parametrize("field", ["layer_norm_eps", "patch_norm_eps", "reduction_norm_eps", "decode_head_norm_eps"])
def test_every_epsilon_changes_the_output(tmp_path: Path, field: str) -> None:
    """The tolerance distinguishes the epsilons, so parity verifies each of them."""
    arrays = np.load(ORACLE / "io.npz")
    convert(ORACLE_FILE, tmp_path / "out", settings={field: 3e-6})
    model, image = load_converted(AutoSegmenter, tmp_path / "out"), torch.from_numpy(arrays["input"]).double()
    assert largest_difference(model, image, torch.from_numpy(arrays["output_f64"])) > 1e3 * TOLERANCE


def test_nvlabs_round_trip(tmp_path: Path) -> None:
    convert(ORACLE_FILE, tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.pth", to="nvlabs")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_equal_states(back["state_dict"], {k: v for k, v in nvlabs_state().items() if "conv_seg" not in k})


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_nvlabs_encoder(tmp_path: Path, prefix: str) -> None:
    encoder = nvlabs_encoder()
    torch.save({prefix + name: t for name, t in encoder.items()}, tmp_path / "mit.pth")
    assert convert(tmp_path / "mit.pth", tmp_path / "out").model == "SegFormerModel"
    convert(ORACLE_FILE, tmp_path / "whole")
    whole = load_converted(AutoSegmenter, tmp_path / "whole")
    with torch.no_grad():
        expected = whole.segformer(IMAGE).last_hidden_state
    assert largest_difference(load_converted(AutoModel, tmp_path / "out"), IMAGE, expected) == 0
    export(tmp_path / "out", tmp_path / "back.pth", to="nvlabs")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), encoder)


def imagenet_file(folder: Path) -> Path:
    """The oracle's encoder with a head of 1000 classes, as in the authors' pretrained files."""
    generator = torch.Generator().manual_seed(3)
    head = {"head.weight": torch.randn(1000, 64, generator=generator), "head.bias": torch.randn(1000)}
    torch.save({**nvlabs_encoder(), **head}, folder / "mit_tiny.pth")
    return folder / "mit_tiny.pth"


def test_nvlabs_classifier(tmp_path: Path) -> None:
    source = imagenet_file(tmp_path)
    report = convert(source, tmp_path / "out")
    assert report.model == "SegFormerForImageClassification"
    assert "assumed" in report.labels
    model = load_converted(AutoModelForImageClassification, tmp_path / "out")
    assert model.config.id2label[1] == "goldfish"
    assert len(model.config.label2id) == 1000
    state = torch.load(source, weights_only=True)
    with torch.no_grad():
        pooled = model.segformer(IMAGE).last_hidden_state.flatten(2).mean(2)
    expected = pooled @ state["head.weight"].double().T + state["head.bias"].double()
    assert largest_difference(model, IMAGE, expected) < TOLERANCE
    export(tmp_path / "out", tmp_path / "back.pth", to="nvlabs")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), state)


def test_classifier_initializes_segmentation_model(tmp_path: Path) -> None:
    """The usual fine-tuning setup: an ImageNet encoder and a new decode head."""
    convert(imagenet_file(tmp_path), tmp_path / "out")
    segmentor, info = AutoSegmenter.from_pretrained(tmp_path / "out", num_labels=3, output_loading_info=True)
    assert all(name.startswith("decode_head.") for name in info["missing_keys"])
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert_equal_states(segmentor.segformer.state_dict(), classifier.segformer.state_dict())


def test_smp_parity_and_round_trip(tmp_path: Path) -> None:
    reference: Any = smp_model()
    state = dict(reference.state_dict())
    save_file(state, tmp_path / "model.safetensors")
    report = convert(tmp_path / "model.safetensors", tmp_path / "out")
    assert report.variant == "b0"
    assert any("align_corners" in note for note in report.notes)
    assert any("decode_head_hidden_size is 24" in note for note in report.notes)
    with torch.no_grad():
        expected = smp_quarter_logits(reference.double(), IMAGE)
    assert largest_difference(load_converted(AutoSegmenter, tmp_path / "out"), IMAGE, expected) < TOLERANCE
    for name, read in (("back.safetensors", load_file), ("back.pth", torch.load)):
        export(tmp_path / "out", tmp_path / name, to="smp")
        assert_equal_states(read(tmp_path / name), state)


def test_mmseg_parity_and_round_trip(tmp_path: Path) -> None:
    state = mmseg_state()
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "segformer.pth")
    convert(tmp_path / "segformer.pth", tmp_path / "out")
    model = load_converted(AutoSegmenter, tmp_path / "out")
    assert model.config.decode_head_flavor == "mmseg"
    assert largest_difference(model, IMAGE, MMSeg(state).logits(IMAGE)) < TOLERANCE
    export(tmp_path / "out", tmp_path / "back.pth", to="mmseg")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], state)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_mmseg_encoder(tmp_path: Path, prefix: str) -> None:
    state = mmseg_state()
    encoder = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({"state_dict": {prefix + k: v for k, v in encoder.items()}}, tmp_path / "mit.pth")
    convert(tmp_path / "mit.pth", tmp_path / "out")
    expected = MMSeg(state).features(IMAGE)[-1]
    assert largest_difference(load_converted(AutoModel, tmp_path / "out"), IMAGE, expected) < TOLERANCE
    export(tmp_path / "out", tmp_path / "back.pth", to="mmseg")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True), encoder)


def test_export_to_another_format(tmp_path: Path) -> None:
    """Export a checkpoint of the authors to transformers and smp; outputs match where their constants agree."""
    convert(ORACLE_FILE, tmp_path / "ours")
    report = export(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    assert any("layer_norm_eps 1e-06 (reference: 1e-05)" in note for note in report.notes)
    theirs = load_converted(transformers.SegformerForSemanticSegmentation, tmp_path / "theirs")
    with torch.no_grad():
        expected = load_converted(AutoSegmenter, tmp_path / "ours")(IMAGE).logits
    assert 0 < largest_difference(theirs, IMAGE, expected) < 1e-3
    processor = transformers.SegformerImageProcessor.from_pretrained(tmp_path / "theirs")
    assert processor.size["height"] == 512
    assert export(tmp_path / "ours", tmp_path / "smp.pth", to="smp").notes == ()
    convert(tmp_path / "smp.pth", tmp_path / "again")
    assert largest_difference(load_converted(AutoSegmenter, tmp_path / "again"), IMAGE, expected) == 0


def test_half_precision_is_preserved(tmp_path: Path) -> None:
    state = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in nvlabs_state().items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "half.pth")
    convert(tmp_path / "half.pth", tmp_path / "out")
    assert AutoSegmenter.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    export(tmp_path / "out", tmp_path / "back.pth", to="nvlabs")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert_equal_states(back, {k: v for k, v in state.items() if "conv_seg" not in k})


def test_shared_tensors(tmp_path: Path) -> None:
    """Parameters, views of a fused tensor, and a tensor under two names are stored like any others."""
    state = nvlabs_state()
    fused = torch.cat([state["backbone.norm1.weight"], state["backbone.norm1.bias"]])
    state["backbone.norm1.weight"], state["backbone.norm1.bias"] = fused.chunk(2)
    state["backbone.patch_embed2.norm.bias"] = state["backbone.norm2.bias"]
    state["backbone.norm3.weight"] = torch.nn.Parameter(state["backbone.norm3.weight"])
    kernel = state["backbone.patch_embed1.proj.weight"]
    state["backbone.patch_embed1.proj.weight"] = kernel.to(memory_format=torch.channels_last)
    torch.save(state, tmp_path / "views.pth")
    convert(tmp_path / "views.pth", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back.pth", to="nvlabs")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert_equal_states(back, {k: v for k, v in state.items() if "conv_seg" not in k})


@pytest.mark.shared
def test_real_weights(tmp_path: Path, shared: Path) -> None:
    """SegFormer-B0 on ADE20K from both formats: equal weights, other epsilons, nearly equal logits."""
    folder = shared / "data" / "segformer_b0_ade"
    (pth,) = (folder / "nvlabs").glob("*.pth")
    by_authors = convert(pth, tmp_path / "nvlabs")
    by_transformers = convert(folder / "hf", tmp_path / "hf")
    assert by_authors.variant == by_transformers.variant == "b0"
    assert by_authors.parameters == by_transformers.parameters == 3_752_694
    first, second = (AutoSegmenter.from_pretrained(tmp_path / name).eval() for name in ("nvlabs", "hf"))
    assert_equal_states(first.state_dict(), second.state_dict())
    assert (first.config.layer_norm_eps, second.config.layer_norm_eps) == (1e-6, 1e-5)
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = first(image).logits, second(image).logits
    assert 0 < (a - b).abs().max() < 1e-2 * a.abs().max()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "nvlabs")
    assert processor.do_reduce_labels
    assert tuple(map(tuple, processor.palette)) == label_sets()["ade20k"].palette
    reference = transformers.SegformerForSemanticSegmentation.from_pretrained(folder / "hf").eval()
    assert largest_difference(second, image, reference(image).logits.detach()) < 1e-4
