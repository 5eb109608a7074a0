"""Quantization by torch and torchao, which find linear layers by their type or replace their weights."""

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

from hf_vit_seg import architectures

# Every kind of head with linear layers.
MODELS = {
    "segformer": ("segformer", {}),
    "segformer-mmseg": ("segformer", {"decode_head_flavor": "mmseg"}),
    "cvt": ("cvt", {}),
    "vit-linear": ("vit", {}),
    "vit-pyramid": ("vit", {"decode_head": "feature_pyramid"}),
    "vit-mask": ("vit", {"decode_head": "mask_transformer"}),
    "backbone": ("backbone", {}),
}
# Standard deviation of the error, in standard deviations of the logits. The mask transformer's last norm amplifies: it
# divides by the standard deviation of the classes, whose untrained tokens are nearly equal.
TOLERANCES = dict.fromkeys(MODELS, 0.03) | {"vit-mask": 0.1}


def build(name: str) -> tuple[transformers.PreTrainedModel, torch.Tensor, torch.Tensor]:
    """A model, an image and its logits."""
    architecture, settings = MODELS[name]
    config = architectures()[architecture].variant_config("tiny", num_labels=4, **settings)
    model = transformers.AutoModelForSemanticSegmentation.from_config(config).eval()
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        return model, pixel_values, model(pixel_values).logits


def error(model: nn.Module, pixel_values: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(pixel_values).logits - expected).std() / expected.std())


@pytest.mark.parametrize("name", MODELS)
def test_dynamic_quantization_replaces_every_linear_layer(name):
    model, pixel_values, expected = build(name)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Linear)]
    assert kinds and set(kinds) == {nn.Linear}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    replaced = [module for module in quantized.modules() if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(replaced) == len(kinds)
    assert 0 < error(quantized, pixel_values, expected) < TOLERANCES[name]


@pytest.mark.parametrize("scheme", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("name", MODELS)
def test_torchao_quantizes_every_linear_layer(name, scheme):
    quantization = pytest.importorskip("torchao.quantization")
    model, pixel_values, expected = build(name)
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, getattr(quantization, scheme)())
    weights = [module.weight for module in quantized.modules() if isinstance(module, nn.Linear)]
    assert not any(type(weight) is nn.Parameter for weight in weights)
    assert 0 < error(quantized, pixel_values, expected) < TOLERANCES[name]


@pytest.mark.parametrize("name", MODELS)
def test_torchao_weights_are_used_as_they_are(name):
    """Weights in 8 bits give the logits of the same numbers in float32."""
    quantization = pytest.importorskip("torchao.quantization")
    model, pixel_values, _ = build(name)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.dequantize())
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, plain(pixel_values).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["segformer", "cvt", "vit-pyramid"])
def test_torchao_config_of_from_pretrained(name, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    model, pixel_values, expected = build(name)
    model.save_pretrained(tmp_path)
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    loaded = type(model).from_pretrained(tmp_path, quantization_config=config)
    assert 0 < error(loaded, pixel_values, expected) < TOLERANCES[name]


def test_replaced_forward_and_hooks_are_called():
    model, pixel_values, _ = build("segformer")
    layer, calls = model.segformer.stages[0].layers[0].mlp.fc1, []
    plain = layer.forward
    handle = layer.register_forward_hook(lambda *_: calls.append("hook"))
    with torch.no_grad():
        model(pixel_values)
    assert calls == ["hook"]
    handle.remove()
    layer.forward = lambda tokens: calls.append("forward") or plain(tokens)
    with torch.no_grad():
        model(pixel_values)
    assert calls[1:] and set(calls[1:]) == {"forward"}
