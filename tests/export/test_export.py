"""Exported programs match the model at any size, or are not kept."""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from paths import REPOSITORY
from PIL import Image
from random_weights import randomize_weights
from typer.testing import CliRunner

from hf_vit_seg import architectures
from hf_vit_seg.cli import app
from hf_vit_seg.export import EXPORTERS, ExportOptions, ParityError, export_model, forms
from hf_vit_seg.export.calibration_images import Calibration
from hf_vit_seg.export.exporters import OnnxExporter, TorchScriptExporter
from hf_vit_seg.export.forms import ExportForm, export_forms, with_export_forms
from hf_vit_seg.export.graphs import CLASSES_TOGETHER, Geometry, LogitGraph, resize_to_labels
from hf_vit_seg.export.onnx_names import name_axes
from hf_vit_seg.export.parity import compare
from hf_vit_seg.inference import ModelError, Segmenter
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.runtimes import PROGRAMS, RuntimeModel
from hf_vit_seg.models.label_maps import label_map
from hf_vit_seg.records import RecordError

LABELS = 21  # more than are resized together
NAMES = [name for name, a in architectures().items() if "AutoModelForSemanticSegmentation" in a.models]
SETTINGS = [
    *((name, {}) for name in NAMES),
    ("segformer", {"decode_head_flavor": "mmseg"}),
    ("segformer", {"decode_head_norm": "group"}),
    ("vit", {"decode_head": "feature_pyramid"}),
    ("vit", {"decode_head": "mask_transformer"}),
]


def segmenter(name: str, **settings) -> Segmenter:
    architecture = architectures()[name]
    config = architecture.variant_config("tiny", num_labels=LABELS, **settings)
    model = randomize_weights(transformers.AutoModelForSemanticSegmentation.from_config(config))
    processor = architecture.image_processor["torchvision"](size={"height": 64, "width": 64})
    return Segmenter(model, processor, "cpu")


