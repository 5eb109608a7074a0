"""The demo: called through its API, given broken input, and opened in a browser."""

import base64
import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path
from socket import socket
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from demo_server import SERVER
from huggingface_hub import SpaceCard
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from paths import REPOSITORY
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForPoseEstimation, AutoModelForSemanticSegmentation
from typer.testing import CliRunner

from hf_vit_seg import architectures
from hf_vit_seg.cli import app as command
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.drawing.overlays import nearest_labels
from hf_vit_seg.drawing.palettes import generate_palette
from hf_vit_seg.inference import ModelError, Segmentation, Segmenter
from hf_vit_seg.inference.classifier import Classifier
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.pose_estimator import PoseEstimator

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

import hf_vit_seg.demo  # noqa: E402
from hf_vit_seg.demo import accelerator, batch_tab, file_segmentation  # noqa: E402
from hf_vit_seg.demo.batch_tab import BatchTab  # noqa: E402
from hf_vit_seg.demo.catalogue import (  # noqa: E402
    ENVIRONMENT,
    EXAMPLES,
    NUCLEI,
    SECONDS,
    SECONDS_PER_MILLION,
    Catalogue,
    ModelFacts,
    default_models,
    example_images,
    load_entry,
    seconds,
    short_titles,
)
from hf_vit_seg.demo.classification_tab import ClassificationTab  # noqa: E402
from hf_vit_seg.demo.file_segmentation import (  # noqa: E402
    DEFAULT_WINDOW,
    MAX_PIXELS_PER_CALL,
    MAX_WINDOW,
    MIN_WINDOW,
    SLIDING,
    WHOLE,
    pixels_seen,
    segment_file,
    selected_protocol,
)
from hf_vit_seg.demo.pose_tab import PoseTab  # noqa: E402
from hf_vit_seg.demo.segmentation_tab import SegmentationTab  # noqa: E402
from hf_vit_seg.demo.segmentation_view import MAX_ROWS, MAX_SIDE, view_data  # noqa: E402
from hf_vit_seg.demo.uploads import MAX_FILES, MAX_UPLOAD_PIXELS  # noqa: E402
from hf_vit_seg.hub.space import space_files  # noqa: E402

