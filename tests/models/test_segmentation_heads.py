"""The fast computation of the all-MLP head equals its equation in every mode, at every size, with current weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import CHANGES, change_through_data, randomize_weights
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.export.forms import with_export_forms
from hf_vit_seg.models.all_mlp_head import AllMLPHead
from hf_vit_seg.models.bilinear import upsampling_matrix

CHANNELS = (6, 8, 10, 12)
FLAVORS = ("nvlabs", "mmseg")


def build(flavor: str, width: int = 16, norm: str = "batch") -> AllMLPHead:
    return randomize_weights(AllMLPHead(CHANNELS, width, 7, flavor, norm=norm)).double().eval()


def pyramid(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    return [
        torch.randn(batch, channels, -(-height // 2**i), -(-width // 2**i), dtype=torch.float64)
        for i, channels in enumerate(CHANNELS)
    ]


def equation(head: AllMLPHead, maps: list[torch.Tensor]) -> torch.Tensor:
    """The head's undecorated forward, which calls every layer."""
    return AllMLPHead.forward.__wrapped__(head, maps)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40)
@given(st.sampled_from(FLAVORS), st.sampled_from(["batch", "group"]), st.integers(1, 40), st.integers(1, 40))
def test_all_paths_match_the_plain_head(flavor, norm, height, width):
    head, maps = build(flavor, norm=norm), pyramid(height, width)
    expected = equation(head, maps).detach()
    assert_same(head(maps).detach(), expected)
    with torch.no_grad():
        assert_same(head(maps), expected)
    with torch.inference_mode():
        assert_same(head(maps), expected)


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_export_form_matches_the_plain_head(flavor, levels):
    head, maps = (
        randomize_weights(AllMLPHead(CHANNELS[:levels], 16, 7, flavor)).double().eval(),
        pyramid(13, 10)[:levels],
    )
    with torch.no_grad():
        exported = with_export_forms(nn.ModuleList([head]))[0]
        assert type(exported) is not AllMLPHead
        assert_same(exported(maps), equation(head, maps))


@pytest.mark.parametrize("flavor", FLAVORS)
def test_row_strips_of_any_height_match_the_plain_head(flavor, monkeypatch):
    head, maps = build(flavor), pyramid(37, 23)
    expected = equation(head, maps).detach()
    for strip_bytes in (1, 5_000, 20_000, 10**9):
        monkeypatch.setattr("hf_vit_seg.models.cpu_kernels.STRIP_BYTES", strip_bytes)
        with torch.no_grad():
            assert_same(head(maps), expected)


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_gradients_and_batch_statistics_match_the_plain_head(flavor, norm):
    head, maps = build(flavor, norm=norm).train(), pyramid(9, 14)
    head.dropout.p = 0.0
    results = []
    for forward in (equation, AllMLPHead.__call__):
        copied = copy.deepcopy(head)
        inputs = [feature_map.clone().requires_grad_() for feature_map in maps]
        logits = forward(copied, inputs)
        logits.sin().sum().backward()
        results.append(
            [logits.detach(), *(t.grad for t in inputs), *(p.grad for p in copied.parameters()), *copied.buffers()]
        )
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


def change_one_number(head: AllMLPHead) -> AllMLPHead:
    head.projections[2].weight.data[3, 4] += 1e-3
    return head


def change_statistics(head: AllMLPHead) -> AllMLPHead:
    head.fuse_norm.running_var.mul_(2)
    return head


def change_by_training(head: AllMLPHead) -> AllMLPHead:
    optimizer = torch.optim.SGD(head.train().parameters(), lr=0.1)
    with torch.enable_grad():
        head(pyramid(8, 8)).square().mean().backward()
    optimizer.step()
    return head.eval()


