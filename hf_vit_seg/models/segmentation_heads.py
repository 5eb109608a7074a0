"""Segmentation heads that any encoder with several feature maps can wear.

Shapes: B images, C_i channels of level i, H_i W_i its grid (level 0 is the finest, H W), D decoder width, K classes.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.functional import interpolate

from .deployed_head import DeployedAllMLPHead
from .errors import HfVitSegError
from .fast_paths import unhooked
from .head_norms import head_norm
from .pointwise import PointwiseLinear, pointwise
from .row_strips import row_strips, strips_pay
from .value_cache import ValueCache

# Largest temporary of the strips: from 4 MiB on, the allocator maps new pages (see row_strips).
STRIP_BYTES = 5 * 2**19
FOLDED_DTYPES = (torch.float32, torch.float64)
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class FoldedHead(NamedTuple):
    """An all-MLP head with its BatchNorms folded and its linear maps multiplied out, for one set of parameters."""

    hidden: list[tuple[torch.Tensor, torch.Tensor]] | None  # mmseg: a ReLU layer per level, (D, C_i) and (D,)
    weights: list[torch.Tensor]  # per level (D, C_i), mmseg (D, D)
    bias: torch.Tensor  # (D,)

    def project(self, level: int, feature_map: torch.Tensor) -> torch.Tensor:
        """One level's share (.., H_i, W_i, D) of the sum before the last ReLU; level 0 brings the bias."""
        if self.hidden is not None:
            feature_map = pointwise(feature_map, *self.hidden[level]).relu_()
        return pointwise(feature_map, self.weights[level], self.bias if level == 0 else None)


