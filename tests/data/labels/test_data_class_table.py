"""The mapping from raw values to classes."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vit_seg.data.labels.class_table import ClassTable, ClassTableError, UnknownValueError
from hf_vit_seg.data.labels.raw_values import IGNORED_VALUE
from hf_vit_seg.models.image_processing_segmentation import reduce_labels
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.recipe.schema import DataRecipe

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def table(classes: list | None = None, names: list[str] | None = None, **settings) -> ClassTable:
    return ClassTable.from_recipe(read_record(DataRecipe, {"train": {}, "classes": classes, **settings}), names)


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor([values])


def color_mask(*colors: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(colors, dtype=torch.uint8).T[:, None, :].contiguous()


def test_class_value_defaults_to_its_index():
    assert table(["sky", "road"]).apply(numbers(0, 1, 255)).tolist() == [[0, 1, 255]]
    assert table(["sky", "road"]).names == ("sky", "road")


def test_class_without_values_never_occurs():
    mapped = table(["sky", {"name": "road", "values": []}, "car"], unknown="ignore")
    assert mapped.apply(numbers(0, 1, 2)).tolist() == [[0, 255, 2]]
    with pytest.raises(ClassTableError, match="remove `values`"):
        table([{"name": "road", "values": []}], preset="reduce_zero_label")


def test_values_can_be_merged_and_ignored():
    classes = [{"name": "land", "values": [3, 4, 70000]}, {"name": "water", "values": [0, -7]}]
    mapped = table(classes, ignore=[11, -9999]).apply(numbers(3, 4, 0, 11, -9999, 70000, -7, IGNORED_VALUE))
    assert mapped.tolist() == [[0, 0, 1, 255, 255, 0, 1, 255]]
    assert mapped.dtype == torch.int64


@st.composite
def maps(draw):
    """Disjoint raw values of classes, ignored values, and others."""
    colored = draw(st.booleans())
    one = st.tuples(*[st.integers(0, 255)] * 3) if colored else st.integers(-300, 2 ** draw(st.integers(2, 20)))
    raws = draw(st.lists(one.filter(lambda raw: raw != IGNORED_VALUE), unique=True, min_size=3, max_size=12))
    owner = draw(st.lists(st.integers(-2, 3), min_size=len(raws), max_size=len(raws)))
    return colored, dict(zip(raws, owner, strict=True))


@given(maps(), st.data())
def test_pixels_are_mapped_independently(values, data):
    colored, owners = values
    kinds = sorted({owner for owner in owners.values() if owner >= 0})
    if not kinds:
        return
    classes = [{"name": f"c{k}", "values": [raw for raw, owner in owners.items() if owner == k]} for k in kinds]
    ignored = [raw for raw, owner in owners.items() if owner == -1]
    made = table(classes, ignore=ignored, unknown="ignore")
    raws = data.draw(st.lists(st.sampled_from(sorted(owners)), min_size=1, max_size=30))
    mask = color_mask(*raws) if colored else numbers(*raws)
    assert made.apply(mask).tolist() == [[kinds.index(owners[raw]) if owners[raw] >= 0 else 255 for raw in raws]]
    assert made.histogram(mask) == {raw: raws.count(raw) for raw in sorted(set(raws))}
    unknown = {raw: raws.count(raw) for raw in raws if owners[raw] == -2}
    assert made.unknown(mask) == unknown
    strict = table(classes, ignore=ignored)
    if unknown:
        with pytest.raises(UnknownValueError) as error:
            strict.apply(mask)
        assert error.value.counts == unknown
    else:
        assert torch.equal(strict.apply(mask), made.apply(mask))


@given(st.lists(st.integers(0, 150), min_size=1), st.booleans())
def test_reduce_zero_label_matches_image_processor(values, ignored):
    mask = numbers(*values, *([255] if ignored else []))
    made = table([f"class {i}" for i in range(150)], preset="reduce_zero_label")
    assert torch.equal(made.apply(mask), reduce_labels(mask))


def test_ignore_index_is_never_a_class():
    for count, index in ((255, 255), (256, 65535), (300, 65535)):
        made = table([f"class {i}" for i in range(count)])
        assert made.ignore_index == index
        assert made.apply(numbers(count - 1, IGNORED_VALUE)).tolist() == [[count - 1, index]]


def test_255_can_be_a_class():
    classes = ["background", {"name": "nucleus", "values": [255]}]
    assert table(classes).apply(numbers(0, 255)).tolist() == [[0, 1]]
    assert table(classes, ignore=[255]) == table(classes)  # as in a resolved recipe


def test_unknown_values_are_reported_with_pixel_counts():
    with pytest.raises(
        UnknownValueError, match=r"unknown values 7 \(2 pixels\), 9 \(1 pixels\); classes have 0, 1"
    ) as e:
        table(["a", "b"]).apply(numbers(9, 7, 7, 0, 255))
    assert e.value.counts == {7: 2, 9: 1}
    with pytest.raises(UnknownValueError, match=r"\(0, 0, 255\) \(1 pixels\)"):
        table([{"name": "a", "values": [RED]}]).apply(color_mask(RED, BLUE))
    with pytest.raises(UnknownValueError, match="and 3 more"):
        table(["a"]).apply(numbers(*range(9)))
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_mask_colors_become_the_palette():
    classes = [{"name": "a", "values": [RED, GREEN]}, {"name": "b", "values": [BLUE], "color": [1, 2, 3]}]
    made = table(classes, ignore=[[0, 0, 0]])
    assert made.palette == (RED, (1, 2, 3))
    assert made.apply(color_mask(GREEN, BLUE, RED, (0, 0, 0))).tolist() == [[0, 1, 0, 255]]
    assert table(["a", "b"]).palette is None


def test_gray_rgb_masks_have_values():
    assert table(["a", "b"]).apply(color_mask((0, 0, 0), (1, 1, 1), (255, 255, 255))).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("classes", "mask", "reason"),
    [
        (["a", "b"], color_mask(RED), r"the mask has colors \(\(255, 0, 0\)\).*use colors"),
        ([{"name": "a", "values": [RED]}], numbers(0, 5), r"the mask has integers \(0, 5\).*use integers"),
    ],
)
def test_wrong_mask_type_raises(classes, mask, reason):
    for use in (table(classes).apply, table(classes).histogram, table(classes).unknown):
        with pytest.raises(ClassTableError, match=reason):
            use(mask)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"classes": None}, r"data\.classes is missing"),
        ({"classes": ["a", "a"]}, "'a' twice"),
        ({"classes": ["a", {"name": "b", "values": [0]}]}, "value 0 belongs to both 'a' and 'b'"),
        ({"classes": ["a", {"name": "b", "values": [[0, 0, 0]]}]}, "found colors as values of some classes"),
        ({"classes": ["a", "b"], "ignore": [1]}, r"1 belongs to 'b' and data\.ignore"),
        ({"classes": ["a", "b"], "ignore": [[0, 0, 0]]}, "are integers"),
        ({"classes": [{"name": "a", "values": [RED]}], "ignore": [0]}, "are colors"),
        ({"classes": ["a", {"name": "b", "color": RED}]}, "'a' has no color"),
        ({"classes": [{"name": "a", "values": [4]}], "preset": "reduce_zero_label"}, "preset reduce_zero_label"),
    ],
)
def test_contradictory_settings_raise(settings, reason):
    with pytest.raises(ClassTableError, match=reason):
        table(**settings)


def test_color_out_of_range_raises():
    with pytest.raises(RecordError, match="less than or equal to 255, found 256"):
        table([{"name": "a", "values": [[0, 0, 256]]}])


def test_source_classes_are_matched_by_name():
    made = table(["dog", "cat"])
    assert [made.match_source(["cat", "dog"]).class_index(raw) for raw in (0, 1)] == [1, 0]
    assert made.match_source(["cat", "dog"]).apply(numbers(0, 1, IGNORED_VALUE)).tolist() == [[1, 0, 255]]
    assert made.match_source(None) is made
    with pytest.raises(ClassTableError, match=r"class 'cow', which is not in data\.classes \(dog, cat\)"):
        made.match_source(["cat", "cow"])
    lenient = table(["dog", "cat"], unknown="ignore").match_source(["cat", "cow"])
    assert lenient.apply(numbers(0, 1)).tolist() == [[1, 255]]


def test_values_index_the_classes_of_the_source():
    made = table(["dog", {"name": "felines", "values": [1, 2]}]).match_source(["dog", "cat", "lion"])
    assert made.apply(numbers(0, 1, 2)).tolist() == [[0, 1, 1]]


def test_class_names_default_to_the_source():
    assert table(None, ["b", "a"]).names == ("b", "a")
    assert table(["a", "b"], ["b", "a"]).names == ("a", "b")


def test_unknown_image_labels_raise():
    made = table(["a", {"name": "b", "values": [5]}])
    assert (made.class_index(0), made.class_index(5)) == (0, 1)
    for raw in (1, 255, -1):
        with pytest.raises(UnknownValueError, match=f"label {raw} belongs to no class: classes have 0, 5"):
            made.class_index(raw)


def test_class_table_can_be_pickled():
    made = table(["a", "b"])
    made.apply(numbers(0))
    assert torch.equal(pickle.loads(pickle.dumps(made)).apply(numbers(1, 0)), numbers(1, 0))
