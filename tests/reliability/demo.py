"""A demo with many visitors at once: some hang up, some upload slowly, and some ask for what they must not get.

Every visitor of the first kind uploads its own images, and compares the areas and the label map that it gets with
those of a `Segmenter` on the same image.
"""

import http.client
import json
import os
import random
import secrets
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from hf_vit_seg.demo.catalogue import NUCLEI
from hf_vit_seg.demo.request_limits import MAX_JSON_BYTES
from hf_vit_seg.inference import Segmenter

from .record import bullet_list, command_text
from .soak import LongRun, observe, started, unused_port

TITLE = "A demo under load"
ABOUT = (
    "The demo with the built-in model in a process of its own, and visitors in threads that send the next request when "
    "the last one is answered. An answer counts if areas and label map are those of a Segmenter on the same image. The "
    "requests for foreign files are tried in turn for the whole time; none may be answered with a file, a path or an "
    "environment variable of the server, or make it connect to an address. Memory must not grow by more than 5 %, and "
    "all uploads and results must be deleted in time (here after 30 s)."
)
FIXED: tuple[str, ...] = ()
SECONDS, VISITORS = 300.0, 40
HANG_UP, SLOW, INTRUDERS = 4, 3, 3  # visitors of the other kinds
SECONDS_KEPT = 30.0  # until the server deletes files
PATIENCE = 240.0  # seconds that a visitor waits for an answer: the model segments one image at a time
SIDES = (48, 256)
PHOTOS = 60
SECRET = f"secret{secrets.token_hex(8)}"  # an environment variable of the server
REPOSITORY = Path(__file__).parents[2]
FOREIGN_FILE = REPOSITORY / "pyproject.toml"
BOUNDARY = "visitor"
QUEUE_FULL = 503  # the status of a call when too many visitors wait


@dataclass
class Tally:
    """Counts of what visitors saw, and descriptions of what they must not see."""

    counts: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1

    def fail(self, text: str) -> None:
        with self.lock:
            self.failures.append(text)

    def answer(self, name: str, status: str) -> None:
        with self.lock:
            self.statuses.setdefault(name, set()).add(status)


@dataclass(frozen=True)
class Load:
    """The result of a run."""

    seconds: float
    tally: Tally
    memory: LongRun
    left: int  # files in the upload folder at the end

    @property
    def failed(self) -> bool:
        return bool(self.tally.failures) or self.memory.failed or self.left > 0


@dataclass(frozen=True)
class Photo:
    """An image file with its results: rows of the table of areas, and the label map."""

    content: bytes
    areas: list[list[Any]]
    label_map: np.ndarray


def make_photos(count: int) -> list[Photo]:
    """Noise of different sizes, segmented without the demo."""
    draw, segmenter, photos = random.Random(0), Segmenter.from_pretrained("examples/nuclei/model", "cpu"), []
    for _ in range(count):
        image = Image.effect_noise((draw.randint(*SIDES), draw.randint(*SIDES)), draw.randint(20, 120)).convert("RGB")
        stream = BytesIO()
        image.save(stream, "PNG")
        result = segmenter(image)
        areas = [[row.name, row.pixels, round(100 * row.share, 3)] for row in result.counts()]
        photos.append(Photo(stream.getvalue(), areas, np.asarray(result.label_image())))
    return photos


# Requests


class QueueFullError(Exception):
    """The server asked a visitor to come back later."""


class Server:
    """Requests to a demo."""

    def __init__(self, port: int):
        self.port = port

    def request(self, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, bytes]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, content: bytes) -> str:
        """Upload a file; return its path on the server."""
        status, text = self.request("/gradio_api/upload", form(content), f"multipart/form-data; boundary={BOUNDARY}")
        if status != 200:
            raise RuntimeError(f"an upload was answered with {status}: {text[:200]!r}")
        return json.loads(text)[0]

    def start(self, image: Any) -> tuple[int, bytes]:
        """Ask for the segmentation of an uploaded file; return the status and the answer with the event's number."""
        status, text = self.request("/gradio_api/call/segment", {"data": [image, NUCLEI, "whole image", 512, False]})
        if status == QUEUE_FULL:
            raise QueueFullError(text[:200])
        return status, text

    def call(self, image: Any) -> tuple[str, Any]:
        """Segment an uploaded file; return the kind of the last event, and its data."""
        status, text = self.start(image)
        if status != 200:
            return f"status {status}", text
        lines = self.request(f"/gradio_api/call/segment/{event_id(text)}")[1].decode().split("\n")
        kind, content = [line for line in lines if line][-2:]
        return kind.removeprefix("event: "), json.loads(content.removeprefix("data: "))


def event_id(answer: bytes) -> str:
    """The number of an event, in the answer to a call."""
    return json.loads(answer)["event_id"]


