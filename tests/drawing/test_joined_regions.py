"""Regions joined across blocks of rows, compared with those of the whole label map."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_vit_seg.drawing.joined_regions import join_regions
from hf_vit_seg.drawing.outlines import extract_regions

MAPS = st.integers(1, 3).flatmap(
    lambda classes: hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, classes - 1)
    )
)


def blocks(labels, height, values=None):
    for first in range(0, len(labels), height):
        rows = slice(first, first + height)
        yield labels[rows], None if values is None else values[rows]


def canonical(ring):
    """A ring as a list of corners that begins at its first one."""
    corners = [tuple(corner) for corner in ring.tolist()]
    first = min(range(len(corners)), key=lambda i: corners[i][::-1])
    return corners[first:] + corners[:first]


def as_set(regions):
    return sorted(
        (region.label, region.pixels, canonical(region.rings[0]), sorted(map(canonical, region.rings[1:])))
        for region in regions
    )


@settings(max_examples=400)
@given(MAPS, st.integers(1, 15))
def test_regions_equal_the_whole_map(labels, height):
    assert as_set(join_regions(blocks(labels, height))) == as_set(extract_regions(labels))


@settings(max_examples=200)
@given(MAPS, st.integers(1, 15), st.integers(0, 99))
def test_order_and_corners_do_not_depend_on_the_blocks(labels, height, seed):
    values = np.random.default_rng(seed).integers(0, 256, labels.shape).astype(np.uint8)
    whole = list(join_regions([(labels, values)]))
    parts = list(join_regions(blocks(labels, height, values)))
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts, strict=True):
        assert (one.label, one.pixels, one.total) == (other.label, other.pixels, other.total)
        assert [ring.tolist() for ring in one.rings] == [ring.tolist() for ring in other.rings]
    assert sum(region.total for region in parts) == values.sum()


@pytest.mark.parametrize("height", [1, 7, 64, 200])
def test_large_noise(height):
    labels = (np.random.default_rng(1).random((150, 170)) > 0.45).astype(np.uint8)
    assert as_set(join_regions(blocks(labels, height))) == as_set(extract_regions(labels))


def test_spiral_and_frames():
    labels = np.zeros((41, 41), np.uint8)
    for inset in range(0, 20, 2):
        labels[inset : 41 - inset, inset : 41 - inset] = (inset // 2) % 2
        labels[inset + 1, inset] = 1
    for height in (1, 2, 3, 10):
        assert as_set(join_regions(blocks(labels, height))) == as_set(extract_regions(labels))


def test_empty_map_has_no_regions():
    assert list(join_regions([])) == []


def test_memory_does_not_grow_with_the_number_of_rows():
    block = np.kron(np.random.default_rng(0).integers(0, 2, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    block[-1], block[0] = 2, 2  # regions end with the block

    def peak(count):
        tracemalloc.start()
        found = sum(1 for _ in join_regions((block, None) for _ in range(count)))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, memory

    (few, low), (many, high) = peak(5), peak(100)
    assert many > 15 * few and high < 1.5 * low
