"""Heads on backbones of transformers: weights from the checkpoint, head selected by strides, and recipes."""

import shutil

import pytest
import tiny_runs
import torch
import transformers
from random_weights import randomize_weights
from training_models import IMAGES, NEW, logits, model_recipe, recipe, train_steps
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    BeitConfig,
    BitImageProcessor,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)

from hf_vit_seg import architectures
from hf_vit_seg.models import bundled_code
from hf_vit_seg.models.configuration_backbone_seg import BackboneSegmentationConfig
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.modeling_backbone_seg import BackboneForSemanticSegmentation
from hf_vit_seg.models.modeling_backbone_universal import BackboneForSemanticSegmentation as BackboneWithObjectHead
from hf_vit_seg.models.modeling_backbone_universal import BackboneForUniversalSegmentation
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.model.building import build_model, prepare_for_training

PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
PLAIN |= {"image_size": 64}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 2, "image_size": 64}
# The plain model of a checkpoint, and its config.
BARE: dict[str, tuple[str, PreTrainedConfig]] = {
    "dinov2": ("Dinov2Model", Dinov2Config(**PLAIN)),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", Dinov2WithRegistersConfig(**PLAIN)),
    "dinov3_vit": ("DINOv3ViTModel", DINOv3ViTConfig(**PLAIN, num_register_tokens=2)),
    "dinov3_convnext": ("DINOv3ConvNextModel", DINOv3ConvNextConfig(**STAGES)),
    "beit": ("BeitModel", BeitConfig(**PLAIN, use_relative_position_bias=True)),
    "swin": ("SwinModel", SwinConfig(**SWIN)),
    "convnext": ("ConvNextModel", ConvNextConfig(**STAGES)),
    "resnet": ("ResNetModel", ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1] * 4)),
    "segformer_seg": ("AutoModel", SegFormerConfig(hidden_sizes=(16, 32, 40, 64), depths=(1, 1, 1, 1))),
    "vit_seg": ("AutoModel", VisionTransformerConfig(**PLAIN)),
}
PLAIN_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "beit", "vit_seg")


def bare(folder, kind: str = "dinov2") -> PreTrainedModel:
    """Save a random plain model to a folder."""
    class_name, config = BARE[kind]
    build = getattr(transformers, class_name)
    model = build.from_config(config) if class_name == "AutoModel" else build(config)
    randomize_weights(model).eval().save_pretrained(folder)
    return model


def backbone_with_head(folder, head: str | None = None, **settings) -> BackboneForSemanticSegmentation:
    return BackboneForSemanticSegmentation.from_backbone(folder, head, **settings)


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", [BackboneForUniversalSegmentation, BackboneWithObjectHead])
def test_object_heads_on_a_loaded_backbone(model_class, tmp_path):
    plain = bare(tmp_path / "bare")
    model = model_class.from_backbone(tmp_path / "bare", "query", num_labels=3, num_queries=5)
    assert model.config.decode_head == "query" and model.config.num_queries == 5
    expected = plain.state_dict()
    loaded = model.backbone.state_dict()
    shared = expected.keys() & loaded.keys()
    assert len(shared) > 10 and all(torch.equal(expected[name], loaded[name]) for name in shared)
    output = model(torch.randn(1, 3, 28, 42))
    assert all(value.isfinite().all() for value in output.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("kind", BARE)
def test_features_match_the_plain_backbone_after_saving(kind, tmp_path):
    plain = bare(tmp_path / "bare", kind)
    model = backbone_with_head(tmp_path / "bare", id2label={0: "a", 1: "b", 2: "c"})
    assert model.head_name == ("feature_pyramid" if kind in PLAIN_KINDS else "all_mlp")
    model.save_pretrained(tmp_path / "with_head")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "with_head")
    with torch.no_grad():
        whole = plain(IMAGES, output_hidden_states=True)
        expected = whole.get("reshaped_hidden_states", whole.hidden_states)  # Swin's as feature maps
        found = model(IMAGES, output_hidden_states=True)
        torch.testing.assert_close(loaded(IMAGES).logits, found.logits)
    # The last state is normalized in only one of them; Swin's stages return theirs before the next patch merging.
    apart = {"swin": 3}.get(kind, 1)
    states = [state for state in found.hidden_states if any(is_close(state, other) for other in expected)]
    assert len(found.hidden_states) >= 4 and len(states) >= len(found.hidden_states) - apart
    assert found.logits.shape[1] == 3
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


