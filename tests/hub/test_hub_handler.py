"""`handler.py` of a pushed model, called as Inference Endpoints do, with and without this package."""

import ast
import base64
import importlib.util
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bare_environment import bare_packages
from hub_models import contents, save_tiny_model
from paths import REPOSITORY
from PIL import Image
from typer.testing import CliRunner

from hf_vit_seg import Classifier, Segmenter
from hf_vit_seg.cli import app
from hf_vit_seg.hub import Target, push
from hf_vit_seg.hub.handler import class_probabilities
from hf_vit_seg.hub.model_directory import model_directory
from hf_vit_seg.hub.push import HANDLER
from hf_vit_seg.hub.push import contents as pushed_files

SIZE = (50, 70)
UNIVERSAL = "AutoModelForUniversalSegmentation"
CLASSIFICATION = "AutoModelForImageClassification"
# As huggingface_inference_toolkit.utils.check_and_register_custom_pipeline_from_directory: requests are JSON lines.
TOOLKIT = """
import importlib.util, json, sys
packages, folder = sys.argv[1:]
sys.path.insert(0, packages)
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
assert type(handler.model).__module__.startswith("transformers_modules."), type(handler.model).__module__
print("\\n".join(json.dumps(handler(json.loads(line))) for line in sys.stdin))
assert "hf_vit_seg" not in sys.modules
"""


