"""Checkpoints of other formats are loaded in one line, with the outputs of their own classes."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from conversion_references import randomize, transformers_model
from hf_vit_seg.conversion.convert import convert, export
from hf_vit_seg.conversion.in_memory import convert_pretrained
from hub_server import Refusal
from huggingface_hub import HfApi
from paths import ORACLES
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.pose_estimator import PoseEstimator
from hf_vit_seg.inference.runtimes import find_task
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.loading.errors import ModelError
from hf_vit_seg.loading.models import load, load_pretrained, log_advice, model_task
from hf_vit_seg.models.modeling_segformer import (
    SegFormerForImageClassification,
    SegFormerForSemanticSegmentation,
    SegFormerModel,
)
from hf_vit_seg.models.modeling_vit import (
    VisionTransformerForImageClassification,
    VisionTransformerForSemanticSegmentation,
)

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "num_labels": 5,
}
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def vit(name: str = "ViTForImageClassification", **fields: Any) -> Any:
    config = transformers.DeiTConfig if name.startswith("DeiT") else transformers.ViTConfig
    return randomize(getattr(transformers, name)(config(**SMALL | fields)))


@pytest.fixture(scope="module")
def segformer(tmp_path_factory) -> Path:
    """A directory of transformers with processor and card."""
    folder = tmp_path_factory.mktemp("segformer")
    model = transformers_model("SemanticSegmentation")
    model.config.id2label = {k: f"thing {k}" for k in range(7)}
    model.save_pretrained(folder)
    size = {"height": 48, "width": 64}
    transformers.SegformerImageProcessor(size=size, do_reduce_labels=False).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets: [owner/data]\n---\n# A model\n")
    return folder


def save_timm(model: Any, folder: Path, **fields: Any) -> None:
    """A directory in the layout of a timm repository."""
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.8, "interpolation": "bicubic"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 4, "pretrained_cfg": cfg | fields}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"]
)
def test_vit_of_transformers_keeps_its_numbers(tmp_path, name, epsilon):
    reference = vit(name, layer_norm_eps=epsilon)
    reference.save_pretrained(tmp_path)
    model, processor = load(tmp_path, dtype=torch.float64)
    assert isinstance(model, VisionTransformerForImageClassification) and not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGE).logits, reference.double()(IMAGE).logits, rtol=0, atol=1e-10)
    assert processor is not None and model.config.layer_norm_eps == epsilon


@pytest.mark.parametrize("head", ["SemanticSegmentation", "ImageClassification", "Model"])
def test_segformer_of_transformers(tmp_path, head):
    reference = transformers_model(head)
    reference.save_pretrained(tmp_path)
    model, _ = load(str(tmp_path), dtype="float64")
    assert type(model).__name__ == ("SegFormerModel" if head == "Model" else f"SegFormerFor{head}")
    with torch.no_grad():
        expected, found = reference.double()(IMAGE), model(IMAGE)
    key = "last_hidden_state" if head == "Model" else "logits"
    torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-10)


def test_convert_false_keeps_the_class_of_transformers(segformer):
    model, processor = load(segformer, convert=False)
    assert type(model) is transformers.SegformerForSemanticSegmentation
    assert type(processor).__module__.startswith("transformers.")
    assert type(Segmenter.from_pretrained(str(segformer), convert=False).model) is type(model)


def test_segmenter_has_the_labels_and_label_maps_of_the_source(segformer):
    ours, theirs = (Segmenter.from_pretrained(str(segformer), "cpu", convert=convert) for convert in (True, False))
    assert isinstance(ours.model, SegFormerForSemanticSegmentation)
    assert ours.names == theirs.names == tuple(f"thing {k}" for k in range(7))
    generator = np.random.default_rng(0)
    for height, width in ((40, 60), (64, 48), (100, 31)):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        np.testing.assert_array_equal(ours(image).label_map, theirs(image).label_map)


PROCESSORS: dict[str, dict[str, Any]] = {
    "no type": {"size": 64},
    "no mean": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}},
    "old vit": {"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "image_mean": [0.1] * 3},
    "fast": {"image_processor_type": "ViTImageProcessorFast", "size": [64, 48], "resample": 3},
    "only rescaled": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "deit": {"image_processor_type": "DeiTImageProcessor"},
    "bit": {"image_processor_type": "BitImageProcessor", "size": 80, "crop_size": 64},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": 80, "crop_size": {"height": 64, "width": 48}},
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}},
    "large convnext": {"image_processor_type": "ConvNextImageProcessor"},
    "segformer": {"image_processor_type": "SegformerImageProcessor"},
    "old segformer": {"feature_extractor_type": "SegformerFeatureExtractor", "size": 96, "reduce_labels": True},
    "beit": {"image_processor_type": "BeitImageProcessor"},
    "blip": {"image_processor_type": "BlipImageProcessor"},
    "chinese clip": {"image_processor_type": "ChineseCLIPImageProcessor"},
    "mobilenet v1": {"image_processor_type": "MobileNetV1ImageProcessor"},
    "mobilenet v2": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "owlvit": {"image_processor_type": "OwlViTImageProcessor", "size": 96},
    "pvt": {"image_processor_type": "PvtImageProcessor"},
    # with other steps than ours
    "levit": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 64}},
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True},
    "mobilevit": {"image_processor_type": "MobileViTImageProcessor"},
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.9},
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_match_the_source(tmp_path, kind):
    """Settings that the file leaves out are the defaults of its class in transformers."""
    vit().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    _, ours = load(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "converted")
    saved = transformers.AutoImageProcessor.from_pretrained(tmp_path / "converted")
    generator = np.random.default_rng(0)
    for sides in ((300, 210), (90, 400), (500, 500)):
        image = Image.fromarray(generator.integers(0, 256, (*sides, 3), dtype=np.uint8))
        expected, found, again = (p(image, return_tensors="pt")["pixel_values"] for p in (theirs, ours, saved))
        assert torch.equal(found, expected) and torch.equal(again, expected)


@pytest.mark.parametrize("architecture", ["segformer", "vit"])
@pytest.mark.parametrize("kind", ["bit", "convnext", "levit", "no mean"])
def test_exported_pixels_match_the_source(tmp_path, kind, architecture):
    model = vit() if architecture == "vit" else transformers_model("ImageClassification")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
    convert(tmp_path / "model", tmp_path / "converted")
    export(tmp_path / "converted", tmp_path / "exported", to="transformers")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 210, 3), dtype=np.uint8))
    expected, found = (
        transformers.AutoImageProcessor.from_pretrained(tmp_path / name)(image, return_tensors="pt")["pixel_values"]
        for name in ("model", "exported")
    )
    assert torch.equal(found, expected)


def test_settings_of_a_composite_processor_take_precedence(tmp_path):
    vit().save_pretrained(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert list(load(tmp_path)[1].image_mean) == [0.1, 0.2, 0.3]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5] * 3}))
    assert list(load(tmp_path)[1].image_mean) == [0.1, 0.2, 0.3]


def test_old_name_of_the_label_reduction(tmp_path):
    transformers_model("SemanticSegmentation").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["old segformer"]))
    assert load(tmp_path)[1].do_reduce_labels is True


@pytest.mark.parametrize("name", ["segmentation", "classification"])
def test_features_of_a_model_with_a_head(tmp_path, segformer, name):
    if name == "segmentation":
        folder, encoder = segformer, "SegFormerModel"
    else:
        folder, encoder = tmp_path, "VisionTransformerModel"
        vit().save_pretrained(folder)
    model, _ = load(folder, "features", dtype=torch.float64)
    reference = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    assert type(model).__name__ == encoder
    with torch.no_grad():
        found, expected = model(IMAGE).last_hidden_state, reference(IMAGE).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_note_names_labels_and_unused_tensors(segformer, tmp_path):
    assert "7 classes, from id2label in config.json" in str(load_pretrained(segformer).note)
    vit("ViTModel").save_pretrained(tmp_path)
    converted = convert_pretrained(tmp_path)
    assert converted is not None and len(converted.report.dropped) == 2
    assert f"2 not used ({converted.report.dropped[0][1]}" in str(load_pretrained(tmp_path).note)


def test_timm_repository_with_its_preprocessing(tmp_path):
    reference = randomize(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4, depth=2))
    save_timm(reference, tmp_path, label_names=None)
    loaded = load_pretrained(tmp_path, torch.float64)
    model, processor = loaded.model.eval(), loaded.processor
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGE).logits, reference.double()(IMAGE), rtol=0, atol=1e-10)
    transform = timm.data.create_transform(  # pyright: ignore[reportAttributeAccessIssue]
        input_size=(3, 64, 64), mean=[0.5] * 3, std=[0.25] * 3, crop_pct=0.8, interpolation="bicubic"
    )
    pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    found = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    expected = transform(Image.fromarray(pixels))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.04  # timm rounds after resizing; torchvision's filter is not PIL's
    assert "vit/timm" in str(loaded.note)


@pytest.mark.parametrize("squash", [False, True])
def test_timm_sizes(tmp_path, squash):
    reference = randomize(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4, depth=1))
    save_timm(reference, tmp_path, **({"crop_mode": "squash", "crop_pct": 1.0} if squash else {}))
    _, processor = load(tmp_path)
    size = {name: side for name, side in dict(processor.size).items() if side is not None}
    assert size == ({"height": 64, "width": 64} if squash else {"shortest_edge": 80})
    assert (processor.crop_size.height, processor.crop_size.width) == (64, 64)


# Models of timm with the tensor names of its Vision Transformer that compute something else.
LOOKALIKES = {
    "vit_so150m2_patch16_reg1_gap_256": {"embed_dim": 208},  # positions of register tokens
    "vit_small_patch16_rope_ape_224": {},  # rotary positions, without tensors
    "vit_small_patch16_dinov3": {},
    "vit_base_patch16_rpn_224": {"embed_dim": 192},
    "test_vit": {},  # heads of width 32
    "vit_tiny_patch16_224": {"global_pool": "max"},
    "vit_tiny_patch16_384": {"act_layer": "gelu_tanh"},
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_of_timm_are_not_converted(tmp_path, name):
    reference = timm.create_model(name, depth=1, num_classes=4, **LOOKALIKES[name])
    timm.models.save_for_hf(reference, str(tmp_path), safe_serialization=True)
    assert convert_pretrained(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_little_patch16_reg4_gap_256"]
)
def test_models_that_timm_saves(tmp_path, name):
    reference = randomize(timm.create_model(name, depth=1, num_classes=4))
    timm.models.save_for_hf(reference, str(tmp_path), safe_serialization=True)
    model, processor = load(tmp_path, dtype=torch.float64)
    side = reference.default_cfg["input_size"][1]
    image = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(image).logits, reference.double()(image), rtol=0, atol=1e-10)
    assert processor.crop_size.height == side


def test_heads_of_a_timm_model_are_read(tmp_path):
    reference = randomize(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=4, num_heads=6))
    timm.models.save_for_hf(reference, str(tmp_path), safe_serialization=True)
    assert load(tmp_path)[0].config.num_attention_heads == 6


def test_other_architectures_of_timm_are_loaded_by_transformers(tmp_path):
    reference = timm.create_model("resnet10t", num_classes=4)
    save_file(reference.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"architecture": "resnet10t", "num_classes": 4, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_task(str(tmp_path)) == "classification"
    assert isinstance(load(tmp_path)[0], transformers.TimmWrapperForImageClassification)


def test_arguments_that_timm_gets_twice_are_named(tmp_path):
    reference = timm.create_model("resnet10t", num_classes=4)
    timm.models.save_for_hf(reference, str(tmp_path), safe_serialization=True, model_args={"num_classes": 4})
    with pytest.raises(ModelError, match="model_args"):
        load(tmp_path)


@pytest.mark.parametrize("cfg", [{"input_size": "large"}, {"crop_pct": -1}, {"mean": ["a"]}])
def test_invalid_timm_preprocessing_raises(tmp_path, cfg):
    save_timm(randomize(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)), tmp_path, **cfg)
    with pytest.raises(ModelError):
        load(tmp_path)


FILES = {
    "flax_vit_pure/ViT-tiny_16.npz": ("classification", Classifier),
    "flax_vit_hybrid/R-ViT-tiny_16.npz": ("classification", Classifier),
    "microsoft_cvt/CvT-tiny-64x96.pth": ("classification", Classifier),
    "nvlabs_segformer/segformer.tiny.7cls.pth": ("segmentation", Segmenter),
    "vitpose_classic/vitpose-tiny.pth": ("pose", PoseEstimator),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_authors(name):
    task, kind = FILES[name]
    assert model_task(str(ORACLES / name)) == task
    assert kind.from_pretrained(str(ORACLES / name), "cpu").model.config.num_labels > 1


def test_models_of_this_package_are_not_converted(tmp_path):
    load(ORACLES / "nvlabs_segformer/segformer.tiny.7cls.pth")[0].save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.note is None and loaded.processor is None


def test_other_architectures_are_loaded_by_transformers(tmp_path):
    config = transformers.ConvNextConfig(num_channels=3, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path)
    assert type(load(tmp_path)[0]) is transformers.ConvNextForImageClassification


def test_report_names_assumed_heads(caplog):
    load(ORACLES / "jeonsworld_vit" / "ViT_tiny_checkpoint.bin")
    assert "num_attention_heads 1" in caplog.text
    caplog.clear()
    load(ORACLES / "flax_vit_pure" / "ViT-tiny_16.npz")
    assert caplog.messages and "num_attention_heads" not in caplog.text


def test_unsupported_checkpoints_are_loaded_by_transformers(tmp_path):
    config = transformers.SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)  # 24 channels, 5 heads
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert type(loaded.model) is transformers.SegformerForSemanticSegmentation and loaded.note is None


def test_task_without_a_head_raises(segformer):
    with pytest.raises(ModelError, match="no trained pose head"):
        load(segformer, "pose")
    with pytest.raises(ModelError, match="tasks are segmentation"):
        load(segformer, "dreaming")
    with pytest.raises(TypeError, match="revison"):
        load(segformer, revison="main")


def test_broken_weights_raise(segformer, tmp_path):
    shutil.copytree(segformer, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(ModelError, match="NaN"):
        load(tmp_path / "broken")


def test_broken_weights_in_this_format_raise(segformer, tmp_path):
    model, processor = load(segformer)
    with torch.no_grad():
        model.decode_head.classifier.bias[0] = float("inf")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="infinite"):
        load(tmp_path)


def test_invalid_processor_is_not_reported_as_missing(segformer, tmp_path):
    model, _ = load(segformer)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SemanticSegmentationImageProcessor", "image_std": [0.0] * 3})
    )
    with pytest.raises(ModelError, match="image_std"):
        Segmenter.from_pretrained(str(tmp_path), "cpu")


CONFIGS = {
    "config only": {"model_type": "segformer"},
    "unknown type": {"model_type": "dreamer"},
    "type that is no name": {"model_type": ["segformer"]},
    "no object": [1],
}


@pytest.mark.parametrize("kind", ["nothing", *CONFIGS])
def test_directories_without_a_model_raise(tmp_path, kind):
    if kind in CONFIGS:
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[kind]))
    with pytest.raises(ModelError):
        load(tmp_path)


@pytest.mark.parametrize("place", ["missing", "subfolder"])
def test_paths_that_do_not_exist_raise(tmp_path, place):
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "missing") if place == "missing" else load(tmp_path, subfolder="missing")


# from_pretrained of our classes


def test_from_pretrained_converts(segformer):
    model, info = SegFormerForSemanticSegmentation.from_pretrained(segformer, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    reference = transformers.SegformerForSemanticSegmentation.from_pretrained(segformer).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IMAGE.float()).logits, reference(IMAGE.float()).logits)
    assert isinstance(SegFormerModel.from_pretrained(segformer), SegFormerModel)


def test_from_pretrained_with_the_config_of_a_converted_model(segformer):
    model, _ = load(segformer)
    again = SegFormerForSemanticSegmentation.from_pretrained(segformer, config=model.config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.name_or_path == str(segformer)


def test_from_pretrained_with_another_head(segformer):
    model, info = SegFormerForImageClassification.from_pretrained(segformer, num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert model.config.num_labels == 3
    with pytest.raises(RuntimeError):
        SegFormerForSemanticSegmentation.from_pretrained(segformer, num_labels=3)
    changed = SegFormerForSemanticSegmentation.from_pretrained(segformer, num_labels=3, ignore_mismatched_sizes=True)
    assert changed.decode_head.classifier.weight.shape[0] == 3


def test_from_pretrained_resizes_positions_of_converted_models(tmp_path):
    reference = vit()
    reference.save_pretrained(tmp_path)
    model = VisionTransformerForSemanticSegmentation.from_pretrained(tmp_path, image_size=96)
    assert model.config.image_size == 96 and model.vit.embeddings.position_embeddings.shape[1] == 37
    config = VisionTransformerForSemanticSegmentation.config_class.from_dict(model.config.to_dict())
    again = VisionTransformerForSemanticSegmentation.from_pretrained(tmp_path, config=config)
    assert torch.equal(again.vit.embeddings.position_embeddings, model.vit.embeddings.position_embeddings)


def test_from_pretrained_of_another_architecture_raises(segformer, tmp_path):
    with pytest.raises(ValueError, match="SegFormerConfig"):
        VisionTransformerForSemanticSegmentation.from_pretrained(segformer)
    transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="resnet"):
        SegFormerModel.from_pretrained(tmp_path)


def test_other_weights_with_a_config_of_this_package_raise(segformer, tmp_path):
    SegFormerForSemanticSegmentation.from_pretrained(segformer).config.save_pretrained(tmp_path)
    shutil.copy(segformer / "model.safetensors", tmp_path)
    renamed = {f"x.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="none of the model's"):
        SegFormerForSemanticSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_from_pretrained_with_the_stored_dtype(segformer, tmp_path, option):
    transformers.SegformerForSemanticSegmentation.from_pretrained(segformer, dtype=torch.float16).save_pretrained(
        tmp_path
    )
    model = SegFormerForSemanticSegmentation.from_pretrained(tmp_path, **{option: "auto"})
    assert model.dtype == model.config.dtype == torch.float16
    model = SegFormerForSemanticSegmentation.from_pretrained(tmp_path, **{option: torch.bfloat16})
    assert model.dtype == model.config.dtype == torch.bfloat16


def test_files_of_models_that_are_not_converted(segformer, tmp_path):
    load(segformer)[0].save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    model, _ = load(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    model, _ = load(segformer / "model.safetensors", convert=False)
    assert type(model) is transformers.SegformerForSemanticSegmentation
    with pytest.raises(ValueError, match="directory"):
        SegFormerForSemanticSegmentation.from_pretrained(tmp_path / "model.safetensors")
    torch.save(expected, tmp_path / "pytorch_model.bin")  # transformers reads the other file
    with pytest.raises(ModelError):
        load(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="directory"):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("convert", [True, False])
def test_home_directory_in_paths(segformer, tmp_path, monkeypatch, convert):
    monkeypatch.setenv("HOME", str(segformer.parent))
    load(segformer)[0].save_pretrained(segformer.parent / "own")
    assert load("~/own")[0].config.num_labels == 7
    name = f"~/{segformer.name}"
    assert Segmenter.from_pretrained(name, convert=convert).names[0] == "thing 0"
    assert find_task(name) == "segmentation"


def test_quantized_checkpoints_are_left_to_transformers(tmp_path):
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "absent"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert_pretrained(tmp_path) is None


def test_note_says_that_preprocessing_is_assumed(segformer, tmp_path):
    assert "assumed" not in str(load_pretrained(segformer).note)
    vit().save_pretrained(tmp_path)
    assert "preprocessing assumed" in str(load_pretrained(tmp_path).note)


# The Hub


@pytest.fixture
def on_hub(hub, segformer) -> str:
    name = "nvidia/segformer-tiny"
    api = HfApi()
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=segformer)
    api.upload_file(path_or_fileobj=b"not read", path_in_repo="pytorch_model.bin", repo_id=name)
    return name


def test_hub_model(on_hub, hub):
    loaded = load_pretrained(on_hub)
    assert isinstance(loaded.model, SegFormerForSemanticSegmentation)
    assert "license mit" in str(loaded.note)
    hub.repos.clear()
    offline = load_pretrained(on_hub, local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), offline.model.parameters(), strict=True))


def test_timm_repository_on_the_hub(hub, tmp_path):
    reference = randomize(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4, depth=1))
    save_timm(reference, tmp_path / "saved")
    HfApi().create_repo("timm/vit")
    HfApi().upload_folder(repo_id="timm/vit", folder_path=tmp_path / "saved")
    model, processor = load("timm/vit")
    assert isinstance(model, VisionTransformerForImageClassification)
    assert list(processor.image_std) == [0.25] * 3


def test_repository_with_nothing_but_weights(hub):
    HfApi().create_repo("owner/weights")
    file = ORACLES / "nvlabs_segformer/segformer.tiny.7cls.pth"
    HfApi().upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id="owner/weights")
    assert isinstance(load("owner/weights")[0], SegFormerForSemanticSegmentation)
    hub.repos.clear()
    assert isinstance(load("owner/weights", local_files_only=True)[0], SegFormerForSemanticSegmentation)


@pytest.mark.parametrize("content", [b"[1]", b'{"model_type":', b'{"model_type": 1}'])
def test_invalid_config_on_the_hub_raises(on_hub, content):
    HfApi().upload_file(path_or_fileobj=content, path_in_repo="config.json", repo_id=on_hub)
    with pytest.raises(ModelError, match=r"config\.json"):
        load(on_hub)


def test_gated_model_in_the_cache_is_used(on_hub, hub):
    loaded = load_pretrained(on_hub)

    def refuse(method: str, path: str) -> None:
        raise Refusal(403, "GatedRepo", "Access is restricted")

    hub.fault = refuse
    again = load_pretrained(on_hub)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("status", [401, 403])
def test_cached_model_is_used_when_the_hub_refuses(on_hub, hub, status):
    loaded = load_pretrained(on_hub)

    def refuse(method: str, path: str) -> None:
        raise Refusal(status, "", "later")

    hub.fault = refuse
    again = load_pretrained(on_hub)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), again.model.parameters(), strict=True))


def test_repository_with_only_the_config_cached(on_hub, hub):
    transformers.AutoConfig.from_pretrained(on_hub)
    with pytest.raises(ModelError, match="local cache"):
        load(on_hub, local_files_only=True)


@pytest.mark.parametrize("folder", ["", "inner/"])
def test_address_of_a_file_on_the_hub_is_loaded_with_its_config(on_hub, hub, segformer, folder):
    HfApi().upload_folder(repo_id=on_hub, folder_path=segformer, path_in_repo="inner")
    address = f"{hub.url}/{on_hub}/resolve/main/{folder}model.safetensors"
    loaded = load_pretrained(address)
    assert loaded.model.config.id2label[0] == "thing 0" and loaded.processor.size["width"] == 64
    converted = convert_pretrained(address)
    assert converted is not None and converted.provenance.base_model == (on_hub,)
    hub.repos.clear()
    offline, _ = load(address, local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), offline.parameters(), strict=True))


@pytest.mark.parametrize("path", ["", "/", "/tree/main", "/resolve/main/absent.pth", "/blob/absent/model.safetensors"])
def test_addresses_of_pages_and_of_absent_files_raise(on_hub, hub, path):
    with pytest.raises(ModelError, match=on_hub):
        load(f"{hub.url}/{on_hub}{path}")


def test_license_files_are_copied(segformer, tmp_path):
    shutil.copytree(segformer, tmp_path / "model")
    (tmp_path / "model" / "LICENSE.owner").write_text("Use it.")
    convert(tmp_path / "model", tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE.owner").read_text() == "Use it."


def test_only_one_set_of_weights_is_downloaded(on_hub, tmp_path):
    load(on_hub)
    names = {path.name for path in (tmp_path / "cache").rglob("*") if not path.is_dir()}
    assert "model.safetensors" in names and "pytorch_model.bin" not in names


def test_revision_and_subfolder(on_hub, segformer):
    api = HfApi()
    api.create_branch(on_hub, branch="other")
    api.upload_folder(repo_id=on_hub, folder_path=segformer, path_in_repo="inner", revision="other")
    model, _ = load(on_hub, revision="other", subfolder="inner")
    assert isinstance(model, SegFormerForSemanticSegmentation)
    with pytest.raises(ModelError):
        load(on_hub, subfolder="inner")
    with pytest.raises(ModelError):
        load(on_hub, revision="missing")


def test_from_pretrained_of_a_hub_model(on_hub):
    model = SegFormerForSemanticSegmentation.from_pretrained(on_hub)
    assert model.config.num_labels == 7


def test_repository_with_weights_alone(hub):
    HfApi().create_repo("google/vit-tiny")
    file = ORACLES / "flax_vit_pure" / "ViT-tiny_16.npz"
    HfApi().upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id="google/vit-tiny")
    model, _ = load("google/vit-tiny")
    assert isinstance(model, VisionTransformerForImageClassification)


def test_unreachable_hub_is_asked_once(hub, monkeypatch, tmp_path):
    requests: list[str] = []

    def refuse(method: str, path: str) -> None:
        requests.append(path)
        raise Refusal(404, "RepoNotFound", "nothing here")

    hub.fault = refuse
    with pytest.raises(ModelError):
        find_task("owner/missing")
    assert len(requests) == 1


@pytest.mark.parametrize("case", ["absent", "without weights", "code", "gated", "offline"])
def test_unusable_hub_models_raise(hub, case, segformer, tmp_path):
    name, api = "owner/model", HfApi()
    if case != "absent":
        api.create_repo(name)
        api.upload_file(path_or_fileobj=segformer / "config.json", path_in_repo="config.json", repo_id=name)
    if case == "code":
        content = io.BytesIO()
        torch.save({"a": Harmful(str(tmp_path / "harm"))}, content)
        api.upload_file(path_or_fileobj=content.getvalue(), path_in_repo="pytorch_model.bin", repo_id=name)
    if case == "gated":

        def refuse(method: str, path: str) -> None:
            raise Refusal(403, "GatedRepo", "Access is restricted")

        hub.fault = refuse
    with pytest.raises(ModelError) as error:
        load(name, local_files_only=case == "offline")
    assert "\n" not in str(error.value) and not (tmp_path / "harm").exists()


class Harmful:
    """Its pickle would write a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_advice_for_a_model_of_transformers_is_given_once(segformer, caplog):
    log_advice.cache_clear()
    load(segformer)
    assert not [each for each in caplog.records if "from_transformers" in each.message]
    model, processor = load(segformer, convert=False)
    Segmenter(model, processor)
    Segmenter.from_pretrained(str(segformer), convert=False)
    (record,) = [each for each in caplog.records if "from_transformers" in each.message]
    assert record.message.startswith("SegformerForSemanticSegmentation ")
    log_advice.cache_clear()
