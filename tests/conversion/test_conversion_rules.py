"""Name templates, layouts and rules are invertible, and no tensor is lost or written twice."""

import math
from collections.abc import Sequence

import pytest
import torch
from hf_vit_seg.conversion import registry
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.layouts import (
    KERNEL_FIRST,
    POINTWISE,
    SAME,
    TRANSPOSE,
    Chain,
    Join,
    Layout,
    Rearrange,
    Split,
    Vector,
)
from hf_vit_seg.conversion.name_templates import collect_words, compile_template
from hf_vit_seg.conversion.rules import (
    Rule,
    alias,
    drop,
    invert_rules,
    join,
    optional,
    origin,
    rename,
    split,
    translate,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

LENGTHS = {"o": 5, "i": 3, "h": 2, "w": 4, "D": 6, "d": 7, "H": 2, "n": 3}
LAYOUTS: list[tuple[Layout, list[Sequence[int]]]] = [
    (SAME, [(2, 3)]),
    (Split(3), [(6, 5)]),
    (Split(2, axis=1), [(5, 8)]),
    (Join(3), [(2, 5)] * 3),
    (Join(2, axis=2), [(2, 3, 1)] * 2),
    (POINTWISE, [(5, 3, 1, 1)]),
    (TRANSPOSE, [(3, 5)]),
    (KERNEL_FIRST, [(2, 4, 3, 5)]),
    (Rearrange("D H d -> (H d) D"), [(6, 2, 7)]),
    (Rearrange("H d D -> D (H d)"), [(2, 7, 6)]),
    (Rearrange("1 1 1 n -> n"), [(1, 1, 1, 3)]),
    (Vector(4), [(1, 1, 1, 3)]),
    (Rearrange("H d -> (H d)"), [(2, 7)]),
    (Rearrange("n i o -> n o i"), [(3, 3, 5)]),
    (Chain((Split(3), POINTWISE)), [(15, 3, 1, 1)]),
    (Chain((Rearrange("D n H d -> (n H d) D"), Split(3))), [(6, 3, 2, 7)]),
]


def distinct_tensors(shapes: list[Sequence[int]]) -> tuple[Tensor, ...]:
    """Tensors with distinct elements."""
    starts = torch.tensor([0, *[math.prod(shape) for shape in shapes]]).cumsum(0).tolist()
    return tuple(torch.arange(a, b).reshape(tuple(s)) for a, b, s in zip(starts, starts[1:], shapes, strict=False))


@pytest.mark.parametrize(("layout", "shapes"), LAYOUTS, ids=[str(layout) for layout, _ in LAYOUTS])
def test_layouts_are_invertible(layout: Layout, shapes: list[Sequence[int]]) -> None:
    tensors = distinct_tensors(shapes)
    there = layout.apply(tensors, LENGTHS)
    assert all(tensor.is_contiguous() for tensor in there)
    back = layout.inverse.apply(there, LENGTHS)
    assert len(back) == len(tensors)
    for found, expected in zip(back, tensors, strict=True):
        assert torch.equal(found, expected)
    again = layout.inverse.inverse.apply(tensors, LENGTHS)
    assert all(torch.equal(a, b) for a, b in zip(again, there, strict=True))


@given(st.permutations(["o", "i", "h", "w"]), st.integers(0, 4), st.integers(0, 4))
def test_any_rearrangement_is_invertible(order: list[str], first: int, last: int) -> None:
    cut = sorted((first, last))
    merged = [*order[: cut[0]], "(" + " ".join(order[slice(*cut)]) + ")", *order[cut[1] :]]
    target = " ".join(part for part in merged if part != "()")
    layout = Rearrange(f"o i h w -> {target}")
    (tensor,) = distinct_tensors([[LENGTHS[name] for name in "oihw"]])
    (there,) = layout.apply((tensor,), {})
    expected = tensor.permute(["oihw".index(name) for name in order])
    assert torch.equal(there.flatten(), expected.flatten())
    (back,) = layout.inverse.apply((there,), LENGTHS)
    assert torch.equal(back, tensor)


def test_layouts_match_their_description() -> None:
    kernel = torch.randn(6, 2, 7)
    (dense,) = Rearrange("D H d -> (H d) D").apply((kernel,), {})
    assert torch.equal(dense, kernel.reshape(6, 14).T)
    image = torch.randn(2, 4, 3, 5)
    assert torch.equal(KERNEL_FIRST.apply((image,), {})[0], image.permute(3, 2, 0, 1))
    query, key = Split(2).apply((torch.arange(6),), {})
    assert (query.tolist(), key.tolist()) == ([0, 1, 2], [3, 4, 5])


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Vector(4), (1, 1, 2, 3)),
        (Vector(2), ()),
        (POINTWISE, (5, 3, 3, 3)),
        (POINTWISE, (5, 3)),
        (Split(3), (5, 2)),
        (Split(2), ()),
        (Join(2), (2, 2)),
    ],
)
def test_layouts_reject_other_shapes(layout: Layout, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape|axis"):
        layout.apply((torch.zeros(shape),), {})


def test_splitting_an_axis_requires_lengths() -> None:
    with pytest.raises(ValueError, match="not known"):
        TEMPLATE_LAYOUT.apply((torch.zeros(14, 6),), {})
    with pytest.raises(ValueError, match="length 14"):
        TEMPLATE_LAYOUT.apply((torch.zeros(14, 6),), {"H": 3})
    assert TEMPLATE_LAYOUT.apply((torch.zeros(14, 6),), {"H": 2})[0].shape == (6, 2, 7)


TEMPLATE_LAYOUT = Rearrange("(H d) D -> D H d")


@given(st.integers(0, 3), st.integers(0, 200), st.sampled_from(["weight", "bias"]))
def test_name_templates_are_invertible(stage: int, layer: int, part: str) -> None:
    words = collect_words(("{p:weight|bias}",))
    template = compile_template("a.b{stage+1}.{layer}.c{3-stage}.{p}", words)
    name = f"a.b{stage + 1}.{layer}.c{3 - stage}.{part}"
    bindings = {"stage": stage, "layer": layer, "p": part}
    assert template.match(name) == bindings
    assert template.render(bindings) == name


@pytest.mark.parametrize(
    "name",
    [
        "b0.0.weight",
        "b1.01.weight",
        "b1.0.gamma",
        "b1.0.weight.x",
        "xb1.0.weight",
        "b1.-1.bias",
        "b1.0.biasweight",
    ],
)
def test_unmatched_names_raise(name: str) -> None:
    assert (
        compile_template("b{stage+1}.{layer}.{p:weight|bias}", collect_words(("{p:weight|bias}",))).match(name) is None
    )


def test_repeated_index_must_agree() -> None:
    assert compile_template("{i}.{i}", ()).match("1.2") is None
    assert compile_template("{i}.{i}", ()).match("2.2") == {"i": 2}


def test_invalid_template_raises() -> None:
    with pytest.raises(ValueError, match="invalid placeholder"):
        compile_template("b{stage*2}", ())


RULES = (
    rename("a.{i}.{p:weight|bias}", "x.{i}.{p}"),
    split("kv.{i}", ("k.{i}", "v.{i}")),
    join(("l.{i}", "r.{i}"), "lr.{i}"),
    rename("maybe", "perhaps", optional=True),
    drop("unused.{i}", "not used by the model"),
)
STATE = {
    "a.0.weight": torch.randn(2, 2),
    "a.0.bias": torch.randn(2),
    "kv.1": torch.randn(4, 3),
    "r.2": torch.randn(1, 3),
    "l.2": torch.randn(2, 3)[:1],
    "unused.0": torch.randn(1),
}


def test_table_round_trip() -> None:
    there = translate(RULES, STATE)
    assert there.tensors.keys() == {"x.0.weight", "x.0.bias", "k.1", "v.1", "lr.2"}
    assert torch.equal(there.tensors["lr.2"], torch.cat([STATE["l.2"], STATE["r.2"]]))
    assert there.dropped == {"unused.0": "not used by the model"}
    back = translate(invert_rules(RULES), there.tensors)
    assert back.tensors.keys() | {"unused.0"} == STATE.keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in back.tensors.items())
    assert origin(RULES, "v.3") == "kv.3"
    assert origin(RULES, "lr.3") == "l.3, r.3"


