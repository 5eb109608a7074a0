"""Heatmaps of keypoints as in ViTPose: encoding, loss, flipping, and decoding.

Sources: unbiased data processing (UDP, arXiv 1911.07524) for the coordinates of heatmap pixels, DARK
(arXiv 1910.06278) for subpixel decoding, and mmpose 0.x for the constants of both.

Shapes: B images, K keypoints, H W pixels of the image, h w of its heatmaps. Keypoints are (x, y) as in COCO, in pixels
of the input image, whose first pixel's center is (0, 0). In UDP, the centers of corner pixels coincide:
pixel i of a heatmap's row is at i * (W - 1) / (w - 1) in the image.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import conv2d, pad

from .errors import HfVitSegError

# Values of a heatmap are clamped to this range before taking logarithms (mmpose).
MIN_HEAT, MAX_HEAT = 1e-3, 50.0
REACH = 3  # a target's Gaussian ends at this many sigmas, in rows and in columns


def pixel_pitch(image_size: tuple[int, int], heatmap_size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Return the number (x, y) of image pixels per heatmap pixel; both sizes are (height, width)."""
    (height, width), (rows, columns) = image_size, heatmap_size
    return like.new_tensor([(width - 1) / max(columns - 1, 1), (height - 1) / max(rows - 1, 1)])


def heatmaps_from_keypoints(
    keypoints: torch.Tensor,
    visible: torch.Tensor,
    image_size: tuple[int, int],
    heatmap_size: tuple[int, int],
    sigma: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Build targets (B, K, h, w), Gaussians of height 1, and their weights (B, K), which are 0 for ignored keypoints.

    `keypoints` (B, K, 2) are (x, y) in the image; keypoints with `visible` (B, K) 0, and keypoints whose Gaussian is
    outside the heatmap, have an empty target and weight 0. `sigma` is in pixels of the heatmap (ViTPose: 2).
    """
    rows, columns = heatmap_size
    centers = keypoints / pixel_pitch(image_size, heatmap_size, keypoints)
    nearest = (centers + 0.5).floor()
    reach = REACH * sigma
    factors, inside = [], visible > 0
    for axis, length in ((0, columns), (1, rows)):
        positions = torch.arange(length, device=keypoints.device, dtype=keypoints.dtype)
        gaussian = (-((positions - centers[..., axis, None]) ** 2) / (2 * sigma**2)).exp()
        window = (positions - nearest[..., axis, None]).abs() <= reach
        factors.append(gaussian * window)
        inside = inside & window.any(dim=-1)
    targets = factors[1][..., :, None] * factors[0][..., None, :]
    return targets * inside[..., None, None], inside.to(targets.dtype)


def heatmap_loss(heatmaps: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the mean squared error over all keypoints' pixels; weights of 0 count as error 0, as in mmpose."""
    return ((heatmaps - targets) * weights[..., None, None]).square().mean()


def check_pairs(pairs: Sequence[Sequence[int]], keypoints: int) -> None:
    """Raise ValueError for pairs of keypoints that a model does not have."""
    wrong = [tuple(pair) for pair in pairs if len(pair) != 2 or not all(0 <= index < keypoints for index in pair)]
    if wrong:
        raise HfVitSegError(
            f"pose_flip_pairs contains {wrong}, but the model has the keypoints 0 .. {keypoints - 1}: set it to the "
            "left and right pairs of your keypoints (the default is COCO's)"
        )


def flip_back(heatmaps: torch.Tensor, pairs: Sequence[Sequence[int]]) -> torch.Tensor:
    """Flip heatmaps (B, K, h, w) of the flipped image back, and swap left and right keypoints."""
    order = list(range(heatmaps.shape[1]))
    for left, right in pairs:
        order[left], order[right] = right, left
    return heatmaps[:, order].flip(-1)


def gaussian_kernel(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return OpenCV's Gaussian kernel (size,) of an odd size, which determines its sigma."""
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    positions = torch.arange(size, device=like.device, dtype=like.dtype) - size // 2
    kernel = (-(positions**2) / (2 * sigma**2)).exp()
    return kernel / kernel.sum()


def blur_heatmaps(heatmaps: torch.Tensor, size: int) -> torch.Tensor:
    """Blur heatmaps (B, K, h, w) with a Gaussian of `size` x `size` pixels; borders are reflected."""
    kernel, radius = gaussian_kernel(size, heatmaps), size // 2
    mode = "reflect" if radius < min(heatmaps.shape[-2:]) else "replicate"
    single = pad(heatmaps.flatten(0, 1)[:, None], (radius,) * 4, mode=mode)  # (B * K, 1, h + 2r, w + 2r)
    single = conv2d(conv2d(single, kernel[None, None, :, None]), kernel[None, None, None, :])
    return single.view(heatmaps.shape)


def newton_step(logs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the offset (B, K, 2), (x, y), from pixels of logarithmic heatmaps (B, K, h, w) to the local Gaussian's
    peak.

    A Gaussian's logarithm is a parabola, whose peak is found by one step of Newton's method (DARK, equation 7).
    """
    edged = pad(logs, (1, 1, 1, 1), mode="replicate")
    width = edged.shape[-1]
    center = (rows + 1) * width + columns + 1  # (B, K)
    flat = edged.flatten(2)

    def at(down: int, right: int) -> torch.Tensor:
        return flat.gather(2, (center + down * width + right)[..., None])[..., 0]

    here, right, left, below, above = at(0, 0), at(0, 1), at(0, -1), at(1, 0), at(-1, 0)
    dx, dy = (right - left) / 2, (below - above) / 2
    tiny = torch.finfo(torch.float32).eps
    dxx, dyy = right - 2 * here + left + tiny, below - 2 * here + above + tiny
    dxy = (at(1, 1) - right - below + 2 * here - left - above + at(-1, -1)) / 2
    determinant = dxx * dyy - dxy * dxy
    return torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=-1) / determinant[..., None]


@torch.no_grad()
def keypoints_from_heatmaps(
    heatmaps: torch.Tensor, image_size: tuple[int, int], blur: int = 11
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode keypoints (B, K, 2) as (x, y) in pixels of an image of `image_size` (height, width), and scores (B, K).

    The highest pixel gives the score; its position is refined to the peak of a Gaussian (DARK) fitted to
    the heatmap blurred by a Gaussian of `blur` pixels per side (ViTPose: 11).
    """
    heatmaps = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32))
    size = (heatmaps.shape[-2], heatmaps.shape[-1])
    scores, indices = heatmaps.flatten(2).max(dim=-1)
    rows, columns = indices // size[1], indices % size[1]
    logs = blur_heatmaps(heatmaps, blur).clamp(MIN_HEAT, MAX_HEAT).log()
    peaks = torch.stack([columns, rows], dim=-1) + newton_step(logs, rows, columns)
    return peaks * pixel_pitch(image_size, size, peaks), scores


__all__ = [
    "check_pairs",
    "flip_back",
    "heatmap_loss",
    "heatmaps_from_keypoints",
    "keypoints_from_heatmaps",
]
