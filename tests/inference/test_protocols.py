"""Protocols compared with brute force: the methods of mmsegmentation and MONAI on full-size logits of all classes."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import interpolate

from hf_vit_seg.inference import Protocol, Segmenter
from hf_vit_seg.inference.dense.pixel_maps import MapSelection
from hf_vit_seg.inference.dense.protocols import PRESETS
from hf_vit_seg.inference.dense.row_logits import LogitGrid
from hf_vit_seg.inference.dense.sliding_windows import SlidingLogits, WindowGrid, window_starts, window_weights
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.records import RecordError, read_record


class Coarse(nn.Module):
    """Logits at a quarter of the size that depend on all input pixels; counts its calls."""

    dtype = torch.float32

    def __init__(self, classes: int = 5, channels: int = 3):
        super().__init__()
        torch.manual_seed(classes)
        self.config = SimpleNamespace(
            num_labels=classes, num_channels=channels, id2label={i: f"class {i}" for i in range(classes)}
        )
        self.near = nn.Conv2d(channels, classes, 7, stride=4, padding=3)
        self.far = nn.Linear(channels, classes)
        self.batches: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.batches.append(len(pixel_values))
        whole = self.far(pixel_values.mean((2, 3)))
        return SimpleNamespace(logits=3 * (self.near(pixel_values) + whole[:, :, None, None]))


MODELS = {classes: Coarse(classes) for classes in (1, 2, 5)}
PROCESSOR = SemanticSegmentationImageProcessor(size={"height": 48, "width": 56})
EVERYTHING = MapSelection(scores=True, entropy=True, top_k=2)


def segmenter(classes: int = 5, **settings: object) -> Segmenter:
    return Segmenter(MODELS[classes], PROCESSOR, "cpu", Protocol(**settings))


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, -(-height // 6), -(-width // 6), generator=generator)
    return (resize(coarse, (height, width))[0] * 255).to(torch.uint8)


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)


def full_size_logits(model: Coarse, pixels: torch.Tensor) -> torch.Tensor:
    """Logits at the image size."""
    return resize(model(pixels).logits, pixels.shape[-2:])


def slide_inference(
    model: Coarse, pixels: torch.Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> torch.Tensor:
    """mmsegmentation's `slide_inference`, reimplemented; logits of images that fit into a window are unchanged."""
    height, width = pixels.shape[-2:]
    if height <= window[0] and width <= window[1]:
        return model(pixels).logits
    total, count = torch.zeros(len(pixels), model.config.num_labels, height, width), torch.zeros(height, width)
    for i in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(i * stride[0] + window[0], height), min(j * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            total[..., top:bottom, left:right] += full_size_logits(model, pixels[..., top:bottom, left:right])
            count[top:bottom, left:right] += 1
    assert count.min() > 0
    return total / count


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1) if logits.shape[1] == 1 else logits.softmax(1)


def assert_maps_match(maps, chances: torch.Tensor, one_class: bool, tolerance: float = 2e-5) -> None:
    """All maps from the probabilities (B, K, H, W)."""
    torch.testing.assert_close(maps.top_scores, chances.topk(2, 1).values, atol=tolerance, rtol=0)
    chosen = chances.gather(1, maps.labels[:, None])[:, 0]
    assert (chances.amax(1) - chosen).max() <= tolerance
    wanted = chances[:, 1] if one_class else chances.amax(1)
    torch.testing.assert_close(maps.scores, wanted, atol=tolerance, rtol=0)
    entropy = torch.special.entr(chances).sum(1) / np.log(chances.shape[1])
    torch.testing.assert_close(maps.entropy, entropy, atol=10 * tolerance, rtol=0)
    picked = chances.gather(1, maps.top_classes)
    torch.testing.assert_close(picked, maps.top_scores, atol=tolerance, rtol=0)
    assert (maps.top_classes[:, 0] != maps.top_classes[:, 1]).all()


SIDES = st.integers(20, 70)


