"""Low-rank adapters train, are saved merged or separately, and load as trained."""

import json
import logging

import pytest
import torch
from random_weights import randomize_weights
from torch import nn
from training_models import FIELDS, IMAGES, NEW, OLD, SEGMENTERS, logits, recipe, save, train_steps
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.loading.models import load_model
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.model import adapters
from hf_vit_seg.training.model.adapters import merge_adapters, save_model
from hf_vit_seg.training.model.building import build_model, prepare_for_training
from hf_vit_seg.training.model.parameter_names import encoder_layers, plain_name
from hf_vit_seg.training.optimization.ema import WeightAverage
from hf_vit_seg.training.optimization.parameter_groups import parameter_groups
from hf_vit_seg.training.recipe.schema import EmaRecipe, OptimizerRecipe

peft = pytest.importorskip("peft")


def build_pair(folder, name, **lora):
    """A pretrained tiny model, and the same with adapters and other classes."""
    save(folder, name, **FIELDS.get(name, {}))
    wanted = recipe({"from_pretrained": str(folder), "lora": {"rank": 4, **lora}})
    return build_model(wanted, NEW).model, wanted.model


def train_adapted(folder, name, steps=3, **lora):
    model, wanted = build_pair(folder, name, **lora)
    return train_steps(prepare_for_training(model, wanted), steps).eval()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_new_adapters_do_not_change_the_output(name, tmp_path):
    model, wanted = build_pair(tmp_path, name)
    expected = logits(model)
    torch.testing.assert_close(logits(prepare_for_training(model, wanted)), expected)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_exactly_the_encoder_linear_layers_have_adapters(name, tmp_path):
    model, wanted = build_pair(tmp_path, name)
    linears = {
        f"{layer}.{path}": type(module)
        for layer in encoder_layers(model)
        for path, module in model.get_submodule(layer).named_modules()
        if isinstance(module, nn.Linear)
    }
    plain = prepare_for_training(model, wanted).get_base_model()
    found = {
        path: type(module.base_layer)
        for path, module in plain.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    assert found == linears


@pytest.mark.parametrize("name", SEGMENTERS)
def test_encoder_is_frozen_and_head_is_trained(name, tmp_path):
    model, wanted = build_pair(tmp_path, name)
    prefix = f"{model.base_model_prefix}."
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    prepared = train_steps(prepare_for_training(model, wanted))
    for path, parameter in prepared.named_parameters():
        assert parameter.requires_grad == (not plain_name(path).startswith(prefix) or ".lora_" in path), path
    state = {plain_name(key): tensor for key, tensor in prepared.state_dict().items() if ".lora_" not in key}
    changed = {key for key, tensor in state.items() if not torch.equal(tensor, before[key])}
    assert not [key for key in changed if key.startswith(prefix)]
    assert [key for key in changed if key.endswith("running_mean")]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_saved_model_equals_the_trained_model(name, merge, tmp_path):
    model = train_adapted(tmp_path / "base", name)
    expected = logits(model)
    save_model(model, tmp_path / "saved", merge=merge)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    statistics = {plain_name(key): t for key, t in loaded.state_dict().items() if "running_" in key}
    trained = model.get_base_model().state_dict()
    assert statistics and all(torch.equal(tensor, trained[key]) for key, tensor in statistics.items())
    assert loaded.config.id2label == dict(enumerate(NEW))


def peft_model(auto_class, base, saved):
    """The pretrained model that `saved` names, in the trained shape, with peft's adapters and nothing else."""
    named = json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"]
    config = AutoConfig.from_pretrained(saved)
    plain = auto_class.from_pretrained(base.parent / named, config=config, ignore_mismatched_sizes=True)
    return peft.PeftModel.from_pretrained(plain, saved)


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_adapters_with_peft_alone_equal_the_trained_model(name, channels, tmp_path):
    """The head, its BatchNorm statistics and a stem for other channels are part of the adapters."""
    save(tmp_path / "base", name, **FIELDS.get(name, {}))
    wanted = recipe(
        {"from_pretrained": str(tmp_path / "base"), "lora": {"rank": 4}},
        processor={"image_mean": [0.5] * channels, "image_std": [0.5] * channels},
    )
    images = torch.randn(2, channels, 64, 64)
    model = prepare_for_training(build_model(wanted, NEW, channels=channels).model, wanted.model)
    train_steps(model, images=images)
    expected = logits(model, images)
    save_model(model, tmp_path / "saved", merge=False)
    torch.testing.assert_close(logits(model, images), expected, rtol=0, atol=0)
    (tmp_path / "saved" / "model.safetensors").unlink()
    loaded = peft_model(AutoModelForSemanticSegmentation, tmp_path / "base", tmp_path / "saved")
    torch.testing.assert_close(logits(loaded, images), expected, rtol=1e-5, atol=1e-6)


def test_path_of_a_private_pretrained_model_is_reported(tmp_path, monkeypatch):
    """A path below the working directory is kept; another one is shortened, which is said with the whole path."""
    reports = []
    monkeypatch.setattr(adapters.logger, "warning_once", lambda text, *values: reports.append(text % values))
    model = train_adapted(tmp_path / "base", "vit")
    for directory, name in ((tmp_path, "base"), (tmp_path / "elsewhere", "./base")):
        directory.mkdir(exist_ok=True)
        monkeypatch.chdir(directory)
        save_model(model, tmp_path / "saved", merge=False)
        assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    assert len(reports) == 1
    assert str(tmp_path / "base") in reports[0]


def test_pretrained_model_with_other_classes_raises_in_peft(tmp_path):
    """peft names the tensors of the head, instead of computing with the head of the pretrained model."""
    save_model(train_adapted(tmp_path / "base", "vit"), tmp_path / "saved", merge=False)
    plain = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "base")
    with pytest.raises(RuntimeError, match="decode_head"):
        peft.PeftModel.from_pretrained(plain, tmp_path / "saved")