@pytest.mark.parametrize("kind", BARE)
def test_any_image_size_and_logits_span_the_image(kind, tmp_path):
    bare(tmp_path, kind)
    model = backbone_with_head(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = model(pixel_values).logits
        for size in ((61, 45), (33, 70), (1, 7)):
            assert model(torch.randn(2, 3, *size)).logits.isfinite().all()
        # Padding adds a border of zeros: without it, the logits are those of the image, sampled.
        pixel_values[..., 90:] = 0
        padded, cropped = model(pixel_values).logits, model(pixel_values[..., :90]).logits
    step = 96 // whole.shape[-1]
    assert cropped.shape[-1] == -(-90 // step)
    centers = (torch.arange(cropped.shape[-1]) + 0.5) * 90 / cropped.shape[-1] / step - 0.5
    left = centers.floor().clamp(0, whole.shape[-1] - 1).long()
    right, share = (left + 1).clamp(max=whole.shape[-1] - 1), (centers - left).clamp(0, 1)
    expected = padded[..., left] * (1 - share) + padded[..., right] * share
    torch.testing.assert_close(cropped, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "head", "levels", "reason"),
    [
        (
            "dinov2",
            "all_mlp",
            None,
            r"maps of several strides.*'dinov2' backbone returns 4 of stride 8, 8, 8, 8 .*: "
            "use 'linear' or 'mask_transformer' or 'feature_pyramid' or other decode_head_levels",
        ),
        (
            "swin",
            "feature_pyramid",
            None,
            r"4 maps of one stride.*'swin' backbone returns 4 of stride 4, 8, 16, 32 .*: "
            "use 'linear' or 'mask_transformer' or 'all_mlp' or other decode_head_levels",
        ),
        (
            "swin",
            "linear",
            (1, 2),
            r"a single map.*returns 2 of stride 4, 8 \(stages stage1, stage2\): use 'all_mlp' or other decode_head_l",
        ),
        ("dinov2", "feature_pyramid", (2, 4), r"returns 2 .*: use other decode_head_levels"),
    ],
)
def test_incompatible_head_raises(kind, head, levels, reason, tmp_path):
    bare(tmp_path, kind)
    with pytest.raises(ValueError, match=reason):
        backbone_with_head(tmp_path, head, decode_head_levels=levels)


@pytest.mark.parametrize(("head", "stages"), [("linear", ["stage4"]), ("mask_transformer", ["stage4"])])
@pytest.mark.parametrize("kind", ["dinov2", "swin"])
def test_single_map_heads_use_the_last_map(kind, head, stages, tmp_path):
    bare(tmp_path, kind)
    model = backbone_with_head(tmp_path, head, num_labels=7, decode_head_hidden_size=48)
    assert model.config.backbone.out_features == stages
    assert logits(model).shape[:2] == (2, 7)


def test_config_saves_the_code_of_its_backbone(tmp_path):
    config = BackboneSegmentationConfig(backbone_config=architectures()["cvt"].variant_config("tiny"))
    model = BackboneForSemanticSegmentation(config)
    model.save_pretrained(tmp_path / "model")
    table = (tmp_path / "model" / "own_backbones.py").read_text()
    assert "OWN_BACKBONES = ((CvTConfig, CvTBackbone),)" in table
    model.config.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "own_backbones.py").read_text() == table
    assert (tmp_path / "model" / "modeling_cvt.py").is_file()


def test_code_files_with_equal_names_raise(tmp_path, monkeypatch):
    for folder in ("head", "backbone"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "blocks.py").touch()
    files = {"Head": [tmp_path / "head" / "blocks.py"], "Backbone": [tmp_path / "backbone" / "blocks.py"]}
    monkeypatch.setattr(bundled_code, "source_files", lambda kind: files[kind.__name__])
    config = BackboneSegmentationConfig(backbone_config=Dinov2Config(**PLAIN))
    monkeypatch.setattr(type(config), "own_head", lambda self: (type("Head", (), {}),))
    config.check_parts()
    monkeypatch.setattr(type(config), "own_backbone", lambda self: (type("Backbone", (), {}),))
    with pytest.raises(ValueError, match=r"cannot be saved with both .*blocks\.py and .*blocks\.py"):
        BackboneForSemanticSegmentation(config)
    files["Head"] = [tmp_path / "layers.py"]
    (tmp_path / "layers.py").touch()
    with pytest.raises(ValueError, match="hf_vit_seg has a model file of that name"):
        config.check_parts()


