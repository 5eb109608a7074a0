"""Tests specific to ViT: positions on any grid, padding, prefix tokens, heads, initialization."""

import copy
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from random_weights import randomize_weights
from torch.nn.functional import interpolate
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from hf_vit_seg.models import modeling_vit
from hf_vit_seg.models.bilinear import crop_to_image_extent
from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.modeling_vit import (
    VisionTransformerBackbone,
    VisionTransformerForImageClassification,
    VisionTransformerForSemanticSegmentation,
    VisionTransformerModel,
    resize_positions,
)

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
    "num_labels": 5,
}
HEADS = ("linear", "mask_transformer", "feature_pyramid")


def config(**fields) -> VisionTransformerConfig:
    return VisionTransformerConfig(**(SMALL | fields))


def segmenter(**fields) -> VisionTransformerForSemanticSegmentation:
    return randomize_weights(VisionTransformerForSemanticSegmentation(config(**fields))).eval()


# --- positions


@torch.no_grad()
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_resizing_keeps_prefix_and_is_the_identity_on_the_same_grid(
    mode, align_corners, antialias, recorded, monkeypatch
):
    """Also when recorded as a program, which resizes by matrices."""
    monkeypatch.setattr(modeling_vit, "is_dynamic_export", lambda: recorded)
    positions = torch.randn(1, 2 + 12, 6)
    same = resize_positions(positions, (3, 4), (3, 4), mode, align_corners, antialias)
    torch.testing.assert_close(same, positions)
    other = resize_positions(positions, (3, 4), (5, 2), mode, align_corners, antialias)
    assert other.shape == (1, 12, 6)
    assert torch.equal(other[:, :2], positions[:, :2])
    image = positions[:, 2:].reshape(1, 3, 4, 6).permute(0, 3, 1, 2)
    expected = interpolate(image, (5, 2), mode=mode, align_corners=align_corners, antialias=antialias)
    torch.testing.assert_close(other[:, 2:].reshape(5, 2, 6), expected[0].permute(1, 2, 0))


@torch.no_grad()
def test_aligned_bilinear_resizing_matches_vit_jax_zoom():
    """scipy.ndimage.zoom(order=1): corners are kept, everything between is linear."""
    row = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 3, 1)
    resized = resize_positions(row, (1, 3), (1, 5), "bilinear", True, False)
    assert resized.flatten().tolist() == [0.0, 0.5, 1.0, 2.5, 4.0]


@pytest.mark.parametrize("change", ["data", "load", "assign", "resize"])
@torch.no_grad()
def test_cached_positions_are_never_stale(change):
    model = randomize_weights(VisionTransformerModel(config())).eval()
    pixel_values = torch.randn(1, 3, 48, 24)
    model(pixel_values)
    other = randomize_weights(VisionTransformerModel(config()), seed=1)
    if change == "data":
        model.embeddings.position_embeddings.data[0, 3, 4] += 1
    elif change == "resize":
        model.resize_positions((40, 40))
    else:
        model.load_state_dict(other.state_dict(), assign=change == "assign")
    fresh = VisionTransformerModel(model.config).eval()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(model(pixel_values).last_hidden_state, fresh(pixel_values).last_hidden_state)


@torch.no_grad()
def test_resized_positions_are_cached():
    model = randomize_weights(VisionTransformerModel(config())).eval()
    model(torch.randn(1, 3, 48, 24))
    first = model.embeddings.position_cache.entry.result
    model(torch.randn(2, 3, 48, 24))
    assert model.embeddings.position_cache.entry.result is first
    model(torch.randn(2, 3, 24, 48))
    assert model.embeddings.position_cache.entry.result is not first


def test_resized_positions_get_gradients():
    model = randomize_weights(VisionTransformerModel(config())).train()
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 48, 24))
    model.train()(torch.randn(1, 3, 48, 24)).last_hidden_state.square().sum().backward()
    assert model.embeddings.position_embeddings.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation])
