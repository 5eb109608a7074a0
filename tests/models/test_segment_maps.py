"""Segments from queries against transformers' post-processing."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from object_models import SpotModel
from torch.nn.functional import interpolate
from transformers import EomtImageProcessor, Mask2FormerImageProcessor
from transformers.utils import ModelOutput

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.models.distance_head import DistanceOutput
from hf_vit_seg.models.image_processing_universal import (
    UniversalSegmentationImageProcessor,
    UniversalSegmentationImageProcessorPil,
)
from hf_vit_seg.models.mask_classification import semantic_logits
from hf_vit_seg.models.segment_maps import needed_queries

GRID = (24, 40)
OURS = UniversalSegmentationImageProcessor()


def random_outputs(seed: int, queries: int = 12, classes: int = 5, grid=GRID, batch: int = 2, sharpness: float = 8.0):
    """Smooth blobs with certain classes, as trained models predict them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 4, 6, generator=generator)
    masks = sharpness * interpolate(coarse, size=grid, mode="bicubic") - sharpness / 2
    masks += 0.1 * torch.randn(masks.shape, generator=generator)
    kinds = 6 * torch.randn(batch, queries, classes + 1, generator=generator)
    return SimpleNamespace(class_queries_logits=kinds, masks_queries_logits=masks, patch_offsets=None)


def resized(outputs, size):
    """The same outputs with masks at another size, at which transformers' intermediate resizing changes nothing."""
    masks = interpolate(outputs.masks_queries_logits, size=size, mode="bilinear", align_corners=False)
    return SimpleNamespace(
        class_queries_logits=outputs.class_queries_logits, masks_queries_logits=masks, patch_offsets=None
    )


def eomt(size):
    return EomtImageProcessor(size={"shortest_edge": size[0], "longest_edge": size[1]}, do_split_image=False)


def from_one(result: dict) -> dict:
    """transformers' EoMT numbers segments from 0, and pixels without one are -1."""
    infos = [{**info, "id": info["id"] + 1} for info in result["segments_info"]]
    return {"segmentation": result["segmentation"].to(torch.int32) + 1, "segments_info": infos}


def without_fused(result: dict) -> dict:
    infos = [{name: info[name] for name in ("id", "label_id", "score")} for info in result["segments_info"]]
    return {**result, "segments_info": infos}


def assert_same(found: dict, expected: dict, most: int = 0) -> None:
    """Equal segments and infos; `most` pixels may differ by rounding."""
    assert found["segmentation"].dtype == torch.int32
    assert (found["segmentation"] != expected["segmentation"]).sum() <= most
    for ours, theirs in zip(found["segments_info"], expected["segments_info"], strict=True):
        assert ours | {"score": 0} == theirs | {"score": 0}
        assert ours["score"] == pytest.approx(theirs["score"], abs=2e-5)