def photos(folder, count: int = 2) -> list:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_export_forms_match_and_do_not_modify_the_model(name, settings, format_):
    model = segmenter(name, **settings).model.double()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain = with_export_forms(model, EXPORTERS.row(format_, "").forms)
    with torch.no_grad():
        for size in ((64, 64), (61, 45)):
            pixel_values = torch.randn(2, 3, *size, dtype=torch.float64)
            torch.testing.assert_close(plain(pixel_values).logits, model(pixel_values).logits, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    if (name, format_) == ("segformer", "openvino"):
        assert not [m for m in plain.segformer.modules() if isinstance(m, torch.nn.LayerNorm)]
    if settings.get("decode_head_norm") != "group":
        head = getattr(plain.decode_head, "all_mlp", plain.decode_head)
        assert not [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]


class Doubling(torch.nn.Module):
    """A plugin module with the form `Doubled`."""

    export_form = "doubling"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class DoublingForm(Doubling):
    export_form = ""


FORMS = (ExportForm(marker="doubling", rewrite=lambda _: DoublingForm(), target="centered_norms"),)
NO_FORMS = ("not a form",)


@pytest.fixture
def plugin_forms(monkeypatch):
    """The form tables in a record, and the forms that are found with them."""

    def load_forms(*places: str) -> tuple[ExportForm, ...]:
        record = replace(architectures()["cvt"], name="plugin", forms=places)
        monkeypatch.setattr(forms, "architectures", lambda: {"plugin": record})
        return export_forms()

    export_forms.cache_clear()
    yield load_forms
    monkeypatch.undo()
    export_forms.cache_clear()


def test_plugin_forms_are_used(plugin_forms):
    assert plugin_forms(f"{__name__}:FORMS") == FORMS
    model = torch.nn.Sequential(Doubling(), torch.nn.Linear(1, 1))
    assert type(with_export_forms(model)[0]) is Doubling
    assert type(with_export_forms(model, ("any", "centered_norms"))[0]) is DoublingForm


def test_forms_are_selected_by_marker(plugin_forms):
    plugin_forms(f"{__name__}:FORMS")
    copied = type("Doubling", (torch.nn.Module,), {"export_form": "doubling"})  # as for code from the Hub
    assert type(with_export_forms(torch.nn.Sequential(copied()), ("centered_norms",))[0]) is DoublingForm


@pytest.mark.parametrize("place", ["no_such_module:FORMS", f"{__name__}:ABSENT", f"{__name__}:NO_FORMS"])
def test_broken_forms_are_skipped(place, plugin_forms, caplog):
    assert plugin_forms(place, f"{__name__}:FORMS") == FORMS
    assert [record.levelname for record in caplog.records] == ["WARNING"] and place in caplog.text


def test_every_export_marker_has_a_form():
    marked = {
        m.export_form for name, fields in SETTINGS for m in segmenter(name, **fields).model.modules() if marker(m)
    }
    assert {"all_mlp_head", "mix_ffn", "segformer_stage", "convolution_with_norm"} <= marked
    assert marked <= {form.marker for form in export_forms()}


def marker(module: torch.nn.Module) -> str:
    return getattr(module, "export_form", "")


@pytest.mark.parametrize("name", NAMES)
def test_torchscript_supports_any_size(name, tmp_path):
    original = segmenter(name)
    parity = export_model(original, tmp_path, "torchscript", EXPORTERS.read("torchscript", {}, ""), ExportOptions())
    assert len({(case.height, case.width) for case in parity.cases}) > 2 and {c.batch for c in parity.cases} == {1, 3}
    files = {p.name for p in tmp_path.iterdir() if p.suffix != ".py"}  # code for readers without the package
    assert files == {"model.ts", "config.json", "preprocessor_config.json", "parity.json"}
    assert json.loads((tmp_path / "parity.json").read_text())["model.ts"]["passed"] is True
    loaded = Segmenter.from_pretrained(str(tmp_path / "model.ts"))
    image = photos(tmp_path / "photos")[0]
    assert loaded.names == original.names
    torch.testing.assert_close(loaded.label_map(image), original.label_map(image))
    assert not places_in(tmp_path / "model.ts")


def places_in(program: Path) -> list[str]:
    """The records of a TorchScript archive that contain paths of installed packages."""
    with zipfile.ZipFile(program) as archive:
        return [
            name
            for name in archive.namelist()
            if any(str(place).encode() in archive.read(name) for place in (REPOSITORY, Path(torch.__file__).parent))
        ]


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_runtimes_support_any_size(name, settings, format_, tmp_path):
    pytest.importorskip("onnxruntime" if format_ == "onnx" else format_)
    original = segmenter(name, **settings)
    parity = export_model(original, tmp_path, format_, EXPORTERS.read(format_, {}, ""), ExportOptions())
    assert parity.passed and max(case.difference for case in parity.cases) < 1e-4


def test_onnx_graph_is_clean_and_matches_the_model(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    original = segmenter("segformer")
    original.model.save_pretrained(tmp_path / "model")
    original.processor.save_pretrained(tmp_path / "model")
    photos(tmp_path / "photos")
    out, runner = tmp_path / "out", CliRunner()
    result = runner.invoke(app, ["export", str(tmp_path / "model"), str(out), "--to", "onnx"])
    assert result.exit_code == 0, result.output
    assert not [file for file in out.rglob("*") if file.is_file() and str(REPOSITORY).encode() in file.read_bytes()]
    graph = onnx.load(out / "model.onnx").graph
    axes = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    operators = {node.op_type for node in graph.node}
    assert not operators & {"Loop", "If", "Scan", "BatchNormalization", "Split"}
    assert not [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.DOUBLE]
    assert not [node.name for node in graph.node if node.metadata_props or node.doc_string]
    for model, results in ((tmp_path / "model", "a"), (out / "model.onnx", "b")):
        command = ["predict", str(model), str(tmp_path / "photos"), "--out", str(tmp_path / results)]
        assert runner.invoke(app, command).exit_code == 0
    for mask in (tmp_path / "a").glob("?.png"):
        same = np.array(Image.open(mask)) == np.array(Image.open(tmp_path / "b" / mask.name))
        assert same.mean() > 0.999
    again = runner.invoke(app, ["export", str(tmp_path / "model"), str(out), "--to", "onnx"])
    assert again.exit_code == 2 and "--overwrite" in again.output


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["input", (100, 90)])
def test_label_maps_in_the_graph(labels, tmp_path):
    pytest.importorskip("onnxruntime")
    original = segmenter("segformer")
    export_model(original, tmp_path, "onnx", EXPORTERS.read("onnx", {}, ""), ExportOptions(labels=labels))
    program = RuntimeModel(tmp_path / "model.onnx")
    outputs = program.program.run(torch.zeros(2, 3, 64, 80))
    assert outputs.dtype == torch.uint8 and outputs.shape == (2, *((64, 80) if labels == "input" else labels))
    with pytest.raises(ModelError, match="--label-map"):
        program(torch.zeros(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "size", "needs"), [("onnx", None, "onnx"), ("openvino", (160, 192), "nncf")])
def test_half_precision_and_int8(format_, size, needs, tmp_path):
    """With a trained model: random weights may not survive quantization to 8 bits."""
    pytest.importorskip(needs)
    nuclei = REPOSITORY / "examples" / "nuclei"
    original, row = Segmenter.from_pretrained(str(nuclei / "model"), device="cpu"), EXPORTERS.read(format_, {}, "")
    assert export_model(original, tmp_path / "half", format_, row, ExportOptions(dtype="float16")).passed
    options = ExportOptions(calibration=sorted((nuclei / "data" / "train" / "images").iterdir())[:12], size=size)
    parity = export_model(original, tmp_path / "eight", format_, row, options, score=lambda s: len(s.names))
    assert parity.scores == {"before": 2, "after": 2}
    assert np.mean([case.agreement for case in parity.cases]) > 0.95
    assert len({(case.height, case.width) for case in parity.cases}) == (1 if size else 2)
    sizes = [sum(file.stat().st_size for file in (tmp_path / kind).glob("model.*")) for kind in ("half", "eight")]
    assert sizes[1] < 1.5 * sizes[0]


class CoarseExporter(OnnxExporter):
    """Quantization that destroys all labels."""

    def quantize(self, path: Path, calibration: Calibration) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(path))
        for weight in model.graph.initializer:
            if weight.name.endswith("classifier.weight"):
                weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        onnx.save(model, str(path))


