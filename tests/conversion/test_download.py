"""Checkpoints at https addresses are downloaded once, and continued after an interruption."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hf_vit_seg.conversion.convert import convert
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.files.download import locate
from huggingface_hub import HfApi, constants
from paths import ORACLES

from hf_vit_seg.loading.models import load

FILE = ORACLES / "flax_vit_pure" / "ViT-tiny_16.npz"


class FileServer(BaseHTTPRequestHandler):
    """Serves one file with ranges; `requests` has the first byte of each."""

    content = FILE.read_bytes()
    requests: list[int]

    def do_GET(self) -> None:
        if self.path != "/models/ViT-tiny_16.npz":
            self.send_error(404)
            return
        first = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.requests.append(first)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()
        self.wfile.write(self.content[first:])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Any]:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    handler = type("Handler", (FileServer,), {"requests": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{running.server_port}/models/ViT-tiny_16.npz"  # pyright: ignore
    yield handler
    running.shutdown()
    running.server_close()


def test_address_is_downloaded_once(server, tmp_path):
    first, second = locate(server.address), locate(server.address)
    assert first == second and first.read_bytes() == server.content and first.is_relative_to(tmp_path)
    assert server.requests == [0]
    assert load(server.address)[0].config.num_labels == load(FILE)[0].config.num_labels


def test_interrupted_download_is_continued(server):
    target = locate(server.address)
    target.unlink()
    target.with_name(target.name + ".incomplete").write_bytes(server.content[:1000])
    assert locate(server.address).read_bytes() == server.content
    assert server.requests == [0, 1000]


def test_convert_accepts_an_address(server, tmp_path):
    report = convert(server.address, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file() and report.path == tmp_path / "out"


def test_convert_accepts_a_hub_id_and_its_address(hub, tmp_path):
    HfApi().create_repo("google/vit-tiny")
    HfApi().upload_file(path_or_fileobj=FILE, path_in_repo="ViT-tiny_16.npz", repo_id="google/vit-tiny")
    convert("google/vit-tiny", tmp_path / "one", revision="main")
    convert(f"{hub.url}/google/vit-tiny/resolve/main/ViT-tiny_16.npz", tmp_path / "other")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    assert "base_model:" in (tmp_path / "one" / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["http://example.com/model.pth", "https://127.0.0.1:9/", "./missing", "a/b/c", "owner/missing", "{}"]
)
def test_unusable_names_raise(hub, name):
    with pytest.raises(ConversionError) as error:
        locate(name)
    assert "\n" not in str(error.value)


def test_missing_files_raise(server, tmp_path):
    with pytest.raises(ConversionError, match="cannot be downloaded"):
        locate(server.address.replace("ViT", "other"))
    with pytest.raises(ConversionError, match="local cache"):
        locate(server.address, local_files_only=True)
