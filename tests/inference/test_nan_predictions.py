"""Images for which the outputs of a model contain NaN or infinity: no result is made from them."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from object_models import save_object_model
from test_predict import predict, save_model
from test_predict_heads import PETS, save
from tiny_people import COCO_NAMES
from transformers import AutoModelForImageClassification, AutoModelForPoseEstimation

from hf_vit_seg.error_reporting import FAILED
from hf_vit_seg.inference import Classifier, InstanceSegmenter, PoseEstimator, Segmenter
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.output_checks import InvalidOutputError, check_outputs
from hf_vit_seg.inference.segmentation import nodata_label

UNDECLARED = np.float32(-3.4e38)


def pixels(corrupted: bool) -> np.ndarray:
    """An image (70, 90, 3) of 0 to 255, with a corner of an extreme value if `corrupted`."""
    image = np.random.default_rng(0).uniform(0, 255, (70, 90, 3)).astype(np.float32)
    if corrupted:
        image[:8, :8] = UNDECLARED
    return image


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def classification(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("classification"), AutoModelForImageClassification, PETS)


@pytest.fixture(scope="module")
def pose(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("pose"), AutoModelForPoseEstimation, COCO_NAMES)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    return save_object_model(tmp_path_factory.mktemp("objects"), "vit")


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        tifffile.imwrite(folder / f"{name}.tif", pixels(corrupted=name == "b"), photometric="rgb")
    return folder


@pytest.mark.parametrize(
    "protocol", [Protocol(), Protocol(window=(32, 32), stride=(24, 24)), Protocol(scales=(0.5, 1.0), flip=True)]
)
def test_segmenter_raises(segmentation, protocol):
    segmenter = Segmenter.from_pretrained(str(segmentation), device="cpu", protocol=protocol)
    with pytest.raises(InvalidOutputError, match=r"e\+3"):
        segmenter(pixels(corrupted=True))
    with pytest.raises(InvalidOutputError):
        segmenter.label_map(pixels(corrupted=True))
    with pytest.raises(InvalidOutputError):
        segmenter.segment_all([segmenter.prepare(pixels(corrupted)) for corrupted in (False, True)])
    assert segmenter(pixels(corrupted=False)).label_map.shape == (70, 90)
    values = segmenter.prepare(pixels(corrupted=True)).pixel_values
    assert segmenter.logits(values).isnan().any()  # of the evaluations, which count such samples


@pytest.mark.parametrize(("value", "is_valid"), [(torch.inf, False), (-torch.inf, True), (torch.nan, False)])
def test_infinite_scores_raise(value, is_valid):
    scores = torch.zeros(1, 3, 4, 4)
    scores[0, 1, 2, 3] = value
    scores[0, 2, 0, 0] = -torch.inf
    with nullcontext() if is_valid else pytest.raises(InvalidOutputError):
        check_outputs(scores, torch.zeros(1))


@pytest.mark.parametrize("protocol", [None, Protocol(window=(32, 32), stride=(24, 24))])
def test_instance_segmenter_raises(objects, protocol):
    segmenter = InstanceSegmenter.from_pretrained(str(objects), device="cpu", protocol=protocol)
    assert segmenter(pixels(corrupted=False)).size == (70, 90)
    with pytest.raises(InvalidOutputError):
        segmenter(pixels(corrupted=True))


@pytest.mark.parametrize(("kind", "folder"), [(Classifier, "classification"), (PoseEstimator, "pose")])
def test_classifier_and_pose_estimator_raise(kind, folder, request):
    model = kind.from_pretrained(str(request.getfixturevalue(folder)), device="cpu")
    assert len(model(pixels(corrupted=False)))
    with pytest.raises(InvalidOutputError):
        model(pixels(corrupted=True))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("segmentation", ()),
        ("segmentation", ("--tile", "64")),
        ("segmentation", ("--batch-size", "3", "--workers", "1")),
        ("objects", ()),
        ("objects", ("--window", "32")),
        ("classification", ()),
        ("pose", ()),
    ],
)
def test_only_corrupted_file_fails(task, options, images, tmp_path, request):
    model, out = request.getfixturevalue(task), tmp_path / "out"
    code, output = predict(model, images, "--out", out, *options)
    assert code == FAILED
    assert "b.tif" in output and "NaN" in output
    results = {path.name.partition(".")[0] for path in out.rglob("*.json") if path.parent == out}
    assert results >= {"a", "c"} and "b" not in results


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(window=(32, 32), stride=(24, 24))])
@pytest.mark.parametrize("kind", [str, Path.read_bytes])
def test_nodata_pixels_have_no_label_or_object(segmentation, objects, tmp_path, protocol, kind):
    """Segmenters treat pixels without data as `predict` does."""
    path, corrupted = tmp_path / "a.tif", pixels(corrupted=True)
    tags = [(42113, "s", 0, str(UNDECLARED), True)]  # GDAL_NODATA
    tifffile.imwrite(path, corrupted, photometric="rgb", extratags=tags)
    segmenter = Segmenter.from_pretrained(str(segmentation), "cpu", protocol=protocol)
    found, missing = segmenter(kind(path)), (corrupted == UNDECLARED).all(-1)
    assert np.array_equal(found.label_map == nodata_label(len(found.names)), missing)
    assert sum(count.pixels for count in found.counts()) == (~missing).sum()
    instances = InstanceSegmenter.from_pretrained(str(objects), "cpu", threshold=0.0, protocol=protocol)
    numbers = instances(kind(path)).instance_map()
    assert not numbers[missing].any() and numbers.any()
