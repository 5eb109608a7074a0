"""Small reference models for the conversion tests, with all parameters and buffers random, and comparisons."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import transformers
from hf_vit_seg.conversion.convert import ConversionError, convert
from paths import ORACLES
from torch import Tensor, nn

ORACLE = ORACLES / "nvlabs_segformer"
ORACLE_FILE = ORACLE / "segformer.tiny.7cls.pth"
TOLERANCE = 1e-10
SIZES: dict[str, Any] = {
    "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 2, 1, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "decoder_hidden_size": 24,
}
CLASSES = 7
IMAGE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def random_tensor(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A random value for a parameter or buffer, none of them 0, 1 or tiny."""
    if not like.is_floating_point():
        return torch.randint(1, 1000, like.shape, generator=generator)
    noise = torch.randn(like.shape, generator=generator)
    if name.endswith("running_var"):
        return (0.4 * noise).exp()
    if like.ndim <= 1:
        return 1 + 0.25 * noise if name.endswith("weight") else 0.3 * noise
    return noise * like[0].numel() ** -0.5


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with a random float32 state."""
    generator = torch.Generator().manual_seed(seed)
    model.load_state_dict({name: random_tensor(name, t, generator) for name, t in model.state_dict().items()})
    return model.eval()


def transformers_model(head: str, labels: int = CLASSES) -> transformers.PreTrainedModel:
    """A small Segformer of transformers: "SemanticSegmentation", "ImageClassification" or "Model"."""
    name = "SegformerModel" if head == "Model" else f"SegformerFor{head}"
    options: dict[str, Any] = {**SIZES, "num_labels": labels}
    config = transformers.SegformerConfig(**options)
    model = randomize(getattr(transformers, name)(config))
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def smp_model() -> nn.Module:
    """The smallest Segformer of segmentation_models_pytorch."""
    return randomize(smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=24, classes=CLASSES))


def smp_quarter_logits(model: smp.Segformer, image: Tensor) -> Tensor:
    """Its logits before upsampling."""
    return model.segmentation_head[0](model.decoder(model.encoder(image)))


def nvlabs_state() -> dict[str, Tensor]:
    return torch.load(ORACLE_FILE, weights_only=True)["state_dict"]


def load_converted(auto: Any, folder: Path) -> Any:
    """A converted model in float64, without missing or unexpected keys."""
    model, info = auto.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not any(info[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def largest_difference(model: Any, image: Tensor, expected: Tensor) -> float:
    found = model(image)
    found = found.logits if hasattr(found, "logits") else found.last_hidden_state
    assert found.shape == expected.shape
    assert expected.abs().max() > 0.1
    return (found - expected).abs().max().item()


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_refused(folder: Path, sentence: str, source_file: Path, out: str = "out", **options: Any) -> None:
    """Check that the error is one line with the sentence, and that the folder is unchanged."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConversionError) as error:
        convert(source_file, folder / out, **options)
    assert sentence in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert sorted(folder.rglob("*")) == before