MODEL = REPOSITORY / "examples/nuclei/model"
SPACE = REPOSITORY / "spaces/segmentation"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PHOTO = Path(example_images()[0])
CLASSES = 17
HEADS = {
    "classification": AutoModelForImageClassification,
    "pose": AutoModelForPoseEstimation,
    "segmentation": AutoModelForSemanticSegmentation,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """The directory of a small untrained model for each task."""
    folder = tmp_path_factory.mktemp("small")
    vit = architectures()["vit"]
    torch.manual_seed(0)
    for task, auto_class in HEADS.items():
        config = vit.variant_config("tiny", num_labels=CLASSES)
        auto_class.from_config(config).save_pretrained(folder / task)
        vit.image_processor["torchvision"](size={"height": 64, "width": 48}).save_pretrained(folder / task)
    return {task: str(folder / task) for task in HEADS}


def title(model: str) -> str:
    return "/".join(Path(model).parts[-2:]) if "/" in model else model


@pytest.fixture(scope="module")
def cut(models, tmp_path_factory) -> str:
    """A model with a truncated weights file, as after an interrupted download."""
    folder = shutil.copytree(models["segmentation"], tmp_path_factory.mktemp("broken") / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return str(folder)


@pytest.fixture(scope="module")
def address(models, cut):
    """A demo with the built-in model, one model for each task, and a broken one."""
    _, address, _ = hf_vit_seg.demo.launch(NUCLEI, *models.values(), cut, **SERVER)
    yield address
    gradio.close_all()


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


def call(client, path: Path, *arguments, name: str = "/segment"):
    return client.predict(gradio_client.handle_file(str(path)), *arguments, api_name=name)


def error_message(client, path: Path, *arguments, name: str = "/segment") -> str:
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        call(client, path, *arguments, name=name)
    text = str(caught.value)
    assert "/tmp" not in text and "gradio" not in text
    return text


def test_every_page_action_has_an_api_name(client):
    known = client.view_api(return_format="dict", print_info=False)
    assert set(known["named_endpoints"]) == {"/segment", "/segment_files", "/classify", "/estimate_pose"}
    assert not known["unnamed_endpoints"]
    names = [parameter["parameter_name"] for parameter in known["named_endpoints"]["/segment"]["parameters"]]
    assert names == ["image", "model", "view", "window", "flip"]


@pytest.mark.parametrize(("view", "window", "flip"), [(WHOLE, 512, False), (SLIDING, 128, True)])
def test_api_matches_the_segmenter(client, view, window, flip):
    areas, labels, text = call(client, PHOTO, NUCLEI, view, window, flip)
    expected = Segmenter.from_pretrained(str(MODEL), protocol=selected_protocol(view, window, flip))(PHOTO)
    assert np.array_equal(np.asarray(Image.open(labels)), expected.label_map)
    assert [row[:2] for row in areas["data"]] == [[count.name, count.pixels] for count in expected.counts()]
    report = json.loads(Path(text).read_text())
    assert report["image"] == PHOTO.name
    assert report["protocol"] == expected.protocol
    assert {row["name"]: row["pixels"] for row in report["classes"]} == dict(row[:2] for row in areas["data"])


def test_another_model_has_other_classes(client, models):
    areas, labels, _ = call(client, PHOTO, title(models["segmentation"]))
    expected = Segmenter.from_pretrained(models["segmentation"])(PHOTO)
    assert np.array_equal(np.asarray(Image.open(labels)), expected.label_map)
    assert {row[0] for row in areas["data"]} == {count.name for count in expected.counts()}


def test_missing_image_is_reported(client):
    with pytest.raises(gradio_client.exceptions.AppError, match="no image was uploaded"):
        client.predict(None, NUCLEI, api_name="/segment")


def test_non_image_is_reported(client, tmp_path):
    whole = PHOTO.read_bytes()
    broken = {"empty.png": b"", "text.png": b"no image at all", "cut.webp": whole[: len(whole) // 2]}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        assert error_message(client, tmp_path / name, NUCLEI).startswith(f"{name}: ")
    Image.new("1", (7000, 5000)).save(tmp_path / "large.png")
    text = error_message(client, tmp_path / "large.png", NUCLEI)
    assert "7000x5000" in text and "25 million" in text and "--max-pixels" not in text


def test_truncated_model_is_reported(client, cut):
    assert error_message(client, PHOTO, title(cut)).startswith(
        f"{title(cut)} cannot be loaded as a segmentation model: "
    )
    files = [gradio_client.handle_file(str(PHOTO))]
    with pytest.raises(gradio_client.exceptions.AppError, match="cannot be loaded as a segmentation model"):
        client.predict(files, title(cut), api_name="/segment_files")


def test_unexpected_error_is_reported_and_logged(client, models, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("out of /tmp/memory")

    for owner, method in ((Segmenter, "segment"), (Classifier, "__call__"), (PoseEstimator, "__call__")):
        monkeypatch.setattr(owner, method, fails)
    for name, model in {"/segment": NUCLEI, "/classify": models["classification"]}.items():
        assert "the server failed (RuntimeError)" in error_message(client, PHOTO, title(model), name=name)
    assert "RuntimeError" in error_message(client, PHOTO, title(models["pose"]), "", name="/estimate_pose")
    table = client.predict([gradio_client.handle_file(str(PHOTO))], NUCLEI, api_name="/segment_files")[1]
    assert table["data"][0][1].startswith("failed: the server failed (RuntimeError)")
    assert [record.exc_info[1].args for record in caplog.records] == [("out of /tmp/memory",)] * 4


def test_window_size_is_limited(client):
    for side, limit in ((8, MIN_WINDOW), (2000, MAX_WINDOW)):
        text = error_message(client, PHOTO, NUCLEI, SLIDING, side)
        assert str(side) in text and str(limit) in text


def test_batch_returns_an_archive_and_skips_broken_files(client, tmp_path):
    shutil.copy(PHOTO, tmp_path / "photo.webp")
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = [gradio_client.handle_file(str(path)) for path in sorted(tmp_path.iterdir())]
    gallery, table, archive = client.predict(files, NUCLEI, api_name="/segment_files")
    found = dict(table["data"])
    assert list(found) == ["broken.png", "photo.webp"]
    assert found["broken.png"].startswith("failed: broken.png: ")
    assert "nucleus" in found["photo.webp"]
    shown = {picture["caption"] for picture in gallery}
    with zipfile.ZipFile(archive) as packed:
        assert {"photo.png", "photo.overlay.png", "photo.json"} <= set(packed.namelist())
        assert json.loads(packed.read("photo.json"))["image"] == "photo.webp"
        assert {Path(name).stem for name in packed.namelist() if name.endswith(".json")} == {
            Path(name).stem for name in shown
        }
    with pytest.raises(gradio_client.exceptions.AppError, match=f"1 to {MAX_FILES} files, these are {MAX_FILES + 1}"):
        client.predict(files[-1:] * (MAX_FILES + 1), NUCLEI, api_name="/segment_files")


def test_array_gives_the_result_of_its_image(client, tmp_path):
    gray = Image.open(PHOTO).convert("L").crop((100, 100, 164, 164))
    gray.save(tmp_path / "gray.png")
    np.save(tmp_path / "gray.npy", np.asarray(gray))
    expected = Segmenter.from_pretrained(str(MODEL))(tmp_path / "gray.png").label_map
    areas, labels, _ = call(client, tmp_path / "gray.npy", NUCLEI)
    assert np.array_equal(np.asarray(Image.open(labels)), expected) and len(areas["data"]) == 2
    files = [gradio_client.handle_file(str(tmp_path / "gray.npy"))]
    _, table, archive = client.predict(files, NUCLEI, api_name="/segment_files")
    assert "nucleus" in table["data"][0][1]
    with zipfile.ZipFile(archive) as packed:
        assert set(packed.namelist()) == {"gray.png", "gray.overlay.png", "gray.json"}
        assert np.array_equal(np.asarray(Image.open(packed.open("gray.png"))), expected)


def test_pixels_per_call_are_limited(client, monkeypatch):
    once = 256 * 320
    monkeypatch.setattr(file_segmentation, "MAX_PIXELS_PER_CALL", 2 * once)
    monkeypatch.setattr(batch_tab, "MAX_PIXELS_PER_CALL", 2 * once)
    monkeypatch.setattr(file_segmentation.segment_file, "__defaults__", (2 * once - 1,))
    assert call(client, PHOTO, NUCLEI)
    text = error_message(client, PHOTO, NUCLEI, WHOLE, DEFAULT_WINDOW, True)
    assert text.strip("'").startswith(f"{PHOTO.name}: the model would process 0.2 million pixels") and "flip" in text
    files = [gradio_client.handle_file(str(PHOTO))] * 3
    rows = client.predict(files, NUCLEI, api_name="/segment_files")[1]["data"]
    assert ["left of" in found for _, found in rows] == [False, False, True]
    rows = client.predict(files[:2], NUCLEI, WHOLE, DEFAULT_WINDOW, True, api_name="/segment_files")[1]["data"]
    assert ["left of" in found for _, found in rows] == [False, True]


def test_largest_image_runs_with_any_window_size():
    class Square:
        pixel_values = torch.empty(1, 1, 5000, 5000, device="meta")

    assert Square.pixel_values.numel() == MAX_UPLOAD_PIXELS
    for side in range(MIN_WINDOW, MAX_WINDOW + 1, 64):
        assert pixels_seen(selected_protocol(SLIDING, side, False), Square()) <= MAX_PIXELS_PER_CALL


def test_canceled_batch_stops(client, slow_segmenter):
    files = [gradio_client.handle_file(str(PHOTO))] * MAX_FILES
    batch = client.submit(files, NUCLEI, api_name="/segment_files")
    next(iter(batch))
    batch.cancel()
    reached = len(slow_segmenter)
    assert call(client, PHOTO, NUCLEI)
    assert len(slow_segmenter) == reached + 1 < MAX_FILES


def test_classifier_returns_the_most_likely_classes(client, models):
    answer = call(client, PHOTO, title(models["classification"]), name="/classify")
    expected = Classifier.from_pretrained(models["classification"])(read_pixels(PHOTO), 5)
    assert [row["label"] for row in answer["confidences"]] == [name for name, _ in expected]
    assert [row["confidence"] for row in answer["confidences"]] == pytest.approx([share for _, share in expected])


def test_pose_model_finds_keypoints_in_a_box(client, models):
    model = title(models["pose"])
    picture, table = call(client, PHOTO, model, "20, 10, 100, 200", name="/estimate_pose")
    expected = PoseEstimator.from_pretrained(models["pose"])(read_pixels(PHOTO), (20, 10, 100, 200))
    assert np.allclose([row[1:] for row in table["data"]], expected.numpy(), atol=1e-3)
    assert max(Image.open(picture).size) >= 384
    whole = call(client, PHOTO, model, "", name="/estimate_pose")[1]
    assert whole["data"] != table["data"]
    assert "x, y, width, height" in error_message(client, PHOTO, model, "somewhere", name="/estimate_pose")
    for box in ("1, 2, 0, 0", "nan, 1, 2, 3", "inf, 0, 1, 1", "0, 0, inf, 9", "-500, -500, 10, 10", "320, 0, 5, 5"):
        text = error_message(client, PHOTO, model, box, name="/estimate_pose")
        assert "320 wide and 256 high" in text and f"'{box}'" in text
    assert call(client, PHOTO, model, "319, -5, 9, 9", name="/estimate_pose")[1]["data"]
    assert call(client, PHOTO, model, name="/estimate_pose")[1]["data"] == whole["data"]


def decode_data_url(address: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))))


def segmentation(label_map: np.ndarray, classes: int) -> Segmentation:
    photo = Image.new("RGB", label_map.shape[::-1], (10, 200, 30))
    names = tuple(f"class {index}" for index in range(classes))
    return Segmentation(photo, label_map, names, generate_palette(classes), "whole image", {"model": 1.0})


@settings(max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 400), st.integers(0, 99))
def test_view_has_every_pixel_in_its_class(height, width, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.uint16)
    result = segmentation(labels, classes)
    view = view_data(result, "name", "caption", ModelFacts("facts"))
    rows = decode_data_url(view["rows"])
    assert decode_data_url(view["photo"]).shape == (*rows.shape, 3)
    names = [row["name"] for row in view["classes"]]
    assert len(names) <= MAX_ROWS and rows.max() < len(names)
    assert sum(row["share"] for row in view["classes"]) == pytest.approx(1, abs=1e-3)
    sampled = nearest_labels(labels, rows.shape[::-1])
    single = len(names) - (len(result.counts()) > MAX_ROWS)
    mine = rows < single
    assert mine.all() or len(result.counts()) > MAX_ROWS
    assert (np.array(names)[rows[mine]] == np.array(result.names)[sampled[mine]]).all()


def test_view_of_a_large_image_is_downscaled():
    labels = np.arange(1500 * 2000).reshape(1500, 2000) % 40
    view = view_data(segmentation(labels.astype(np.uint8), 40), "name", "caption", ModelFacts("facts"))
    assert decode_data_url(view["rows"]).shape == (MAX_SIDE * 3 // 4, MAX_SIDE)
    assert len(view["classes"]) == 40


def test_facts_of_a_model():
    known = Catalogue([NUCLEI])
    assert known.describe(NUCLEI) == ModelFacts("SegFormerForSemanticSegmentation, 2 classes, license: cc0-1.0")


def test_card_of_a_local_model(tmp_path):
    model = shutil.copytree(MODEL, tmp_path / "models" / "carded")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# A model\n\nText\n\n![a figure](plots/curves.png)\n")
    bare = shutil.copytree(MODEL, tmp_path / "models" / "bare")
    (bare / "README.md").unlink()
    known = Catalogue([NUCLEI, str(model), str(bare)])
    assert "Results on the test split" in known.card_text(NUCLEI)
    assert known.card_text("models/carded").split() == ["Text"]
    assert known.card_text("models/bare") == known.card_text("another") == ""
    (model / "README.md").write_bytes(b"\xff\xfe")
    assert known.card_text("models/carded") == ""


def test_examples_of_a_model_are_the_images_of_its_run(tmp_path):
    model = shutil.copytree(MODEL, tmp_path / "run" / "best")
    images = tmp_path / "run" / "samples" / "images"
    images.mkdir(parents=True)
    for name in "dcba":
        Image.new("RGB", (40, 40)).save(images / f"{name}.png")
    known = Catalogue([str(model)])
    assert known.examples("segmentation") == [(str(images / f"{name}.png"), "run/best") for name in "abc"]
    both = Catalogue([NUCLEI, str(model)])
    assert [title for _, title in both.examples("segmentation")] == [NUCLEI] * len(example_images()) + ["run/best"] * 3


def test_native_size_models_use_windows_for_large_images(monkeypatch):
    monkeypatch.setattr(file_segmentation, "MAX_WINDOW", 128)
    known = Catalogue([NUCLEI])
    assert segment_file(known, NUCLEI, Protocol(), PHOTO).result.protocol.startswith("whole image")
    monkeypatch.setattr(file_segmentation, "MAX_PIXELS_PER_PASS", 256 * 320 - 1)
    result = segment_file(known, NUCLEI, Protocol(), PHOTO).result
    assert result.protocol.startswith("windows of 128x128") and result.label_map.shape == (256, 320)


def test_catalog_detects_tasks_and_reports_failures(models, tmp_path):
    assert {task: load_entry(model).task for task, model in models.items()} == {task: task for task in HEADS}
    known = Catalogue([NUCLEI, str(tmp_path / "absent"), *models.values()])
    assert known.titles("segmentation") == [NUCLEI, title(models["segmentation"])]
    assert len(known.failures) == 1 and "absent" in known.failures[0]
    with pytest.raises(ModelError, match="absent"):
        Catalogue([str(tmp_path / "absent")])
    headless = tmp_path / "headless"
    shutil.copytree(MODEL, headless)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["SegFormerModel"]}))
    with pytest.raises(ModelError, match="SegFormerModel, expected a model for segmentation"):
        load_entry(str(headless))