def test_non_backbone_raises(tmp_path):
    transformers.SegformerModel(transformers.SegformerConfig()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a 'segformer', for which transformers has no backbone"):
        backbone_with_head(tmp_path)
    for wrong in ({"model_type": "nothing"}, {}):
        with pytest.raises(ValueError, match="needs a model_type that is in transformers"):
            BackboneSegmentationConfig(backbone_config=wrong)
    with pytest.raises(ValueError, match="no feature maps"):
        BackboneSegmentationConfig(backbone_config=transformers.SegformerConfig())


def test_config_of_the_caller_is_not_modified():
    config = Dinov2Config(**PLAIN)
    before = config.to_dict()
    model = BackboneForSemanticSegmentation(BackboneSegmentationConfig(backbone_config=config, num_channels=5))
    assert config.to_dict() == before and model.config.num_channels == model.config.backbone.num_channels == 5


@pytest.mark.parametrize("kind", ["dinov2", "swin"])
def test_backbone_uses_the_attention_implementation(kind, tmp_path):
    bare(tmp_path, kind)
    model = backbone_with_head(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == "eager"
    with torch.no_grad():
        outputs = model(IMAGES, output_attentions=True)
        assert outputs.attentions
        assert all(torch.isclose(weights.sum(-1), torch.ones(())).all() for weights in outputs.attentions)
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(IMAGES).logits, outputs.logits, rtol=1e-4, atol=1e-4)
    assert model.backbone.config._attn_implementation == "sdpa"


def test_unsupported_backbone_features_raise(tmp_path):
    bare(tmp_path, "convnext")
    model = backbone_with_head(tmp_path)
    with torch.no_grad():
        assert not model(IMAGES, output_attentions=True).attentions
    with pytest.raises(RecordError, match="does not support it"):
        prepare_for_training(model, model_recipe(gradient_checkpointing=True))


@pytest.mark.parametrize("kind", ["dinov2", "swin", "resnet"])
def test_frozen_backbone_stays_in_eval_mode_and_bit_identical(kind, tmp_path):
    bare(tmp_path, kind)
    changes = {"backbone_config": {"drop_path_rate": 0.9}} if kind != "resnet" else {}
    found = build_model(recipe({"architecture": "backbone", "from_pretrained": str(tmp_path), "fields": changes}), NEW)
    model = prepare_for_training(found.model, model_recipe(freeze=(r"^backbone\.",)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert model.training and model.decode_head.training
    assert not any(module.training for module in model.backbone.modules())
    train_steps(model)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and all(key.startswith("decode_head.") for key in changed)
    maps = [model.backbone(IMAGES).feature_maps[-1] for _ in range(2)]
    assert torch.equal(*maps)


def test_recipe_adds_a_head_to_a_backbone(tmp_path):
    plain = bare(tmp_path)
    BitImageProcessor(image_mean=[0.1, 0.2, 0.3], size={"shortest_edge": 80}, crop_size=64).save_pretrained(tmp_path)
    fields = {"decode_head": "linear", "backbone_config": {"hidden_dropout_prob": 0.25}}
    found = build_model(recipe({"architecture": "backbone", "from_pretrained": str(tmp_path), "fields": fields}), NEW)
    config, processor = found.model.config, found.processor
    assert (config.id2label, config.decode_head) == (dict(enumerate(NEW)), "linear")
    assert config.backbone.hidden_dropout_prob == 0.25 and config.backbone.hidden_size == 32
    new = "decode_head.classifier.bias, decode_head.classifier.weight"
    assert found.notes == [f"Missing in the checkpoint, newly initialized: {new}"]
    weights = plain.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in found.model.backbone.state_dict().items())
    assert type(processor) is architectures()["backbone"].image_processor["torchvision"]
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.size.shortest_edge == 80
    assert not processor.do_center_crop


def test_run_starts_from_a_model_with_head(tmp_path):
    bare(tmp_path / "bare")
    backbone_with_head(tmp_path / "bare", id2label=dict(enumerate(NEW))).save_pretrained(tmp_path / "with_head")
    for origin in ({}, {"architecture": "backbone"}):
        found = build_model(recipe({"from_pretrained": str(tmp_path / "with_head")} | origin), NEW)
        assert not [note for note in found.notes if "newly initialized" in note]


def test_other_channel_counts_adapt_the_first_convolution(tmp_path):
    plain = bare(tmp_path)
    origin = {"architecture": "backbone", "from_pretrained": str(tmp_path)}
    found = build_model(recipe(origin, processor={"image_mean": [0.5] * 4, "image_std": [0.5] * 4}), NEW, channels=4)
    kernel = found.model.backbone.embeddings.patch_embeddings.projection.weight
    trained = plain.embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(kernel, trained[:, [0, 1, 2, 0]] * 3 / 4)
    assert any("adapted to 4 input channels" in note for note in found.notes)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({}, r"no AutoModelForSemanticSegmentation for 'dinov2'.*model.architecture backbone"),
        ({"architecture": "vit"}, r"vit cannot load the backbone of another.*backbone"),
        ({"architecture": "backbone", "variant": "tiny"}, r"either architecture and variant \(from scratch\) or"),
        ({"architecture": "backbone", "fields": {"decode_head": "all_mlp"}}, r"maps of several strides"),
        ({"architecture": "backbone", "fields": {"backbone_config": {"dropout": 1}}}, r"backbone_config\.dropout"),
    ],
)
def test_invalid_recipes_raise(model, reason, tmp_path):
    bare(tmp_path)
    with pytest.raises(RecordError, match=reason):
        build_model(recipe({"from_pretrained": str(tmp_path)} | model), NEW)