@given(seed=st.integers(0, 10_000), size=st.sampled_from([GRID, (96, 160), (61, 83), (20, 33)]))
def test_panoptic_equals_eomt(seed, size):
    outputs = random_outputs(seed)
    fused = [0, 3]
    expected = eomt(size).post_process_panoptic_segmentation(
        resized(outputs, size), [size] * 2, threshold=0.6, overlap_mask_area_threshold=0.5, stuff_classes=fused
    )
    found = OURS.post_process_panoptic_segmentation(
        outputs, 0.6, overlap_mask_area_threshold=0.5, label_ids_to_fuse=fused, target_sizes=[size] * 2
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert all(info["was_fused"] == (info["label_id"] in fused) for info in ours["segments_info"])
        assert_same(without_fused(ours), from_one(theirs), most=2)


@given(seed=st.integers(0, 10_000), size=st.sampled_from([GRID, (96, 160), (61, 83), (20, 33)]))
def test_instances_equal_eomt(seed, size):
    outputs = random_outputs(seed)
    expected = eomt(size).post_process_instance_segmentation(resized(outputs, size), [size] * 2, threshold=0.4)
    found = OURS.post_process_instance_segmentation(outputs, 0.4, target_sizes=[size] * 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert not any(info["was_fused"] for info in ours["segments_info"])
        assert_same(without_fused(ours), from_one(theirs), most=2)


@given(seed=st.integers(0, 10_000), size=st.sampled_from([GRID, (61, 83)]))
def test_semantic_equals_eomt(seed, size):
    outputs = random_outputs(seed)
    expected = eomt(GRID).post_process_semantic_segmentation(outputs, [size] * 2)
    found = OURS.post_process_semantic_segmentation(outputs, [size] * 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.int64 and (ours != theirs).sum() <= 2
    scores = OURS.post_process_semantic_segmentation(outputs, [size] * 2, return_segmentation_scores=True)
    assert torch.equal(scores[0].segmentation, found[0]) and scores[0].segmentation_scores.shape == (5, *size)


def test_semantic_results_of_one_class():
    """As those of the semantic model: 1 where the probability exceeds one half."""
    outputs = random_outputs(0, classes=1)
    found = OURS.post_process_semantic_segmentation(outputs)
    logits = semantic_logits(outputs.class_queries_logits, outputs.masks_queries_logits)
    expected = OURS.post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs) and ours.unique().tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_instances_equal_mask2former_for_one_class(seed):
    """transformers' Mask2Former has a fixed intermediate size, and an order of objects that is not defined."""
    outputs = random_outputs(seed, classes=1, grid=(384, 384), batch=1)
    options = {"threshold": 0.4, "return_binary_maps": True}
    expected = Mask2FormerImageProcessor().post_process_instance_segmentation(outputs, **options)[0]
    found = OURS.post_process_instance_segmentation(outputs, **options)[0]

    def rows(result):
        infos = zip(result["segmentation"], result["segments_info"], strict=True)
        return sorted((int(mask.sum()), info["label_id"], round(info["score"], 4)) for mask, info in infos)

    assert found["segmentation"].dtype == torch.float32
    assert rows(found) == rows(expected) and len(rows(found)) > 0


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_equals_mask2former_for_certain_classes(seed):
    """With a class probability of 1 weighted and unweighted masks agree, and every pixel has a mask."""
    outputs = random_outputs(seed, grid=(384, 384), batch=1)
    outputs.class_queries_logits *= 1e4
    outputs.masks_queries_logits[:, 0] = 1e-3  # everywhere just above one half
    outputs.class_queries_logits[:, 0, 2] = 1e6
    expected = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=set(), overlap_mask_area_threshold=0.3
    )[0]
    found = OURS.post_process_panoptic_segmentation(outputs, overlap_mask_area_threshold=0.3)[0]
    assert_same(found, expected)
    assert len(found["segments_info"]) > 1


def test_sizes_of_instances_are_respected():
    outputs = random_outputs(0)
    sizes = [(50, 60), (7, 90)]
    for options in ({}, {"return_binary_maps": True}):
        found = OURS.post_process_instance_segmentation(outputs, 0.2, target_sizes=sizes, **options)
        assert [tuple(result["segmentation"].shape[-2:]) for result in found] == sizes
    assert OURS.post_process_instance_segmentation(outputs, 0.2)[0]["segmentation"].shape == GRID
    tensor = torch.tensor(sizes)
    assert OURS.post_process_panoptic_segmentation(outputs, target_sizes=tensor)[1]["segmentation"].shape == sizes[1]
    for wrong in ([(5, 5)], [(5, 5)] * 3):
        with pytest.raises(HfVitSegError):
            OURS.post_process_instance_segmentation(outputs, target_sizes=wrong)


@pytest.mark.parametrize("options", [{}, {"return_coco_annotation": True}, {"return_binary_maps": True}])
def test_nothing_above_the_threshold(options):
    outputs = random_outputs(0)
    found = OURS.post_process_instance_segmentation(outputs, 1.1, target_sizes=[(9, 8)] * 2, **options)[0]
    assert found["segments_info"] == []
    shape = {0: (9, 8), 1: (0,), 2: (0, 9, 8)}[sum(2 if "maps" in name else 1 for name in options)]
    assert (torch.as_tensor(found["segmentation"]).shape) == shape
    assert not torch.as_tensor(found["segmentation"]).any()
    empty = OURS.post_process_panoptic_segmentation(outputs, 1.1, target_sizes=[(9, 8)] * 2)[0]
    assert empty["segments_info"] == [] and empty["segmentation"].shape == (9, 8) and not empty["segmentation"].any()


def test_masks_without_pixels_are_not_objects():
    outputs = random_outputs(0)
    outputs.masks_queries_logits = outputs.masks_queries_logits.clamp(max=-1)
    assert OURS.post_process_instance_segmentation(outputs, 0.0)[0]["segments_info"] == []
    assert OURS.post_process_panoptic_segmentation(outputs, 0.0)[0]["segments_info"] == []


def test_run_lengths():
    outputs = random_outputs(1)
    maps = OURS.post_process_instance_segmentation(outputs, 0.4, target_sizes=[(30, 31)] * 2)
    runs = OURS.post_process_instance_segmentation(
        outputs, 0.4, target_sizes=[(30, 31)] * 2, return_coco_annotation=True
    )
    for found, encoded in zip(maps, runs, strict=True):
        assert len(encoded["segmentation"]) == len(found["segments_info"]) > 0
        for info, lengths in zip(found["segments_info"], encoded["segmentation"], strict=True):
            mask = torch.zeros(30 * 31, dtype=torch.bool)
            for start, length in zip(lengths[::2], lengths[1::2], strict=True):
                mask[start - 1 : start - 1 + length] = True
            assert torch.equal(mask.view(30, 31), found["segmentation"] == info["id"])


def test_things_are_not_fused():
    outputs = random_outputs(2, queries=2, classes=1, batch=1)
    outputs.class_queries_logits[..., 0] = 9
    outputs.masks_queries_logits[:] = -9
    outputs.masks_queries_logits[0, 0, :5], outputs.masks_queries_logits[0, 1, 10:] = 9, 9
    apart = OURS.post_process_panoptic_segmentation(outputs)[0]
    assert [info["id"] for info in apart["segments_info"]] == [1, 2]
    joined = OURS.post_process_panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
    assert [info["id"] for info in joined["segments_info"]] == [1] and joined["segments_info"][0]["was_fused"]
    assert (joined["segmentation"] > 0).sum() == (apart["segmentation"] > 0).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    outputs = random_outputs(3)
    halves = SimpleNamespace(
        class_queries_logits=outputs.class_queries_logits.to(dtype),
        masks_queries_logits=outputs.masks_queries_logits.to(dtype),
    )
    exact = SimpleNamespace(**{name: value.float() for name, value in vars(halves).items()})
    for method in ("instance", "panoptic"):
        post_process = getattr(OURS, f"post_process_{method}_segmentation")
        for found, expected in zip(post_process(halves), post_process(exact), strict=True):
            assert_same(found, expected, most=1)


def test_few_queries_are_computed_in_a_block():
    outputs = random_outputs(4, queries=100, grid=(128, 128), batch=1)
    needed = needed_queries(torch.full((100,), 0.9), outputs.masks_queries_logits[0], 0.0)
    assert needed.shape == (100, 8, 8) and needed.any(0).all()
    corner = torch.full((2, 128, 128), -9.0)
    corner[0, :4, :4], corner[1] = 9, -8
    needed = needed_queries(torch.ones(2), corner, 0.0)
    assert needed[0].sum() == 1 and needed[1].sum() == 64


def test_outputs_without_objects_raise():
    with pytest.raises(HfVitSegError):
        OURS.post_process_panoptic_segmentation(SimpleNamespace(logits=torch.zeros(1, 3, 4, 4)))
    assert UniversalSegmentationImageProcessorPil().post_process_semantic_segmentation(
        SimpleNamespace(logits=torch.zeros(1, 3, 4, 4))
    )[0].shape == (4, 4)
    with pytest.raises(HfVitSegError):
        OURS.post_process_instance_segmentation(random_outputs(0), return_coco_annotation=True, return_binary_maps=True)


def test_dense_heads_find_objects_themselves():
    def segments(image, size, threshold=None):
        numbers = torch.zeros(size, dtype=torch.int64)
        numbers[:2] = 1
        return numbers, torch.tensor([3]), torch.tensor([0.75])

    outputs = SimpleNamespace(segments=segments, semantic_logits=lambda: torch.zeros(2, 4, 5, 6))
    for method in ("instance", "panoptic"):
        found = getattr(OURS, f"post_process_{method}_segmentation")(outputs, target_sizes=[(10, 12)] * 2)
        assert len(found) == 2 and found[0]["segmentation"].shape == (10, 12)
        assert found[1]["segments_info"] == [{"id": 1, "label_id": 3, "was_fused": False, "score": 0.75}]
    assert OURS.post_process_semantic_segmentation(outputs)[0].shape == (5, 6)


def test_outputs_of_a_pipeline_have_objects():
    """transformers' pipelines replace the output of a model by a ModelOutput with the same tensors."""
    logits, distances = torch.full((1, 3, 24, 30), -9.0), torch.zeros(1, 1, 24, 30)
    logits[:, 2], logits[:, :, 5:15, 5:15] = 9, torch.tensor([-9.0, 9.0, -9.0])[:, None, None]
    distances[..., 5:15, 5:15] = 1 - torch.linspace(-1, 1, 10).abs()
    tensors = {"class_logits": logits, "distances": distances}
    for subtask in ("instance", "panoptic"):
        post_process = getattr(OURS, f"post_process_{subtask}_segmentation")
        results = [post_process(kind(tensors))[0] for kind in (ModelOutput, lambda given: DistanceOutput(**given))]
        assert_same(*results)
        assert [info["label_id"] for info in results[0]["segments_info"]] == [1]
    labels = OURS.post_process_semantic_segmentation(ModelOutput(tensors))[0]
    assert (labels[5:15, 5:15] == 1).all()


def test_stuff_of_dense_heads_is_fused():
    """Regions of one stuff class that do not touch are one segment; objects of a class remain apart."""
    numbers = torch.tensor([[1, 1, 0, 2], [3, 0, 4, 4]])
    found = numbers, torch.tensor([1, 0, 1, 0]), torch.tensor([0.5, 0.6, 0.7, 0.8])
    outputs = SimpleNamespace(segments=lambda *_, threshold: found, semantic_logits=lambda: torch.zeros(1, 2, 2, 4))
    stuff = UniversalSegmentationImageProcessor(label_ids_to_fuse=[1])
    result = stuff.post_process_panoptic_segmentation(outputs)[0]
    assert result["segmentation"].tolist() == [[1, 1, 0, 2], [1, 0, 3, 3]]
    rows = [tuple(info.values()) for info in result["segments_info"]]
    assert [row[:3] for row in rows] == [(1, 1, True), (2, 0, False), (3, 0, False)]
    assert [row[3] for row in rows] == pytest.approx([0.5, 0.6, 0.8])
    assert len(stuff.post_process_instance_segmentation(outputs)[0]["segments_info"]) == 4
    assert len(OURS.post_process_panoptic_segmentation(outputs)[0]["segments_info"]) == 4
    segmenter = InstanceSegmenter(SpotModel(), stuff, "cpu")
    fused, classes, scores = segmenter.segments(outputs, 0, (2, 4))
    assert torch.equal(fused, result["segmentation"]) and classes == [1, 0, 0] and len(scores) == 3