def test_models_with_equal_endings_get_longer_titles(models, tmp_path, monkeypatch):
    places = [tmp_path / run / "out" / "best" for run in ("r1", "r2", "r2/r1")]
    for place in places:
        shutil.copytree(models["segmentation"], place)
    monkeypatch.chdir(tmp_path)
    offered = Catalogue(["r1/out/best", "r2/out/best", "r2/r1/out/best", str(places[0]), models["pose"], NUCLEI])
    titles = [f"{tmp_path.name}/r1/out/best", "r2/out/best", "r2/r1/out/best"]
    assert list(offered.entries) == [*titles, title(models["pose"]), NUCLEI]
    assert [Path(offered.entries[title].place).resolve() for title in titles] == places


@given(st.sets(st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12))
def test_titles_are_unique_name_suffixes(names):
    names = sorted(names)
    titles = short_titles(names)
    assert len(set(titles)) == len(names)
    assert all("/".join(name).endswith(title) for name, title in zip(names, titles, strict=True))


def test_bundled_model_is_named_after_its_space(models, tmp_path, monkeypatch):
    shutil.copytree(models["segmentation"], tmp_path / "app" / "model")
    monkeypatch.chdir(tmp_path / "app")
    assert list(Catalogue(["model"]).entries) == ["app/model"]
    monkeypatch.setenv("SPACE_ID", "me/demo")
    assert list(Catalogue(["model", models["pose"]]).entries) == ["demo/model", title(models["pose"])]