@pytest.mark.parametrize("names", [NEW, OLD])
def test_adapters_are_loaded_without_wrappers(names, tmp_path):
    """For inference, and to train the model on, also for other classes."""
    model = train_adapted(tmp_path / "base", "cvt")
    expected = logits(model)
    save_model(model, tmp_path / "saved", merge=False)
    found = build_model(recipe({"from_pretrained": str(tmp_path / "saved")}), names)
    for loaded in (load_model(str(tmp_path / "saved")), found.model):
        assert type(loaded.decode_head) is type(model.get_base_model().decode_head)
        assert not any("modules_to_save" in key for key in loaded.state_dict())
    torch.testing.assert_close(logits(load_model(str(tmp_path / "saved"))), expected, rtol=1e-4, atol=1e-5)
    assert ("rows of sky, Road" in " ".join(found.notes)) == (names is OLD)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_merged_model_has_no_adapters(name, tmp_path):
    model = train_adapted(tmp_path, name)
    plain = merge_adapters(model)
    fields = FIELDS.get(name, {}) | {"num_labels": len(NEW)}
    expected = AutoModelForSemanticSegmentation.from_config(architectures()[name].variant_config("tiny", **fields))
    assert type(plain) is type(expected) and list(plain.state_dict()) == list(expected.state_dict())
    assert [type(module) for module in plain.modules()] == [type(module) for module in expected.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    randomize_weights(plain)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_adapters_are_saved_in_peft_format(tmp_path):
    save_model(train_adapted(tmp_path / "base", "vit"), tmp_path / "saved", merge=False)
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"]) == ("LORA", 4)
    assert settings["base_model_name_or_path"] == "./base"
    assert (tmp_path / "saved" / "config.json").exists() and not (tmp_path / "saved" / "README.md").exists()


def test_model_without_adapters_is_saved_unchanged(tmp_path):
    model = save(tmp_path / "base")
    assert merge_adapters(model) is model
    save_model(model, tmp_path / "saved", merge=False)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model))


def test_classifier_adapters(tmp_path):
    save(tmp_path / "base", "vit", OLD, "AutoModelForImageClassification", use_distillation_token=True)
    wanted = recipe({"from_pretrained": str(tmp_path / "base"), "lora": {}}, task="classification")
    model = prepare_for_training(build_model(wanted, NEW).model, wanted.model)
    trained = {plain_name(path) for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"classifier.weight", "distillation_classifier.bias"} < trained
    randomize_weights(model)
    save_model(model, tmp_path / "saved", merge=False)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model))
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert set(settings["modules_to_save"]) == {"classifier", "distillation_classifier"}


