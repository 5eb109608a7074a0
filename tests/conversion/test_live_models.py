"""Models of transformers in memory become models of this package, and back, with the same weights and outputs."""

from typing import Any

import pytest
import torch
import transformers
from conversion_references import IMAGE, SIZES, randomize
from hf_vit_seg.conversion.errors import ConversionError, UnsupportedCheckpoint
from hf_vit_seg.conversion.live_models import from_transformers, to_transformers
from torch import nn

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": [64, 96],
    "num_labels": 5,
}
CVT: dict[str, Any] = {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "num_labels": 5}
CLASSES = {
    "SegformerForSemanticSegmentation": transformers.SegformerConfig(**SIZES, num_labels=7),
    "SegformerForImageClassification": transformers.SegformerConfig(**SIZES, num_labels=7),
    "SegformerModel": transformers.SegformerConfig(**SIZES),
    "ViTForImageClassification": transformers.ViTConfig(**VIT, layer_norm_eps=1e-5),
    "ViTModel": transformers.ViTConfig(**VIT),
    "DeiTForImageClassification": transformers.DeiTConfig(**VIT),
    "DeiTForImageClassificationWithTeacher": transformers.DeiTConfig(**VIT),
    "DeiTModel": transformers.DeiTConfig(**VIT),
    "CvtForImageClassification": transformers.CvtConfig(**CVT),
    "CvtModel": transformers.CvtConfig(**CVT),
    "VitPoseForPoseEstimation": transformers.VitPoseConfig(
        backbone_config=transformers.VitPoseBackboneConfig(
            image_size=[64, 96], hidden_size=32, num_hidden_layers=2, num_attention_heads=4
        ),
        num_labels=5,
    ),
}


def build(name: str) -> Any:
    return randomize(getattr(transformers, name)(CLASSES[name])).double()


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(IMAGE)
    return next(found[key] for key in ("logits", "heatmaps", "last_hidden_state") if key in found)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_are_equal(name):
    reference = build(name)
    model = from_transformers(reference)
    assert type(model).__module__.startswith("hf_vit_seg.") and not model.training
    torch.testing.assert_close(output(model), output(reference), rtol=0, atol=1e-10)
    torch.testing.assert_close(output(from_transformers(reference)), output(reference), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in CLASSES if not name.startswith("VitPose")])
def test_round_trip(name):
    reference = build(name)
    back = to_transformers(from_transformers(reference))
    assert type(back) is type(reference)
    weights, expected = (
        {name: tensor for name, tensor in each.state_dict().items() if not name.startswith("pooler.")}  # not converted
        for each in (back, reference)
    )
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    # Matrix products may depend on where tensors lie in memory.
    torch.testing.assert_close(output(back), output(reference), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["SegformerForSemanticSegmentation", "ViTForImageClassification"])
def test_earlier_optimizer_trains_the_converted_model(name):
    reference = build(name).train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    model = from_transformers(reference)
    assert model.training
    assert {id(p) for p in model.parameters()} == {id(p) for p in reference.parameters()}
    before = [parameter.clone() for parameter in model.parameters()]
    model(IMAGE).logits.square().mean().backward()
    optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter, old - 0.1 * parameter.grad, rtol=0, atol=1e-12)


def test_conversion_preserves_frozen_parameters_labels_and_dtype():
    reference = build("SegformerForSemanticSegmentation").bfloat16()
    reference.config.id2label = {k: f"thing {k}" for k in range(7)}
    reference.config.label2id = {f"thing {k}": k for k in range(7)}
    for parameter in reference.segformer.parameters():
        parameter.requires_grad_(False)
    model = from_transformers(reference)
    assert model.dtype == torch.bfloat16
    assert model.config.id2label == reference.config.id2label
    assert not any(parameter.requires_grad for parameter in reference.segformer.parameters())
    assert not any(parameter.requires_grad for parameter in model.segformer.parameters())
    assert all(parameter.requires_grad for parameter in model.decode_head.parameters())


def hooked(model: Any) -> Any:
    model.segformer.register_forward_hook(lambda *_: None)
    return model