@settings(max_examples=40)
@given(
    size=st.tuples(SIDES, SIDES),
    window=st.tuples(st.integers(8, 40), st.integers(8, 80)),
    share=st.floats(0.2, 1.0),
    classes=st.sampled_from([1, 2, 5]),
    batch=st.integers(1, 5),
    flip=st.booleans(),
    scales=st.sampled_from([(1.0,), (0.6, 1.0), (1.0, 1.7)]),
    chunk_rows=st.sampled_from([1, 7, 1000]),
)
def test_windows_flips_and_scales_match_brute_force(size, window, share, classes, batch, flip, scales, chunk_rows):
    stride = tuple(max(1, int(side * share)) for side in window)
    seg = segmenter(classes, window=window, stride=stride, window_batch=batch, flip=flip, scales=scales)
    prepared = seg.prepare(noise(*size))
    assert [view.shape[-2:] for view in prepared.views] == [
        (round(size[0] * scale), round(size[1] * scale)) for scale in scales
    ]
    model, chances = MODELS[classes], []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        for view in prepared.views:
            chances.append(probabilities(resize(slide_inference(model, view, window, stride), size)))
            if flip:
                logits = slide_inference(model, view.flip(-1), window, stride).flip(-1)
                chances.append(probabilities(resize(logits, size)))
        patch.setattr("hf_vit_seg.inference.segmenter.CHUNK_BYTES", chunk_rows * 16 * size[1] * classes)
        maps = seg.maps([prepared], EVERYTHING)
    assert_maps_match(maps, torch.stack(chances).mean(0), classes == 1)
    assert torch.equal(seg.label_map(prepared), seg.maps([prepared]).labels[0])


@settings(max_examples=25)
@given(
    size=st.tuples(SIDES, SIDES),
    window=st.tuples(st.integers(6, 20), st.integers(6, 20)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    blend=st.sampled_from(["flat", "gaussian"]),
)
def test_blended_windows_match_monai(size, window, overlap, blend):
    monai = pytest.importorskip("monai.inferers")
    model = MODELS[5]
    stride = tuple(int(side * (1 - overlap)) for side in window)
    pixels = torch.rand(2, 3, *size)
    with torch.inference_mode():
        wanted = monai.sliding_window_inference(
            pixels,
            window,
            3,
            lambda part: full_size_logits(model, part),
            overlap=overlap,
            mode="gaussian" if blend == "gaussian" else "constant",
        )
        grid = WindowGrid(size, window, stride, blend)
        canvas = SlidingLogits(lambda x: model(x).logits, lambda rows, columns: pixels[..., rows, columns], grid, 3)
        found = torch.cat([canvas.rows(row, min(row + 9, size[0])) for row in range(0, size[0], 9)], dim=1)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("classes", [1, 5])
def test_views_of_the_whole_image_are_averaged(classes, flip):
    seg = segmenter(classes, scales=(0.5, 1.0, 1.5), flip=flip)
    prepared = seg.prepare(noise(37, 61))
    assert [tuple(view.shape[-2:]) for view in prepared.views] == [(24, 28), (48, 56), (72, 84)]
    chances = []
    with torch.inference_mode():
        for view in prepared.views:
            for mirror in (False, True)[: 1 + flip]:
                logits = MODELS[classes](view.flip(-1)).logits.flip(-1) if mirror else MODELS[classes](view).logits
                chances.append(probabilities(resize(logits, (37, 61))))
    assert_maps_match(seg.maps([prepared], EVERYTHING), torch.stack(chances).mean(0), classes == 1)


@pytest.mark.parametrize("classes", [1, 5])
def test_single_view_maps_match_resized_logits(classes):
    seg = segmenter(classes)
    prepared = seg.prepare(noise(37, 61))
    with torch.inference_mode():
        chances = probabilities(resize(MODELS[classes](prepared.pixel_values).logits, (37, 61)))
    assert_maps_match(seg.maps([prepared], EVERYTHING), chances, classes == 1)
    maps, scores = seg.maps([prepared], EVERYTHING), seg.maps([prepared], MapSelection(scores=True)).scores
    torch.testing.assert_close(maps.scores, scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blend", ["flat", "gaussian"])
@pytest.mark.parametrize("flip", [False, True])
def test_window_of_image_size_equals_whole_image(blend, flip):
    image = noise(37, 61)
    whole = segmenter(size="own", flip=flip)
    for window in ((37, 61), (64, 64), (1000, 1000)):
        windows = segmenter(window=window, blend=blend, flip=flip)
        assert torch.equal(windows.label_map(image), whole.label_map(image))
    grid = WindowGrid((37, 61), (37, 61), (1, 1), blend)  # and also without the shortcut
    view = whole.prepare(image).pixel_values
    with torch.inference_mode():
        canvas = SlidingLogits(lambda x: MODELS[5](x).logits, lambda rows, columns: view[..., rows, columns], grid)
        torch.testing.assert_close(canvas.rows(0, 37).permute(0, 3, 1, 2), full_size_logits(MODELS[5], view))


@pytest.mark.parametrize("settings", [{}, {"window": 20}, {"scales": (1, 2), "flip": True}])
def test_batched_images_match_single_images(settings):
    seg = segmenter(**settings)
    images = [seg.prepare(noise(45, 50, seed)) for seed in range(3)]
    together = seg.label_maps(images)
    assert together.shape == (3, 45, 50) and together.dtype == torch.int64
    alone = torch.stack([seg.label_map(image) for image in images])
    assert (together != alone).float().mean() < 1e-3  # convolutions of batches round differently
    assert seg.label_maps(images, size=(9, 10)).shape == (3, 9, 10)
    with pytest.raises(ValueError, match="have one size"):
        seg.label_maps([*images, seg.prepare(noise(40, 50))])


def test_windows_are_batched_up_to_the_limit():
    model = Coarse()
    seg = Segmenter(model, PROCESSOR, "cpu", Protocol(window=16, stride=16, window_batch=6))
    seg.label_map(noise(64, 64))
    assert model.batches == [6, 6, 4]
    model.batches.clear()
    seg.label_maps([seg.prepare(noise(32, 32, seed)) for seed in range(2)])
    assert model.batches == [6, 2]


def test_window_buffer_is_limited_to_open_rows():
    model, most = MODELS[2], 0
    grid = WindowGrid((400, 40), (32, 32), (16, 16))
    image = torch.rand(1, 3, 400, 40)
    canvas = SlidingLogits(lambda x: model(x).logits, lambda rows, columns: image[..., rows, columns], grid)
    with torch.inference_mode():
        for row in range(400):
            canvas.rows(row, row + 1)
            most = max(most, len(canvas.held))
    assert most == 4
    assert len(grid) == 48


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 60))
def test_windows_cover_every_pixel_and_end_at_the_border(length, window, stride):
    window, stride = min(window, length), min(stride, window, length)
    starts = window_starts(length, window, stride)
    assert starts[0] == 0 and starts[-1] + window == length
    assert all(0 < later - earlier <= stride for earlier, later in pairwise(starts))


