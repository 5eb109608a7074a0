"""Norms, frozen parts, gradient checkpointing and the compiler change how a model is trained, not the model."""

import copy

import pytest
import torch
import transformers
from torch import distributed, nn
from training_models import (
    IMAGES,
    LABELS,
    NEW,
    SEGMENTERS,
    logits,
    model_recipe,
    random_model,
    recipe,
    save,
    train_steps,
)
from transformers import AutoModelForSemanticSegmentation

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.model.building import build_model, prepare_for_training
from hf_vit_seg.training.model.freezing import count_parameters, freeze, lock_frozen_norms
from hf_vit_seg.training.model.normalization import convert_sync_batchnorm


def norms(model, kind=nn.BatchNorm2d):
    return [module for module in model.modules() if isinstance(module, kind)]


def without_randomness(model):
    for module in model.modules():
        for rate in ("p", "rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


@pytest.mark.parametrize("name", SEGMENTERS)
def test_group_norm_model_round_trip(name, tmp_path):
    model = random_model(name, norm="group")
    assert norms(model.decode_head, nn.GroupNorm) and not norms(model.decode_head)
    model.save_pretrained(tmp_path)
    loaded, account = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not account["missing_keys"] and not account["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), logits(model))


def test_unreplaced_norms_are_counted():
    found = build_model(recipe({"architecture": "cvt", "norm": "group"}), NEW)
    assert found.notes[1:] == [f"{len(norms(found.model.base_model))} BatchNorms of the encoder are not replaced"]
    assert len(build_model(recipe({"norm": "group"}), NEW).notes) == 1


@pytest.mark.parametrize("name", SEGMENTERS)
def test_group_norm_is_independent_of_the_batch(name):
    alone = []
    for norm in ("group", "batch"):
        model = without_randomness(random_model(name, norm=norm)).train()
        for encoder_norm in norms(model.base_model):
            encoder_norm.eval()
        with torch.no_grad():
            both, first = model(IMAGES).logits, model(IMAGES[:1]).logits
        alone.append(torch.allclose(both[:1], first, rtol=1e-4, atol=1e-4))
    assert alone == [True, False]


def test_group_norm_loads_batch_norm_weights(tmp_path):
    old = save(tmp_path)
    found = build_model(recipe({"from_pretrained": str(tmp_path), "norm": "group"}), NEW)
    assert torch.equal(found.model.decode_head.fuse_norm.weight, old.decode_head.fuse_norm.weight)
    assert "not used by this model: decode_head.fuse_norm.running_mean" in "\n".join(found.notes)


def test_group_norm_raises_for_models_that_cannot_save_it(tmp_path):
    config = transformers.SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, decoder_hidden_size=16)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(RecordError, match="SegformerConfig has no field 'decode_head_norm'"):
        build_model(recipe({"from_pretrained": str(tmp_path), "norm": "group"}), NEW)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_synchronized_norms_are_saved_as_batch_norms(name, tmp_path):
    model = random_model(name)
    expected = logits(copy.deepcopy(model))
    prepared = convert_sync_batchnorm(prepare_for_training(model, model_recipe()))
    assert norms(prepared, nn.SyncBatchNorm) and not norms(prepared)
    torch.testing.assert_close(logits(prepared), expected)
    prepared.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert norms(loaded) and not norms(loaded, nn.SyncBatchNorm)
    torch.testing.assert_close(logits(loaded), expected)


def test_synchronized_checkpointed_layers_count_a_batch_once():
    model = convert_sync_batchnorm(
        prepare_for_training(random_model("cvt"), model_recipe(gradient_checkpointing=True))
    ).train()
    norms = [norm for norm in model.modules() if isinstance(norm, torch.nn.SyncBatchNorm)]
    before = [int(norm.num_batches_tracked) for norm in norms]
    model(torch.randn(2, 3, 64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
    assert norms and [int(norm.num_batches_tracked) for norm in norms] == [count + 1 for count in before]


def test_synchronized_norms_respect_freezing():
    model = convert_sync_batchnorm(
        prepare_for_training(random_model("cvt"), model_recipe(freeze=(r"stages\.0\.",)))
    ).train()
    held = [norm.training for norm in norms(model, nn.SyncBatchNorm)]
    assert held.count(False) == 3 and held.count(True) > 3  # in the layer of the first stage: queries, keys and values


def test_synchronized_norms_raise_for_multiple_cpu_processes(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(RecordError, match=r"needs GPUs.*'group'"):
        convert_sync_batchnorm(random_model("segformer"))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_frozen_layers_and_statistics_stay_bit_identical(name):
    model = random_model(name)
    before = copy.deepcopy(model.state_dict())
    prefix = f"{model.base_model_prefix}."
    prepared = prepare_for_training(model, model_recipe(freeze=(f"^{prefix}",)))
    train_steps(prepared)
    changed = {key for key, tensor in prepared.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and not [key for key in changed if key.startswith(prefix)]
    assert [key for key in changed if key.endswith("classifier.weight")]
    assert [key for key in changed if key.endswith("running_mean")]


def test_copy_of_a_frozen_model_freezes_its_norms():
    model = prepare_for_training(random_model("cvt"), model_recipe(freeze=("^cvt",)))
    copied = copy.deepcopy(model)
    copied.train()
    assert norms(copied.cvt) and not any(norm.training for norm in norms(copied.cvt))
    model.eval()
    copied.decode_head.fuse_norm.train()
    assert copied.decode_head.fuse_norm.training and not model.decode_head.fuse_norm.training


def test_trained_norms_are_not_frozen():
    model = random_model("cvt")
    assert lock_frozen_norms(model) == 0
    freeze(model, (r"stages\.0\.",))
    # In the layer of the first stage: its queries, keys and values.
    assert lock_frozen_norms(model) == 3


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (("^encoder",), r"'\^encoder' matches no parameter; found \['decode_head"),
        (("",), "no trainable parameters remain"),
        (("(",), "not a valid regular expression"),
    ],
)
def test_freezing_nothing_or_everything_raises(patterns, reason):
    with pytest.raises(RecordError, match=reason):
        prepare_for_training(random_model("segformer"), model_recipe(freeze=patterns))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_parameters_are_counted(name):
    """Trainable and frozen ones, and the tensors of each rule, also of those that an earlier rule has frozen."""
    model = random_model(name)
    prefix = f"{model.base_model_prefix}."
    encoder = [parameter for key, parameter in model.named_parameters() if key.startswith(prefix)]
    rules = (f"^{prefix}", r"\.bias$")
    biases = [parameter for key, parameter in model.named_parameters() if key.endswith(".bias")]
    found = count_parameters(prepare_for_training(model, model_recipe(freeze=rules)), rules)
    union = {id(parameter): parameter.numel() for parameter in (*encoder, *biases)}
    assert found.freeze == {rules[0]: len(encoder), rules[1]: len(biases)}
    assert found.frozen == sum(union.values())
    assert found.total == found.trainable + found.frozen == model.num_parameters()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_gradient_checkpointing_keeps_gradients_and_statistics(name):
    results = []
    for checkpointing in (False, True):
        model = without_randomness(random_model(name))
        prepared = prepare_for_training(model, model_recipe(gradient_checkpointing=checkpointing))
        prepared(IMAGES, labels=LABELS).loss.backward()
        gradients = {name: parameter.grad for name, parameter in prepared.named_parameters()}
        statistics = {n: t for n, t in prepared.named_buffers() if t.is_floating_point()}
        results.append(gradients | statistics)
        layers = [m for m in prepared.modules() if getattr(m, "gradient_checkpointing", False)]
        assert bool(layers) == checkpointing
    plain, recomputed = results
    for key, tensor in plain.items():
        torch.testing.assert_close(recomputed[key], tensor, rtol=1e-4, atol=1e-6, msg=key)


def test_models_without_gradient_checkpointing_raise():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config)
    with pytest.raises(RecordError, match="ResNetForImageClassification does not support it"):
        prepare_for_training(model, model_recipe(gradient_checkpointing=True))


def test_compiling_keeps_parameter_names():
    model = random_model("segformer")
    names = list(model.state_dict())
    prepared = prepare_for_training(model, model_recipe(compile=True))
    assert prepared is model and prepared._compiled_call_impl is not None
    assert list(prepared.state_dict()) == names
    assert copy.deepcopy(prepared)._compiled_call_impl is None


def test_adapters_without_pretrained_weights_raise():
    with pytest.raises(RecordError, match="adapters need a pretrained model"):
        prepare_for_training(random_model("segformer"), model_recipe(lora={}))
