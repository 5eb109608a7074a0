"""Tests specific to CvT: its class token, its convolutions, and the five bugs of CvT in transformers.

The bugs are listed in section 8 of the facts on transformers 5.23.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import randomize_weights
from torch import nn

from hf_vit_seg import architectures
from hf_vit_seg.models.configuration_cvt import CvTConfig
from hf_vit_seg.models.modeling_cvt import (
    CvTForImageClassification,
    CvTForSemanticSegmentation,
    CvTLayer,
    CvTMLP,
    CvTModel,
    DepthwiseProjection,
)

SIZES = {"hidden_sizes": (16, 32, 48), "num_attention_heads": (1, 2, 3), "depths": (1, 2, 2), "num_labels": 5}


def config(**fields) -> CvTConfig:
    return CvTConfig(**(SIZES | fields))


def logits(model: nn.Module, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))).logits


# The five bugs.


@pytest.mark.parametrize("method", ["linear", "avg"])
def test_every_projection_method_works(method):
    """First bug: AttributeError."""
    model = randomize_weights(CvTForImageClassification(config(projection_methods=[method] * 3))).eval()
    assert logits(model).isfinite().all()
    attention = model.cvt.stages[0].layers[0].attention
    tokens, grid = torch.randn(2, 7 * 5, 16), (7, 5)
    keys = attention.project(tokens, grid, attention.k_conv, nn.Identity()).squeeze(1)
    image = tokens.transpose(1, 2).unflatten(2, grid)
    pooled = nn.functional.avg_pool2d(image, 3, 2, 1, ceil_mode=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(keys, pooled if method == "avg" else tokens)
    assert attention.q_conv is None


def test_stochastic_depth_increases_linearly_within_a_stage():
    """Second bug: every layer has the rate for the index of its stage."""
    model = CvTModel(config(depths=(1, 2, 4), drop_path_rate=(0.0, 0.1, 0.3)))
    rates = [[layer.drop_path.rate for layer in stage.layers] for stage in model.stages]
    assert rates == [[0.0], [0.0, 0.1], pytest.approx([0.0, 0.1, 0.2, 0.3])]


def test_dropped_branch_keeps_the_residual_connection():
    """Third bug: the sum is dropped instead of the branch, so the output is zero."""
    layer = randomize_weights(CvTLayer(CvTModel(config()).config, 2, drop_path_rate=1 - 1e-9)).train()
    tokens = torch.randn(2, 1 + 6, 48)
    with torch.no_grad():
        assert torch.equal(layer(tokens, (2, 3)), tokens)


def test_classification_without_class_token_uses_the_mean():
    """Fourth bug: IndexError."""
    model = randomize_weights(CvTForImageClassification(config(use_cls_token=[False] * 3))).eval()
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = model.cvt(pixel_values)
        mean = model.norm(outputs.last_hidden_state.permute(0, 2, 3, 1)).mean(dim=(1, 2))
        torch.testing.assert_close(model(pixel_values).logits, model.classifier(mean))
    assert outputs.cls_token is None


@pytest.mark.parametrize("use", [(True, False, False), (False, True, True), (True, True, True)])
def test_class_token_in_any_stage(use):
    """Fifth bug: RuntimeError, because the token has the width of the last stage."""
    model = randomize_weights(CvTForImageClassification(config(use_cls_token=use))).eval()
    widths = [None if stage.cls_token is None else stage.cls_token.shape[-1] for stage in model.cvt.stages]
    assert widths == [width if used else None for width, used in zip((16, 32, 48), use, strict=True)]
    assert logits(model).isfinite().all()


# Other tests.


def test_one_image_gives_one_row_of_logits():
    """The released code squeezes a batch of one."""
    model = randomize_weights(CvTForImageClassification(config())).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 5)


def test_attentions_of_every_layer_are_returned():
    model = CvTForSemanticSegmentation(config())
    model.set_attn_implementation("eager")
    attentions = model(torch.randn(1, 3, 64, 96), output_attentions=True).attentions
    # (heads, queries, keys): the class token is in both, and a quarter of the keys of the grid remain.
    shapes = [(1, 384, 96), (2, 96, 24), (2, 96, 24), (3, 25, 7), (3, 25, 7)]
    assert [tuple(attention.shape[1:]) for attention in attentions] == shapes


def test_attention_scores_are_scaled_by_the_full_width():
    assert [stage.layers[0].attention.scaling for stage in CvTModel(config()).stages] == [16**-0.5, 32**-0.5, 48**-0.5]


def test_single_rate_applies_to_every_stage():
    assert list(config(drop_path_rate=0.2).drop_path_rate) == [0.2] * 3
    assert list(config(hidden_dropout_prob=0).hidden_dropout_prob) == [0.0] * 3


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"depths": (1, 2)}, "one entry per stage"),
        ({"num_attention_heads": (1, 3, 3)}, "divisible"),
        ({"kernel_qkv": (3, 2, 3)}, "odd"),
        ({"projection_methods": ("dw_bn", "max", "dw_bn")}, "projection_methods"),
    ],
)
def test_invalid_configs_raise(fields, sentence):
    with pytest.raises(Exception, match=sentence):
        config(**fields)


def test_images_smaller_than_a_kernel_raise():
    with pytest.raises(ValueError, match="at least 3x3 pixels, got 2x64"):
        CvTModel(config())(torch.randn(1, 3, 2, 64))


def test_weight_initialization_matches_the_release():
    model = CvTForImageClassification(architectures()["cvt"].variant_config("cvt-13", depths=(1, 2, 1))).requires_grad_(
        False
    )
    stage = model.cvt.stages[2]
    assert 0.015 < stage.cls_token.std() < 0.025
    assert stage.layers[0].mlp.fc1.weight.std() == pytest.approx(0.02, rel=0.05)
    bound = (3 * 3 * 192) ** -0.5
    assert stage.patch_embeddings.projection.weight.abs().max() == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_projections_match_the_layers_and_are_never_stale(stride, dtype):
    """Every modification of a tensor, including those hidden from autograd, affects the next call."""
    projection = randomize_weights(DepthwiseProjection(8, 3, stride, 1, 1e-5)).to(dtype).eval()
    feature_map = torch.randn(2, 8, 6, 7, dtype=dtype)

    def check():
        expected = projection(feature_map).detach()
        with torch.no_grad():
            torch.testing.assert_close(projection(feature_map), expected, rtol=1e-4, atol=1e-4)
        return expected

    def train_a_step():
        optimizer = torch.optim.SGD(projection.parameters(), lr=0.5)
        projection.train()(feature_map).square().sum().backward()
        optimizer.step()
        projection.eval()

    seen = [check()]
    changes = [
        lambda: projection.convolution.weight.data.mul_(1.5),
        lambda: projection.norm.running_var.data.add_(1),
        lambda: projection.norm.running_mean.copy_(torch.randn(8)),
        lambda: setattr(projection.norm, "eps", 0.5),
        lambda: projection.load_state_dict({k: t + 1 for k, t in projection.state_dict().items()}),
        train_a_step,
    ]
    for change in changes:
        change()
        seen.append(check())
        assert not torch.allclose(seen[-1], seen[-2])


def test_hooked_or_replaced_layers_are_called():
    projection = randomize_weights(DepthwiseProjection(8, 3, 1, 1, 1e-5)).eval()
    calls = []
    with torch.no_grad():
        projection.convolution.register_forward_hook(lambda *_: calls.append("convolution"))
        projection(torch.randn(1, 8, 5, 5))
        assert calls == ["convolution"]
        replaced = randomize_weights(DepthwiseProjection(8, 3, 1, 1, 1e-5)).eval()
        replaced.norm = nn.Identity()
        feature_map = torch.randn(1, 8, 5, 5)
        torch.testing.assert_close(replaced(feature_map), replaced.convolution(feature_map))


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 700, 5000, 10**9]))
def test_mlp_in_row_strips_matches_mlp(tokens, batch, strip_bytes):
    mlp = randomize_weights(CvTMLP(config(), 0)).double()
    hidden_states = torch.randn(batch, tokens, 16, dtype=torch.float64)
    expected = mlp(hidden_states).detach()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("hf_vit_seg.models.cpu_kernels.STRIP_BYTES", strip_bytes)
        torch.testing.assert_close(mlp(hidden_states), expected, rtol=1e-10, atol=1e-10)
