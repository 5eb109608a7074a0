"""Untrusted HTTP calls of the demo: foreign files, values that no component offers, excessive requests."""

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import pack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from child_process import output_of
from demo_server import SERVER
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForPoseEstimation

from hf_vit_seg import architectures
from hf_vit_seg.data.images.files import MAX_SIDE, ImageFileError, ImageSizeError
from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.inference.files.prediction import Job, PredictOptions
from hf_vit_seg.inference.tiles.tiled_prediction import needs_tiles

gradio = pytest.importorskip("gradio")

import hf_vit_seg.demo  # noqa: E402
from hf_vit_seg.demo import image_reading, request_limits, upload_folder  # noqa: E402
from hf_vit_seg.demo.catalogue import NUCLEI, Catalogue, FairLock, example_images  # noqa: E402
from hf_vit_seg.demo.component_inputs import CHECKS, InputError, check_value  # noqa: E402
from hf_vit_seg.demo.image_reading import Readers, TimeLimitError  # noqa: E402
from hf_vit_seg.demo.page import build_page  # noqa: E402
from hf_vit_seg.demo.uploads import ForeignFileError  # noqa: E402

PHOTO = Path(example_images()[0])
REST = [NUCLEI, "whole image", 512, False]
META = {"_type": "gradio.FileData"}
FOREIGN = str(ForeignFileError())


@pytest.fixture(scope="module")
def private(tmp_path_factory) -> Path:
    """A photo on the server that was not uploaded."""
    path = tmp_path_factory.mktemp("private") / "photo.png"
    Image.effect_noise((64, 64), 50).save(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Model directories for the other tabs."""
    folder, vit = tmp_path_factory.mktemp("small"), architectures()["vit"]
    for auto_class in (AutoModelForImageClassification, AutoModelForPoseEstimation):
        place = folder / auto_class.__name__
        auto_class.from_config(vit.variant_config("tiny", num_labels=3)).save_pretrained(place)
        vit.image_processor["torchvision"](size={"height": 64, "width": 48}).save_pretrained(place)
    return [str(place) for place in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """A demo with a separate upload folder: `address`, `folder` and `config`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("temporary")))
        _, address, _ = hf_vit_seg.demo.launch(NUCLEI, *models, **SERVER)
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        address = address.rstrip("/")
        with urllib.request.urlopen(f"{address}/config") as answer:
            config = json.load(answer)
        yield SimpleNamespace(address=address, folder=folder, config=config)
        gradio.close_all()


@pytest.fixture(scope="module")
def place(server) -> str:
    """The path of an uploaded photo."""
    return upload(server, "photo.webp", PHOTO.read_bytes())[1][0]