def test_failed_quantization_reports_mean_worst_image_and_layers(tmp_path):
    pytest.importorskip("onnx")
    nuclei = REPOSITORY / "examples" / "nuclei"
    original = Segmenter.from_pretrained(str(nuclei / "model"), device="cpu")
    files = sorted((nuclei / "data" / "test" / "images").iterdir())[:2]
    options = ExportOptions(calibration=files, size=(128, 128))
    with pytest.raises(ParityError) as error:
        export_model(original, tmp_path / "out", "onnx", CoarseExporter(), options)
    assert not (tmp_path / "out").exists()
    calibration = Calibration.from_files(files, original, 2, (128, 128))
    agreements = {}
    for name, image in zip(calibration.names, calibration.images, strict=True):
        logits = original.logits(torch.from_numpy(image))
        bias = original.model.decode_head.classifier.bias[:, None, None]
        agreements[name] = float((label_map(logits) == label_map(2 * bias - logits)).double().mean())
    worst = min(agreements, key=lambda name: agreements[name])
    assert worst in [file.name for file in files]
    assert f"{sum(agreements.values()) / 2:.1%}" in str(error.value)
    assert f"(worst: {agreements[worst]:.1%} in {worst})" in str(error.value)
    layers = re.findall(r"'([\w.]+)'", str(error.value).partition("float32_layers")[2])
    assert len(layers) == 2 and all(hasattr(original.model.get_submodule(layer), "weight") for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "needs"), [("onnx", "onnxruntime"), ("openvino", "nncf")])
