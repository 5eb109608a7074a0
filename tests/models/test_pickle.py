"""Models can be pickled before and after a forward that records hidden states, and loaded in another process."""

import copy
import io
import subprocess
import sys

import pytest
import torch
import transformers
from cases import CASES
from random_weights import randomize_weights
from transformers import Dinov2Config

from hf_vit_seg import architectures
from hf_vit_seg.models.configuration_backbone_seg import BackboneSegmentationConfig
from hf_vit_seg.models.modeling_backbone_seg import BackboneForSemanticSegmentation

BUILT = [(name, auto) for name, architecture in architectures().items() for auto in architecture.models]
LOADER = """
import sys, torch
model, pixel_values, expected = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    outputs = model(pixel_values, output_hidden_states=True)
torch.testing.assert_close(outputs.to_tuple(), expected)
"""


def build(name: str, auto: str) -> tuple[transformers.PreTrainedModel, torch.Tensor]:
    config = architectures()[name].variant_config("tiny", num_labels=3)
    model = randomize_weights(getattr(transformers, auto).from_config(config)).eval()
    return model, torch.randn(1, 3, *CASES[name].sizes[0])


def dino() -> tuple[transformers.PreTrainedModel, torch.Tensor]:
    backbone = Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    config = BackboneSegmentationConfig(backbone_config=backbone, num_labels=3)
    return BackboneForSemanticSegmentation(config).eval(), torch.randn(1, 3, 56, 56)


def count_hooks(model: torch.nn.Module) -> list[int]:
    return [len(module._forward_hooks) for module in model.modules()]


@torch.no_grad()
@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_pickled_models_record_hidden_states(name, auto):
    model, pixel_values = build(name, auto)
    expected = model(pixel_values, output_hidden_states=True)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (torch.load(buffer, weights_only=False), copy.deepcopy(model)):
        found = other(pixel_values, output_hidden_states=True)
        assert found.hidden_states is not None
        torch.testing.assert_close(found.to_tuple(), expected.to_tuple())
        assert count_hooks(other) == count_hooks(model)
    repeated = model(pixel_values, output_hidden_states=True)
    torch.testing.assert_close(repeated.to_tuple(), expected.to_tuple())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["segformer", "dinov2"])
def test_model_loads_in_another_process(kind, tmp_path):
    model, pixel_values = dino() if kind == "dinov2" else build(kind, "AutoModelForSemanticSegmentation")
    expected = model(pixel_values, output_hidden_states=True).to_tuple()
    torch.save((model, pixel_values, expected), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", LOADER, str(tmp_path / "model.pt")], check=True)


def test_copies_keep_shared_parameters_and_own_hooks():
    model, pixel_values = build("vit", "AutoModel")
    model.layers[1].norm1.weight = model.layers[0].norm1.weight
    calls = []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    other = copy.deepcopy(model)
    assert other.layers[1].norm1.weight is other.layers[0].norm1.weight is not model.layers[0].norm1.weight
    other(pixel_values)
    assert calls == [1]