def test_parameter_groups_of_a_model_with_adapters(tmp_path):
    model, wanted = build_pair(tmp_path, "vit")
    prepared = prepare_for_training(model, wanted)
    groups = parameter_groups(prepared, OptimizerRecipe(learning_rate=1.0, layer_decay=0.5, head_multiplier=3))
    rates = {group["name"]: group["lr"] for group in groups}
    layers = {f"layer {depth}": 0.5 ** (5 - depth) for depth in range(1, 5)}
    assert rates == {**layers, "head": 3, "head, no decay": 3}


def test_ema_adapters_are_merged(tmp_path):
    model, wanted = build_pair(tmp_path, "segformer")
    prepared = prepare_for_training(model, wanted)
    average = WeightAverage(prepared, EmaRecipe(decay=0.5, warmup=False))
    for step in (1, 2, 3):
        train_steps(prepared, 1)
        average.update(step)
    with average.apply(prepared):
        expected = logits(prepared)
        plain = merge_adapters(prepared)
    assert not torch.allclose(logits(prepared), expected)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_adapters_with_gradient_checkpointing(name, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # for caplog
    gradients = []
    for checkpointing in (False, True):
        save(tmp_path, name, **FIELDS.get(name, {}))
        wanted = recipe({"from_pretrained": str(tmp_path), "lora": {}, "gradient_checkpointing": checkpointing})
        torch.manual_seed(0)
        model = prepare_for_training(build_model(wanted, NEW).model, wanted.model)
        model(IMAGES, labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert not caplog.records  # such as that gradients could not flow back through the embeddings


def test_target_modules_can_be_selected(tmp_path):
    model, wanted = build_pair(tmp_path, "vit", target_modules=["q_proj"])
    prepared = prepare_for_training(model, wanted)
    found = [path for path, module in prepared.named_modules() if isinstance(module, peft.tuners.lora.Linear)]
    assert len(found) == 4 and all(path.endswith("q_proj") for path in found)


def test_missing_target_modules_raise(tmp_path):
    model, wanted = build_pair(tmp_path, "vit", target_modules=["query"])
    with pytest.raises(RecordError, match=r"model\.lora\.target_modules: .*query"):
        prepare_for_training(model, wanted)


# Training from a checkpoint with adapters


def build_again(saved, **lora):
    """The model of a recipe that starts from `saved`, prepared for training."""
    settings = recipe({"from_pretrained": str(saved), **({"lora": {"rank": 4, **lora}} if lora else {})})
    return prepare_for_training(build_model(settings, NEW).model, settings.model).eval()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_saved_adapters_are_trained_further(name, tmp_path):
    model = train_adapted(tmp_path / "base", name)
    save_model(model, tmp_path / "saved", merge=False)
    again = build_again(tmp_path / "saved", alpha=32)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    ours, theirs = dict(again.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {key for key in ours if ours[key].requires_grad} == {key for key in theirs if theirs[key].requires_grad}
    save_model(train_steps(again, 1).eval(), tmp_path / "third", merge=False)
    third = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "third")
    torch.testing.assert_close(logits(third), logits(again), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_saved_adapters_are_merged_without_lora(name, tmp_path):
    model = train_adapted(tmp_path / "base", name)
    save_model(model, tmp_path / "saved", merge=False)
    again = build_again(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    assert not any("lora_" in key for key in again.state_dict())
    assert all(parameter.requires_grad for parameter in again.parameters())
    again.save_pretrained(tmp_path / "full")
    assert not (tmp_path / "full" / "adapter_config.json").exists()


@pytest.mark.parametrize("lora", [{"rank": 8}, {"alpha": 16}, {"target_modules": ["q_proj"]}])
def test_adapters_of_other_settings_raise(lora, tmp_path):
    save_model(train_adapted(tmp_path / "base", "vit"), tmp_path / "saved", merge=False)
    with pytest.raises(RecordError, match=r"remove model\.lora to merge"):
        build_again(tmp_path / "saved", **lora)
