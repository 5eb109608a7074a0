"""Token merging (ToMe, arXiv 2210.09461, section 3): between layers, the most similar patches are merged.

It needs no training and makes the following layers cheaper. For dense prediction, the tokens are unmerged at the end:
every patch gets the token it was merged into. Two of the paper's choices are left out: similarity is that of tokens
rather than keys, so that layers need not be changed, and attention is not weighted by the number of merged patches,
which costs time. See benchmarks/token_merging.md for accuracy and speed.

Shapes: B images, P prefix tokens, N patches, M <= N merged tokens, D width, R tokens removed by a step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize

from .cpu_kernels import is_dynamic_export
from .errors import HfVitSegError
from .layers import split_axis


class MergedPatches(NamedTuple):
    """Patches merged into fewer tokens, each the mean of its patches."""

    tokens: torch.Tensor  # (B, M, D)
    slots: torch.Tensor  # (B, N) int64: the token that each patch was merged into
    counts: torch.Tensor  # (B, M, 1): the number of patches of each token

    def unmerge(self) -> torch.Tensor:
        """Return the token that each patch was merged into, (B, N, D)."""
        return self.tokens.gather(1, self.slots[..., None].expand(-1, -1, self.tokens.shape[-1]))


def single_patches(patches: torch.Tensor) -> MergedPatches:
    """Return patches (B, N, D) before any merging."""
    slots = torch.arange(patches.shape[1], device=patches.device).expand(patches.shape[:2])
    return MergedPatches(patches, slots, patches.new_ones(*patches.shape[:2], 1))


def bipartite_soft_matching(tokens: torch.Tensor, reduction: int) -> torch.Tensor:
    """Return the index (B, M) of each of the tokens (B, M, D) after merging; R = `reduction` is at most M / 2.

    Each token with an even index is matched to the most similar token with an odd index, by cosine; the R most similar
    pairs are merged.
    """
    directions = normalize(tokens, dim=-1)
    similarity, partners = (directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)).max(dim=-1)
    removed = similarity.topk(reduction, dim=-1).indices  # (B, R) among the even
    kept = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device).scatter(1, 2 * removed, 0)
    indices = kept.cumsum(dim=1) - 1
    return indices.scatter(1, 2 * removed, indices.gather(1, 2 * partners.gather(1, removed) + 1))


def merge(patches: MergedPatches, reduction: int) -> MergedPatches:
    """Merge `reduction` tokens into others, but at most half of all tokens."""
    tokens, slots, counts = patches
    images, length, width = tokens.shape
    reduction = min(reduction, length // 2)
    if reduction == 0:
        return patches
    indices = bipartite_soft_matching(tokens, reduction)
    left = length - reduction
    rows = (indices + left * torch.arange(images, device=indices.device)[:, None]).flatten()  # over all images
    sums = tokens.new_zeros(images * left, width).index_add(0, rows, (tokens * counts).flatten(0, 1))
    summed = split_axis(counts.new_zeros(images * left, 1).index_add(0, rows, counts.flatten(0, 1)), 0, (images, left))
    return MergedPatches(split_axis(sums, 0, (images, left)) / summed, indices.gather(1, slots), summed)


def encode_merging(
    layers: Sequence[nn.Module] | nn.ModuleList, hidden_states: torch.Tensor, prefix: int, fraction: float, **kwargs
) -> torch.Tensor:
    """Apply all layers to tokens (B, P + N, D), and merge a `fraction` of the N patches in equal steps between layers.

    The P prefix tokens are never merged. ValueError under export, where the number of tokens to merge would be fixed to
    the example's size.
    """
    if is_dynamic_export():
        raise HfVitSegError("token merging cannot be exported: set config.token_merging to 0 before")
    patches = single_patches(hidden_states[:, prefix:])
    reduction = int(fraction * patches.slots.shape[1] / max(len(layers) - 1, 1))
    for index, layer in enumerate(layers):
        if index:
            patches = merge(patches._replace(tokens=hidden_states[:, prefix:]), reduction)
            hidden_states = torch.cat([hidden_states[:, :prefix], patches.tokens], dim=1)
        hidden_states = layer(hidden_states, **kwargs)  # (B, P + M, D)
    patches = patches._replace(tokens=hidden_states[:, prefix:])
    return torch.cat([hidden_states[:, :prefix], patches.unmerge()], dim=1)


__all__ = ["MergedPatches", "encode_merging", "merge", "single_patches"]