def request(server, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    asked = urllib.request.Request(server.address + path, data, headers or {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(server, name: str, content: bytes) -> tuple[int, Any]:
    disposition = f'Content-Disposition: form-data; name="files"; filename="{name}"'
    body = f"--x\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n--x--\r\n"
    status, text = request(server, "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
    return status, json.loads(text)


@pytest.mark.parametrize(
    "disposition",
    [
        'Content-Disposition: form-data; name="files"',
        'Content-Disposition: form-data; name="other"',
        "Content-Disposition: form-data",
        "X-Other: y",
    ],
)
def test_uploads_without_a_file_are_refused_in_a_sentence(server, disposition):
    body = f"--x\r\n{disposition}\r\n\r\nabc\r\n--x--\r\n".encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, text = request(server, "/gradio_api/upload", body, kind)
    assert status in (200, 400) and b"Error" not in text and b"failed" not in text
    assert status == 400 or text == b"[]"


def call_by_name(server, name: str, data: list[Any]) -> tuple[str, Any]:
    """The last event of a call by name, with its data."""
    status, text = request(server, f"/gradio_api/call/{name}", {"data": data})
    assert status == 200, text
    lines = request(server, f"/gradio_api/call/{name}/{json.loads(text)['event_id']}")[1].decode().split("\n")
    kind, content = [line for line in lines if line][-2:]
    return kind.removeprefix("event: "), json.loads(content.removeprefix("data: "))


def call_by_index(server, index: int, data: list[Any]) -> dict[str, Any]:
    """The response to a call by index, as sent by the page."""
    session = os.urandom(8).hex()
    body = {"fn_index": index, "data": data, "session_hash": session}
    status, text = request(server, "/gradio_api/queue/join", body)
    assert status == 200, text
    with urllib.request.urlopen(f"{server.address}/gradio_api/queue/data?session_hash={session}", timeout=60) as events:
        for line in events:
            message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def payloads(path: str) -> list[Any]:
    plain = {"path": path}
    return [
        plain,
        path,
        plain | {"meta": META},
        plain | {"url": f"file://{path}"},
        plain | {"is_stream": True, "meta": META},
        {"path": f"file://{path}", "meta": META},
        {"url": f"http://127.0.0.1/{path}"},
        [plain],
    ]


def test_foreign_and_missing_files_get_the_same_response(server, private):
    answers = [
        [call_by_name(server, "segment", [payload, *REST]) for payload in payloads(str(path))]
        for path in (private, private.with_name("absent.png"), Path("/etc/passwd"))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert {(kind, content["error"]) for kind, content in answers[0]} == {("error", FOREIGN)}


def test_every_file_event_rejects_foreign_files(server, private):
    kinds = {component["id"]: component["type"] for component in server.config["components"]}
    reached = set()
    for event in server.config["dependencies"]:
        types = [kinds[component] for component in event["inputs"]]
        for kind in {"image", "file"} & set(types):
            foreign = {"image": {"path": str(private)}, "file": [{"path": str(private)}]}
            data = [foreign[each] if each == kind else None for each in types]
            if event["queue"]:
                answer = call_by_index(server, event["id"], data)
                assert not answer["success"]
                text = answer["output"]["error"]
            else:
                status, content = request(
                    server, "/gradio_api/run/predict", {"fn_index": event["id"], "data": data, "session_hash": "s"}
                )
                text = json.loads(content)["error"]
                assert status == 500
            assert text == FOREIGN, (event, text)
            assert isinstance(text, str) and str(private) not in text
            reached.add((event["id"], kind))
    assert {kind for _, kind in reached} == {"image", "file"} and len(reached) >= 5


@pytest.mark.parametrize("number", [-1, 99, True, "0", None, [0, 0], {"path": "/etc/passwd"}])
def test_examples_are_chosen_by_their_number(number):
    page = build_page(Catalogue([NUCLEI]))
    tab = next(fn.fn.__self__ for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == "choose_selected")
    selected = gradio.SelectData(None, {"index": number, "value": None})
    with pytest.raises(gradio.Error, match="from 0 to"):
        tab.choose_selected(selected)
    page.close()


def test_every_component_rejects_foreign_files(models, private):
    page = build_page(Catalogue([NUCLEI, *models]))
    inputs = {component for event in page.fns.values() for component in event.inputs}
    assert {type(component) for component in inputs} <= set(CHECKS)
    for component in inputs:
        texts = isinstance(component, gradio.Textbox)  # its value is not a file
        for payload in payloads(str(private)):
            for value in [[payload]] if texts else [payload, [payload]]:
                with pytest.raises((ForeignFileError, InputError)):
                    check_value(component, value)
    page.close()


def test_urls_are_not_fetched(server):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"
        for payload in ({"path": url}, {"path": url, "meta": META}, {"url": url, "path": None}, {"url": url}, url):
            kind, content = call_by_name(server, "segment", [payload, *REST])
            assert (kind, content["error"]) == ("error", FOREIGN)
        data = "data:image/png;base64,iVBORw0KGgo="
        assert call_by_name(server, "segment", [{"path": data, "url": data}, *REST])[1]["error"] == FOREIGN
        for route in (f"file={url}", f"file=%20{url}", f"proxy={url}", f"file/{url}"):
            assert request(server, f"/gradio_api/{route}")[0] == 404
        with suppress(TimeoutError):
            asked.append(listener.accept())
    assert not asked


def test_links_pipes_and_outside_paths_are_rejected(server, private):
    status, (place,) = upload(server, "photo.webp", PHOTO.read_bytes())
    assert status == 200 and call_by_name(server, "segment", [{"path": place}, *REST])[0] == "complete"
    own = Path(place).parent
    (own / "link.png").symlink_to(private)
    os.mkfifo(own / "pipe.png")
    (server.folder / "loose.png").write_bytes(private.read_bytes())
    bad = [own / "link.png", own / "pipe.png", own, server.folder / "loose.png", own / ".." / own.name / "photo.webp"]
    bad += [own / "\0", own / ("x" * 5000)]
    start = time.monotonic()
    for path in bad:
        assert call_by_name(server, "segment", [{"path": str(path)}, *REST]) == (
            "error",
            {"error": FOREIGN, "duration": None, "visible": True, "title": "Error"},
        )
    assert time.monotonic() - start < 30
    for path in (private, Path("/etc/passwd"), private.with_name("absent.png")):
        assert request(server, f"/gradio_api/file={path}")[0] == 403


@pytest.mark.parametrize(
    ("position", "value"),
    [
        *[(1, bad) for bad in (None, [NUCLEI], {}, "../nuclei", 0, "x" * 1000)],
        *[(2, bad) for bad in (None, "other", ["whole image"], 3)],
        *[(3, bad) for bad in (None, float("nan"), float("inf"), "512", True, -1, 10**30, [512])],
        *[(4, bad) for bad in (None, 1, "true", [])],
    ],
)
def test_values_outside_the_choices_are_rejected(server, place, position, value):
    data = [{"path": place}, *REST]
    data[position] = value
    kind, content = call_by_name(server, "segment", data)
    assert kind == "error" and "expected" in content["error"] and len(content["error"]) < 200


def test_calls_cannot_bypass_the_queue(server):
    assert request(server, "/gradio_api/run/segment", {"data": [None, *REST]})[0] == 404
    for route in ("component_server", "process_recording", "deep_link", "stream/x"):
        assert request(server, f"/gradio_api/{route}", {})[0] == 404
    for route in ("monitoring", "gradio_api/monitoring", "monitoring/summary"):
        assert request(server, f"/{route}")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        *[
            ("queue/join", {"fn_index": index, "data": [], "session_hash": "x"}, 404)
            for index in (999, -1, None, "0", True)
        ],
        ("queue/join", {"fn_index": 0, "data": None, "session_hash": "x"}, 422),
        ("queue/join", {"fn_index": 0, "session_hash": "x"}, 422),
        ("queue/join", [], 422),
        ("queue/join", b"{", 422),
        ("queue/join", b"[" * 100_000, 422),
        ("queue/join", {"fn_index": 3, "data": [], "session_hash": ["x"]}, 422),
        ("queue/join", {"fn_index": 3, "data": [], "session_hash": "x", "trigger_id": "y"}, 422),
        ("cancel", [], 422),
        ("cancel", b"{", 422),
        ("reset", {}, 422),
        ("call/nothing", {"data": []}, 404),
        ("call/unnamed", {"data": []}, 404),
        ("call/segment", {"data": {}}, 422),
        ("call/segment", {"data": "x"}, 422),
        ("call/v2/nothing", {}, 404),
        ("call/v2/segment", {}, 422),
        ("call/v2/segment", {"other": 1}, 422),
        ("call/v2/segment", 3, 422),
    ],
)
def test_malformed_calls_are_refused_in_a_sentence(server, path, body, expected, caplog):
    status, text = request(server, f"/gradio_api/{path}", body)
    answer = json.loads(text)
    assert status == expected and isinstance(answer["detail"], str) and "Error" not in answer["detail"]
    assert not caplog.records


def test_events_without_a_function_cannot_be_called(server):
    """The stop button's, which only the browser handles."""
    events = [event["id"] for event in server.config["dependencies"] if not event["backend_fn"]]
    assert events
    for index in events:
        body = {"fn_index": index, "data": [], "session_hash": "x"}
        assert request(server, "/gradio_api/queue/join", body)[0] == 404


def test_wrong_argument_counts_are_rejected(server):
    for data in ([], [None], [None, *REST, 1]):
        assert "expected 5 values" in call_by_name(server, "segment", data)[1]["error"]


def test_request_size_is_limited(server, monkeypatch):
    assert request(server, "/gradio_api/call/segment", b" " * 1_000_001)[0] == 413
    monkeypatch.setattr(request_limits, "MAX_UPLOAD_BYTES", 2000)
    assert upload(server, "a.bin", b"x" * 3000)[0] == 413
    port = int(server.address.rpartition(":")[2])
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 30) as visitor:
        visitor.sendall(head)
        assert visitor.recv(1000).startswith(b"HTTP/1.1 411 ")


def test_full_upload_folder_rejects_uploads(server, monkeypatch):
    monkeypatch.setattr(upload_folder, "MAX_BYTES", upload_folder.bytes_used(server.folder) + 100)
    status, answer = upload(server, "a.bin", b"x" * 3000)
    assert status == 507 and answer["detail"] == str(upload_folder.FolderFullError())
    monkeypatch.setattr(upload_folder, "MAX_BYTES", 0)
    with pytest.raises(upload_folder.FolderFullError):
        upload_folder.fresh_folder()


def test_announced_uploads_do_not_fill_the_folder(server, monkeypatch):
    """Connections that send nothing reserve nothing: another visitor's upload is accepted."""
    monkeypatch.setattr(upload_folder, "MAX_BYTES", upload_folder.bytes_used(server.folder) + 10_000)
    port = int(server.address.rpartition(":")[2])
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    slow = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(5)]
    try:
        for visitor in slow:
            visitor.sendall(head + b"Content-Length: 9000\r\n\r\n--x")
        assert upload(server, "a.bin", b"x" * 3000)[0] == 200
    finally:
        for visitor in slow:
            visitor.close()


def test_slow_body_has_a_time_limit(server, monkeypatch):
    monkeypatch.setattr(request_limits, "SECONDS_RECEIVING", 0.2)
    port = int(server.address.rpartition(":")[2])
    for path in ("upload", "call/segment"):
        head = f"POST /gradio_api/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        with socket.create_connection(("127.0.0.1", port), 30) as visitor:
            visitor.sendall(head.encode() + b"Content-Length: 9000\r\n\r\n--x")
            assert visitor.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_old_and_interrupted_uploads_are_deleted(server):
    port = int(server.address.rpartition(":")[2])
    before = set(server.folder.iterdir())
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 50_000
    with socket.create_connection(("127.0.0.1", port)) as visitor:
        visitor.sendall(head + b"Content-Length: 900000\r\n\r\n" + part)
        deadline = time.monotonic() + 20
        while not (left := {path for path in server.folder.iterdir() if path.is_file()} - before):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    (partial,) = left
    upload_folder.sweep(server.folder.parent)
    assert partial.exists()
    kept = server.folder / ("a" * 64) / "example.png"
    old = server.folder / ("b" * 64) / "old.png"
    for path in (kept, old):
        path.parent.mkdir()
        path.touch()
    for path, age in (
        (partial, upload_folder.SECONDS_STALLED),
        *((p, upload_folder.SECONDS_KEPT) for p in (kept, old)),
    ):
        os.utime(path, (time.time() - age - 1,) * 2)
    upload_folder.sweep(server.folder.parent, [str(kept)])
    assert kept.exists() and not old.exists() and not partial.exists()


def test_batch_leaves_no_empty_files(server, place):
    before = set(server.folder.iterdir())
    assert call_by_name(server, "segment_files", [[{"path": place}], *REST])[0] == "complete"
    assert all(path.is_dir() for path in set(server.folder.iterdir()) - before)


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_file_in_place_of_the_upload_folder_is_not_used(tmp_path, monkeypatch, kind):
    place = tmp_path / upload_folder.FOLDER
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "missing")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(upload_folder.tempfile, "tempdir", str(tmp_path))
    folder = upload_folder.private_folder()
    assert folder.is_dir() and folder.parent.parent == tmp_path
    assert folder.parent.name.startswith(f"{upload_folder.FOLDER}_")


