"""Classes of a model and of the data that it is evaluated on."""

import pytest

from hf_vit_seg.training.evaluate_saved import are_same_classes

NAMES = [f"class {number}" for number in range(20)]


def renamed(**names: str) -> list[str]:
    return [names.get(name.replace(" ", "_"), name) for name in NAMES]


@pytest.mark.parametrize(
    "labels",
    [NAMES, renamed(class_3="screen door"), renamed(class_3="screen", class_7="pool"), renamed(class_3="class 9")],
)
def test_equivalent_class_names_are_accepted(labels):
    assert are_same_classes(labels, NAMES)


@pytest.mark.parametrize(
    "labels",
    [
        NAMES[:-1],
        renamed(class_3="class 9", class_9="class 3"),
        renamed(class_3="a", class_4="b", class_5="c"),
        NAMES[1:] + NAMES[:1],
    ],
)
def test_other_classes_or_another_order_are_not(labels):
    assert not are_same_classes(labels, NAMES)


def test_one_different_name_of_two_is_rejected():
    assert not are_same_classes(["background", "cat"], ["background", "dog"])