def test_float32_layers_are_not_quantized(format_, needs, tmp_path):
    pytest.importorskip(needs)
    nuclei = REPOSITORY / "examples" / "nuclei"
    original = Segmenter.from_pretrained(str(nuclei / "model"), device="cpu")
    options = ExportOptions(calibration=sorted((nuclei / "data" / "train" / "images").iterdir())[:3], size=(128, 128))
    sizes = {}
    for kept in ((), (r"stages\.3\.",)):
        row = EXPORTERS.read(format_, {"float32_layers": kept}, "")
        out = tmp_path / str(len(kept))
        assert export_model(original, out, format_, row, options).passed
        sizes[len(kept)] = sum(file.stat().st_size for file in out.glob("model.*"))
    weights = sum(
        module.weight.numel()
        for name, module in original.model.named_modules()
        if "stages.3." in name and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    )
    assert sizes[1] - sizes[0] == pytest.approx(3 * weights, rel=0.1)  # four bytes instead of one
    row = EXPORTERS.read(format_, {"float32_layers": ["nowhere"]}, "")
    with pytest.raises(RecordError, match="float32_layers: 'nowhere' matches no layer"):
        export_model(original, tmp_path / "none", format_, row, options)


@pytest.mark.slow
def test_openvino_compiles_for_repeated_sizes(tmp_path):
    pytest.importorskip("openvino")
    original = segmenter("segformer")
    export_model(original, tmp_path, "openvino", EXPORTERS.read("openvino", {}, ""), ExportOptions())
    program: Any = RuntimeModel(tmp_path / "model.xml").program.run
    shapes = [(1, 3, 64, 64), (2, 3, 61, 45), (1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 61, 45), (1, 3, 40, 80)]
    with torch.no_grad():
        for shape in shapes:
            images = torch.randn(shape)
            torch.testing.assert_close(program(images), original.model(images).logits, rtol=1e-4, atol=1e-4)
    assert program.compiled_for.cache_info().misses == 2 and program.compiled_for.cache_info().hits == 1


# In a separate process, which is killed by the signal after two OpenVINO devices have been created and freed.
SIGNALLED = """
import gc, signal, sys
from pathlib import Path
from hf_vit_seg.inference.runtimes import openvino_program
heard = []
signal.signal(signal.SIGINT, lambda *signal: heard.append(signal))
programs = [openvino_program(Path(sys.argv[1])) for _ in range(2)]
while programs:
    del programs[0]
    gc.collect()
signal.raise_signal(signal.SIGINT)
assert heard
"""


@pytest.mark.slow
def test_signal_handlers_survive_openvino(tmp_path):
    pytest.importorskip("openvino")
    export_model(segmenter("segformer"), tmp_path, "openvino", EXPORTERS.read("openvino", {}, ""), ExportOptions())
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "model.xml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "executorch"])
def test_static_program_gets_images_of_its_size(format_, tmp_path):
    pytest.importorskip("onnxruntime" if format_ == "onnx" else format_)
    original, photo = segmenter("segformer"), photos(tmp_path / "photos", 1)[0]
    row = EXPORTERS.read(format_, {}, "")
    export_model(original, tmp_path / "out", format_, row, ExportOptions(size=(48, 64), batch=1))
    program = Segmenter.from_pretrained(str(tmp_path / "out" / row.file))
    same = original.with_protocol(Protocol(size="48x64"))
    torch.testing.assert_close(program.label_map(photo), same.label_map(photo))
    assert "48x64" in program.protocol.describe()
    windows = program.with_protocol(Protocol(window=(48, 64)))
    assert windows.label_map(photo).shape == (60, 80)
    with pytest.raises(ModelError, match="takes images of 48x64 alone and would be shown one of 60x80"):
        program.with_protocol(Protocol(size="own")).label_map(photo)


