"""The tab of the demo for objects: called through its API, and the data of its view."""

import base64
import csv
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from demo_server import SERVER
from object_models import save_object_model
from PIL import Image

from hf_vit_seg.inference import ModelError
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.found_segments import COLUMNS, FoundSegments
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from hf_vit_seg.demo import file_segmentation, launch  # noqa: E402
from hf_vit_seg.demo.catalogue import NUCLEI, Catalogue, ModelFacts, example_images  # noqa: E402
from hf_vit_seg.demo.file_segmentation import SLIDING, WHOLE, find_objects_in_file, pixels_seen  # noqa: E402
from hf_vit_seg.demo.segmentation_view import view_of_objects  # noqa: E402

PHOTO = Path(example_images()[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A model of objects, one of objects and stuff, and one without a number of queries."""
    folder = tmp_path_factory.mktemp("objects")
    return {
        "queries": str(save_object_model(folder / "queries")),
        "panoptic": str(save_object_model(folder / "panoptic", stuff=[2])),
        "distance": str(save_object_model(folder / "distance", "segformer", decode_head="distance")),
    }


@pytest.fixture(scope="module")
def client(models):
    _, address, _ = launch(*models.values(), **SERVER)
    yield gradio_client.Client(address, verbose=False)
    gradio.close_all()


def call(client, path: Path, *arguments):
    return client.predict(gradio_client.handle_file(str(path)), *arguments, api_name="/find_objects")


def title(model: str) -> str:
    return "/".join(Path(model).parts[-2:])


@pytest.mark.parametrize("name", ["queries", "panoptic", "distance"])
@pytest.mark.parametrize("view", [WHOLE, SLIDING])
def test_objects_are_those_of_the_segmenter(client, models, name, view):
    table, numbers, rows, report = call(client, PHOTO, title(models[name]), view, 128)
    segmenter = InstanceSegmenter.from_pretrained(models[name], "cpu")
    expected = segmenter.with_protocol(Protocol(window=(128, 128) if view == SLIDING else None))(PHOTO)
    assert len(expected.objects) > 1
    assert np.array_equal(np.asarray(Image.open(numbers)), expected.instance_map())
    assert [dict(zip(table["headers"], row, strict=True)) for row in table["data"]] == expected.table()
    written = list(csv.reader(Path(rows).read_text().splitlines()))
    assert written[0] == list(COLUMNS) and len(written) == len(expected.objects) + 1
    found = json.loads(Path(report).read_text())
    assert {row["name"]: row["objects"] for row in found["classes"]} == expected.counts()
    assert found["image"] == PHOTO.name and found["model"] == title(models[name])


def test_files_that_are_no_images_are_refused(client, models, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(gradio_client.exceptions.AppError, match=r"roken\.png: not a supported image file"):
        call(client, tmp_path / "broken.png", title(models["queries"]))


def decode(address: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))))


def found_segments(numbers: np.ndarray, classes: list[int], stuff: frozenset[int] = frozenset()) -> FoundSegments:
    names, palette = ("cell", "sky"), np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    image = Image.new("RGB", (numbers.shape[1], numbers.shape[0]))
    scores = [0.9] * len(classes)
    return FoundSegments.from_map(
        numbers, classes, scores, names=names, palette=palette, image=image, protocol="", stuff=stuff
    )


def test_view_has_the_number_of_each_pixel():
    numbers = np.zeros((60, 80), np.int32)
    numbers[:30] = np.arange(2400).reshape(30, 80) % 600 + 1  # more than a byte
    numbers[40:] = 601
    view = view_of_objects(found_segments(numbers, [0] * 600 + [1], frozenset([1])), "name", "", ModelFacts("a model"))
    red, green, blue = np.moveaxis(decode(view["rows"]).astype(int), -1, 0)
    shown = red + 256 * green + 65536 * blue
    factor = shown.shape[0] // 60
    assert np.array_equal(shown[factor // 2 :: factor, factor // 2 :: factor], numbers)
    assert view["heading"] == "600 objects" and len(view["objects"]) == 601
    assert [(row["name"], row["count"], row["text"]) for row in view["classes"]] == [
        ("cell", 600, "600"),
        ("sky", None, "33.3 %"),
    ]
    assert view["objects"][0] == {"row": 0, "text": "score 0.90, 4 pixels", "color": view["objects"][0]["color"]}
    assert view["objects"][600]["row"] == 1 and view["objects"][600]["color"] is None


def test_view_without_objects():
    view = view_of_objects(found_segments(np.zeros((20, 30), np.int32), []), "name", "", ModelFacts("a model"))
    assert view["heading"] == "No objects found" and view["classes"] == view["objects"] == []
    assert not decode(view["rows"]).any()


def test_large_images_are_processed_in_windows(models, monkeypatch):
    monkeypatch.setattr(file_segmentation, "MAX_WINDOW", 128)
    known, name = Catalogue([models["queries"]]), title(models["queries"])
    assert find_objects_in_file(known, name, Protocol(), PHOTO).result.protocol.startswith("whole image")
    monkeypatch.setattr(file_segmentation, "MAX_PIXELS_PER_PASS", 64 * 64 - 1)
    found = find_objects_in_file(known, name, Protocol(), PHOTO)
    assert found.result.protocol.startswith("windows of 128x128")
    assert found.result.size == (256, 320)


def test_pixels_that_the_model_sees_are_counted(models):
    segmenter, seen = InstanceSegmenter.from_pretrained(models["queries"], "cpu"), []
    segmenter = segmenter.with_protocol(Protocol(window=(128, 128)))
    outputs = segmenter.outputs

    def count(pixel_values):
        seen.append(pixel_values[:, 0].numel())
        return outputs(pixel_values)

    segmenter.outputs = count
    image = Image.new("RGB", (300, 200))
    segmenter(image)
    assert sum(seen) == pixels_seen(segmenter.protocol, segmenter.prepare(image))


def test_examples_belong_to_their_task(models):
    known = Catalogue([NUCLEI, *models.values()])
    assert known.examples("instance") == [] and len(known.examples("segmentation")) == len(example_images())
    assert known.titles("instance") == [title(model) for model in models.values()]


def test_models_without_a_head_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_seg", "architectures": ["Unknown"]}))
    with pytest.raises(ModelError, match="Unknown"):
        Catalogue([str(tmp_path)])