def compiled(model: Any) -> Any:
    model.compile()
    return model


def with_adapters(model: Any) -> Any:
    class Lora(nn.Linear):  # as peft's layers
        base_layer, active_adapters = None, ("default",)

    model.decode_head.linear_projections[0].proj = Lora(16, 24)
    return model


def parametrized(model: Any) -> Any:
    nn.utils.parametrizations.weight_norm(model.decode_head.linear_fuse)
    return model


def test_training_modes_of_modules_are_preserved():
    reference = build("SegformerForSemanticSegmentation").train()
    reference.segformer.eval()
    reference.decode_head.batch_norm.eval()
    model = from_transformers(reference)
    assert model.training and model.decode_head.training and model.decode_head.classifier.training
    assert not any(module.training for module in model.segformer.modules())
    assert not model.decode_head.fuse_norm.training
    torch.testing.assert_close(model.segformer(IMAGE)[0], reference.segformer(IMAGE)[0], rtol=0, atol=1e-10)
    assert all(module.training for module in from_transformers(reference.train()).modules())
    assert not any(module.training for module in from_transformers(reference.eval()).modules())


def with_another_forward(model: Any) -> Any:
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    return model


def with_another_module(model: Any) -> Any:
    class Linear(nn.Linear):
        pass

    model.decode_head.linear_projections[0].proj = Linear(16, 24)
    return model


def with_another_activation(model: Any) -> Any:
    parent, name = next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child).__name__ == "GELUActivation"
    )
    setattr(parent, name, nn.ReLU())
    return model


def with_another_epsilon(model: Any) -> Any:
    next(module for module in model.modules() if isinstance(module, nn.LayerNorm)).eps = 1e-3
    return model


def without_data(model: Any) -> Any:
    return model.to("meta")


class OwnModel(transformers.SegformerForSemanticSegmentation):
    """A subclass, which may compute something else."""


CHANGES = [
    *(hooked, compiled, with_adapters, parametrized),
    *(with_another_forward, with_another_module, without_data),
    *(with_another_activation, with_another_epsilon),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_are_rejected(change):
    with pytest.raises(UnsupportedCheckpoint):
        from_transformers(change(build("SegformerForSemanticSegmentation")))


@pytest.mark.parametrize("name", ["ViTForMaskedImageModeling", "DeiTForMaskedImageModeling", "ViTMAEModel"])
def test_models_that_mask_tokens_are_rejected(name):
    kind = name.removesuffix("Model").removesuffix("ForMaskedImageModeling")
    with pytest.raises(UnsupportedCheckpoint):
        from_transformers(getattr(transformers, name)(getattr(transformers, kind + "Config")(**VIT)))


def test_tensors_that_are_not_used_are_named(caplog):
    from_transformers(build("ViTForImageClassification"))
    assert not caplog.messages
    from_transformers(build("ViTModel"))
    assert any("2 tensors" in message for message in caplog.messages)


def test_other_models_are_rejected():
    with pytest.raises(UnsupportedCheckpoint):
        from_transformers(OwnModel(CLASSES["SegformerForSemanticSegmentation"]))
    with pytest.raises(UnsupportedCheckpoint):
        from_transformers(nn.Linear(1, 1))  # pyright: ignore[reportArgumentType]
    config = transformers.ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8)
    with pytest.raises(UnsupportedCheckpoint):
        from_transformers(transformers.ResNetModel(config))


def test_back_conversion_lists_epsilons_that_transformers_ignores(caplog):
    model = from_transformers(build("SegformerForSemanticSegmentation"))
    to_transformers(model)
    assert not caplog.messages
    model.config.layer_norm_eps = 1e-6  # pyright: ignore[reportAttributeAccessIssue]
    to_transformers(model)
    assert any("layer_norm_eps 1e-06" in message for message in caplog.messages)


def test_back_conversion_of_other_models_is_rejected():
    with pytest.raises(ConversionError):
        to_transformers(build("SegformerModel"))
    with pytest.raises(ConversionError, match="Pose"):
        to_transformers(from_transformers(build("VitPoseForPoseEstimation")))