class WrongExporter(TorchScriptExporter):
    """Exports another function than the model."""

    def write(self, graph, geometry, dtype, path):
        with torch.no_grad():
            graph.model.decode_head.classifier.bias.add_(torch.linspace(0, 3, LABELS))
        super().write(graph, geometry, dtype, path)


def test_failed_parity_check_leaves_no_files(tmp_path):
    with pytest.raises(ParityError, match=r"outputs of model\.ts differ"):
        export_model(segmenter("segformer"), tmp_path, "torchscript", WrongExporter(), ExportOptions())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [1, 2, CLASSES_TOGETHER, 2 * CLASSES_TOGETHER + 3])
def test_chunked_label_map_is_exact(classes):
    logits = torch.randn(2, classes, 9, 7, dtype=torch.float64)
    assert torch.equal(resize_to_labels(logits, (40, 61)).long(), label_map(logits, (40, 61)))
    assert torch.equal(resize_to_labels(torch.zeros(1, classes, 3, 3), (5, 5)), torch.zeros(1, 5, 5, dtype=torch.uint8))


def test_comparison_distinguishes_ties_from_errors():
    expected = torch.randn(1, 3, 8, 8)
    near, far = expected + 1e-6, expected.flip(1)
    assert compare("x", torch.zeros(1, 3, 8, 8), lambda _: expected, lambda _: near, 1e-3).passed
    case = compare("x", torch.zeros(1, 3, 8, 8), lambda _: expected, lambda _: far, 1e-3)
    assert not case.passed and case.wrong > 0 and case.agreement < 1
    broken = compare("x", torch.zeros(1, 3, 8, 8), lambda _: expected, lambda _: expected * float("nan"), 1e-3)
    assert not broken.passed


@pytest.mark.parametrize(
    ("format_", "options", "message"),
    [
        ("torchscript", ExportOptions(dtype="float16"), "float32"),
        ("torchscript", ExportOptions(calibration=["a.png"]), "--to onnx or openvino"),
        ("onnx", ExportOptions(calibration=["a.png"], labels="input"), "omit --label-map"),
        ("openvino", ExportOptions(calibration=["a.png"]), "--size"),
    ],
)
def test_invalid_export_options_raise(format_, options, message, tmp_path):
    if format_ != "torchscript":
        pytest.importorskip(format_)
    with pytest.raises(RecordError, match=message):
        export_model(segmenter("segformer"), tmp_path / "out", format_, EXPORTERS.read(format_, {}, ""), options)
    assert not (tmp_path / "out").exists()


def test_format_table_has_install_hints():
    with pytest.raises(RecordError, match="onnx"):
        EXPORTERS.read("onx", {}, "--to")
    assert {EXPORTERS.row(name, "").file for name in ("onnx", "openvino", "torchscript", "executorch")} == {
        f"model{suffix}" for suffix in PROGRAMS
    }


def test_non_program_files_raise(tmp_path):
    segmenter("segformer").model.config.save_pretrained(tmp_path)
    segmenter("segformer").processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        Segmenter.from_pretrained(str(tmp_path / "model.ts"))
    (tmp_path / "model.ts").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Segmenter.from_pretrained(str(tmp_path / "model.ts"))


def test_graph_axes_are_named():
    helper = pytest.importorskip("onnx").helper
    value = helper.make_tensor_value_info("x", 1, ["s1", 3, "s12", "s2"])
    result = helper.make_tensor_value_info("y", 1, ["s1", 5, "s12//4", "2*s2"])
    model = name_axes(helper.make_model(helper.make_graph([], "g", [value], [result])), Geometry().dynamic_axes)
    assert [d.dim_param for d in model.graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "height//4",
        "2*width",
    ]


def test_graph_is_recorded_in_eval_mode():
    graph = LogitGraph(with_export_forms(segmenter("segformer").model.train()))
    assert not graph.model.training