def test_eager_loading_continues_after_a_failed_model(models, cut):
    offered = Catalogue([cut, NUCLEI], keep_all=True)
    assert list(offered.entries) == [NUCLEI] and len(offered.failures) == 1
    with pytest.raises(ModelError, match="cut cannot be loaded"):
        Catalogue([cut], keep_all=True)


def test_recently_used_models_are_cached(models):
    known = Catalogue([NUCLEI, models["pose"]])
    assert known.load(NUCLEI) is known.load(NUCLEI)
    everything = Catalogue([NUCLEI, *models.values()], keep_all=True)
    assert everything.cached_model.cache_info().currsize == 4


def test_environment_variable_selects_models(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "me/one, me/two\nme/three")
    assert default_models() == ["me/one", "me/two", "me/three", NUCLEI]
    monkeypatch.delenv(ENVIRONMENT)
    assert default_models() == [NUCLEI]


def test_built_in_model_is_installed_with_examples():
    assert PROJECT["tool"]["setuptools"]["package-dir"]["hf_vit_seg.nuclei"] == "examples/nuclei"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["hf_vit_seg.nuclei"]
    shipped = [path for pattern in patterns for path in MODEL.parent.glob(pattern)]
    assert set(EXAMPLES) <= {path.stem for path in shipped if path.suffix == ".webp"}
    assert all(Path(path).exists() for path in example_images())
    assert Path(load_entry(NUCLEI).place).resolve() == MODEL.resolve()


