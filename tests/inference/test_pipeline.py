"""`pipeline("semantic-segmentation")` compared with the Segmenter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import hf_vit_seg
from hf_vit_seg.inference import Segmenter
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.pipeline import TASK, SemanticSegmentationPipeline
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.models.modeling_segformer import SegFormerForSemanticSegmentation
from hf_vit_seg.records import RecordError


def save_model(folder: Path, labels: int) -> str:
    names = {i: f"thing {i}" for i in range(labels)}
    config = SegFormerConfig(
        hidden_sizes=(16, 32, 40, 64), depths=(1, 1, 1, 1), decode_head_hidden_size=32, id2label=names
    )
    SegFormerForSemanticSegmentation(config).save_pretrained(folder)
    SemanticSegmentationImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[1, 4])
def model(request, tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), request.param)


def photo(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def task(model: str, **settings: Any) -> SemanticSegmentationPipeline:
    return pipeline(TASK, model=model, device="cpu", **settings)  # pyright: ignore[reportCallIssue]


def test_pipeline_matches_the_segmenter(model, tmp_path):
    photo().save(tmp_path / "a.png")
    wanted = Segmenter.from_pretrained(model, "cpu")(photo(), scores=True, entropy=True, top_k=2)
    segment = task(model, scores=True)
    assert isinstance(segment, SemanticSegmentationPipeline)
    for image in (photo(), np.array(photo()), str(tmp_path / "a.png")):
        found: Any = segment(image, entropy=True, top_k=2)
        assert np.array_equal(found["label_map"], wanted.label_map)
        for name in ("scores", "entropy", "top_classes", "top_scores"):
            assert np.array_equal(found[name], getattr(wanted, name))
        assert found["protocol"] == wanted.protocol
        assert [row["pixels"] for row in found["classes"]] == [count.pixels for count in wanted.counts()]
        assert {row["label"] for row in found["classes"]} <= set(wanted.names)
    plain: Any = task(model)(photo())
    assert set(plain) == {"label_map", "classes", "protocol"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lists_batches_and_protocols(model, batch_size):
    images = [photo(seed=1), photo(seed=2), photo(33, 47), photo(seed=3)]
    segment = task(model, protocol={"window": 32, "flip": True})
    segmenter = Segmenter.from_pretrained(model, "cpu", protocol=Protocol(window=32, flip=True))
    for image, found in zip(images, segment(images, batch_size=batch_size), strict=True):
        wanted = segmenter(image)
        assert found["protocol"] == wanted.protocol
        assert (found["label_map"] != wanted.label_map).mean() < 0.01  # batches round differently
    assert segment(images[0], protocol="ade20k")["protocol"].startswith("ade20k: whole image at 512x768")


def test_pipeline_saves_model_and_processor(model, tmp_path):
    task(model).save_pretrained(str(tmp_path))
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    code = {path.name for path in (Path(hf_vit_seg.__file__).parent / "models").iterdir()}
    assert {path.name for path in tmp_path.glob("*.py")} < code
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    assert task(str(tmp_path))(photo())["label_map"].shape == (40, 60)


def test_unknown_arguments_raise(model):
    with pytest.raises(TypeError, match="threshold"):
        task(model)(photo(), threshold=0.5)
    with pytest.raises(RecordError, match="did you mean 'window'"):
        task(model, protocol={"windows": 4})