def test_vector_accepts_two_layouts() -> None:
    vector = torch.arange(3)
    for shape in ((3,), (1, 1, 1, 3)):
        (found,) = Vector(4).apply((vector.reshape(shape),), {})
        assert torch.equal(found, vector)
        assert Vector(4).inverse.apply((found,), {})[0].shape == (1, 1, 1, 3)


def test_alias_is_read_only() -> None:
    rules = (optional(rename("usual.{i}", "x.{i}")), alias(rename("other.{i}", "x.{i}")))
    for spelling in ("usual", "other"):
        there = translate(rules, {f"{spelling}.0": torch.ones(1)})
        assert there.tensors.keys() == {"x.0"}
        assert translate(invert_rules(rules), there.tensors).tensors.keys() == {"usual.0"}
    assert origin(rules, "x.0") == "usual.0"
    with pytest.raises(ConversionError, match="twice"):
        translate(rules, {"usual.0": torch.ones(1), "other.0": torch.ones(1)})


FAULTS = [
    ({**STATE, "stranger": torch.zeros(1)}, RULES, "not part of this format: 'stranger'"),
    ({k: v for k, v in STATE.items() if k != "r.2"}, RULES, "lacks 'r.2'"),
    ({k: v for k, v in STATE.items() if k != "kv.1"}, RULES, "lacks 'kv.{i}'"),
    ({**STATE, "kv.1": torch.zeros(3, 3)}, RULES, "cannot be split into 2"),
    (STATE, (*RULES, rename("kv.{j}", "other.{j}")), "2 rules for 'kv.1'"),
    ({"a": torch.zeros(1), "b": torch.zeros(1)}, (rename("a", "c"), rename("b", "c")), "writes 'c' twice"),
]


@pytest.mark.parametrize(("state", "rules", "sentence"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_every_tensor_must_match_a_rule(state: dict[str, Tensor], rules: Sequence[Rule], sentence: str) -> None:
    with pytest.raises(ConversionError) as error:
        translate(rules, state)
    assert sentence in str(error.value)


TABLES = [
    (registry.full_name(architecture, source), number, form.rules)
    for architecture, source in registry.all_sources()
    for number, form in enumerate(source.forms)
]


@pytest.mark.parametrize(("source", "number", "rules"), TABLES, ids=[f"{t[0]}-{t[1]}" for t in TABLES])
def test_duplicate_rules_raise(source: str, number: int, rules: tuple[Rule, ...]) -> None:
    """Every name that a rule of a shipped table writes (with small numbers) is read by that rule only."""
    for table in (rules, invert_rules(rules)):
        for rule in table:
            for template in rule.source_templates:
                for name in examples(template.placeholders, template):
                    fitting = [r for r in table for t in r.source_templates if t.match(name) is not None]
                    assert fitting == [rule], name


def examples(placeholders: Sequence, template) -> list[str]:
    """Names generated from a template: each alternative, and the numbers 1 to 3."""
    found = []
    for turn in range(5):
        values = {p.name: p.words.split("|")[turn % (p.words.count("|") + 1)] if p.words else 1 + turn % 3
                  for p in placeholders}  # fmt: skip
        found.append(template.render(values))
    return found