def test_missing_gradio_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "hf_vit_seg.demo.page")
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(command, ["demo"])
    assert done.exit_code == 2
    needed = next(line for line in PROJECT["project"]["optional-dependencies"]["demo"] if line.startswith("gradio"))
    assert done.stderr.strip() == f"hf-vit-seg: the demo needs gradio: pip install '{needed}'"


def test_invalid_port_raises():
    done = CliRunner().invoke(command, ["demo", "--port", "99999"])
    assert done.exit_code == 2 and "65535" in done.stderr and "Traceback" not in done.stderr


def test_missing_model_raises(tmp_path):
    done = CliRunner().invoke(command, ["demo", str(tmp_path / "absent")])
    assert done.exit_code == 2 and "absent" in done.stderr


@pytest.fixture
def gpu_requests(monkeypatch) -> list[int]:
    """The requested GPU seconds, on a simulated ZeroGPU that behaves like the package `spaces` (0.51)."""
    asked: list[int] = []

    def gpu(duration):
        def decorated(work):
            def lent(*arguments, **options):
                asked.append(duration(*arguments, **options))
                try:
                    arguments, options = pickle.loads(pickle.dumps((arguments, options)))
                    return pickle.loads(pickle.dumps(work(*arguments, **options)))
                except gradio.Error:
                    raise
                except Exception as error:
                    raise gradio.Error(type(error).__name__) from error

            return lent

        return decorated

    spaces, config = ModuleType("spaces"), ModuleType("spaces.config")
    spaces.__spec__ = ModuleSpec("spaces", None, origin="spaces/__init__.py")
    spaces.GPU = gpu
    config.Config = SimpleNamespace(zero_gpu=True)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setitem(sys.modules, "spaces.config", config)
    return asked


