"""`hf-vit-seg predict` with a protocol, with outputs for reviewers, and on multichannel images."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_predict import PALETTE, photo, predict, save_model

from hf_vit_seg.inference import Protocol, Segmenter
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.models.modeling_segformer import SegFormerForSemanticSegmentation


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), palette=PALETTE)


def test_all_outputs_of_an_image(model, tmp_path):
    photo(90, 70).save(tmp_path / "a.png")
    review = ("--scores", "--entropy", "--top-k", 3, "--polygons", "geojson", "--polygons", "coco")
    shown = ("--window", 32, "--stride", "24x20", "--blend", "gaussian", "--scales", "1,1.5", "--flip")
    assert predict(model, tmp_path / "a.png", "--out", tmp_path / "out", *review, *shown)[0] == 0
    out = tmp_path / "out"
    kinds = (".png", ".overlay.png", ".scores.png", ".entropy.png", ".top.npz", ".geojson", ".coco.json", ".json")
    assert {path.name for path in out.iterdir()} == {f"a{kind}" for kind in kinds}
    protocol = Protocol(window=(32, 32), stride=(24, 20), blend="gaussian", scales=(1, 1.5), flip=True)
    wanted = Segmenter.from_pretrained(str(model), protocol=protocol)(photo(90, 70), scores=True, entropy=True, top_k=3)
    labels = np.asarray(Image.open(out / "a.png"))
    assert np.array_equal(labels, wanted.label_map)
    for kind, values in (("scores", wanted.scores), ("entropy", wanted.entropy)):
        assert values is not None and values.min() >= 0 and values.max() <= 1
        assert np.abs(np.asarray(Image.open(out / f"a.{kind}.png")) / 255 - values).max() < 0.003
    with np.load(out / "a.top.npz", allow_pickle=False) as top:
        assert np.array_equal(top["classes"], wanted.top_classes)
        assert np.array_equal(top["classes"][0], labels)
        assert top["scores"].shape == (3, 90, 70) and (np.diff(top["scores"].astype(float), axis=0) <= 0).all()
    row = json.loads((out / "a.json").read_text())
    assert row["protocol"] == wanted.protocol and row["protocol"].startswith("windows of 32x32 every 24x20 pixels")
    assert row["mean_score"] == pytest.approx(wanted.scores.mean(), abs=1e-4)
    assert row["mean_entropy"] == pytest.approx(wanted.entropy.mean(), abs=1e-4)
    pixels = {entry["id"]: entry["pixels"] for entry in row["classes"]}
    found: dict[int, int] = {}
    for feature in json.loads((out / "a.geojson").read_text())["features"]:
        properties = feature["properties"]
        found[properties["class"]] = found.get(properties["class"], 0) + properties["pixels"]
    assert found == pixels
    coco = json.loads((out / "a.coco.json").read_text())
    assert coco["images"][0]["file_name"] == "a.png"
    assert {row["category_id"]: row["area"] for row in coco["annotations"]} == pixels


def test_existing_results_of_every_kind_are_preserved(model, tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.geojson").write_text("drawn by hand")
    code, text = predict(model, tmp_path / "a.png", "--out", tmp_path / "out")
    assert code == 2 and "a.geojson" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--protocol", "ade"), "'ade20k'"),
        (("--stride", "8"), "require window"),
        (("--window", "8", "--stride", "9"), "gaps"),
        (("--window", "many"), "512x1024"),
        (("--scales", "1,two"), "valid number"),
        (("--window", "8", "--blend", "soft"), "'flat' or 'gaussian'"),
        (("--size", "large"), "shortest edge"),
    ],
)
def test_invalid_protocols_are_reported(model, tmp_path, options, words):
    photo().save(tmp_path / "a.png")
    code, text = predict(model, tmp_path / "a.png", "--out", tmp_path / "out", *options)
    assert code == 2
    assert words in text and "Traceback" not in text


def test_top_k_above_class_count_raises(model, tmp_path):
    photo().save(tmp_path / "a.png")
    code, text = predict(model, tmp_path / "a.png", "--out", tmp_path / "out", "--top-k", 6)
    assert code == 1
    assert "at most the number of classes, 5" in text


def test_multichannel_images(tmp_path):
    names = {i: f"thing {i}" for i in range(3)}
    config = SegFormerConfig(
        num_channels=5, hidden_sizes=(16, 32, 40, 64), depths=(1, 1, 1, 1), decode_head_hidden_size=32, id2label=names
    )
    SegFormerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    means: dict = {"image_mean": [0.5] * 5, "image_std": [0.25] * 5}
    size = {"height": 32, "width": 32}
    SemanticSegmentationImageProcessor(size=size, **means).save_pretrained(tmp_path / "model")
    bands = np.random.default_rng(0).integers(0, 255, (5, 40, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack")
    out = tmp_path / "out"
    assert predict(tmp_path / "model", tmp_path / "a.tif", "--out", out)[0] == 0
    wanted = Segmenter.from_pretrained(str(tmp_path / "model"))(bands)
    assert np.array_equal(np.asarray(Image.open(out / "a.png")), wanted.label_map)
    assert wanted.label_map.shape == (40, 3)
    assert (out / "a.overlay.png").exists()
    photo().save(tmp_path / "b.png")
    code, text = predict(tmp_path / "model", tmp_path / "b.png", "--out", out)
    assert code == 1
    assert "has 3 channels, expected" in text