def test_loading_at_another_image_size_resizes_positions(auto, tmp_path):
    stored = randomize_weights(auto.from_config(config())).eval()
    stored.save_pretrained(tmp_path)
    size = (40, 64)
    pixel_values = torch.randn(1, 3, *size)
    expected = stored(pixel_values)[0]
    loads = (
        lambda: auto.from_pretrained(tmp_path, image_size=size),
        lambda: type(stored).from_pretrained(tmp_path, image_size=size),
        lambda: type(stored).from_pretrained(tmp_path, config=config(image_size=size)),
        lambda: auto.from_pretrained(tmp_path, image_size=size, output_loading_info=True)[0],
    )
    for load in loads:
        loaded = load()
        assert tuple(loaded.config.image_size) == size
        assert loaded.state_dict().keys() == stored.state_dict().keys()
        name = "embeddings.position_embeddings" if auto is AutoModel else "vit.embeddings.position_embeddings"
        assert loaded.state_dict()[name].shape == (1, 1 + 5 * 8, 32)
        torch.testing.assert_close(loaded(pixel_values)[0], expected)
    again = tmp_path / "again"
    loads[-1]().save_pretrained(again)
    torch.testing.assert_close(auto.from_pretrained(again)(pixel_values)[0], expected)


def test_offloaded_positions_are_not_resized(tmp_path):
    segmenter().save_pretrained(tmp_path / "model")
    split = {"vit": "disk", "decode_head": "cpu"}
    with pytest.raises(ValueError, match="position embeddings are offloaded"):
        AutoModelForSemanticSegmentation.from_pretrained(
            tmp_path / "model", image_size=64, device_map=split, offload_folder=tmp_path / "disk"
        )


def test_loading_at_another_size_reports_nothing_missing(tmp_path):
    segmenter().save_pretrained(tmp_path)
    _, report = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, image_size=64, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_loading_respects_the_config_object(tmp_path):
    stored = VisionTransformerModel(config(image_size=224))  # a default, which is omitted in config.json
    stored.save_pretrained(tmp_path)
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager", hidden_dropout_prob=0.25)
    assert eager.config._attn_implementation == "eager"
    assert eager.embeddings.dropout.p == 0.25
    assert eager.embeddings.position_embeddings.shape == stored.embeddings.position_embeddings.shape
    asked = config(image_size=224, layer_norm_eps=0.1)
    (tmp_path / "config.json").unlink()
    assert VisionTransformerModel.from_pretrained(tmp_path, config=asked).norm.eps == 0.1
    assert asked.image_size == 224


# --- prefix tokens


@torch.no_grad()
def test_absent_class_token_position_is_added_to_every_patch():
    model = randomize_weights(VisionTransformerModel(config(use_cls_token=False, patch_padding=2))).eval()
    embeddings, pixel_values = model.embeddings, torch.randn(2, 3, 32, 32)
    patches = embeddings.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
    places = embeddings.position_embeddings
    torch.testing.assert_close(embeddings(pixel_values), patches + places[:, 1:] + places[:, :1])
    assert places.shape[1] == 17 and patches.shape[1] == 16


@torch.no_grad()
def test_prefix_order():
    settings: dict[str, Any] = {"use_distillation_token": True, "num_register_tokens": 2}
    embeddings = randomize_weights(VisionTransformerModel(config(**settings))).eval().embeddings
    tokens = embeddings(torch.randn(1, 3, 32, 32))
    places = embeddings.position_embeddings
    assert tokens.shape[1] == 4 + 16 and places.shape[1] == 2 + 16
    torch.testing.assert_close(tokens[:, :1], embeddings.cls_token + places[:, :1])
    torch.testing.assert_close(tokens[:, 1:2], embeddings.distillation_token + places[:, 1:2])
    torch.testing.assert_close(tokens[:, 2:4], embeddings.register_tokens)


