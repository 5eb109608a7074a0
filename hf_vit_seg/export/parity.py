"""The parity check of an export: comparison of program and model at several sizes and batches.

Shapes: B images, C channels, H W pixels, h w the logits' grid, K classes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.nn.functional import interpolate

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.grid_sizes import ceil_div
from hf_vit_seg.models.label_maps import label_map

from .graphs import Geometry

Run = Callable[[torch.Tensor], torch.Tensor]

# Largest difference of a logit, in units of the logits' standard deviation.
TOLERANCES = {"float32": 1e-3, "float16": 5e-2}
MIN_AGREEMENT = 0.9  # agreement of an 8-bit program's label maps on its calibration images


class ParityError(HfVitSegError):
    """A program whose outputs differ from those of its model."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    `difference` is the maximum difference of logits, in standard deviations of the logits (None for label maps),
    `agreement` the share of pixels with equal labels, and `wrong` the number of pixels with different labels whose two
    highest logits differ by more than the tolerance, so that they are not ties (None for 8-bit programs, whose logits
    have no tolerance).
    """

    images: str
    batch: int
    height: int
    width: int
    difference: float | None
    agreement: float
    wrong: int | None
    passed: bool


@dataclass(frozen=True)
class Parity:
    """All comparisons of a program and their tolerance; `scores` are those before and after quantization."""

    format: str
    dtype: str
    tolerance: float | None
    cases: tuple[Case, ...]
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all cases passed."""
        return all(case.passed for case in self.cases)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the report file."""
        return asdict(self) | {"passed": self.passed}

    @property
    def mean_agreement(self) -> float:
        """The share of pixels with equal labels, averaged over the cases; 0 without cases."""
        return sum(case.agreement for case in self.cases) / max(len(self.cases), 1)

    @property
    def worst(self) -> Case:
        """The case with the lowest agreement."""
        return min(self.cases, key=lambda case: case.agreement)

    def failure(self, name: str) -> ParityError:
        """Return the error for the first failed case."""
        case = next(case for case in self.cases if not case.passed)
        by = "" if case.difference is None else f"logits by {case.difference:.2g} standard deviations, "
        return ParityError(
            f"the outputs of {name} differ from those of the model, so it was not written: on {case.images} of "
            f"{case.batch}x{case.height}x{case.width} they differ in {by}{1 - case.agreement:.3%} of the labels "
            f"({case.wrong} of them are not ties); the tolerance is {TOLERANCES[self.dtype]:g} standard "
            "deviations"
        )

    def int8_failure(self, name: str, layers: Sequence[str]) -> ParityError:
        """Return the error for an 8-bit program; `layers` are those to keep in float32 first."""
        kept = ", ".join(f"'{layer}'" for layer in layers)
        return ParityError(
            f"the 8-bit {name} was not written: its labels equal those of the model in {self.mean_agreement:.1%} of "
            f"the pixels, the mean of {len(self.cases)} images (worst: {self.worst.agreement:.1%} in "
            f"{self.worst.images}), and {MIN_AGREEMENT:.0%} are required; calibrate on more images, which resemble "
            f'those to segment (--int8, --int8-images), or keep layers in float32: --set "float32_layers=[{kept}]"'
        )


def sizes_to_check(geometry: Geometry, usual: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield the (batch, height, width) of the comparisons: the usual size, and for dynamic sizes a smaller and odd
    ones.
    """
    batches = (geometry.batch,) if geometry.batch else (1, 3)
    if geometry.size:
        yield from ((batch, *geometry.size) for batch in batches)
        return
    height, width = usual
    odd = height * 3 // 4 | 1, width * 9 // 8 | 1
    yield batches[0], height, width
    yield batches[-1], *odd
    yield batches[0], odd[1], odd[0]
    yield batches[-1], max(64, height // 2), max(96, width // 2)


def random_images(batch: int, channels: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Return random normalized images (B, C, H, W) with the smoothness of photos."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, ceil_div(height, 16), ceil_div(width, 16), generator=generator)
    smooth = interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return smooth + 0.2 * torch.randn(batch, channels, height, width, generator=generator)


@torch.inference_mode()
def compare(
    images: str,
    pixel_values: torch.Tensor,
    model: Run,
    program: Run,
    tolerance: float,
    label_size: tuple[int, int] | None = None,
) -> Case:
    """Compare the output of the program with the model's logits, or with the label map of these logits."""
    expected, found = model(pixel_values).float(), program(pixel_values)
    spread = float(expected.std()) or 1.0
    batch, _, height, width = pixel_values.shape
    difference = None
    if found.is_floating_point():
        check_shape(found, tuple(expected.shape), images)
        difference = float((found.float() - expected).abs().max()) / spread
        labels, expected_labels = label_map(found.float()), label_map(expected)
    else:
        size = label_size or (height, width)
        check_shape(found, (batch, *size), images)
        expected = interpolate(expected, size, mode="bilinear", align_corners=False)
        labels, expected_labels = found.long(), label_map(expected)
    differs = labels != expected_labels
    wrong = int((differs & (margin(expected) > 2 * tolerance * spread)).sum())
    agreement = 1 - float(differs.double().mean())
    near = difference is None or difference <= tolerance  # also false for NaN
    return Case(images, batch, height, width, difference, agreement, wrong, bool(near) and wrong == 0)


@torch.inference_mode()
def compare_objects(
    images: str,
    pixel_values: torch.Tensor,
    model: Callable[[torch.Tensor], Any],
    program: Callable[[torch.Tensor], Any],
    tolerance: float,
) -> Case:
    """Compare the tensors of the outputs of a program and a model that find objects.

    The difference is the largest of all tensors, each in its own standard deviations. Labels are the classes of pixels.
    """
    expected, found = model(pixel_values), program(pixel_values)
    differences, bound = [], 0.0
    for name in expected.exported:
        own, other = expected[name].float(), found[name].float()
        check_shape(other, tuple(own.shape), images)
        spread = float(own.std()) or 1.0
        differences.append(float((other - own).abs().max()) / spread)
        bound += 2 * tolerance * spread
    logits = pixel_logits(expected)
    differs = label_map(logits) != label_map(pixel_logits(found))
    wrong = int((differs & (margin(logits) > bound)).sum())
    agreement = 1 - float(differs.double().mean())
    batch, _, height, width = pixel_values.shape
    difference = float(torch.tensor(differences).max())  # NaN if any is
    passed = difference <= tolerance and wrong == 0
    return Case(images, batch, height, width, difference, agreement, wrong, passed)


def pixel_logits(output: Any) -> torch.Tensor:
    """Return the logits of the classes of pixels of an output for objects.

    With several classes, the last one (B, K + 1, h, w) is "no object", for pixels where no class has a score above 1/2.
    """
    logits = output.semantic_logits().float()
    if logits.shape[1] == 1:
        return logits
    return torch.cat([logits, torch.full_like(logits[:, :1], math.log(0.5))], dim=1)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """Return the difference of the two highest logits of (B, K, h, w), or the absolute value of a single logit: (B, h,
    w).
    """
    if logits.shape[1] == 1:
        return logits[:, 0].abs()
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def check_shape(output: torch.Tensor, expected: tuple[int, ...], images: str) -> None:
    """Raise ParityError if the output shape differs from the model's."""
    if tuple(output.shape) != expected:
        raise ParityError(
            f"the output of the program on {images} has the shape {tuple(output.shape)}, expected {expected}; it was "
            "not written"
        )


def compare_labels(
    images: Mapping[str, torch.Tensor], compare_case: Callable[[str, torch.Tensor], Case]
) -> tuple[Case, ...]:
    """Compare the labels (not the logits) of an 8-bit program and its model on real images, by their names.

    `compare_case` compares both on named pixel values.
    """
    cases = [compare_case(name, pixel_values) for name, pixel_values in images.items()]
    mean = sum(case.agreement for case in cases) / max(len(cases), 1)
    return tuple(replace(case, wrong=None, passed=mean >= MIN_AGREEMENT) for case in cases)


__all__ = [
    "TOLERANCES",
    "Case",
    "Parity",
    "ParityError",
    "compare",
    "compare_labels",
    "compare_objects",
    "random_images",
    "sizes_to_check",
]