def load_handler(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("pushed_handler", folder / HANDLER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


def write_repository(model: Path, folder: Path) -> Path:
    """The files that `push` publishes."""
    folder.mkdir()
    for name, file in pushed_files(model_directory(model), "me/model", handler=True).items():
        (folder / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    return folder


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (SIZE[0] // 10, SIZE[1] // 10, 3)).astype(np.uint8)
    return Image.fromarray(values).resize(SIZE[::-1], Image.Resampling.NEAREST)


def encoded(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    return write_repository(save_tiny_model(folder / "model", num_labels=4), folder / "repository")


@pytest.fixture(scope="module")
def handler(segmentation) -> Any:
    return load_handler(segmentation)


def test_semantic_segments_are_those_of_the_segmenter(segmentation, handler):
    answer = handler({"inputs": picture()})
    result = Segmenter.from_pretrained(str(segmentation))(picture(), scores=True)
    assert json.loads(json.dumps(answer)) == answer
    assert [set(each) for each in answer] == [{"label", "mask", "score"}] * len(answer)
    for each in answer:
        index = result.names.index(each["label"])
        mask = decoded(each["mask"])
        assert mask.dtype == np.uint8 and np.array_equal(mask == 255, result.label_map == index)
        assert set(np.unique(mask)) <= {0, 255}
        assert 0 < each["score"] <= 1
    assert {each["label"] for each in answer} == {result.names[k] for k in np.unique(result.label_map)}


def test_every_kind_of_image_has_the_same_answer(handler):
    text = encoded(picture())
    answer = handler({"inputs": picture()})
    for inputs in (text, f"data:image/png;base64,{text}", base64.b64decode(text), picture().convert("RGBA")):
        assert handler({"inputs": inputs, "parameters": None}) == answer


def test_label_map_and_threshold(segmentation, handler):
    answer = handler({"inputs": picture(), "parameters": {"label_map": "true"}})  # from a query string
    expected = Segmenter.from_pretrained(str(segmentation))(picture())
    assert np.array_equal(decoded(answer["label_map"]), expected.label_map)
    assert sum(row["pixels"] for row in answer["segments"]) == SIZE[0] * SIZE[1]
    assert (answer["height"], answer["width"]) == SIZE
    lowest = min(row["score"] for row in answer["segments"])
    fewer = handler({"inputs": picture(), "parameters": {"label_map": True, "threshold": str(lowest + 1e-6)}})
    assert len(fewer["segments"]) == len(answer["segments"]) - 1
    assert (decoded(fewer["label_map"]) == 255).sum() == next(
        row["pixels"] for row in answer["segments"] if row["score"] == lowest
    )


def test_models_with_one_output(tmp_path):
    folder = write_repository(save_tiny_model(tmp_path / "model", num_labels=1), tmp_path / "repository")
    answer = load_handler(folder)({"inputs": picture()})
    labels = Segmenter.from_pretrained(str(folder))(picture()).label_map
    assert len(answer) == int(labels.any())
    for each in answer:
        assert np.array_equal(decoded(each["mask"]) == 255, labels == 1) and each["score"] >= 0.5


def test_more_classes_than_8_bits(tmp_path):
    folder = write_repository(save_tiny_model(tmp_path / "model", num_labels=300), tmp_path / "repository")
    answer = load_handler(folder)({"inputs": picture(), "parameters": {"label_map": True}})
    assert np.array_equal(decoded(answer["label_map"]), Segmenter.from_pretrained(str(folder))(picture()).label_map)


@pytest.mark.parametrize("subtask", ["instance", "panoptic", "semantic"])
def test_models_that_find_objects(tmp_path, subtask):
    folder = write_repository(save_tiny_model(tmp_path / "model", auto=UNIVERSAL, name="vit"), tmp_path / "repository")
    serve = load_handler(folder)
    parameters = {"subtask": subtask, "threshold": 0.0}
    answer = serve({"inputs": picture(), "parameters": parameters})
    assert all(decoded(each["mask"]).shape == SIZE for each in answer)
    whole = serve({"inputs": picture(), "parameters": parameters | {"label_map": True}})
    assert [row["label"] for row in whole["segments"]] == [each["label"] for each in answer]
    inputs = serve.processor(picture(), return_tensors="pt")
    with torch.inference_mode():
        outputs = serve.model(**inputs)
    if subtask == "semantic":
        (labels,) = serve.processor.post_process_semantic_segmentation(outputs, target_sizes=[SIZE])
        assert np.array_equal(decoded(whole["label_map"]), labels.numpy())
    else:
        process = getattr(serve.processor, f"post_process_{subtask}_segmentation")
        (found,) = process(outputs, threshold=0.0, target_sizes=[SIZE])
        assert len(found["segments_info"]) == len(answer)


def test_probability_of_a_single_class_of_queries():
    """It is the score, not its share in the scores of all classes, which is 1."""
    outputs = SimpleNamespace(
        class_queries_logits=torch.tensor([[[9.0, -9.0]]]), masks_queries_logits=torch.tensor([[[[9.0, 0.0, -9.0]]]])
    )
    assert class_probabilities(outputs, 1)[0, 0].tolist() == pytest.approx([1, 0.5, 0], abs=1e-3)


def test_classification(tmp_path):
    model = save_tiny_model(tmp_path / "model", auto=CLASSIFICATION, name="vit", num_labels=7)
    folder = write_repository(model, tmp_path / "repository")
    serve = load_handler(folder)
    expected = Classifier.from_pretrained(str(folder))(picture(), 7)
    answer = serve({"inputs": encoded(picture()), "parameters": {"top_k": 7}})
    assert [each["label"] for each in answer] == [name for name, _ in expected]
    assert [each["score"] for each in answer] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert len(serve({"inputs": picture()})) == 5
    raw = serve({"inputs": picture(), "parameters": {"function_to_apply": "none", "top_k": 1}})
    sigmoid = serve({"inputs": picture(), "parameters": {"function_to_apply": "sigmoid", "top_k": 1}})
    assert sigmoid[0]["score"] == pytest.approx(1 / (1 + np.exp(-raw[0]["score"])), abs=1e-6)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"inputs": "not base64!"},
        {"inputs": "/etc/hostname"},
        {"inputs": "https://example.com/a.png"},
        {"inputs": base64.b64encode(b"no image").decode()},
        {"inputs": 3},
        {"inputs": picture(), "parameters": {"subtask": "instance"}},
        {"inputs": picture(), "parameters": {"threshold": "high"}},
        {"inputs": picture(), "parameters": {"label_map": "maybe"}},
        {"inputs": picture(), "parameters": {"treshold": 0.3}},
    ],
    ids=lambda value: str(list(value.items())[-1:])[:40],
)
def test_requests_that_cannot_be_answered_raise_value_error(handler, request_):
    with pytest.raises(ValueError):  # noqa: PT011 (the toolkit answers with its text)
        handler(request_)


@pytest.mark.parametrize("auto", ["AutoModelForSemanticSegmentation", CLASSIFICATION])
def test_nan_outputs_raise_value_error(tmp_path, auto):
    model = save_tiny_model(tmp_path / "model", auto=auto, name="vit")
    serve = load_handler(write_repository(model, tmp_path / "repository"))
    assert serve({"inputs": picture()})
    with torch.no_grad():
        for parameter in serve.model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        serve({"inputs": picture()})


def test_code_of_other_repositories_is_refused(segmentation, tmp_path):
    """Only the code of the directory is trusted, also in nested configs."""
    for number, change in enumerate(
        ({"auto_map": {"AutoConfig": "someone/else--code.Config"}}, {"a": [{"auto_map": {"x": ["b--c.D", None]}}]})
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in segmentation.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match="another repository"):
            load_handler(folder)


def test_only_the_handler_trusts_remote_code():
    """Everything else of the package takes code from installed packages alone."""
    trusting = set()
    for folder in ("hf_vit_seg", "conversion", "spaces"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                keyword = isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
                key = isinstance(node, ast.Constant) and node.value == "trust_remote_code"
                if keyword or key:
                    trusting.add(path.relative_to(REPOSITORY).as_posix())
    assert trusting == {"hf_vit_seg/hub/handler.py"}


def test_push_writes_the_handler_unless_disabled(hub, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    push(model, Target("me/served"))
    assert "handler.py" in contents(hub, "me/served")
    done = CliRunner().invoke(app, ["push", str(model), "me/served", "--no-handler"])
    assert done.exit_code == 0, done.output
    assert "handler.py" not in contents(hub, "me/served")


def test_handlers_of_users_are_kept(hub, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    (model / "handler.py").write_text("class EndpointHandler: ...\n")
    push(model, Target("me/own"))
    assert contents(hub, "me/own")["handler.py"] == b"class EndpointHandler: ...\n"


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForPoseEstimation"])
def test_other_tasks_have_no_handler(tmp_path, auto):
    model = save_tiny_model(tmp_path / "model", auto=auto, name="vit")
    assert "handler.py" not in pushed_files(model_directory(model), "me/model", handler=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "auto"), [("segformer", "AutoModelForSemanticSegmentation"), ("vit", UNIVERSAL), ("vit", CLASSIFICATION)]
)
def test_toolkit_serves_without_the_package(tmp_path, name, auto):
    folder = write_repository(save_tiny_model(tmp_path / "model", auto=auto, name=name), tmp_path / "repository")
    (tmp_path / "packages").mkdir()
    packages = bare_packages(tmp_path / "packages")
    requests = [{"inputs": encoded(picture())}, {"inputs": encoded(picture()), "parameters": {}}]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TOOLKIT, str(packages), str(folder)],
        input="\n".join(map(json.dumps, requests)),
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = map(json.loads, done.stdout.splitlines()[-2:])
    ours = load_handler(folder)({"inputs": picture()})
    assert first == second and [each["label"] for each in first] == [each["label"] for each in ours]
    assert [each["score"] for each in first] == pytest.approx([each["score"] for each in ours], abs=1e-5)
    if "mask" in (first or [{}])[0]:
        for theirs, own in zip(first, ours, strict=True):
            assert (decoded(theirs["mask"]) != decoded(own["mask"])).mean() < 0.01
