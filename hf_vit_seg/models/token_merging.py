"""Token merging (arXiv 2210.09461, section 3): after every layer the patches that are most alike become one.

It needs no training and makes the layers behind cheaper. For maps every patch is given back, at the end, the token
that it went into. Of the paper's choices two are left out: the tokens themselves are compared, not their keys, so that
layers know nothing of it, and attention is not weighted by how many patches a token stands for, which costs time.
benchmarks/token_merging.md has the figures.

Shapes: B images, P prefix tokens, N patches, M <= N tokens that stand for them, D width, R tokens merged away.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize

from .errors import HfVitSegError
from .open_sizes import sizes_are_open


class MergedPatches(NamedTuple):
    """Patches as the fewer tokens that stand for them, each the mean of its patches.

    `slots` says which token a patch went into, `counts` how many patches a token stands for.
    """

    tokens: torch.Tensor  # (B, M, D)
    slots: torch.Tensor  # (B, N) int64
    counts: torch.Tensor  # (B, M, 1)

    def spread(self) -> torch.Tensor:
        """Every patch with the token that it went into, (B, N, D)."""
        return self.tokens.gather(1, self.slots[..., None].expand(-1, -1, self.tokens.shape[-1]))


def unmerged(patches: torch.Tensor) -> MergedPatches:
    """Patches (B, N, D) that stand for themselves."""
    slots = torch.arange(patches.shape[1], device=patches.device).expand(patches.shape[:2])
    return MergedPatches(patches, slots, patches.new_ones(*patches.shape[:2], 1))


def matched(tokens: torch.Tensor, fewer: int) -> torch.Tensor:
    """The place (B, M) that each of the tokens (B, M, D) takes among M - R, R being `fewer`, at most M / 2.

    Bipartite soft matching: each token of even place looks for the most alike of odd place, by cosine; the R closest
    pairs become one.
    """
    directions = normalize(tokens, dim=-1)
    best, partners = (directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)).max(dim=-1)
    leaving = best.topk(fewer, dim=-1).indices  # (B, R) among the even
    stays = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device).scatter(1, 2 * leaving, 0)
    places = stays.cumsum(dim=1) - 1
    return places.scatter(1, 2 * leaving, places.gather(1, 2 * partners.gather(1, leaving) + 1))


def merge(patches: MergedPatches, fewer: int) -> MergedPatches:
    """The same patches in `fewer` tokens less, or half of them if that is more."""
    tokens, slots, counts = patches
    images, length, width = tokens.shape
    fewer = min(fewer, length // 2)
    if fewer == 0:
        return patches
    places = matched(tokens, fewer)
    left = length - fewer
    rows = (places + left * torch.arange(images, device=places.device)[:, None]).flatten()  # over all images
    sums = tokens.new_zeros(images * left, width).index_add(0, rows, (tokens * counts).flatten(0, 1))
    summed = counts.new_zeros(images * left, 1).index_add(0, rows, counts.flatten(0, 1)).unflatten(0, (images, left))
    return MergedPatches(sums.unflatten(0, (images, left)) / summed, places.gather(1, slots), summed)


def encode_merging(
    layers: Sequence[nn.Module] | nn.ModuleList, hidden_states: torch.Tensor, prefix: int, share: float, **kwargs
) -> torch.Tensor:
    """Tokens (B, P + N, D) through layers, before the last of which a `share` of the N patches is merged away.

    As many leave before each layer but the first. The prefix of P tokens always stays. ValueError while a program is
    exported: how many leave would be fixed for the size that it is recorded with.
    """
    if sizes_are_open():
        raise HfVitSegError("token merging cannot be exported: set config.token_merging to 0 before")
    patches = unmerged(hidden_states[:, prefix:])
    fewer = int(share * patches.slots.shape[1] / max(len(layers) - 1, 1))
    for index, layer in enumerate(layers):
        if index:
            patches = merge(patches._replace(tokens=hidden_states[:, prefix:]), fewer)
            hidden_states = torch.cat([hidden_states[:, :prefix], patches.tokens], dim=1)
        hidden_states = layer(hidden_states, **kwargs)  # (B, P + M, D)
    patches = patches._replace(tokens=hidden_states[:, prefix:])
    return torch.cat([hidden_states[:, :prefix], patches.spread()], dim=1)


__all__ = ["MergedPatches", "encode_merging", "merge", "unmerged"]