def form(content: bytes) -> bytes:
    """The body of an upload."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="photo.png"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


# Visitors


def visit(server: Server, photos: list[Photo], tally: Tally, number: int) -> None:
    """Segment a photo and compare the results."""
    photo = random.Random(f"{number} {time.monotonic_ns()}").choice(photos)
    tally.count("requests")
    kind, data = server.call({"path": server.upload(photo.content)})
    if kind != "complete":
        tally.fail(f"a request was answered with {kind}: {str(data)[:200]}")
        return
    areas, files = data[0]["data"], [item["path"] for item in data if isinstance(item, dict) and "path" in item]
    labels = next(path for path in files if path.endswith(".labels.png"))
    status, content = server.request(f"/gradio_api/file={labels}")
    if status != 200:
        tally.fail(f"a label map was answered with {status}")
        return
    label_map = np.asarray(Image.open(BytesIO(content)))
    if areas != photo.areas or not np.array_equal(label_map, photo.label_map):
        tally.fail(f"a result is not that of the image: {areas} instead of {photo.areas}")
        return
    tally.count("answers")


def hang_up(server: Server, photos: list[Photo], tally: Tally, number: int) -> None:
    """End the connection in the middle of an upload, or before the result is ready."""
    tally.count("connections ended by the visitor")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        if number % 2:
            body = form(photos[number].content)
            send_head(connection, len(body))
            connection.send(body[: len(body) // 2])
        else:
            path = server.upload(photos[number].content)
            answer = server.start({"path": path})[1]
            connection.request("GET", f"/gradio_api/call/segment/{event_id(answer)}")
        time.sleep(0.2)
    finally:
        connection.close()
    time.sleep(1)


def send_head(connection: http.client.HTTPConnection, length: int) -> None:
    """Send the head of an upload."""
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()


def upload_slowly(server: Server, photos: list[Photo], tally: Tally, number: int) -> None:
    """Send an upload in 20 parts with pauses."""
    body = form(photos[number].content)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    send_head(connection, len(body))
    step = -(-len(body) // 20)
    for first in range(0, len(body), step):
        connection.send(body[first : first + step])
        time.sleep(0.5)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        tally.fail(f"a slow upload was answered with {answer.status}")
        return
    tally.count("slow uploads")


def attempts(server: Server, folder: Path, trap: int) -> dict[str, Callable[[], tuple[int | str, bytes]]]:
    """Requests that must not be answered with anything of the server, by their descriptions.

    `folder` is the server's folder for temporary files, and `trap` a port that must not be connected to.
    """
    api = "/gradio_api"
    paths = {
        f"{prefix}{target}": f"{prefix}{target}"
        for prefix in (f"{api}/file=", "/file=", f"{api}/file/")
        for target in ("/etc/passwd", "/proc/self/environ", "..%2F..%2Fetc%2Fpasswd", "../../../../etc/passwd")
    }
    paths |= {
        "file of the repository": f"{api}/file={FOREIGN_FILE}",
        "folder of uploads": f"{api}/file={folder}",
        "/static/..%2F..%2Fetc%2Fpasswd": "/static/..%2F..%2Fetc%2Fpasswd",
        "/assets/..%2F..%2Fetc%2Fpasswd": "/assets/..%2F..%2Fetc%2Fpasswd",
        f"{api}/proxy=": f"{api}/proxy=http://127.0.0.1:{trap}/",
        f"{api}/file=http:": f"{api}/file=http://127.0.0.1:{trap}/",
        f"{api}/stream/": f"{api}/stream/session/0/0",
        f"{api}/upload_progress": f"{api}/upload_progress?upload_id=0",
        f"{api}/monitoring": f"{api}/monitoring",
        f"{api}/deep_link": f"{api}/deep_link?session_hash=0",
        f"{api}/run-history": f"{api}/run-history",
        f"{api}/process_recording": f"{api}/process_recording",
        f"{api}/component_server": f"{api}/component_server",
        f"{api}/vibe-code": f"{api}/vibe-code/",
    }
    requests: dict[str, Callable[[], tuple[int | str, bytes]]] = {
        name: lambda path=path: server.request(path) for name, path in paths.items()
    }
    meta = {"_type": "gradio.FileData"}
    payloads = {
        "FileData with /etc/passwd": {"path": "/etc/passwd"},
        "FileData with meta": {"path": "/etc/passwd", "meta": meta},
        "FileData with a stream": {"path": "/etc/passwd", "is_stream": True, "meta": meta},
        "FileData with file:": {"path": "file:///etc/passwd", "url": "file:///etc/passwd"},
        "FileData with ..": {"path": str(folder / ".." / ".." / "etc" / "passwd")},
        "FileData with a folder": {"path": str(folder)},
        "FileData with an address": {"path": f"http://127.0.0.1:{trap}/a.png", "url": f"http://127.0.0.1:{trap}/a.png"},
        "FileData with a metadata address": {"path": "http://169.254.169.254/latest/meta-data/"},
        "FileData with data:": {"path": "data:image/png;base64,iVBORw0KGgo="},
        "text for an image": "/etc/passwd",
        "list for an image": [{"path": "/etc/passwd"}],
    }

    def call(payload: Any) -> tuple[str, bytes]:
        kind, data = server.call(payload)
        return kind, json.dumps(data).encode() if not isinstance(data, bytes) else data

    requests |= {name: lambda payload=payload: call(payload) for name, payload in payloads.items()}
    requests["call of more than 1 MB"] = lambda: server.request(f"{api}/call/segment", b" " * (MAX_JSON_BYTES + 1))
    requests["call without JSON"] = lambda: server.request(f"{api}/call/segment", b"{")
    requests["call of an unknown function"] = lambda: server.request(f"{api}/call/eval", {"data": []})
    requests["upload without a form"] = lambda: server.request(f"{api}/upload", b"abc")
    return requests


class Trap:
    """A port that notices connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]

    def was_connected(self) -> bool:
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def intrude(requests: dict[str, Callable[[], tuple[int | str, bytes]]], tally: Tally, count: int) -> None:
    """Make the next attempt, and check that the answer has nothing of the server."""
    name = list(requests)[count % len(requests)]
    status, content = requests[name]()
    tally.count("attempts")
    tally.answer(name, str(status))
    content = content.replace(os.fsencode(FOREIGN_FILE), b"")  # a refusal names the file that was asked for
    revealing = (b"root:", SECRET.encode(), os.fsencode(REPOSITORY), sys.prefix.encode())
    for text in revealing:
        if text in content:
            tally.fail(f"{name}: the answer has {text!r}")
    if status == "complete" or b"Traceback" in content:
        tally.fail(f"{name}: {status}, {content[:200]!r}")


