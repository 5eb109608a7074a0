"""Cross-entropy in row strips equals `interpolate` and `cross_entropy`, including its gradient."""

import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from size_formulas import Largest
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate

from benchmarks.measuring import peak_memory
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.bilinear import StripUpsampling
from hf_vit_seg.models.losses import semantic_segmentation_loss, upsampled_cross_entropy

IGNORE = 255
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
sides = st.integers(1, 23)


def plain(logits, labels, class_weights=None, label_smoothing=0.0):
    """The definition with torch functions; a single output is the second of two, with a logit of 0 for the first."""
    resized = interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    if logits.shape[1] == 1:
        resized = torch.cat([torch.zeros_like(resized), resized], 1)
    options = {"ignore_index": IGNORE, "reduction": "none", "label_smoothing": label_smoothing}
    return cross_entropy(resized, labels, class_weights, **options)


def random_inputs(images, classes, grid, size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, *grid, generator=generator, dtype=dtype)
    labels = torch.randint(0, max(classes, 2), (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits.requires_grad_(), labels


def assert_same(logits, losses, expected, tolerance):
    upstream = torch.randn(losses.shape, dtype=losses.dtype)
    (gradient,) = torch.autograd.grad(losses, logits, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, logits, upstream)
    for ours, theirs in ((losses, expected), (gradient, expected_gradient)):
        scale = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@settings(max_examples=150)
@given(
    images=st.integers(1, 3),
    classes=st.sampled_from([1, 2, 5, 11, 16, 37]),
    grid=st.tuples(sides, sides),
    size=st.tuples(sides, sides),
    dtype=st.sampled_from(list(TOLERANCE)),
    strip_bytes=st.sampled_from([1, 3000, 20_000, None]),
    weighted=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.3]),
    channels_last=st.booleans(),
)
def test_value_and_gradient_match_autograd(
    images, classes, grid, size, dtype, strip_bytes, weighted, label_smoothing, channels_last
):
    logits, labels = random_inputs(images, classes, grid, size, dtype)
    if channels_last:
        logits = logits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.rand(max(classes, 2), dtype=dtype) + 0.1 if weighted else None
    options = {"class_weights": weights, "label_smoothing": label_smoothing}
    losses = upsampled_cross_entropy(logits, labels, IGNORE, strip_bytes=strip_bytes, **options)
    assert losses.dtype == dtype
    assert_same(logits, losses, plain(logits, labels, **options), 5 * TOLERANCE[dtype])


# At uneven ratios, torch's two memory layouts round positions differently, by 4e-6 of a sample at 128 samples.
@pytest.mark.parametrize(("size", "tolerance"), [((512, 512), 1e-6), ((128, 128), 1e-6), ((509, 517), 5e-6)])
def test_gradients_at_real_sizes(size, tolerance):
    logits, labels = random_inputs(2, 21, (128, 128), size)
    (gradient,) = torch.autograd.grad(semantic_segmentation_loss(logits, labels, IGNORE), logits)
    mean = plain(logits, labels).sum() / (labels != IGNORE).sum()
    (expected,) = torch.autograd.grad(mean, logits)
    assert (gradient - expected).abs().max() <= tolerance * expected.abs().max()


@settings(max_examples=100)
@given(st.integers(1, 5), st.integers(1, 40), st.tuples(sides, sides), st.tuples(sides, sides), st.integers(1, 50_000))
def test_row_strips_cover_every_pixel_once(images, classes, grid, size, strip_bytes):
    upsampling = StripUpsampling(torch.randn(images, classes, *grid), size, strip_bytes)
    seen = torch.zeros(images, *size, dtype=torch.long)
    row_bytes = classes * max(grid[1], size[1]) * 4
    for strip in upsampling.strips():
        seen[strip] += 1
        assert seen[strip].shape[:2].numel() * row_bytes <= max(strip_bytes, row_bytes)
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 3, 8, 20])
def test_half_precision_logits_are_computed_in_float32(dtype, classes):
    logits, labels = random_inputs(2, classes, (9, 7), (31, 30))
    half = logits.detach().to(dtype).requires_grad_()
    whole = half.detach().float().requires_grad_()
    losses = upsampled_cross_entropy(half, labels, IGNORE)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, plain(whole, labels), rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    plain(whole, labels).sum().backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad, whole.grad.to(dtype), rtol=2e-2, atol=1e-3)