def test_forward_passes_of_visitors_alternate():
    lock, order, first_holds = FairLock(), [], threading.Event()

    def visitor(name: str, passes: int) -> None:
        for _ in range(passes):
            with lock.hold(10):
                order.append(name)
                first_holds.set()
                while len(order) == 1 and len(lock.waiting) < 2:  # until the other visitor has come
                    time.sleep(0.001)

    large = threading.Thread(target=visitor, args=("large", 6))
    large.start()
    assert first_holds.wait(10)
    visitor("small", 2)
    large.join()
    assert order[1] == "small" and order[3] == "small" and order.count("large") == 6


def test_waiting_for_the_model_has_a_time_limit():
    lock = FairLock()
    with lock.hold(1):
        with pytest.raises(TimeLimitError), lock.hold(0.01):
            pass
        assert len(lock.waiting) == 1
    with lock.hold(0):
        pass
    assert not lock.waiting


def test_upload_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = upload_folder.private_folder()
    parent = tmp_path / upload_folder.FOLDER
    assert folder.parent == parent and all(place.stat().st_mode & 0o777 == 0o700 for place in (folder, parent))
    assert upload_folder.private_folder() == folder == Path(os.environ["GRADIO_TEMP_DIR"])
    folder.rmdir()
    parent.rmdir()
    parent.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert upload_folder.private_folder().parent not in (parent, tmp_path / "elsewhere")


