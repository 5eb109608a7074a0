"""Label maps compared with plain code: resize all logits, then take the argmax."""

import sys

import pytest
import torch
from child_process import output_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vit_seg.models.label_maps import label_map, score_map

SIDES = st.integers(1, 40)
KINDS = ("noise", "smooth", "constant", "one-hot", "integers")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def random_logits(kind: str, shape: tuple[int, int, int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images, classes, height, width = shape
    if kind == "noise":
        return torch.randn(shape, generator=generator)
    if kind == "smooth":
        coarse = torch.randn(images, classes, -(-height // 8) + 1, -(-width // 8) + 1, generator=generator)
        return resize(coarse * 4, (height, width))
    if kind == "constant":
        return torch.full(shape, float(seed % 7 - 3))
    if kind == "one-hot":
        winners = torch.randint(0, classes, (images, height, width), generator=generator)
        return torch.nn.functional.one_hot(winners, classes).permute(0, 3, 1, 2).float()
    return torch.randint(-2, 3, shape, generator=generator).float()


@settings(max_examples=300)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 2), st.integers(2, 33), SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    channels_last=st.booleans(),
    chunk_bytes=st.sampled_from([1, 5000, 2**25]),
    seed=st.integers(0, 10**6),
)
def test_labels_are_the_argmax_of_resized_logits(kind, dtype, shape, size, channels_last, chunk_bytes, seed):
    logits = random_logits(kind, shape, seed).to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    labels = label_map(logits, size, chunk_bytes=chunk_bytes)
    assert labels.shape == (shape[0], *size)
    assert labels.dtype == torch.int64
    exact = resize(logits.double() if dtype == torch.float64 else logits.float(), size)
    chosen = exact.gather(1, labels[:, None])[:, 0]
    tolerance = 1e-5 if dtype != torch.float64 else 1e-12
    assert (exact.amax(1) - chosen).max() <= tolerance * exact.abs().max().clamp(min=1)
    top = exact.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > tolerance * exact.abs().max()
    assert torch.equal(labels[clear], exact.argmax(1)[clear])


@settings(max_examples=60)
@given(
    shape=st.tuples(st.just(1), st.integers(1, 20), SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
def test_scores_are_the_probabilities_of_the_labels(shape, size, dtype, seed):
    logits = (random_logits("smooth", shape, seed) * 3).to(dtype)
    exact = resize(logits.double(), size)
    wanted = exact.sigmoid()[:, 0] if shape[1] == 1 else exact.softmax(1).amax(1)
    torch.testing.assert_close(score_map(logits, size, chunk_bytes=4000).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (63, 130), (16, 16), (7, 5), (1, 1)])
def test_bit_identical_to_plain_argmax_on_smooth_logits(size):
    logits = random_logits("smooth", (2, 19, 16, 16), 3)
    assert torch.equal(label_map(logits, size), resize(logits, size).argmax(1))


def test_exact_ties_select_the_first_class():
    logits = torch.zeros(1, 6, 4, 4)
    logits[:, 2:4] = 1.0
    assert (label_map(logits, (11, 9)) == 2).all()
    torn = torch.zeros(1, 6, 1, 2)
    torn[0, [1, 3], 0, 0], torn[0, [2, 4], 0, 1] = 1.0, 1.0
    assert label_map(torn, (1, 8)).unique().tolist() == [1, 2]


def test_single_class_is_thresholded_at_one_half():
    logits = torch.tensor([-1.0, 3.0]).reshape(1, 1, 1, 2)
    labels = label_map(logits, (1, 16), dtype=torch.uint8)
    assert torch.equal(labels, (resize(logits, (1, 16))[:, 0].sigmoid() > 0.5).to(torch.uint8))


def test_nan_and_infinity_never_win_and_stay_local():
    logits = torch.zeros(1, 3, 6, 6)
    logits[:, 1] = 1.0
    logits[0, 2, 3, 3], logits[0, 0, 0, 0] = torch.nan, -torch.inf
    assert (label_map(logits, (24, 24)) == 1).all()
    logits[0, 2, 3, 3] = torch.inf
    assert label_map(logits, (24, 24))[0, 14, 14] == 2
    assert (label_map(torch.full((1, 3, 2, 2), torch.nan), (5, 5)) == 0).all()
    assert score_map(logits, (24, 24)).isfinite().all()


@pytest.mark.parametrize("context", [torch.inference_mode, torch.enable_grad])
def test_no_gradient_is_tracked_and_autocast_has_no_effect(context):
    logits = random_logits("smooth", (1, 5, 8, 8), 1)
    wanted = label_map(logits, (30, 30))
    with context(), torch.autocast("cpu", dtype=torch.bfloat16):
        labels = label_map(logits.clone().requires_grad_(not torch.is_inference_mode_enabled()), (30, 30))
    assert not labels.requires_grad
    assert torch.equal(labels, wanted)


def test_invalid_inputs_raise():
    with pytest.raises(ValueError, match="do not fit into labels"):
        label_map(torch.zeros(1, 300, 2, 2), dtype=torch.uint8)
    with pytest.raises(ValueError, match="floating-point logits"):
        label_map(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="at least one pixel"):
        label_map(torch.zeros(1, 3, 2, 2), (0, 4))


def test_empty_batch_gives_no_maps():
    assert label_map(torch.zeros(0, 3, 2, 2), (4, 5)).shape == (0, 4, 5)


MEMORY = r"""
import torch
from hf_vit_seg.models.label_maps import label_map, score_map
from benchmarks.measuring import peak_rss, reset_peak

def growth(task):
    before = reset_peak()
    task()
    return (peak_rss() - before) // 2**20

torch.set_num_threads(1)
noise = torch.randn(1, 150, 16, 16)
size = (3000, 4000)
fine = torch.nn.functional.interpolate(noise, size=(375, 500), mode="bilinear")
coarse = torch.nn.functional.interpolate(noise, size=(128, 128), mode="bilinear")
for logits in (coarse, fine):
    print(growth(lambda: label_map(logits, size, dtype=torch.uint8)))
print(growth(lambda: label_map(noise, (1500, 2000), dtype=torch.uint8)))
print(growth(lambda: score_map(noise, (1500, 2000))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_for_12_megapixels_and_150_classes():
    grown = [int(line) for line in output_of(MEMORY).split()]
    assert len(grown) == 4
    assert max(grown) < 200, f"{grown} MB; resizing all logits takes 6900 MB"
