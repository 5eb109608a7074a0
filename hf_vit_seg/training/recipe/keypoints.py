"""The keypoints of a pose recipe: their sigmas for the similarity, and which of them a flip swaps.

Shapes: K keypoints.
"""

from collections.abc import Sequence

from hf_vit_seg.keypoint_names import Pairs, are_coco_keypoints, find_flip_pairs
from hf_vit_seg.metrics.keypoint_similarity import COCO_SIGMAS
from hf_vit_seg.records import RecordError, nearest

from .schema import Recipe

DEFAULT_SIGMA = 0.05  # for keypoints other than COCO's, whose sigmas are unknown


def oks_sigmas(recipe: Recipe, names: Sequence[str]) -> tuple[float, ...]:
    """Return the sigma of each keypoint (K,): those of the recipe, COCO's for COCO's keypoints, otherwise a default.

    RecordError for sigmas that do not fit the names.
    """
    given = recipe.data.oks_sigmas
    if given is None:
        return COCO_SIGMAS if are_coco_keypoints(names) else (DEFAULT_SIGMA,) * len(names)
    if isinstance(given, int | float):
        return (given,) * len(names)
    if isinstance(given, dict):
        for name in given:
            if name not in names:
                raise RecordError(f"data.oks_sigmas: unknown keypoint '{name}'; {nearest(name, names, 'keypoints')}")
        if missing := [name for name in names if name not in given]:
            raise RecordError(f"data.oks_sigmas: no sigma for {', '.join(missing)}; set one for every keypoint")
        return tuple(given[name] for name in names)
    if len(given) != len(names):
        raise RecordError(f"data.oks_sigmas: found {len(given)} sigmas for {len(names)} keypoints; set one for each")
    return given


def describe_sigmas(recipe: Recipe, names: Sequence[str]) -> str:
    """Describe the sigmas, for reports."""
    if recipe.data.oks_sigmas is not None:
        sigmas = oks_sigmas(recipe, names)
        shown = {sigmas[0]} if len(set(sigmas)) == 1 else sigmas
        return f"the recipe's OKS sigmas {', '.join(f'{sigma:g}' for sigma in shown)}"
    if are_coco_keypoints(names):
        return "COCO's OKS sigmas"
    return f"the default OKS sigma {DEFAULT_SIGMA:g} for every keypoint (scores are not comparable with COCO's)"


def flip_pairs(recipe: Recipe, names: Sequence[str]) -> Pairs | None:
    """Return the keypoints that a horizontal flip swaps: those of the recipe, or found by names with left and right.

    None if they are unknown: neither given nor found. RecordError for pairs that do not fit the names.
    """
    given = recipe.data.flip_pairs
    if given is None:
        return find_flip_pairs(names) or None
    pairs = tuple((find_keypoint(left, names), find_keypoint(right, names)) for left, right in given)
    ends = [end for pair in pairs for end in pair]
    if repeated := sorted({names[end] for end in ends if ends.count(end) > 1}):
        raise RecordError(f"data.flip_pairs: found {', '.join(repeated)} more than once; each keypoint has one partner")
    return pairs


def find_keypoint(keypoint: str | int, names: Sequence[str]) -> int:
    """Return the index of a keypoint given by name or index. RecordError if there is none."""
    if isinstance(keypoint, str) and keypoint not in names:
        raise RecordError(f"data.flip_pairs: unknown keypoint '{keypoint}'; {nearest(keypoint, names, 'keypoints')}")
    index = names.index(keypoint) if isinstance(keypoint, str) else keypoint
    if not 0 <= index < len(names):
        raise RecordError(f"data.flip_pairs: found keypoint {index}, expected 0 .. {len(names) - 1}")
    return index


def describe_pairs(recipe: Recipe, names: Sequence[str], pairs: Sequence[Sequence[int]]) -> str:
    """Describe the flip pairs of the model, for the log."""
    shown = ", ".join(f"{names[left]} / {names[right]}" for left, right in pairs) or "none"
    origin = "data.flip_pairs" if recipe.data.flip_pairs is not None else "by their names"
    if tuple(map(tuple, pairs)) != (flip_pairs(recipe, names) or ()):
        origin = "the model's pose_flip_pairs"
    return f"flip pairs ({origin}): {shown}"


__all__ = ["describe_pairs", "describe_sigmas", "flip_pairs", "oks_sigmas"]