def test_run_directory_is_self_contained(tmp_path):
    plain = bare(tmp_path / "bare").state_dict()
    origin = {"architecture": "backbone", "from_pretrained": str(tmp_path / "bare"), "freeze": [r"^backbone\."]}
    wanted = tiny_runs.settings(tiny_runs.write_data(tmp_path), model=origin)
    tiny_runs.run(tiny_runs.write_recipe(tmp_path, wanted), tmp_path / "run")
    shutil.rmtree(tmp_path / "bare")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "last")
    assert all(torch.equal(tensor, plain[key]) for key, tensor in loaded.backbone.state_dict().items())
    losses = [loss for _, loss in tiny_runs.log(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert logits(loaded).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
@pytest.mark.parametrize("saved_by", ["timm", "transformers"])
def test_timm_weights_and_statistics_are_loaded(name, saved_by, tmp_path):
    timm = pytest.importorskip("timm")
    plain = randomize_weights(timm.create_model(name, num_classes=3)).eval()
    timm.models.save_for_hf(plain, tmp_path / "bare", safe_serialization=True)
    model = backbone_with_head(tmp_path / "bare")
    if saved_by == "transformers":
        model.backbone.save_pretrained(tmp_path / "again")
        model = backbone_with_head(tmp_path / "again")
    model.save_pretrained(tmp_path / "with_head")
    stored = AutoConfig.from_pretrained(tmp_path / "with_head").backbone
    assert (stored.backbone, stored.out_features) == (name, model.config.backbone.out_features)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "with_head")
    with torch.no_grad():
        expected = plain.forward_intermediates(IMAGES, indices=4, intermediates_only=True)
        maps = [m.backbone(IMAGES).feature_maps for m in (model, loaded)]
        for one, other, again in zip(*maps, expected, strict=True):
            torch.testing.assert_close(one, again)
            torch.testing.assert_close(other, again)
        torch.testing.assert_close(loaded(IMAGES).logits, model(IMAGES).logits)
    assert model.head_name == "all_mlp" and not model.supports_gradient_checkpointing


@pytest.mark.parametrize(
    ("name", "head"), [("vit_tiny_patch16_224", "feature_pyramid"), ("swin_tiny_patch4_window7_224", "all_mlp")]
)
def test_timm_transformers_accept_any_image_size(name, head, tmp_path):
    timm = pytest.importorskip("timm")
    plain = timm.create_model(name, dynamic_img_size=True).eval()
    timm.models.save_for_hf(plain, tmp_path / "bare", safe_serialization=True)
    model = backbone_with_head(tmp_path / "bare")
    assert model.head_name == head
    model.backbone.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "with_head")
    again, loaded = (
        backbone_with_head(tmp_path / "again"),
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "with_head"),
    )
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = plain.forward_intermediates(pixel_values, indices=4, intermediates_only=True)
        for one in (model, again, loaded):
            maps = one.backbone(pixel_values).feature_maps
            for ours, theirs in zip(maps, expected, strict=True):
                ours = ours.permute(0, 3, 1, 2) if one.has_channels_last_maps else ours
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        for size in ((224, 224), (61, 45)):
            grid = tuple(-(-side // 4) for side in size)
            assert loaded(torch.randn(1, 3, *size)).logits.shape[-2:] == grid


def test_timm_backbones_are_built_from_a_config():
    pytest.importorskip("timm")
    config = BackboneSegmentationConfig(backbone_config=TimmBackboneConfig(backbone="resnet18"), num_channels=2)
    model = BackboneForSemanticSegmentation(config)
    assert model.token == (32, 32) and logits(model, torch.randn(1, 2, 61, 45)).shape[-2:] == (16, 12)