@pytest.fixture
def zero_gpu_tabs(gpu_requests, models) -> dict[str, Any]:
    """The tabs of a demo on ZeroGPU."""
    assert accelerator.zero_gpu()
    known = Catalogue([NUCLEI, *models.values()], keep_all=True)
    with gradio.Blocks():
        return {
            "segmentation": SegmentationTab(known),
            "files": BatchTab(known),
            "classification": ClassificationTab(known),
            "pose": PoseTab(known),
        }


def test_without_zero_gpu_functions_are_unchanged():
    assert not accelerator.zero_gpu()  # this repository has a folder `spaces`
    assert accelerator.on_gpu(len, len) is len


def test_gpu_is_requested_for_inference(zero_gpu_tabs, gpu_requests, models):
    _, labels, _ = zero_gpu_tabs["segmentation"].show(str(PHOTO), NUCLEI, WHOLE, DEFAULT_WINDOW, False)
    expected = Segmenter.from_pretrained(str(MODEL))(PHOTO)
    assert np.array_equal(np.asarray(Image.open(labels["value"])), expected.label_map)
    assert labels["interactive"]
    assert zero_gpu_tabs["classification"].classify(str(PHOTO), title(models["classification"]))
    assert zero_gpu_tabs["pose"].estimate(str(PHOTO), title(models["pose"]), "")[1]
    assert len(gpu_requests) == 3 and max(gpu_requests) <= SECONDS + 1
    *_, (_, rows, _) = zero_gpu_tabs["files"].segment_files([str(PHOTO)] * 3, NUCLEI)
    assert all("nucleus" in found for _, found in rows) and len(gpu_requests) == 6