def test_pooling_by_missing_token_raises():
    with pytest.raises(ValueError, match="use_cls_token"):
        VisionTransformerForImageClassification(config(use_cls_token=False))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": (8, 8, 8)}, r"patch_size is one length or \(height, width\)"),
        ({"patch_padding": 4}, "patch_padding 4 must be less"),
        ({"num_attention_heads": 5}, "divisible"),
        ({"decode_head_levels": (1, 2)}, "4 layers from 1 to 3"),
        ({"decode_head_levels": (1, 2, 3, 4)}, "4 layers from 1 to 3"),
    ],
)
def test_invalid_configs_raise(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        config(**fields)


# --- padding


@torch.no_grad()
def test_internal_padding_matches_a_padded_image():
    model = randomize_weights(VisionTransformerModel(config())).eval()
    pixel_values = torch.randn(1, 3, 27, 38)
    padded = torch.nn.functional.pad(pixel_values, (0, 2, 0, 5))
    torch.testing.assert_close(model(pixel_values).last_hidden_state, model(padded).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("size", [(27, 38), (32, 33), (1, 40), (25, 64)])
def test_logits_of_a_padded_image_exclude_padding(size):
    """Logits that equal pixel coordinates at the centers of the padded grid also do so in the cropped one."""
    rows, columns = (-(-side // 8) for side in size)
    centers = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).double() * 8 + 4
    cropped = crop_to_image_extent(centers[None], size, (8, 8))[0]
    for axis, side in enumerate(size):
        count = cropped.shape[1 + axis]
        assert count == -(-side // 8)
        expected = ((torch.arange(count).double() + 0.5) * side / count).clamp(4, centers[axis].max())
        actual = cropped[axis].select(1 - axis, 0)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_use_the_same_sampling_points(dtype):
    logits = torch.randn(1, 3, 252, 63).to(dtype)  # in bfloat16, positions on 252 rows would be off by one row
    sampled = crop_to_image_extent(logits, (1000, 999), (16, 16))
    assert sampled.dtype == dtype
    torch.testing.assert_close(sampled, crop_to_image_extent(logits.float(), (1000, 999), (16, 16)).to(dtype))


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_padded_image_keeps_its_position(head):
    """The label map of an image of odd size is close to that of the padded image, cropped."""
    model = segmenter(decode_head=head)
    pixel_values = torch.randn(1, 3, 59, 45)
    padded = torch.nn.functional.pad(pixel_values, (0, 3, 0, 5))
    whole = interpolate(model(padded).logits, padded.shape[-2:], mode="bilinear")[..., :59, :45]
    alone = interpolate(model(pixel_values).logits, (59, 45), mode="bilinear")
    moved = interpolate(model(padded).logits, (59, 45), mode="bilinear")  # the result of ignoring the padding
    assert (alone - whole).abs().mean() < 0.7 * (moved - whole).abs().mean()


# --- segmentation heads


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(32, 32), (64, 24), (27, 45), (3, 3)])
def test_heads_accept_any_size(head, size):
    model = segmenter(decode_head=head, num_register_tokens=1)
    stride = 2 if head == "feature_pyramid" else 8
    logits = model(torch.randn(2, 3, *size)).logits
    assert logits.shape == (2, 5, *(-(-side // stride) for side in size))
    assert logits.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_all_head_parameters_get_gradients(head):
    model = segmenter(decode_head=head, layer_scale_init_value=0.1, num_register_tokens=1).train()
    pixel_values, labels = torch.randn(2, 3, 32, 48), torch.randint(0, 5, (2, 32, 48))
    model(pixel_values, labels=labels).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in without if not n.endswith("k_proj.bias")] == []


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_heads_save_load_compile_and_return_hidden_states(head, tmp_path):
    torch._dynamo.reset()
    model = segmenter(decode_head=head)
    pixel_values = torch.randn(2, 3, 32, 48)
    plain = model(pixel_values)
    assert "hidden_states" not in plain
    full = model(pixel_values, output_hidden_states=True)
    assert len(full.hidden_states) == 4  # only the encoder's
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values).logits, plain.logits)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixel_values).logits, plain.logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_heads_export_with_dynamic_batch_and_size(head):
    model = segmenter(decode_head=head).double()
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    example = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    program = torch.export.export(model, (example,), dynamic_shapes={"pixel_values": dynamic})
    for shape in ((1, 3, 32, 32), (3, 3, 96, 160), (2, 3, 61, 75)):
        pixel_values = torch.randn(*shape, dtype=torch.float64)
        exported = program.module()(pixel_values).logits
        torch.testing.assert_close(exported, model(pixel_values).logits, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_mask_transformer_matches_segmenter():
    """Its decoder, as in the reference: cosine of patch and class, then a norm over classes."""
    model = segmenter(decode_head="mask_transformer", decode_head_hidden_size=48)
    head, feature_map = model.decode_head, torch.randn(2, 32, 3, 4)
    tokens = head.projection(feature_map.flatten(2).transpose(1, 2))
    tokens = torch.cat([tokens, head.class_embeddings.expand(2, -1, -1)], 1)
    for layer in head.layers:
        tokens = layer(tokens)
    tokens = head.norm(tokens)
    patches, classes = tokens[:, :12] @ head.patch_projection.weight.T, tokens[:, 12:] @ head.class_projection.weight.T
    patches, classes = (t / t.norm(dim=-1, keepdim=True) for t in (patches, classes))
    expected = head.mask_norm(patches @ classes.transpose(1, 2)).transpose(1, 2).reshape(2, 5, 3, 4)
    torch.testing.assert_close(head([feature_map]), expected)


@torch.no_grad()
def test_pyramid_uses_the_configured_layers():
    model = segmenter(decode_head="feature_pyramid", decode_head_levels=(1, 1, 2, 3))
    pixel_values = torch.randn(1, 3, 32, 32)
    outputs = model.vit(pixel_values, output_hidden_states=True)
    maps = [*outputs.hidden_states[1:3], outputs.last_hidden_state]
    maps = [t[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2) for t in maps]
    expected = model.decode_head([maps[0], maps[0], maps[1], maps[2]])
    torch.testing.assert_close(model(pixel_values).logits, expected)


# --- backbone and initialization


@torch.no_grad()
def test_backbone_returns_encoder_layers():
    encoder = randomize_weights(VisionTransformerModel(config())).eval()
    backbone = VisionTransformerBackbone(config(out_indices=(0, 1, 3))).eval()
    backbone.load_state_dict(encoder.state_dict(), strict=True)
    pixel_values = torch.randn(2, 3, 40, 24)
    outputs = encoder(pixel_values, output_hidden_states=True)
    stem, first, last = backbone(pixel_values).feature_maps
    torch.testing.assert_close(stem.flatten(2).transpose(1, 2), encoder.embeddings(pixel_values)[:, 1:])
    torch.testing.assert_close(first.flatten(2).transpose(1, 2), outputs.hidden_states[1][:, 1:])
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), outputs.last_hidden_state[:, 1:])
    assert first.shape == (2, 32, 5, 3)


@torch.no_grad()
def test_weight_initialization():
    settings: dict[str, Any] = {"stem": "resnetv2", "stem_depths": (1, 1), "stem_width_factor": 0.5, "patch_size": 1}
    model = VisionTransformerForSemanticSegmentation(
        config(**settings, decode_head="mask_transformer", layer_scale_init_value=0.25, num_register_tokens=2)
    )
    for name, tensor in model.state_dict().items():
        if name.endswith(("norm3.weight", "bias")):
            assert not tensor.any(), name
        elif name.endswith("gamma"):
            assert tensor.eq(0.25).all(), name
        elif tensor.ndim == 1:
            assert tensor.eq(1).all(), name
        elif "stem." in name:
            fan_in = tensor[0].numel()
            assert 0.8 < tensor.std() * fan_in**0.5 < 1.2, name
        else:
            assert 0.01 < tensor.std() < 0.03, name