def test_blend_weights_peak_at_the_center():
    weights = window_weights((9, 14), "gaussian")
    assert weights[4, 6] == weights[4, 7] == weights.max() <= 1
    assert torch.equal(weights, weights.flip(0)) and torch.equal(weights, weights.flip(1))
    assert weights.min() >= 1e-3
    assert (window_weights((9, 14), "flat") == 1).all()


@pytest.mark.parametrize(
    ("settings", "image", "views"),
    [
        ({"preset": "ade20k"}, (683, 512), [(704, 512)]),  # 512 / 512 wide, 683 rounded up to a multiple of 32
        ({"preset": "ade20k"}, (200, 2000), [(224, 2048)]),  # the longest edge is the limit
        ({"preset": "ade20k", "size": "640,2048"}, (600, 800), [(640, 864)]),
        ({"preset": "ade20k_multi_scale"}, (512, 512), [(384, 384), (448, 448), (512, 512), (576, 576), (640, 640)]),
        ({"preset": "cityscapes"}, (1024, 2048), [(1024, 2048)]),
        ({"preset": "cityscapes_multi_scale", "scales": [0.5, 1.75]}, (1024, 2048), [(512, 1024), (1792, 3584)]),
        ({}, (30, 40), [(48, 56)]),
        ({"divisor": 32}, (30, 40), [(64, 64)]),
        ({"scales": [2]}, (30, 40), [(96, 112)]),
        ({"size": "own"}, (30, 40), [(30, 40)]),
        ({"size": "own", "divisor": 32}, (33, 64), [(64, 64)]),
        ({"window": 16}, (30, 40), [(30, 40)]),
        ({"window": 16, "size": "processor"}, (30, 40), [(48, 56)]),
        ({"size": {"height": 20, "width": 24}}, (30, 40), [(20, 24)]),
        ({"size": 60}, (30, 40), [(60, 80)]),
    ],
)
def test_images_are_resized_by_the_protocol(settings, image, views):
    protocol = read_record(Protocol, settings)
    assert [protocol.sides(image, scale, PROCESSOR) or (48, 56) for scale in protocol.scales] == views
    small = [side for view in views for side in view if side < 300]
    if len(small) == 2 * len(views):
        shown = segmenter(**settings).prepare(noise(*image)).views
        assert [tuple(view.shape[-2:]) for view in shown] == views


