"""EoMT of its authors and of transformers: match in float64 with random weights, and round-trip losslessly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_eomt import EoMT
from conversion_references import TOLERANCE, assert_equal_states, assert_refused, load_converted, randomize
from hf_vit_seg.conversion.convert import convert, export
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.live_models import from_transformers, to_transformers
from safetensors.torch import load_file
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
)

import hf_vit_seg

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_blocks": 2,
    "num_queries": 6,
    "num_labels": 5,
    "num_register_tokens": 2,
}
TIMM: dict[str, Any] = {"img_size": 64, "depth": 3, "embed_dim": 128, "num_heads": 2}
DINOV2 = TIMM | {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}
AUTHORS = {
    "registers and LayerScale": DINOV2,
    "positions of the class token": TIMM,
    "patches of 14": DINOV2 | {"img_size": 56, "patch_size": 14},
    "no class token": TIMM | {"class_token": False, "global_pool": "avg", "fc_norm": False},
}


def theirs(masked: bool = False, **options: Any) -> Any:
    model = randomize(EomtForUniversalSegmentation(EomtConfig(**{**SIZES, **options})))
    model.attn_mask_probs.fill_(float(masked))
    model.criterion.empty_weight.fill_(1.0)
    model.criterion.empty_weight[-1] = model.config.no_object_weight
    return model


def cast_mask(layer: Any, inputs: Any) -> Any:
    """transformers' mask is float32, with which torch's attention computes wrong results for float64."""
    hidden_states, mask = inputs
    return hidden_states, None if mask is None else mask.to(hidden_states.dtype)


@torch.no_grad()
def predictions(model: Any, image: torch.Tensor = IMAGE) -> tuple[torch.Tensor, torch.Tensor]:
    layers = model.layers if isinstance(model, EomtForUniversalSegmentation) else []
    hooks = [layer.register_forward_pre_hook(cast_mask) for layer in layers]
    output = model.double()(image)
    for hook in hooks:
        hook.remove()
    if isinstance(output, tuple):
        return output
    return output.class_queries_logits, output.masks_queries_logits


def assert_agree(found: Any, expected: Any, image: torch.Tensor = IMAGE) -> None:
    for ours, reference in zip(predictions(found, image), predictions(expected, image), strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("options", AUTHORS.values(), ids=AUTHORS)
def test_authors_checkpoint(options, tmp_path: Path):
    model = randomize(EoMT(**options))
    model.network.attn_mask_probs.zero_()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "eomt.ckpt")
    report = convert(tmp_path / "eomt.ckpt", tmp_path / "out")
    assert report.source.startswith("vit/eomt") and report.model == "VisionTransformerForUniversalSegmentation"
    buffers = {"network.attn_mask_probs", "network.encoder.pixel_mean", "network.encoder.pixel_std"}
    assert {name for name, _ in report.dropped} == buffers | {"criterion.empty_weight"}
    side = options["img_size"]
    ours, image = load_converted(AutoModelForUniversalSegmentation, tmp_path / "out"), IMAGE[..., :side, :side]
    assert ours.config.num_query_blocks == 2 and not ours.config.query_masked_inference
    assert_agree(ours, model, image)
    export(tmp_path / "out", tmp_path / "back.pth", to="eomt")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    dropped = {name for name, _ in report.dropped}
    assert_equal_states(back, {name: tensor for name, tensor in state.items() if name not in dropped})


def test_authors_number_of_blocks_without_its_buffer(tmp_path: Path):
    """As in published repositories, where config.json has it."""
    model = randomize(EoMT(blocks=1, **DINOV2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if "attn_mask_probs" not in name}
    (tmp_path / "eomt").mkdir()
    torch.save(state, tmp_path / "eomt" / "pytorch_model.bin")
    (tmp_path / "eomt" / "config.json").write_text('{"num_blocks": 1, "image_size": 64}')
    convert(tmp_path / "eomt", tmp_path / "out")
    ours = load_converted(AutoModelForUniversalSegmentation, tmp_path / "out")
    assert ours.config.num_query_blocks == 1
    assert_agree(ours, model)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_upscale_blocks": 1, "num_blocks": 3}], ids=["default", "other sizes"])
def test_transformers_directory(masked, options, tmp_path: Path):
    """A model whose masks are not annealed uses them in inference too."""
    model = theirs(masked, **options)
    model.save_pretrained(tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "out")
    assert report.source.startswith("vit/transformers-eomt")
    ours = load_converted(AutoModelForUniversalSegmentation, tmp_path / "out")
    assert ours.config.query_masked_inference == masked
    assert_agree(ours, model)
    report = export(tmp_path / "out", tmp_path / "back", to="transformers")
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    expected.pop("criterion.empty_weight")
    assert_equal_states(load_file(tmp_path / "back" / "model.safetensors"), expected)
    again = EomtForUniversalSegmentation.from_pretrained(tmp_path / "back")
    saved, wanted = again.config.to_dict(), model.config.to_dict()
    assert {name for name in wanted if saved.get(name) != wanted[name]} <= {"_name_or_path", "dtype"}
    assert_agree(again, model)


def test_semantic_results_of_a_converted_model(tmp_path: Path):
    model = theirs()
    model.save_pretrained(tmp_path / "theirs")
    loaded, processor = hf_vit_seg.load(tmp_path / "theirs")
    assert type(processor) is hf_vit_seg.architectures()["vit"].universal_image_processor["torchvision"]
    classes, masks = predictions(model)
    expected = torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    assert_agree(loaded, model)
    convert(tmp_path / "theirs", tmp_path / "out")
    segmenter = load_converted(AutoModelForSemanticSegmentation, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(segmenter(IMAGE).logits.exp(), expected, rtol=0, atol=TOLERANCE)


def test_live_models():
    model = theirs().double()
    ours = from_transformers(model)
    assert_agree(ours, model)
    back = to_transformers(ours)
    assert type(back) is EomtForUniversalSegmentation
    assert_agree(back, model)
    assert torch.equal(back.criterion.empty_weight, model.criterion.empty_weight)


def test_converted_model_trains():
    ours = from_transformers(theirs()).float().train()
    masks = [torch.rand(2, 64, 64) > 0.5, torch.zeros(0, 64, 64, dtype=torch.bool)]
    output = ours(IMAGE.float(), mask_labels=masks, class_labels=[torch.tensor([0, 4]), torch.zeros(0).long()])
    output.loss.backward()
    assert output.loss.isfinite() and len(output.auxiliary_logits) == 2


def test_image_processor_of_transformers(tmp_path: Path):
    theirs().save_pretrained(tmp_path / "theirs")
    EomtImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "back", to="transformers-eomt")
    assert EomtImageProcessor.from_pretrained(tmp_path / "back").size == {"height": 64, "width": 64}


def test_gated_mlp_is_rejected(tmp_path: Path):
    theirs(use_swiglu_ffn=True).save_pretrained(tmp_path / "theirs")
    assert_refused(tmp_path, "SwiGLU", tmp_path / "theirs")


def test_rotary_positions_are_rejected(tmp_path: Path):
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    options = {name: value for name, value in SIZES.items() if name != "mlp_ratio"}
    model = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**options, intermediate_size=96))
    model.save_pretrained(tmp_path / "theirs")
    assert_refused(tmp_path, "rotary", tmp_path / "theirs")


@pytest.mark.parametrize("fields", [{"image_size": [64, 96]}, {"intermediate_size": 100}])
def test_sizes_that_transformers_does_not_have(fields, tmp_path: Path):
    config = hf_vit_seg.architectures()["vit"].variant_config(
        "tiny",
        num_labels=3,
        num_register_tokens=1,
        layer_scale_init_value=1.0,
        position_embeddings_cover_prefix=False,
        **({"image_size": 64} | fields),
    )
    AutoModelForUniversalSegmentation.from_config(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConversionError, match="EoMT of transformers"):
        export(tmp_path / "ours", tmp_path / "theirs", to="transformers")
