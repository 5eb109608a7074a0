"""Every trained parameter is in one group, with the learning rate and weight decay of the first matching row."""

import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_models import model_recipe

from hf_vit_seg import architectures
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.model.building import prepare_for_training
from hf_vit_seg.training.model.parameter_names import encoder_layers, encoder_prefix
from hf_vit_seg.training.optimization.parameter_groups import build_optimizer, parameter_groups
from hf_vit_seg.training.recipe.schema import OptimizerRecipe

BUILT = [(name, auto) for name, architecture in architectures().items() for auto in architecture.models]
VARIANTS = {"vit": ("tiny", "tiny-hybrid")}
EVERYTHING = {
    "use_distillation_token": True,
    "num_register_tokens": 2,
    "decode_head": "mask_transformer",
    "layer_scale_init_value": 0.1,
}


def build(name, auto="AutoModelForSemanticSegmentation", variant="tiny", **fields):
    if name == "vit" and "Universal" in auto:
        fields = {"num_query_blocks": 1} | fields
    config = architectures()[name].variant_config(variant, num_labels=5, **fields)
    return getattr(transformers, auto).from_config(config)


def recipe(**fields) -> OptimizerRecipe:
    return read_record(OptimizerRecipe, {"learning_rate": 1.0, "weight_decay": 0.5} | fields)


