"""Config fields that are set after construction, by `from_pretrained` or by assignment."""

import pytest
import torch
import transformers
from cases import CASES
from huggingface_hub.errors import StrictDataclassClassValidationError
from random_weights import randomize_weights
from transformers import AutoModelForSemanticSegmentation, ConvNextConfig, Dinov2Config, PreTrainedModel

from hf_vit_seg import architectures
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.loading.models import label_names
from hf_vit_seg.models.configuration_backbone_seg import BackboneSegmentationConfig
from hf_vit_seg.models.configuration_cvt import CvTConfig
from hf_vit_seg.models.modeling_backbone_seg import BackboneForSemanticSegmentation

NAMES = {"0": "road", "1": "tree", "2": "sky"}
BUILT = [(name, auto) for name, architecture in architectures().items() for auto in architecture.models]
SMALL_DINO = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


def build(name: str, auto: str, **settings) -> PreTrainedModel:
    config = architectures()[name].variant_config("tiny", num_labels=3, **settings)
    return randomize_weights(getattr(transformers, auto).from_config(config)).eval()


def images(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, *CASES[name].sizes[0], dtype=dtype)


@pytest.fixture
def dino(tmp_path) -> BackboneForSemanticSegmentation:
    """A model with transformers' DINOv2 as its backbone, saved in `tmp_path`."""
    config = BackboneSegmentationConfig(backbone_config=Dinov2Config(**SMALL_DINO), num_labels=3)
    model = BackboneForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"])
@pytest.mark.parametrize(("name", "auto"), [built for built in BUILT if built[0] != "backbone"])
def test_rates_of_from_pretrained_reach_the_layers(name, auto, rate, tmp_path):
    model = build(name, auto)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, **{rate: 0.25})
    expected = build(name, auto, **{rate: 0.25})
    assert getattr(loaded.config, rate) == getattr(expected.config, rate)
    assert repr(loaded) == repr(expected)


def test_assigned_rate_of_cvt_holds_for_all_stages():
    config = CvTConfig(depths=[1, 1, 2])
    config.drop_path_rate = 0.3
    stages = transformers.AutoModel.from_config(config).stages
    assert [stage.layers[-1].drop_path.rate for stage in stages] == [0.0, 0.0, 0.3]


@pytest.mark.parametrize("name", ["segformer", "vit", "cvt"])
def test_stages_follow_the_depth(name, tmp_path):
    model = build(name, "AutoBackbone")
    model.save_pretrained(tmp_path)
    depth = {"num_hidden_layers": 2} if name == "vit" else {"depths": [1] * len(model.config.depths)}
    loaded = type(model).from_pretrained(tmp_path, **depth)
    assert loaded.config.stage_names == loaded.config.list_stages()
    assert loaded.config.out_features == loaded.config.stage_names[-1:]
    assert len(loaded(images(name)).feature_maps) == 1


def test_selected_stages_that_still_exist_are_preserved(tmp_path):
    model = build("vit", "AutoBackbone", out_features=["stage1", "stage2", "stage4"])
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path, num_hidden_layers=3).config.out_features == ["stage1", "stage2"]


@pytest.mark.parametrize("name", ["segformer", "vit", "cvt"])
def test_override_is_validated(name, tmp_path):
    model = build(name, "AutoModel")
    model.save_pretrained(tmp_path)
    heads = 5 if name == "vit" else [5] * len(model.config.depths)
    with pytest.raises(StrictDataclassClassValidationError, match="num_attention_heads"):
        type(model).from_pretrained(tmp_path, num_attention_heads=heads)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"])
@pytest.mark.parametrize("name", ["segformer", "vit", "cvt"])
def test_rate_outside_of_0_and_1_raises(name, field, rate):
    config = architectures()[name].variant_config("tiny")
    with pytest.raises(StrictDataclassClassValidationError, match=field):
        type(config).from_dict({**config.to_dict(), field: rate})


@pytest.mark.parametrize(
    ("name", "field", "number"),
    [
        ("segformer", "strides", [0, 2, 2, 2]),
        ("segformer", "num_attention_heads", [-1, -1, -1, -1]),
        ("segformer", "layer_norm_eps", -1e-6),
        ("cvt", "kernel_qkv", [-1, 3, 3]),
        ("cvt", "paddings", [2, -1, 1]),
        ("cvt", "layer_norm_eps", float("inf")),
        ("vit", "num_channels", 0),
        ("vit", "image_size", [224, 0]),
        ("vit", "layer_norm_eps", float("nan")),
    ],
)
def test_number_outside_its_range_raises(name, field, number):
    with pytest.raises(StrictDataclassClassValidationError, match=field):
        architectures()[name].config(**{field: number})


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_string_keys_of_id2label_become_integers(name, auto, tmp_path):
    model = build(name, auto)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, id2label=NAMES)
    assert loaded.config.id2label == {0: "road", 1: "tree", 2: "sky"}
    model.config.id2label = NAMES
    assert model.config.id2label == {0: "road", 1: "tree", 2: "sky"}


def test_names_of_other_models_with_string_keys():
    config = transformers.SegformerConfig(num_labels=12)
    config.id2label = {str(index): f"name {index}" for index in range(11)}
    config.id2label["11"] = "last"
    assert label_names(config) == [*(f"name {index}" for index in range(11)), "last"]


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_return_dict_of_the_config(name, auto):
    model, pixel_values = build(name, auto), images(name)
    with torch.no_grad():
        expected = model(pixel_values).to_tuple()
        model.config.return_dict = False
        found = model(pixel_values)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found, expected)
    assert model(pixel_values, return_dict=True).keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_float_images_are_cast_to_the_type_of_the_weights(name, auto, dtype):
    model, pixel_values = build(name, auto).to(dtype), images(name)
    with torch.no_grad():
        found, expected = model(pixel_values).to_tuple(), model(pixel_values.to(dtype)).to_tuple()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_integer_images_raise():
    with pytest.raises(RuntimeError, match="type"):
        build("segformer", "AutoModel")(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(("field", "count"), [("output_hidden_states", 5), ("output_attentions", 4)])
def test_backbone_model_records_what_its_config_says(dino, field, count, tmp_path):
    options = {field: True, "attn_implementation": "eager"}
    output = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, **options)(torch.randn(1, 3, 56, 56))
    assert len(output[field.removeprefix("output_")]) == count
    assert field.removeprefix("output_") not in dino(torch.randn(1, 3, 56, 56))


def test_backbone_image_size_matches_the_backbone(dino):
    dino.config.image_size = 112
    assert dino.config.backbone.image_size == dino.config.image_size == 112


def test_image_size_of_a_backbone_without_it_raises():
    config = BackboneSegmentationConfig(backbone_config={"model_type": "resnet", "depths": [1, 1, 1, 1]})
    with pytest.raises(HfVitSegError, match="image_size"):
        config.image_size = 112


def test_levels_of_from_pretrained_reach_the_backbone(tmp_path):
    convnext = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    BackboneForSemanticSegmentation(BackboneSegmentationConfig(backbone_config=convnext)).save_pretrained(tmp_path)
    levels = {"decode_head_levels": [1, 2, 4]}
    config = transformers.AutoConfig.from_pretrained(tmp_path, **levels)
    assert config.backbone.out_indices == [1, 2, 4]
