"""Training, evaluation and saved models of instance and panoptic segmentation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_runs import SIZE, run, settings, write_data, write_recipe
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.data.samples import Segments
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.loading.models import load_for_inference, model_task
from hf_vit_seg.metrics.segment_overlaps import SegmentMap, find_overlaps
from hf_vit_seg.models.image_processing_universal import UniversalSegmentationImageProcessor
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext
from hf_vit_seg.training.evaluation.segment_evaluation import image_quality, resize_segments
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.figures.evaluation_samples import write_extreme_samples
from hf_vit_seg.training.losses.objectives import HeadObjective
from hf_vit_seg.training.recipe_loading import load_recipe

MODEL = {"architecture": "segformer", "variant": "tiny", "norm": "group"}
FIELDS = {"decode_head": "query", "num_queries": 5, "drop_path_rate": 0.0, "decode_head_dropout_prob": 0.0}
CLASSES = {
    "instance": [{"name": "disc", "values": [1]}, {"name": "bar", "values": [2]}],
    "panoptic": [{"name": "ground", "thing": False}, "disc", "bar"],
}


def write_instances(folder: Path) -> None:
    """Each disc and bar of the masks is an object; one image has none."""
    for split in ("train", "validation"):
        (folder / split / "instances").mkdir()
        for path in sorted((folder / split / "masks").glob("*.png")):
            mask = np.asarray(Image.open(path))
            numbers = np.where(mask == 255, 0, mask).astype(np.uint16) * 300
            if path.stem == "02":
                numbers[:] = 0
                Image.fromarray(np.zeros_like(mask)).save(path)
            Image.fromarray(numbers).save(folder / split / "instances" / path.name)


def recipe(data: Path, task: str, **changes) -> dict:
    rest = settings(data)
    for split in ("train", "validation"):
        rest["data"][split]["instances"] = str(data / split / "instances")
    rest["data"]["classes"] = CLASSES[task]
    rest["model"] = {**MODEL, "fields": FIELDS}
    rest["loop"] = {"steps": 2, "batch_size": 2, "log_every": 1, "evaluate_every": 2}
    return {"task": task, **rest, **changes}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    write_instances(folder)
    return folder


@pytest.fixture(scope="module")
def distance_run(data, tmp_path_factory) -> Path:
    """A run with the head that separates objects by a distance map."""
    folder = tmp_path_factory.mktemp("distance")
    model = {**MODEL, "fields": {"decode_head": "distance", "drop_path_rate": 0.0, "strides": [2, 2, 2, 2]}}
    run(write_recipe(folder, recipe(data, "instance", model=model)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for task in CLASSES:
        folder = tmp_path_factory.mktemp(task)
        run(write_recipe(folder, recipe(data, task)), folder / "run")
        found[task] = folder / "run"
    return found


@pytest.mark.parametrize("task", CLASSES)
def test_metrics_of_a_run(runs, task):
    report = json.loads((runs[task] / "best/metrics.json").read_text())
    assert report["task"] == task
    expected = {
        "instance": {"mask_ap", "mask_ap_50", "f1_50", "aji", "count_error", "pq", "objects", "mean_iou"},
        "panoptic": {"pq", "sq", "rq", "pq_things", "pq_stuff", "rq_things"},
    }[task]
    assert expected <= set(report["scores"])
    assert report["metric"] == {"instance": "mask_ap", "panoptic": "pq"}[task]
    assert {"name", "pq", "sq", "rq"} <= set(report["classes"][0])
    assert {path.name for path in (runs[task] / "samples").glob("*.png")} == {"00.png", "best_1.png", "worst_1.png"}
    assert [path.name for path in (runs[task] / "samples/images").iterdir()] == ["00.png"]  # for the demo


@pytest.mark.parametrize("task", ["instance", "panoptic", "distance"])
def test_validation_loss(runs, distance_run, data, task):
    """It is logged, does not depend on the batch size or on random numbers, and is that of the model on all images."""
    folder = distance_run if task == "distance" else runs[task]
    rows = (folder / "results.csv").read_text().splitlines()
    name = rows[0].split(",").index("validation_loss")
    assert all(float(row.split(",")[name]) > 0 for row in rows[1:]) and len(rows) > 1
    kind = "instance" if task == "distance" else task
    model, processor = load_for_inference(str(folder / "best"), kind)
    losses, rankings = [], []
    for size, seed in ((1, 0), (3, 1)):
        settings = load_recipe(folder / "recipe.yaml", [f"evaluation.batch_size={size}"])
        dataset = open_split(settings, "validation")
        state = torch.manual_seed(seed).get_state()
        context = EvaluationContext(model, processor, settings, Accelerator(cpu=True), objective=HeadObjective(model))
        found = evaluate(context, dataset)
        assert torch.equal(torch.get_rng_state(), state)
        losses.append(found.scores["loss"])
        rankings.append(found.sample_scores)
    if task == "distance":  # the points of the other head are drawn for each batch
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.2) and losses[0] > 0
    assert [index for index, _ in rankings[0]] == [index for index, _ in rankings[1]]
    assert all(0 <= score <= 1 for _, score in rankings[0]) and len(rankings[0]) > 0


@pytest.mark.parametrize("task", CLASSES)
def test_best_and_worst_images_are_drawn(runs, data, task):
    settings = load_recipe(runs[task] / "recipe.yaml", ["evaluation.samples=2"])
    dataset = open_split(settings, "validation")
    model, processor = load_for_inference(str(runs[task] / "best"), task)
    context = EvaluationContext(model, processor, settings, Accelerator(cpu=True))
    ranking = ((1, 0.25), (0, 0.5), (2, 0.75))
    written = write_extreme_samples(context, dataset, ranking, runs[task] / "extremes")
    assert sorted(path.name for path in written) == ["best_1.png", "worst_1.png"]


def test_score_of_an_image_is_its_panoptic_quality():
    labels = torch.zeros(8, 8, dtype=torch.int32)
    labels[:4] = 1
    half = labels.clone()
    half[:1] = 0  # 24 of 32 pixels
    truth = SegmentMap(labels, (0,))
    assert float(image_quality(find_overlaps(SegmentMap(half, (0,)), truth), 2)) == pytest.approx(0.75)
    assert float(image_quality(find_overlaps(SegmentMap(half, (1,)), truth), 2)) == 0
    empty = SegmentMap(torch.zeros_like(labels), ())
    assert image_quality(find_overlaps(empty, empty), 2).isnan()


def test_resizing_removes_empty_segments():
    ids = torch.ones(8, 8, dtype=torch.int32)
    ids[0, 0], ids[4:] = 2, 3
    found = resize_segments(Segments(ids, (5, 6, 7)), (2, 2))
    assert found.classes == (5, 7) and found.ids.tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize("task", CLASSES)
def test_saved_model_finds_objects(runs, task):
    best = str(runs[task] / "best")
    assert model_task(best) == "instance"
    processor = AutoImageProcessor.from_pretrained(best)
    assert type(processor) is UniversalSegmentationImageProcessor
    assert processor.label_ids_to_fuse == {"instance": None, "panoptic": [0]}[task]
    segmenter = InstanceSegmenter.from_pretrained(best, "cpu", threshold=0.0)
    assert segmenter.fused == {"instance": None, "panoptic": (0,)}[task]
    found = segmenter(Image.new("RGB", (SIZE, 30)))
    assert (
        found.size == (30, SIZE)
        and found.names == {"instance": ("disc", "bar"), "panoptic": ("ground", "disc", "bar")}[task]
    )
    assert found.instance_map().shape == (30, SIZE)


@pytest.mark.parametrize("subtask", ["semantic", "instance", "panoptic"])
def test_pipeline_of_transformers(runs, subtask):
    segment = pipeline("image-segmentation", model=str(runs["panoptic"] / "best"), device="cpu")
    found = segment(Image.new("RGB", (SIZE, 30)), subtask=subtask, threshold=0.0, overlap_mask_area_threshold=0.0)
    assert len(found) > 0
    assert all(row["mask"].size == (SIZE, 30) for row in found)
    assert {row["label"] for row in found} <= {"ground", "disc", "bar"}
    assert all((row["score"] is None) == (subtask == "semantic") for row in found)


@pytest.mark.parametrize("subtask", ["semantic", "instance", "panoptic"])
def test_pipeline_of_a_distance_head(distance_run, subtask):
    segment = pipeline("image-segmentation", model=str(distance_run / "best"), device="cpu")
    found = segment(Image.new("RGB", (SIZE, 30)), subtask=subtask, threshold=0.0)
    assert all(row["mask"].size == (SIZE, 30) and row["label"] in ("disc", "bar") for row in found)


@pytest.mark.parametrize("task", CLASSES)
def test_evaluation_does_not_depend_on_the_batch_size(runs, data, task):
    model, processor = load_for_inference(str(runs[task] / "best"), task)
    scores = []
    for size in (1, 3):
        settled = load_recipe(runs[task] / "recipe.yaml", [f"evaluation.batch_size={size}"])
        context = EvaluationContext(model, processor, settled, Accelerator(cpu=True))
        scores.append(evaluate(context, open_split(settled, "validation")).scores)
    assert scores[0].keys() == scores[1].keys()
    for name in scores[0]:
        np.testing.assert_allclose(scores[0][name], scores[1][name], atol=1e-4, err_msg=name)
    if task == "instance":
        assert scores[0]["objects"] == 4  # two images with a disc and a bar, and one without objects


def test_windows_of_segments_are_rejected(runs):
    settled = load_recipe(runs["instance"] / "recipe.yaml", ["evaluation.protocol.window=32"])
    model, processor = load_for_inference(str(runs["instance"] / "best"), "instance")
    with pytest.raises(RecordError):
        evaluate(EvaluationContext(model, processor, settled, Accelerator(cpu=True)), open_split(settled, "validation"))


def test_run_with_a_distance_head_is_saved_and_finds_objects(distance_run):
    best = str(distance_run / "best")
    model, processor = load_for_inference(best, "instance")
    assert type(model.decode_head).__name__ == "DistanceHead"
    with torch.no_grad():
        outputs = model(torch.zeros(2, 3, 40, 36))
    sizes = [(40, 36), (33, 50)]
    found = processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=sizes)
    assert [tuple(each["segmentation"].shape) for each in found] == sizes
    for each in found:
        assert each["segmentation"].max() == len(each["segments_info"])
    assert {"mask_ap_50", "f1_50", "count_error", "mean_iou"} <= set(
        json.loads((distance_run / "best/metrics.json").read_text())["scores"]
    )


def test_weights_of_a_distance_head_load_for_semantic_segmentation(distance_run):
    model, info = AutoModelForSemanticSegmentation.from_pretrained(distance_run / "best", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model(torch.zeros(1, 3, 40, 36)).logits.shape == (1, 2, 20, 18)
