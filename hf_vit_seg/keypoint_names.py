"""Facts from the names of keypoints: whether they are COCO's, and which are pairs of left and right.

Names are compared without case and separators, and `l` and `r` as words are left and right: `L_Eye`, `eye left`,
`leftEye` and `left-eye` are the same side.
"""

import re
from collections.abc import Sequence

PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_KEYPOINTS = ("nose", *(f"{side}_{part}" for part in PARTS for side in ("left", "right")))

SIDES = {"l": "left", "r": "right", "left": "left", "right": "right"}
MIRRORED = {"left": "right", "right": "left"}
# Borders of words: separators, from lower to upper case, before the last capital of several, after and before a side.
BORDERS = re.compile(
    r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?i:(?<=left)|(?=left)|(?<=right)|(?=right))"
)

Pairs = tuple[tuple[int, int], ...]


def name_words(name: str) -> tuple[str, ...]:
    """Return the words of a keypoint's name in lower case, with sides spelled out; the side comes first."""
    words = [word.lower() for word in BORDERS.split(name) if word]
    spelled = [SIDES.get(word, word) for word in words]
    return tuple(sorted(spelled, key=lambda word: word not in MIRRORED))


def are_coco_keypoints(names: Sequence[str]) -> bool:
    """Return whether these are COCO's 17 keypoints, in its order."""
    return [name_words(name) for name in names] == [name_words(name) for name in COCO_KEYPOINTS]


def find_flip_pairs(names: Sequence[str]) -> Pairs:
    """Return the pairs (left, right) of indices of names that differ only by left and right."""
    words = [name_words(name) for name in names]
    pairs = []
    for left, own in enumerate(words):
        mirrored = tuple(MIRRORED.get(word, word) for word in own)
        if "left" in own and words.count(own) == words.count(mirrored) == 1:
            pairs.append((left, words.index(mirrored)))
    return tuple(pairs)


__all__ = ["COCO_KEYPOINTS", "Pairs", "are_coco_keypoints", "find_flip_pairs", "name_words"]