def test_gpu_is_not_requested_without_inference(zero_gpu_tabs, gpu_requests, models, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("1", (7000, 5000)).save(tmp_path / "large.png")
    assert zero_gpu_tabs["segmentation"].show(None, NUCLEI, WHOLE, DEFAULT_WINDOW, False)[0] is None
    zero_gpu_tabs["classification"].classify(None, title(models["classification"]))
    zero_gpu_tabs["pose"].estimate(None, title(models["pose"]), "")
    for name in ("broken.png", "large.png"):
        path = str(tmp_path / name)
        view, *downloads = zero_gpu_tabs["segmentation"].show(path, NUCLEI, WHOLE, DEFAULT_WINDOW, False)
        assert name in view["error"].lower() and "photo" not in view
        assert [(each["value"], each["interactive"]) for each in downloads] == [(None, False)] * 2
        with pytest.raises(gradio.Error, match=name):
            zero_gpu_tabs["classification"].classify(path, title(models["classification"]))
        with pytest.raises(gradio.Error, match=name):
            zero_gpu_tabs["pose"].estimate(path, title(models["pose"]), "")
        *_, (_, rows, _) = zero_gpu_tabs["files"].segment_files([path], NUCLEI)
        assert rows[0][1].startswith(f"failed: {name}")
    assert not gpu_requests


def test_model_error_on_zero_gpu_is_reported(zero_gpu_tabs, gpu_requests, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "tiny.png")
    with pytest.raises(gradio.Error, match="9x9"):
        zero_gpu_tabs["segmentation"].segment(str(tmp_path / "tiny.png"), NUCLEI)
    assert len(gpu_requests) == 1


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(flip=True), selected_protocol(SLIDING, 128, True)])
def test_model_input_pixels_are_counted(protocol, monkeypatch):
    segmenter, seen, logits = Segmenter.from_pretrained(str(MODEL), protocol=protocol), [], Segmenter.logits
    prepared = segmenter.prepare(Image.new("RGB", (640, 480)))

    def count_pixels(own, images):
        seen.append(images[:, 0].numel())
        return logits(own, images)

    monkeypatch.setattr(Segmenter, "logits", count_pixels)
    segmenter.segment(prepared)
    assert pixels_seen(protocol, prepared) == sum(seen)


def test_gpu_duration_grows_with_input_pixels():
    assert seconds(NUCLEI, pixels=20_000_000) == seconds(NUCLEI) + 20 * SECONDS_PER_MILLION


def test_space_starts_the_demo(monkeypatch):
    started = []
    monkeypatch.setattr(hf_vit_seg.demo, "launch", lambda *models, **options: started.append((models, options)))
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert started == [((), {})]
    card = SpaceCard.load(SPACE / "README.md").data
    assert (card.sdk, card.app_file) == ("gradio", "app.py")
    demo = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["demo"]]
    assert card.sdk_version in next(line for line in demo if line.name == "gradio").specifier
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [Requirement(line).name for line in lines if not line.startswith("#")] == ["hf_vit_seg"]


def test_published_space_starts(tmp_path):
    for place, content in space_files().items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"GRADIO_SERVER_PORT": port, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-u", "app.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            address = next(line.split()[-1] for line in running.stdout if "http" in line)
            visitor = gradio_client.Client(address, verbose=False)
            assert {row[0] for row in call(visitor, PHOTO, NUCLEI)[0]["data"]} == {"background", "nucleus"}
        finally:
            running.terminate()


def test_gradio_writes_no_files_into_the_package():
    assert not list(Path(hf_vit_seg.demo.__file__).parent.glob("*.pyi"))
