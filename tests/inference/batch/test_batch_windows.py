"""Batches of equal size from a window of pending images."""

from hypothesis import given
from hypothesis import strategies as st

from hf_vit_seg.inference.batch.batches import batches

SIZES = st.lists(st.integers(0, 5), max_size=60)


@given(SIZES, st.integers(1, 5), st.integers(0, 12))
def test_batches_have_equal_sizes_and_lose_nothing(sizes, batch, window):
    items = list(enumerate(sizes))
    found = list(batches([(size, (number, size)) for number, size in items], batch, window))
    assert sorted(item for part in found for item in part) == items
    for part in found:
        assert 1 <= len(part) <= batch and len({size for _, size in part}) == 1
        assert [number for number, _ in part] == sorted(number for number, _ in part)


@given(SIZES, st.integers(1, 5), st.integers(0, 12))
def test_wait_is_bounded(sizes, batch, window):
    """At most `window` further items are taken before an item leaves."""
    taken = 0

    def items():
        nonlocal taken
        for number, size in enumerate(sizes):
            taken += 1
            yield size, number

    for part in batches(items(), batch, window):
        assert all(taken - (number + 1) <= window for number in part)


def test_rare_size_does_not_wait_for_the_end():
    found = list(batches([("rare", 0), *(("common", number) for number in range(1, 100))], 4))
    assert [0] in found[:6]


def test_full_batches_come_first():
    found = list(batches([("a", 1), ("b", 2), ("a", 3), ("b", 4), ("c", 5)], 2))
    assert found == [[1, 3], [2, 4], [5]]


def test_images_that_all_differ_form_smaller_batches():
    assert list(batches([(size, size) for size in range(6)], 4, window=2)) == [[0], [1], [2], [3], [4], [5]]