def test_scales_apply_to_the_processor_size():
    processor = SemanticSegmentationImageProcessor(size={"shortest_edge": 30, "longest_edge": 50}, size_divisor=8)
    for rule, sides in (
        ({}, (32, 40)),
        ({"scales": [2]}, (64, 80)),
        ({"size": 25}, (25, 33)),
        ({"divisor": 5}, (30, 40)),
    ):
        seg = Segmenter(MODELS[5], processor, "cpu", Protocol(**rule))
        assert tuple(seg.prepare(noise(30, 40)).pixel_values.shape[-2:]) == sides


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_complete_and_round_trip(preset):
    protocol = Protocol(preset=preset)
    assert Protocol(**protocol.model_dump(mode="json")) == protocol
    assert protocol.describe().startswith(f"{preset}: ")
    assert Protocol(preset=preset, divisor=7).describe().startswith(f"{preset} (changed): ")


def test_protocol_descriptions():
    assert segmenter().describe() == "whole image preprocessed by its image processor"
    image = noise(30, 40)
    assert segmenter()(image).protocol == "whole image at 48x56 (height x width)"
    words = segmenter(window=16, stride=(8, 12), blend="gaussian", scales=(1, 2), flip=True)(image).protocol
    assert words == (
        "windows of 16x16 every 8x12 pixels, blended by Gaussian weights, over the image at its own size, "
        "probabilities averaged over scales 1, 2 and mirror images"
    )
    assert segmenter(flip=True)(image).protocol.endswith("over the image and its mirror image")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "ade"}, "preset"),
        ({"stride": 4}, "require window"),
        ({"blend": "gaussian"}, "require window"),
        ({"window": 8, "stride": (8, 9)}, "gaps"),
        ({"window": "8by8"}, "512x1024"),
        ({"size": "large"}, "shortest edge"),
        ({"size": {"height": 4}}, "width is missing"),
        ({"scales": []}, "one number"),
        ({"windows": 8}, "did you mean 'window'"),
    ],
)
def test_invalid_protocols_raise(settings, words):
    with pytest.raises(RecordError, match=words):
        read_record(Protocol, settings, "protocol")


def test_excessive_sizes_and_class_counts_raise():
    with pytest.raises(ValueError, match="smaller size or scale"):
        segmenter(size="own", scales=(1e4,)).prepare(noise(30, 40))
    with pytest.raises(ValueError, match="number of classes, 5"):
        segmenter()(noise(30, 40), top_k=6)


def test_half_precision_is_blended_in_float32():
    logits = torch.randn(1, 5, 8, 8).to(torch.bfloat16)
    assert LogitGrid(logits).rows(2, 5).dtype == torch.float32
    assert torch.equal(LogitGrid(logits).rows(2, 5), logits.float().permute(0, 2, 3, 1)[:, 2:5])


MEMORY = r"""
import re, resource, torch
from pathlib import Path
from types import SimpleNamespace
from hf_vit_seg.inference import Protocol, Segmenter
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor

class Coarse(torch.nn.Module):
    dtype = torch.float32
    config = SimpleNamespace(num_labels=150, num_channels=3, id2label={})

    def forward(self, pixel_values):
        mean = torch.nn.functional.avg_pool2d(pixel_values, 4).mean(1, keepdim=True)
        return SimpleNamespace(logits=mean * torch.linspace(-1, 1, 150)[:, None, None])

def within(megabytes, task):
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        return task()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

torch.set_num_threads(1)
image = torch.randint(0, 255, (3, 1500, 4000), dtype=torch.uint8)
for megabytes, settings in ((600, {"window": 512, "blend": "gaussian"}), (300, {"size": "processor", "flip": True})):
    seg = Segmenter(Coarse(), SemanticSegmentationImageProcessor(), "cpu", Protocol(**settings))
    prepared = seg.prepare(image)
    within(megabytes, lambda: seg.label_map(prepared))
try:
    within(600, lambda: torch.nn.functional.interpolate(torch.zeros(1, 150, 375, 1000), scale_factor=4))
except RuntimeError:
    print("the plain way needs more")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_memory_for_6_megapixels_and_150_classes():
    """All logits at the image size would take 3600 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the plain way needs more" in done.stdout