def change_dtype_and_back(head: AllMLPHead) -> AllMLPHead:
    return head.bfloat16().double()


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize(
    "change",
    [*CHANGES, change_one_number, change_statistics, change_by_training, change_dtype_and_back],
    ids=lambda change: change.__name__,
)
@torch.no_grad()
def test_folded_weights_are_never_stale(flavor, change):
    head, maps = build(flavor), pyramid(8, 12)
    head(maps)
    changed = change(head)
    assert_same(changed(maps), equation(changed, maps))


@torch.no_grad()
def test_folded_weights_are_cached():
    head, maps = build("nvlabs"), pyramid(8, 12)
    head(maps)
    first = head.folded.entry.result
    assert first is not None
    head(maps)
    assert head.folded.entry.result is first
    assert set(head.state_dict()) == set(build("nvlabs").state_dict())


@torch.no_grad()
@pytest.mark.parametrize("flavor", FLAVORS)
def test_compiled_and_traced_heads_use_updated_weights(flavor):
    torch._dynamo.reset()
    head, maps = build(flavor), pyramid(8, 12)
    head(maps)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    assert_same(compiled(maps), equation(head, maps))
    change_through_data(head)
    assert_same(compiled(maps), equation(head, maps))
    traced = torch.jit.trace(head, (maps,), check_trace=False)
    assert_same(traced(maps), equation(head, maps))


class DoublingLayer(nn.Module):
    """Stands in for an adapter that wraps a layer."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


@torch.no_grad()
def test_replaced_layers_are_called():
    head, maps = build("nvlabs"), pyramid(8, 12)
    before = head(maps)
    head.projections[1] = DoublingLayer(head.projections[1])
    assert_same(head(maps), equation(head, maps))
    assert not torch.allclose(head(maps), before)


@torch.no_grad()
@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.InstanceNorm2d(16), nn.Identity()])
def test_batch_norm_can_be_replaced(norm):
    head, maps = build("nvlabs"), pyramid(8, 12)
    head.fuse_norm = norm.double()
    assert_same(head(maps), equation(head, maps))


def test_logits_are_channels_last():
    head, maps = build("nvlabs"), pyramid(8, 12)
    maps = [feature_map.contiguous(memory_format=torch.channels_last) for feature_map in maps]
    assert head(maps).is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert head(maps).is_contiguous(memory_format=torch.channels_last)


def test_unknown_head_type_lists_known_ones():
    with pytest.raises(ValueError, match=r"nvlabs.*mmseg.*'mine'"):
        AllMLPHead(CHANNELS, 16, 7, "mine")


@pytest.mark.parametrize(("name", "near"), {"lineer": "linear", "masktransformer": "mask_transformer"}.items())
def test_unknown_heads_of_vit_suggest_the_nearest_one(name, near):
    config = architectures()["vit"].variant_config("tiny", decode_head=name)
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        AutoModelForSemanticSegmentation.from_config(config)


@torch.no_grad()
@pytest.mark.parametrize("flavor", FLAVORS)
def test_group_norm_is_independent_of_the_batch(flavor):
    head, maps = build(flavor, norm="group").train(), pyramid(8, 12)
    head.dropout.p = 0.0
    assert_same(head(maps)[:1], head([feature_map[:1] for feature_map in maps]))
    batch = build(flavor).train()
    batch.dropout.p = 0.0
    assert not torch.allclose(batch(maps)[:1], batch([feature_map[:1] for feature_map in maps]))


def test_unknown_norm_lists_known_ones():
    with pytest.raises(ValueError, match=r"batch, group.*'layer'"):
        AllMLPHead(CHANNELS, 16, 7, norm="layer")


@given(st.integers(1, 50), st.integers(1, 200))
def test_upsampling_matrix_matches_interpolate(coarse, fine):
    rows = torch.randn(1, 3, coarse, 1, dtype=torch.float64)
    expected = nn.functional.interpolate(rows, (fine, 1), mode="bilinear", align_corners=False)
    matrix = upsampling_matrix(coarse, fine, torch.float64)
    torch.testing.assert_close(torch.einsum("fc,bdcw->bdfw", matrix, rows), expected, rtol=1e-9, atol=1e-9)