def test_servers_do_not_share_an_upload_folder(tmp_path, monkeypatch):
    """gradio deletes the uploads of a server that is closed, and names them by their content."""
    folders = []
    for _ in range(2):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        folders.append(upload_folder.private_folder())
    assert folders[0] != folders[1] and folders[0].parent == folders[1].parent
    left = folders[1] / "killed"
    left.touch()
    for path in (left, folders[1]):
        os.utime(path, (time.time() - upload_folder.SECONDS_KEPT - 1,) * 2)
    upload_folder.sweep(folders[0].parent)
    assert folders[0].is_dir() and not left.exists()


@contextmanager
def pipe(path: Path):
    os.mkfifo(path)
    yield path
    path.unlink()


def test_named_pipe_is_rejected_when_opening_images(tmp_path):
    with pipe(tmp_path / "a.png") as path, pytest.raises(ImageFileError, match="pipe"):
        read_pixels(path)


def test_slow_image_times_out_and_the_next_is_read(monkeypatch):
    readers = Readers(1)
    assert readers.read(PHOTO, 3).shape == (3, 256, 320)
    process = readers.idle.get()
    assert process is not None
    os.kill(process.process.pid, signal.SIGSTOP)  # busy and not responding
    monkeypatch.setattr(image_reading, "SECONDS_READING", 0.5)
    with pytest.raises(TimeLimitError, match=PHOTO.name):
        process.read(PHOTO, 3)
    assert not process.runs
    monkeypatch.undo()
    readers.idle.put(process)
    assert torch.equal(readers.read(PHOTO, 3), read_pixels(PHOTO))
    readers.close()