class AllMLPHead(nn.Module):
    """SegFormer's decode head (arXiv 2105.15203, equation 4) at a fraction of its arithmetic.

    The plain head projects each level to D channels, upsamples all to the finest grid, concatenates, and
    multiplies the 4*D channels by a 1x1 convolution there. Upsampling is linear and acts on space, a 1x1
    convolution is linear and acts on channels, so they commute: here each level goes through its own columns of the
    fusing convolution on its own grid, and the upsampled results are summed. Where nothing nonlinear stands
    between projection and fusion they become one matrix. At 512x512 this leaves 0.89 of 5.18 GMAC for
    SegFormer-B0 and 3.45 of 42.1 for B2 to B5. Parameters and their names are those of the plain head.

    `flavour` "nvlabs": linear projections with bias; the fusing convolution takes the levels coarsest first.
    `flavour` "mmseg": projections without bias followed by a norm and ReLU, levels finest first.
    `norm` is "batch", as published, or "group", which does not fold: the strips are for BatchNorm alone.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        num_labels: int,
        flavour: str = "nvlabs",
        norm_eps: float = 1e-5,
        dropout: float = 0.1,
        norm: str = "batch",
    ):
        super().__init__()
        if flavour not in ("nvlabs", "mmseg"):
            raise HfVitSegError(f"AllMLPHead knows the flavours 'nvlabs' and 'mmseg', got '{flavour}'")
        convolutional = flavour == "mmseg"
        self.flavour = flavour
        self.projections = nn.ModuleList(
            [PointwiseLinear(channels, width, bias=not convolutional) for channels in in_channels]
        )
        self.projection_norms = (
            nn.ModuleList([head_norm(norm, width, norm_eps) for _ in in_channels]) if convolutional else None
        )
        self.fuse = nn.Conv2d(width * len(in_channels), width, kernel_size=1, bias=False)
        self.fuse_norm = head_norm(norm, width, norm_eps)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_labels, kernel_size=1)
        self.folds: ValueCache[FoldedHead] = ValueCache()

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first, to logits (B, K, H, W), channels-last in memory."""
        if not self.is_plain() or self.fuse.weight.is_meta:  # accelerate fetches offloaded weights layer by layer
            return self.forward_plain(feature_maps)
        dtype = feature_maps[0].dtype
        if not self.training and self.folds_norms() and strips_pay(feature_maps[0]) and dtype in FOLDED_DTYPES:
            return self.forward_folded([feature_map.permute(0, 2, 3, 1) for feature_map in feature_maps])
        size = feature_maps[0].shape[-2:]
        fused = self.project(0, feature_maps[0])
        for level in range(1, len(feature_maps)):
            share = self.project(level, feature_maps[level])
            fused = fused + interpolate(share, size=size, mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(self.fuse_norm(fused).relu()))

    def is_plain(self) -> bool:
        """Whether every linear layer is still the one built here, without hooks: adapters and quantisers replace it."""
        kinds = {type(projection) for projection in self.projections}
        return type(self.fuse) is type(self.classifier) is nn.Conv2d and kinds == {PointwiseLinear} and unhooked(self)

    def folds_norms(self) -> bool:
        """Whether every norm is a factor and a summand per channel in evaluation."""
        return all(type(norm) in BATCH_NORMS for norm in [self.fuse_norm, *(self.projection_norms or [])])

    def forward_plain(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The head as the paper draws it, calling every layer: for replaced layers, and the measure of the rest."""
        upsampled = []
        for level, feature_map in enumerate(feature_maps):
            projected = self.projections[level](feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if self.projection_norms is not None:
                projected = self.projection_norms[level](projected).relu()
            size = feature_maps[0].shape[-2:]
            upsampled.append(interpolate(projected, size=size, mode="bilinear", align_corners=False))
        ordered = upsampled if self.flavour == "mmseg" else upsampled[::-1]
        return self.classifier(self.dropout(self.fuse_norm(self.fuse(torch.cat(ordered, dim=1))).relu()))

    def projection(self, level: int) -> nn.Linear:
        """The linear projection of a level."""
        return cast(nn.Linear, self.projections[level])

    def fuse_columns(self) -> list[torch.Tensor]:
        """The fusing convolution's (D, D) columns for each level, finest first."""
        columns = list(self.fuse.weight[:, :, 0, 0].chunk(len(self.projections), dim=1))
        return columns if self.flavour == "mmseg" else columns[::-1]

    def project(self, level: int, feature_map: torch.Tensor) -> torch.Tensor:
        """One level (B, C_i, H_i, W_i) through its projection and its part of the fusion: (B, D, H_i, W_i)."""
        projection, columns = self.projection(level), self.fuse_columns()[level]
        tokens = feature_map.permute(0, 2, 3, 1)  # (B, H_i, W_i, C_i)
        if self.projection_norms is None:
            # The norm sees the same sum over levels whether the bias is fused here or there.
            weight, bias = columns @ projection.weight, columns @ projection.bias
            return pointwise(tokens, weight, bias).permute(0, 3, 1, 2)
        hidden = self.projection_norms[level](pointwise(tokens, projection.weight).permute(0, 3, 1, 2)).relu()
        return pointwise(hidden.permute(0, 2, 3, 1), columns).permute(0, 3, 1, 2)

    def folded(self) -> FoldedHead:
        """The folded head, made anew whenever a tensor behind it has another value."""
        sources = [t for name, t in self.state_dict().items() if not name.endswith("num_batches_tracked")]
        return self.folds.get(None, sources, self.fold)

    def fold(self) -> FoldedHead:
        """Multiply projections, fusion and BatchNorms out in double precision."""
        scale, shift = norm_as_scale_and_shift(cast(nn.BatchNorm2d, self.fuse_norm))
        columns = [scale[:, None] * part.double() for part in self.fuse_columns()]
        dtype = self.fuse.weight.dtype
        projections = [self.projection(level) for level in range(len(columns))]
        if self.projection_norms is None:
            weights = [part @ layer.weight.double() for part, layer in zip(columns, projections, strict=True)]
            for part, layer in zip(columns, projections, strict=True):
                shift = shift + part @ layer.bias.double()
            return FoldedHead(None, [weight.to(dtype) for weight in weights], shift.to(dtype))
        hidden = []
        for layer, norm in zip(projections, self.projection_norms, strict=True):
            level_scale, level_shift = norm_as_scale_and_shift(cast(nn.BatchNorm2d, norm))
            hidden.append(((level_scale[:, None] * layer.weight.double()).to(dtype), level_shift.to(dtype)))
        return FoldedHead(hidden, [part.to(dtype) for part in columns], shift.to(dtype))

    def deployed(self) -> nn.Module:
        """The head for exported programs: folded, or as it is where something does not fold."""
        if not (self.is_plain() and self.folds_norms()):
            return self
        folded = self.fold()
        levels = [(weight, None if level else folded.bias) for level, weight in enumerate(folded.weights)]
        classifier = self.classifier.weight[:, :, 0, 0], self.classifier.bias
        return DeployedAllMLPHead(folded.hidden, levels, classifier)

    def forward_folded(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """The head on (B, H_i, W_i, C_i) without autograd: a strip of output rows at a time."""
        batch, height, width, _ = feature_maps[0].shape
        folded = self.folded()
        logits = feature_maps[0].new_empty(batch, height, width, self.classifier.out_channels)
        for image, scores in enumerate(logits):
            coarse = [folded.project(level, maps[image]) for level, maps in enumerate(feature_maps) if level]
            for first, last in row_strips(height, width * folded.bias.numel() * scores.element_size(), STRIP_BYTES):
                fused = folded.project(0, feature_maps[0][image, first:last])  # (rows, W, D)
                for share in coarse:
                    add_upsampled_rows(fused, share, first, height)
                self.classify(fused.relu_(), scores[first:last])
        return logits.permute(0, 3, 1, 2)

    def classify(self, fused: torch.Tensor, scores: torch.Tensor) -> None:
        """Write the class scores of (rows, W, D) into (rows, W, K)."""
        scores.copy_(pointwise(fused, self.classifier.weight[:, :, 0, 0], self.classifier.bias))


def norm_as_scale_and_shift(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """BatchNorm in evaluation is x * scale + shift; both (D,) in double precision."""
    mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - mean.double() * scale


@lru_cache(maxsize=64)
def upsampling_matrix(coarse: int, fine: int, dtype: torch.dtype) -> torch.Tensor:
    """Bilinear interpolation of `coarse` rows to `fine` rows, align_corners=False: (fine, coarse)."""
    position = ((torch.arange(fine, dtype=torch.float64) + 0.5) * (coarse / fine) - 0.5).clamp(0, coarse - 1)
    return (1 - (position[:, None] - torch.arange(coarse)).abs()).clamp(min=0).to(dtype)


def add_upsampled_rows(fused: torch.Tensor, share: torch.Tensor, first: int, height: int) -> None:
    """Add to rows `first`.. of the fine grid, (rows, W, D), what a coarse map (H_i, W_i, D) gives there.

    The columns are interpolated by torch, the rows by one small matrix product that also does the addition.
    """
    rows, width, _ = fused.shape
    coarse = share.shape[0]
    top = max(int((first + 0.5) * coarse / height - 0.5), 0)
    bottom = min(int((first + rows - 0.5) * coarse / height - 0.5) + 2, coarse)
    wide = interpolate(
        share[None, top:bottom].permute(0, 3, 1, 2),
        (bottom - top, width),
        mode="bilinear",
        align_corners=False,
    )  # (1, D, bottom - top, W)
    matrix = upsampling_matrix(coarse, height, fused.dtype)[first : first + rows, top:bottom]
    fused.flatten(1).addmm_(matrix, wide.permute(0, 2, 3, 1)[0].flatten(1))


__all__ = ["AllMLPHead"]
