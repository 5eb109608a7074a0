"""Checks of loaded weights."""

import peft
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_vit_seg.loading.models import is_finite, load
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessorPil
from hf_vit_seg.models.modeling_segformer import SegFormerForSemanticSegmentation

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite_is_found(dtype, value):
    tensor = torch.randn(7, 5).to(dtype)
    assert is_finite(tensor)
    tensor[3, 2] = value
    assert not is_finite(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
        torch.full((2,), torch.finfo(torch.float16).max, dtype=torch.float16),
    ],
)
def test_empty_integer_and_8_bit_tensors_are_finite(tensor):
    assert is_finite(tensor)


def test_8_bit_nan_is_found():
    assert not is_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))


def test_adapters_of_peft_are_loaded_with_their_base(tmp_path):
    """peft saves adapters without config.json and image processor: both come from the base model."""
    base = SegFormerForSemanticSegmentation(SegFormerConfig(hidden_sizes=(8, 16, 20, 32), depths=(1, 1, 1, 1)))
    base.save_pretrained(tmp_path / "base")
    SemanticSegmentationImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "base")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "base")
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)][:3]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linear, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapters")
    loaded, processor = load(tmp_path / "adapters")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, adapted(images).logits, rtol=0, atol=0)
        assert not torch.equal(loaded(images).logits, base.eval()(images).logits)
    assert processor.size["height"] == 64