def thin_png(path: Path, width: int, height: int) -> Path:
    """A gray PNG of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((1 + width) * height))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


PEAK = """
import sys
from pathlib import Path
from hf_vit_seg.data.images.pixels import read_pixels
from benchmarks.measuring import peak_rss, reset_peak
before = reset_peak()
try:
    read_pixels(Path(sys.argv[1]))
except ValueError as error:
    print(type(error).__name__, peak_rss() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_long_thin_image_is_rejected_before_allocation(tmp_path):
    path = thin_png(tmp_path / "thin.png", 1, 25_000_000)
    with pytest.raises(ImageSizeError, match=r"1x25000000.*75 MB|1x25000000.*25 MB") as caught:
        read_pixels(path)
    assert str(MAX_SIDE) in caught.value.fact
    kind, size = output_of(PEAK, path).split()
    assert kind == "ImageSizeError" and int(size) < 50e6


def test_panorama_is_read_and_long_tiff_is_tiled(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    panorama = thin_png(tmp_path / "panorama.png", 40_000, 2_000)
    assert read_pixels(panorama, 1).shape == (1, 2_000, 40_000)
    long = tmp_path / "long.tif"
    tifffile.imwrite(long, np.zeros((MAX_SIDE + 16, 16), np.uint8), tile=(16, 16))
    image = SimpleNamespace(path=long)
    assert needs_tiles(Job(image, long), PredictOptions())  # type: ignore[arg-type]
    assert not needs_tiles(Job(SimpleNamespace(path=panorama), long), PredictOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_memory_limit_includes_channels(tmp_path, kind):
    path, bands = tmp_path / f"bands.{kind}", np.zeros((12, 10, 10), np.float32)
    if kind == "npy":
        np.save(path, bands)
    else:
        pytest.importorskip("tifffile").imwrite(path, bands, photometric="minisblack", compression="zlib")
    assert read_pixels(path, 12, 200).shape == bands.shape
    with pytest.raises(ImageSizeError, match="10x10 = 100 pixels"):
        read_pixels(path, 12, 100)  # 48 bytes per pixel


def test_masks_have_the_same_limits(tmp_path):
    np.save(tmp_path / "mask.npy", np.zeros((1, MAX_SIDE + 1), np.uint8))
    with pytest.raises(ImageSizeError):
        read_mask(tmp_path / "mask.npy")


def test_image_decoding_starts_no_programs(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageFileError):
        read_pixels(tmp_path / "a.png")


def test_visitors_are_served_while_another_image_is_read(server, place, monkeypatch):
    """The first reader blocks until the second visitor has the response."""
    slow, release = upload(server, "slow.webp", PHOTO.read_bytes())[1][0], threading.Event()
    read = Readers.read

    def block_reader(self, path, bands):
        if path.name == "slow.webp":
            assert release.wait(60)
        return read(self, path, bands)

    monkeypatch.setattr(Readers, "read", block_reader)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(call_by_name(server, "segment", [{"path": slow}, *REST])))
    first.start()
    assert call_by_name(server, "segment", [{"path": place}, *REST])[0] == "complete" and not answers
    release.set()
    first.join(60)
    assert answers[0][0] == "complete"