def settings_of(model, groups, field):
    """A group field by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group[field] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_every_parameter_is_in_one_group(name, auto, layer_decay):
    for variant in VARIANTS.get(name, ("tiny",)):
        model = build(name, auto, variant)
        groups = parameter_groups(model, recipe(layer_decay=layer_decay))
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == {id(parameter) for parameter in model.parameters()}
        assert len({group["name"] for group in groups}) == len(groups)


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_weight_decay_applies_to_matrices_and_kernels_only(name, auto):
    model = build(name, auto, **(EVERYTHING if (name, auto) == ("vit", "AutoModelForSemanticSegmentation") else {}))
    matrices = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    decays = settings_of(model, parameter_groups(model, recipe()), "weight_decay")
    assert {parameter for parameter, decay in decays.items() if decay} == matrices
    assert set(decays.values()) <= {0, 0.5}


def test_layer_decay_matches_beit():
    """microsoft/unilm, beit/optim_factory.py: get_num_layer_for_vit and LayerDecayValueAssigner."""
    model = build("vit")
    rates = settings_of(model, parameter_groups(model, recipe(layer_decay=0.5, head_multiplier=3)), "lr")
    layers = model.config.num_hidden_layers
    for name, rate in rates.items():
        number = re.match(r"vit\.layers\.(\d+)\.", name)
        if name.startswith("vit.embeddings."):
            assert rate == 0.5 ** (layers + 1)
        elif number:
            assert rate == 0.5 ** (layers - int(number[1]))
        else:
            assert rate == (3 if name.startswith("decode_head.") else 1), name


@pytest.mark.parametrize("name", architectures())
def test_learning_rates_increase_from_stem_to_head(name):
    model = build(name)
    rates = [*settings_of(model, parameter_groups(model, recipe(layer_decay=0.8)), "lr").items()]
    rates.sort(key=lambda entry: [n for n, _ in model.named_parameters()].index(entry[0]))
    numbers = [rate for _, rate in rates]
    assert numbers == sorted(numbers)
    assert numbers[0] == pytest.approx(0.8 ** (len(encoder_layers(model)) + 1))
    assert numbers[-1] == 1


def test_layers_between_stages_have_the_depth_of_the_previous_layer():
    model = build("segformer")  # 1, 2, 1 and 1 layers
    rates = settings_of(model, parameter_groups(model, recipe(layer_decay=0.5)), "lr")
    assert rates["segformer.stages.0.patch_embeddings.projection.weight"] == 0.5**6
    assert rates["segformer.stages.0.layers.0.mlp.fc1.weight"] == 0.5**5
    assert rates["segformer.stages.1.patch_embeddings.projection.weight"] == 0.5**5
    assert rates["segformer.stages.1.layers.1.mlp.fc1.weight"] == 0.5**3
    assert rates["segformer.stages.3.layers.0.mlp.fc1.weight"] == 0.5
    assert rates["segformer.stages.3.norm.weight"] == 1


def test_head_layers_are_not_encoder_layers():
    model = build("vit", decode_head="mask_transformer")
    assert encoder_layers(model) == [f"vit.layers.{i}" for i in range(4)]
    rates = settings_of(model, parameter_groups(model, recipe(layer_decay=0.5)), "lr")
    assert {rate for name, rate in rates.items() if name.startswith("decode_head.")} == {1}


def test_recipe_rows_take_precedence():
    model = build("segformer")
    rows = [
        {"match": r"classifier\.weight$", "learning_rate_scale": 7.0, "weight_decay": 0.25},
        {"match": r"^decode_head\.", "learning_rate_scale": 5.0},
        {"match": r"norm", "weight_decay": 0.125},
    ]
    groups = parameter_groups(model, recipe(groups=rows, head_multiplier=10, layer_decay=0.5))
    rates, decays = (settings_of(model, groups, field) for field in ("lr", "weight_decay"))
    assert (rates["decode_head.classifier.weight"], decays["decode_head.classifier.weight"]) == (7, 0.25)
    assert (rates["decode_head.classifier.bias"], decays["decode_head.classifier.bias"]) == (5, 0)
    assert (rates["decode_head.fuse_norm.weight"], decays["decode_head.fuse_norm.weight"]) == (5, 0.125)
    assert rates["segformer.stages.3.layers.0.mlp.fc1.weight"] == 0.5


def test_frozen_parameters_are_in_no_group():
    model = prepare_for_training(build("cvt"), model_recipe(freeze=(r"^cvt\.stages\.[01]\.",)))
    names = set(settings_of(model, parameter_groups(model, recipe()), "lr"))
    assert names == {name for name, _ in model.named_parameters() if not re.match(r"cvt\.stages\.[01]\.", name)}


@settings(max_examples=20)
@given(st.sets(st.sampled_from(["bias", "norm", "stages.1", "decode_head", "fc", "classifier"])))
def test_freezing_only_removes_parameters(parts):
    model = build("segformer")
    whole = settings_of(model, parameter_groups(model, recipe(layer_decay=0.9)), "lr")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    rest = settings_of(model, parameter_groups(model, recipe(layer_decay=0.9)), "lr")
    assert rest == {name: rate for name, rate in whole.items() if not any(part in name for part in parts)}


class Strange(transformers.ResNetForImageClassification):
    """A third-party model with an unknown parameter name."""

    def __init__(self, config):
        super().__init__(config)
        self.oddity = nn.Parameter(torch.zeros(2, 2))


def resnet(kind=transformers.ResNetForImageClassification):
    return kind(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))


def test_unmatched_parameter_raises_with_a_suggestion():
    with pytest.raises(RecordError, match=r"weight decay of oddity with shape \(2, 2\)") as error:
        parameter_groups(resnet(Strange), recipe())
    row = re.search(r"match: '(.*)', weight_decay: 0}", str(error.value))
    assert parameter_groups(resnet(Strange), recipe(groups=[{"match": row[1], "weight_decay": 0}]))


@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        (resnet, {"layer_decay": 0.9}, "found no layers"),
        (lambda: build("segformer", "AutoModel"), {"head_multiplier": 10}, "this model has no head"),
        (resnet, {"groups": [{"match": "decoder_head"}]}, r"groups\.0: 'decoder_head' matches no parameter"),
        (resnet, {"groups": [{"match": "("}]}, "is not a valid regular expression"),
        (resnet, {"groups": [{"mach": "head"}]}, r"groups\.0\.mach is not a known setting; did you mean 'match'"),
        (lambda: resnet().requires_grad_(False), {}, "all parameters are frozen"),
    ],
)
def test_invalid_groups_raise(model, fields, reason):
    with pytest.raises(RecordError, match=reason):
        parameter_groups(model(), recipe(**fields))


def test_backbone_is_the_encoder():
    backbone = transformers.ConvNextConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, out_features=[f"stage{i}" for i in range(1, 5)]
    )
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_in_channels=8)
    model = transformers.UperNetForSemanticSegmentation(config)
    assert encoder_prefix(model) == "backbone."
    rates = settings_of(model, parameter_groups(model, recipe(head_multiplier=4)), "lr")
    assert all(rate == (1 if name.startswith("backbone.") else 4) for name, rate in rates.items())


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizers_use_their_settings(name, kind):
    model = build("segformer")
    optimizer = build_optimizer(model, recipe(name=name, betas=(0.8, 0.9), momentum=0.7, layer_decay=0.9))
    assert type(optimizer) is kind
    assert optimizer.defaults["betas" if name == "adamw" else "momentum"] == ((0.8, 0.9) if name == "adamw" else 0.7)
    before = [parameter.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    again = build_optimizer(model, recipe(name=name, layer_decay=0.9))
    again.load_state_dict(optimizer.state_dict())
    assert [g["name"] for g in again.param_groups] == [g["name"] for g in optimizer.param_groups]