# The run


def files_below(folder: Path) -> set[Path]:
    """All files below a folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


def start_visitors(actions: list[Callable[[int], None]], tally: Tally, end: float) -> list[threading.Thread]:
    """Repeat each action in a thread until the time `end`, with numbers of its own."""

    def repeat(action: Callable[[int], None], number: int) -> None:
        while time.monotonic() < end:
            try:
                action(number)
            except QueueFullError:
                tally.count("calls refused because the queue was full, to be repeated")
                time.sleep(1)
            except Exception as error:  # a failure of the server, such as a closed connection
                tally.fail(f"{type(error).__name__}: {error}")
                time.sleep(1)
            number += len(actions)

    threads = [threading.Thread(target=repeat, args=(action, number)) for number, action in enumerate(actions)]
    for thread in threads:
        thread.start()
    return threads


def run(folder: Path, seconds: float = SECONDS, visitors: int = VISITORS) -> list[Load]:
    """Serve visitors for some seconds."""
    port, tally, photos, trap = unused_port(), Tally(), make_photos(PHOTOS), Trap()
    server = Server(port)
    environment = {"GRADIO_TEMP_DIR": str(folder), "HF_VIT_SEG_TEST_TOKEN": SECRET}
    command = ["-m", "tests.reliability.demo_process", str(port), str(SECONDS_KEPT)]

    def is_ready() -> bool:
        try:
            return server.request("/config")[0] == 200
        except OSError:
            return False

    with started(command, is_ready, environment) as process:
        examples = files_below(folder)
        requests = attempts(server, folder, trap.port)
        actions = [lambda n: visit(server, photos, tally, n)] * visitors
        actions += [lambda n: hang_up(server, photos, tally, n % PHOTOS)] * HANG_UP
        actions += [lambda n: upload_slowly(server, photos, tally, n % PHOTOS)] * SLOW
        actions += [lambda n: intrude(requests, tally, n)] * INTRUDERS
        threads = start_visitors(actions, tally, time.monotonic() + seconds)

        def is_running() -> bool:
            return any(thread.is_alive() for thread in threads)

        memory = observe("demo", 0, psutil.Process(process.pid), is_running)
        if trap.was_connected():
            tally.fail("the server connected to an address that a visitor gave")
        deadline = time.monotonic() + 4 * SECONDS_KEPT
        while (left := files_below(folder) - examples) and time.monotonic() < deadline:
            time.sleep(1)
        return [Load(memory.seconds, tally, memory, len(left))]


def section(loads: list[Load]) -> str:
    """The text of the section in docs/reliability.md."""
    parts = [command_text("demo"), ABOUT]
    for load in loads:
        counts, memory = load.tally.counts, load.memory
        early, late = memory.median(0.25, 0.35), memory.median(0.9, 1.0)
        rows = [
            ("visitors at once", VISITORS + HANG_UP + SLOW + INTRUDERS),
            ("seconds", f"{load.seconds:.0f}"),
            *((name, f"{count:,}") for name, count in sorted(counts.items())),
            ("memory early and late, MiB", f"{early:.0f} and {late:.0f} ({memory.growth:+.1%})"),
            ("files left after the time limit", load.left),
            ("failures", len(load.tally.failures)),
        ]
        parts.append("\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]))
        answers = [f"`{name}`: {', '.join(sorted(statuses))}" for name, statuses in sorted(load.tally.statuses.items())]
        parts += bullet_list(
            "Requests for foreign files and addresses, with the status or event of the answer", answers
        )
        parts += bullet_list("Failures of this run", load.tally.failures[:20])
    parts += bullet_list("Found by this command and fixed", FIXED)
    return "\n\n".join(parts)
