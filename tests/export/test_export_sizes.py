"""Sizes in exported programs: every size has one formula, so that torch.export has nothing to prove."""

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from random_weights import randomize_weights
from size_formulas import assert_unbounded, roundings, size_formulas
from torch.export import Dim, ExportedProgram

from hf_vit_seg.export.forms import with_export_forms
from hf_vit_seg.export.forms.shared import SamePadding
from hf_vit_seg.export.graphs import Geometry, LogitGraph, export_graph
from hf_vit_seg.models.bilinear import pad_to_multiple
from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.grid_sizes import ceil_div, round_up
from hf_vit_seg.models.modeling_cvt import as_map, as_tokens
from hf_vit_seg.models.modeling_vit import PatchEmbeddings
from hf_vit_seg.models.resnetv2 import same_padding

JEONSWORLD = {"stem_padding": "symmetric", "stem_shortcut_norm": "channel", "stem_pool_padding": False}
THREE_STAGES = {"stem": "resnetv2", "stem_depths": (1, 1, 1), "stem_width_factor": 0.5, "patch_size": 1}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


class PadToWhole(torch.nn.Module):
    """Only the padding."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return pad_to_multiple(images, (16, 32))


class MapAndBack(torch.nn.Module):
    """CvT's conversion from a feature map to tokens and back, for sides that are sums."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = images[..., 1:, 1:]
        return as_map(as_tokens(inner), (inner.shape[-2], inner.shape[-1]))


def open_program(module: torch.nn.Module) -> ExportedProgram:
    """The module as a program for images of any batch and size."""
    axes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(module.eval(), (torch.zeros(2, 3, 101, 139),), dynamic_shapes=(axes,))


def assert_computes(program: ExportedProgram, module: torch.nn.Module) -> None:
    """The program accepts sizes other than the recorded one."""
    for shape in ((1, 3, 61, 45), (3, 3, 32, 200)):
        images = torch.randn(shape)
        torch.testing.assert_close(program.module()(images), module(images), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_sizes_are_rounded_up(side, step):
    assert ceil_div(side, step) == math.ceil(side / step)
    assert round_up(side, step) % step == 0 and side <= round_up(side, step) < side + step


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 8))
def test_same_padding_never_removes_pixels(size, kernel, stride):
    """The smallest padding >= 0 with which the windows cover the first to the last pixel."""
    before, after = same_padding(size, kernel, stride)
    assert before + after == max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    assert before == (before + after) // 2


@torch.no_grad()
def test_image_padding_matches_the_grid_formula():
    program = open_program(PadToWhole())
    assert_unbounded(program)
    assert [rounding.args[1] for rounding in sorted(roundings(program), key=lambda r: r.args[1])] == [16, 32]
    assert_computes(program, PadToWhole())


def test_token_count_matches_the_formula():
    """Batch, height, width, the sides of the feature map, and its area, without the redundant form minus (-h * w)."""
    program = open_program(MapAndBack())
    assert len(size_formulas(program)) == 6
    assert_computes(program, MapAndBack())


@torch.no_grad()
@pytest.mark.parametrize("kernel", [3, 7])
def test_same_padding_rounds_each_side_once(kernel):
    """A maximum with 0, or a remainder, would appear in all following formulas."""
    padding = torch.nn.Sequential(SamePadding(kernel, 2), torch.nn.Conv2d(3, 4, kernel, 2), SamePadding(3, 2))
    program = open_program(padding)
    assert_unbounded(program)
    assert {type(rounding).__name__ for rounding in roundings(program)} == {"FloorDiv"}
    assert {rounding.args[1] for rounding in roundings(program)} <= {2, 4}
    assert_computes(program, padding)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_hybrid_stem_rounds_each_side_once(padding):
    """At any depth: the feature maps are multiples of the number of tokens, so halving needs no rounding."""
    config = VisionTransformerConfig(image_size=64, stem_padding=padding, **THREE_STAGES, **SMALL)
    embeddings = randomize_weights(PatchEmbeddings(config))
    program = open_program(embeddings)
    assert_unbounded(program)
    assert {rounding.args[1] for rounding in roundings(program)} == {config.token_stride[0]}
    assert len(roundings(program)) == 2 and len(size_formulas(program)) < 30
    assert_computes(program, embeddings)


@torch.no_grad()
@pytest.mark.parametrize("stem", [{"patch_size": 16}, THREE_STAGES, THREE_STAGES | JEONSWORLD])
def test_exported_vits_round_each_side_once(stem):
    if Version(torch.__version__).release < (2, 14):
        pytest.skip("torch 2.8 exports the same sizes with more divisions")
    config = VisionTransformerConfig(image_size=64, num_labels=3, decode_head="linear", **stem, **SMALL)
    model = randomize_weights(transformers.AutoModelForSemanticSegmentation.from_config(config)).eval()
    graph = LogitGraph(with_export_forms(model))
    program = export_graph(graph, Geometry(), torch.float32)
    assert_unbounded(program)
    assert len(roundings(program)) == 2 and len(size_formulas(program)) < 30
    assert_computes(program, graph)