def test_autocast_has_no_effect():
    logits, labels = random_inputs(2, 7, (9, 7), (31, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = upsampled_cross_entropy(logits, labels, IGNORE, label_smoothing=0.1)
        losses.sum().backward()
    assert torch.equal(losses, upsampled_cross_entropy(logits, labels, IGNORE, label_smoothing=0.1))
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("classes", [1, 4, 7, 18])
def test_loss_and_gradient_are_zero_without_valid_pixels(classes):
    logits, labels = random_inputs(2, classes, (4, 5), (16, 20))
    loss = semantic_segmentation_loss(logits, torch.full_like(labels, IGNORE), IGNORE)
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_have_no_effect():
    logits, labels = random_inputs(1, 6, (8, 8), (8, 8))
    (gradient,) = torch.autograd.grad(semantic_segmentation_loss(logits, labels, IGNORE), logits)
    assert (gradient.any(1)[0] == (labels[0] != IGNORE)).all()


@pytest.mark.parametrize("classes", [1, 3, 5, 11, 20])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_invalid_label_raises(classes, wrong):
    logits, labels = random_inputs(1, classes, (4, 4), (8, 8))
    labels[0, 3, 3] = max(classes, 2) if wrong == 1 else -1
    with pytest.raises(HfVitSegError, match=f"got {labels[0, 3, 3]}$"):
        upsampled_cross_entropy(logits, labels, IGNORE)


@pytest.mark.parametrize("classes", [1, 3, 20])
def test_wrong_label_shape_or_dtype_raises(classes):
    logits, labels = random_inputs(2, classes, (4, 4), (8, 8))
    for wrong in (labels[:1], labels[0], labels[:, None], labels.float()):
        with pytest.raises(ValueError, match="one for each of the 2 images; got"):
            upsampled_cross_entropy(logits, wrong, IGNORE)
    expected = upsampled_cross_entropy(logits, labels, IGNORE)
    for narrow in (torch.uint8, torch.int32):
        torch.testing.assert_close(upsampled_cross_entropy(logits, labels.to(narrow), IGNORE), expected)


def test_one_output_is_binary():
    logits, labels = random_inputs(2, 1, (5, 6), (17, 19))
    resized = interpolate(logits, labels.shape[-2:], mode="bilinear")[:, 0]
    counts = labels != IGNORE
    expected = binary_cross_entropy_with_logits(resized[counts], labels[counts].float())
    torch.testing.assert_close(semantic_segmentation_loss(logits, labels, IGNORE), expected)


def test_class_with_zero_weight_has_no_loss():
    logits, labels = random_inputs(2, 1, (5, 6), (17, 19))
    weights = torch.tensor([0.0, 1.0])
    losses = upsampled_cross_entropy(logits, labels, IGNORE, class_weights=weights)
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(losses, upsampled_cross_entropy(both, labels, IGNORE, class_weights=weights))


def test_double_backward_raises():
    logits, labels = random_inputs(1, 6, (4, 4), (8, 8))
    loss = semantic_segmentation_loss(logits, labels, IGNORE)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_compiles_in_one_graph_with_backward():
    logits, labels = random_inputs(2, 6, (7, 5), (20, 24))
    torch._dynamo.reset()
    compiled = torch.compile(
        partial(semantic_segmentation_loss, ignore_index=IGNORE), fullgraph=True, backend="aot_eager"
    )
    (gradient,) = torch.autograd.grad(compiled(logits, labels), logits)
    (expected,) = torch.autograd.grad(semantic_segmentation_loss(logits, labels, IGNORE), logits)
    torch.testing.assert_close(gradient, expected)


def test_can_be_traced():
    logits, labels = random_inputs(1, 6, (7, 5), (20, 24))
    traced = torch.jit.trace(lambda *maps: semantic_segmentation_loss(*maps, IGNORE), (logits, labels))
    other, others = random_inputs(1, 6, (7, 5), (20, 24), seed=1)
    torch.testing.assert_close(traced(other, others), semantic_segmentation_loss(other, others, IGNORE))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_no_full_size_tensor_is_allocated(label_smoothing):
    logits, labels = random_inputs(2, 20, (32, 32), (128, 128))
    with Largest() as largest:
        upsampled_cross_entropy(
            logits, labels, IGNORE, label_smoothing=label_smoothing, strip_bytes=2**17
        ).sum().backward()
    assert largest.numel <= logits.numel()  # a sixteenth of the resized logits


def peak(way):
    """Both passes at 512x512 with 150 classes and a batch of 8."""
    logits = torch.randn(8, 150, 128, 128).contiguous(memory_format=torch.channels_last).requires_grad_()
    labels = torch.randint(0, 150, (8, 512, 512))

    def run():
        loss = semantic_segmentation_loss(logits, labels, IGNORE) if way == "ours" else plain(logits, labels).mean()
        loss.backward()

    return run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_uses_a_fifth_of_the_memory():
    ours, theirs = (peak_memory(partial(peak, way), "cpu") for way in ("ours", "plain"))
    print(f"peak of the loss: {ours:.0f} MiB, the plain way {theirs:.0f} MiB")
    assert ours <= theirs / 5
