"""Exported programs of models that find objects: they agree with the model, and `InstanceSegmenter` runs them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from object_models import save_object_model
from PIL import Image
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.export import EXPORTERS, ExportOptions, ParityError, export_model
from hf_vit_seg.export.exporters import OnnxExporter
from hf_vit_seg.export.parity import compare_objects
from hf_vit_seg.inference import ModelError, Segmenter
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.runtimes import RuntimeModel, task_of_model
from hf_vit_seg.models.mask_classification import UniversalSegmentationOutput
from hf_vit_seg.records import RecordError

FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
QUERIES, DISTANCE = ("class_queries_logits", "masks_queries_logits"), ("class_logits", "distances")
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "vit": ("vit", {}, QUERIES),
    "vit masked": ("vit", {"query_masked_inference": True}, QUERIES),
    "vit upscaled": ("vit", {"num_upscale_blocks": 2}, QUERIES),
    "segformer": ("segformer", {}, QUERIES),
    "cvt": ("cvt", {}, QUERIES),
    "backbone": ("backbone", {}, QUERIES),
    "distance": ("segformer", {"decode_head": "distance"}, DISTANCE),
    "one class": ("segformer", {"decode_head": "distance", "id2label": {0: "nucleus"}}, DISTANCE),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("programs")


def model_directory(folder: Path, name: str) -> Path:
    architecture, fields, _ = MODELS[name]
    place = folder / name.replace(" ", "_")
    return (
        place
        if place.exists()
        else save_object_model(place, architecture, stuff=[2] if name == "vit" else None, **fields)
    )


def photo(height: int = 60, width: int = 80, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def export(model: Path, out: Path, format_: str, **options: Any):
    segmenter = InstanceSegmenter.from_pretrained(str(model), "cpu")
    return export_model(segmenter, out, format_, EXPORTERS.read(format_, {}, ""), ExportOptions(**options))


@pytest.mark.slow
@pytest.mark.parametrize("format_", FILES)
@pytest.mark.parametrize("name", MODELS)
def test_programs_of_any_size_find_the_same_objects(folder, name, format_):
    pytest.importorskip("onnxruntime" if format_ == "onnx" else "openvino")
    model, out = model_directory(folder, name), folder / f"{name}_{format_}".replace(" ", "_")
    parity = export(model, out, format_)
    assert parity.passed and len(parity.cases) == 4
    assert {case.batch for case in parity.cases} == {1, 3} and max(case.difference for case in parity.cases) < 1e-3
    program = RuntimeModel(out / FILES[format_])
    assert program.program.outputs == MODELS[name][2]
    assert task_of_model(str(out / FILES[format_])) == "instance"
    expected = InstanceSegmenter.from_pretrained(str(model), "cpu")
    found = InstanceSegmenter.from_pretrained(str(out / FILES[format_]))
    assert found.fused == expected.fused and found.names == expected.names
    for image in (photo(), photo(45, 101, seed=1)):
        maps = [each(image).instance_map() for each in (expected, found)]
        assert (maps[0] != maps[1]).mean() < 0.01


@pytest.mark.parametrize("format_", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_programs_of_one_size(folder, format_):
    pytest.importorskip("onnxruntime" if format_ == "onnx" else "openvino")
    out = folder / f"sized_{format_}"
    assert export(model_directory(folder, "vit"), out, format_, size=(64, 96), batch=1).passed
    segmenter = InstanceSegmenter.from_pretrained(str(out / FILES[format_]))
    assert segmenter.prepare(photo()).pixel_values.shape[-2:] == (64, 96)
    assert segmenter(photo()).size == (60, 80)


@pytest.mark.slow
def test_float16(folder):
    pytest.importorskip("onnxruntime")
    parity = export(model_directory(folder, "vit"), folder / "half", "onnx", dtype="float16", size=(64, 64))
    assert parity.passed and parity.dtype == "float16"


@pytest.mark.slow
@pytest.mark.parametrize("format_", FILES)
@pytest.mark.parametrize("name", ["vit", "distance"])
def test_8_bits(folder, name, format_):
    pytest.importorskip("onnxruntime" if format_ == "onnx" else "nncf")
    images = folder / "photos"
    images.mkdir(exist_ok=True)
    for seed in range(2):
        photo(seed=seed).save(images / f"{seed}.png")
    out = folder / f"int8_{name}_{format_}"
    parity = export(model_directory(folder, name), out, format_, size=(64, 64), calibration=sorted(images.iterdir()))
    assert parity.dtype == "int8" and parity.mean_agreement >= 0.9 and len(parity.cases) == 2
    assert RuntimeModel(out / FILES[format_]).program.outputs == MODELS[name][2]
    assert InstanceSegmenter.from_pretrained(str(out / FILES[format_]))(photo()).size == (60, 80)


def test_rejected_options(folder):
    model = model_directory(folder, "segformer")
    for format_, options, words in (
        ("torchscript", {}, "--to onnx or openvino"),
        ("onnx", {"labels": "input"}, "omit --label-map"),
    ):
        with pytest.raises(RecordError, match=words):
            export(model, folder / "refused", format_, **options)
    assert not (folder / "refused").exists()


def test_programs_are_for_their_task(folder):
    pytest.importorskip("onnxruntime")
    out = folder / "tasks"
    export(model_directory(folder, "distance"), out, "onnx", size=(64, 64))
    assert json.loads((out / "config.json").read_text())["architectures"] == ["SegFormerForUniversalSegmentation"]
    with pytest.raises(ModelError, match="finds objects, not classes"):
        Segmenter.from_pretrained(str(out / "model.onnx"))


class Wrong(OnnxExporter):
    """Writes a program with another score of the first class."""

    def write(self, graph, geometry, dtype, path):
        with torch.no_grad():
            graph.model.decode_head.class_head.bias[0] += 1
        super().write(graph, geometry, dtype, path)


def test_programs_that_differ_are_not_kept(folder):
    pytest.importorskip("onnxruntime")
    segmenter = InstanceSegmenter.from_pretrained(str(model_directory(folder, "vit")), "cpu")
    out = folder / "wrong"
    with pytest.raises(ParityError, match="differ"):
        export_model(segmenter, out, "onnx", Wrong(), ExportOptions(size=(64, 64), batch=1))
    assert not (out / "model.onnx").exists()


def test_nan_is_a_difference():
    good = UniversalSegmentationOutput(
        class_queries_logits=torch.randn(1, 3, 5), masks_queries_logits=torch.randn(1, 3, 4, 4)
    )
    for name in QUERIES:
        bad = UniversalSegmentationOutput(**{key: good[key].clone() for key in QUERIES})
        bad[name].flatten()[0] = float("nan")
        image = torch.zeros(1, 3, 16, 16)
        assert compare_objects("x", image, lambda _: good, lambda _: good, 1e-3).passed
        assert not compare_objects("x", image, lambda _: good, lambda _, bad=bad: bad, 1e-3).passed


@pytest.mark.slow
def test_commands(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    model, out = model_directory(folder, "distance"), tmp_path / "program"
    done = CliRunner().invoke(app, ["export", str(model), str(out), "--to", "onnx", "--json"])
    assert done.exit_code == 0, done.output
    photo().save(tmp_path / "a.png")
    program = str(out / "model.onnx")
    done = CliRunner().invoke(app, ["predict", program, str(tmp_path / "a.png"), "-o", str(tmp_path / "found")])
    assert done.exit_code == 0, done.output
    expected = InstanceSegmenter.from_pretrained(program)(photo())
    assert np.array_equal(np.asarray(Image.open(tmp_path / "found/a.png")), expected.instance_map())
