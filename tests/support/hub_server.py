"""A small Hub: in-memory repositories behind the HTTP API of huggingface_hub, including LFS and pull requests.

It is as strict as the real one: commits are atomic, LFS content must be uploaded before a commit names it, README.md
must have valid metadata, private repositories need a token. Clients need HF_ENDPOINT = `Hub.url` and
HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, hf_api

LARGE = (".safetensors", ".png", ".bin")  # files stored with LFS
LICENSE_NAME = re.compile(r"[a-z0-9.-]+")
NOTHING = "0" * 40
BYTE_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
REVISION = r"(refs/pr/\d+|[^/]+)"  # within a path


class Refusal(Exception):
    """An HTTP error: status, the Hub's error code, message, and the commit that lacks a file."""

    def __init__(self, status: int, code: str = "", words: str = "", commit: str | None = None):
        super().__init__(words or code)
        self.status, self.code, self.commit = status, code, commit


class Cut(Exception):
    """The connection is closed without an answer."""


class HalfAnswer(Exception):
    """The connection is closed in the middle of the answer."""


@dataclass
class Repo:
    """Branches (including pull requests as refs/pr/1) name commits; commits are files by path."""

    kind: str
    private: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=lambda: {"main": NOTHING})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {NOTHING: {}})
    titles: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str:
        found = self.refs.get(revision, revision)
        if found not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"no revision {revision}")
        return found

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.commit_of(revision)]


class Hub:
    """The server state, for inspection in tests.

    `fault` is called before every request and may raise Refusal, Cut or HalfAnswer.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.fault: Callable[[str, str], None] = lambda method, path: None
        self.lock = RLock()
        self.url = ""

    def repo(self, name: str, kind: str = "model") -> Repo:
        try:
            return self.repos[f"{kind}/{name}"]
        except KeyError:
            raise Refusal(404, "RepoNotFound", f"no repository {name}") from None


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as returned by tree and paths-info."""
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


def create(hub: Hub, asked: dict[str, Any]) -> dict[str, Any]:
    kind, name = asked.get("type", "model"), f"{asked.get('organization') or 'tester'}/{asked['name']}"
    url = f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
    if f"{kind}/{name}" in hub.repos:
        raise Refusal(409, "", json.dumps({"url": url}))
    hub.repos[f"{kind}/{name}"] = Repo(kind, asked.get("visibility") == "private", asked)
    return {"url": url, "name": name}


def validate(hub: Hub, asked: dict[str, Any]) -> dict[str, Any]:
    """The Hub's requirements on metadata: YAML, a list of tags, and a plain license name if there is a license."""
    head = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
    metadata = yaml.safe_load(head[1]) if head else {}
    wrong = [key for key in ("tags", "metrics") if not isinstance(metadata.get(key, []), list)]
    if not LICENSE_NAME.fullmatch(metadata.get("license_name", "none")):
        wrong.append("license_name")
    if wrong:
        raise Refusal(400, "", json.dumps({"errors": [{"message": f"{key} is not valid"} for key in wrong]}))
    return {"warnings": [], "errors": []}


def preupload(repo: Repo, revision: str, asked: dict[str, Any]) -> dict[str, Any]:
    present = repo.files(revision)
    files = []
    for file in asked["files"]:
        path = file["path"]
        mode = "lfs" if path.endswith(LARGE) else "regular"
        known = present.get(path)
        oid = None if known is None else hashlib.sha256(known).hexdigest() if mode == "lfs" else blob_id(known)
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": files}


def lfs_batch(hub: Hub, asked: dict[str, Any]) -> dict[str, Any]:
    objects = []
    for wanted in asked["objects"]:
        found = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.large:
            found["actions"] = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}", "header": {}}}
        objects.append(found)
    return {"transfer": "basic", "objects": objects}


def commit(hub: Hub, repo: Repo, name: str, revision: str, body: bytes, pull_request: bool) -> dict[str, Any]:
    """Apply all operations to a copy, then make it a commit."""
    lines = [json.loads(line) for line in body.splitlines()]
    files, summary = dict(repo.files(revision)), lines[0]["value"]["summary"]
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.large:
                raise Refusal(400, "", f"{value['path']} was not uploaded")
            files[value["path"]] = hub.large[value["oid"]]
        elif files.pop(value["path"], None) is None:
            raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
    repo.titles.append(summary)
    oid = hashlib.sha1(os.urandom(20)).hexdigest()
    number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
    repo.commits[oid] = files
    repo.refs[f"refs/pr/{number}" if pull_request else revision] = oid
    place = f"{hub.url}/{'' if repo.kind == 'model' else repo.kind + 's/'}{name}"
    request = {"pullRequestUrl": f"{place}/discussions/{number}"} if pull_request else {}
    return {"success": True, "commitUrl": f"{place}/commit/{oid}", "commitOid": oid} | request


def info(repo: Repo, name: str, revision: str) -> dict[str, Any]:
    files = repo.files(revision)
    card = re.match(rb"---\n(.*?)\n---\n", files.get("README.md", b""), re.DOTALL)
    metadata = yaml.safe_load(card[1]) if card else {}
    return {
        "id": name,
        "modelId": name,
        "sha": repo.commit_of(revision),
        "private": repo.private,
        "tags": metadata.get("tags", []),
        "pipeline_tag": metadata.get("pipeline_tag"),
        "library_name": metadata.get("library_name"),
        "cardData": metadata,
        "siblings": [{"rfilename": path} for path in files],
    }


def all_entries(repo: Repo, revision: str) -> list[dict[str, Any]]:
    """All files and folders."""
    files = repo.files(revision)
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    return [
        *({"type": "directory", "path": path, "oid": blob_id(path.encode()), "size": 0} for path in sorted(folders)),
        *(entry(path, content) for path, content in files.items()),
    ]


def tree(repo: Repo, rest: str, recursive: bool) -> Any:
    """The entries below a folder, or directly in it."""
    found = re.fullmatch(rf"{REVISION}/?(.*)", rest)
    assert found is not None
    top = PurePosixPath(found[2])
    below = [each for each in all_entries(repo, found[1]) if top in PurePosixPath(each["path"]).parents]
    return below if recursive else [each for each in below if PurePosixPath(each["path"]).parent == top]


def paths_info(repo: Repo, revision: str, body: bytes) -> Any:
    asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
    return [described for described in all_entries(repo, revision) if described["path"] in asked]


def branch(repo: Repo, name: str, body: bytes) -> Any:
    if name in repo.refs:
        raise Refusal(409, "", "the branch exists")
    repo.refs[name] = repo.commit_of(json.loads(body or b"{}").get("startingPoint", "main"))
    return {}


def refs(repo: Repo, rest: str, body: bytes) -> Any:
    found: dict[str, list[Any]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for ref, oid in repo.refs.items():
        kind, full = ("pullRequests", ref) if ref.startswith("refs/pr/") else ("branches", f"refs/heads/{ref}")
        found[kind].append({"name": ref, "ref": full, "targetCommit": oid})
    return found


def variables(repo: Repo, rest: str, body: bytes) -> Any:
    variable = json.loads(body)
    repo.details[variable["key"]] = variable["value"]
    return {}


VERBS: dict[str, Callable[[Repo, str, bytes], Any]] = {
    "preupload": lambda repo, revision, body: preupload(repo, revision, json.loads(body)),
    "paths-info": paths_info,
    "branch": branch,
    "refs": refs,
    "variables": variables,
}


class Handler(BaseHTTPRequestHandler):
    """One request; the routes are those used by the official client."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place = urlsplit(self.path)
        path, query = unquote(place.path), parse_qs(place.query)
        self.is_halved = False
        try:
            with self.hub.lock:
                try:
                    self.hub.fault(self.command, path)
                except HalfAnswer:
                    self.is_halved = True
                answer = self.route(path, query, body)
        except Cut:
            self.close_connection = True
            return
        except Refusal as refusal:
            content = str(refusal).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)} if refusal.code else {}
            headers |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
            self.reply(refusal.status, content, headers)
            return
        if isinstance(answer, tuple):
            self.reply(200, *answer)
        else:
            self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if status == 200 and self.command == "GET" and (found := BYTE_RANGE.fullmatch(self.headers.get("Range") or "")):
            start, stop = int(found[1]), min(int(found[2] or len(content)), len(content) - 1) + 1
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            content = content[start:stop]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.is_halved else content)
        self.close_connection |= self.is_halved

    def route(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        hub, name = self.hub, r"([^/]+/[^/]+)"
        if path == "/api/whoami-v2":
            return {"name": "tester", "type": "user", "orgs": [], "auth": {}}
        if path == "/api/repos/create":
            return create(hub, json.loads(body))
        if path == "/api/validate-yaml":
            return validate(hub, json.loads(body))
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            hub.large[found[1]] = body
            hub.uploads.append(found[1])
            return b"", {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return lfs_batch(hub, json.loads(body))
        if found := re.fullmatch(rf"/api/(model|space|dataset)s/{name}(?:/([a-z-]+)(?:/(.+))?)?", path):
            return self.api(self.readable(found[2], found[1]), found[2], found[3] or "", found[4] or "", query, body)
        if found := re.fullmatch(rf"/(?:(space|dataset)s/)?{name}/resolve/{REVISION}/(.+)", path):
            return self.file(self.readable(found[2], found[1] or "model"), found[3], found[4])
        raise Refusal(404, "", f"no such route: {path}")

    def readable(self, name: str, kind: str) -> Repo:
        repo = self.hub.repo(name, kind)
        if repo.private and not self.headers.get("Authorization"):
            raise Refusal(401, "RepoNotFound", "private")
        return repo

    def api(self, repo: Repo, name: str, verb: str, rest: str, query: dict[str, list[str]], body: bytes) -> Any:
        if verb == "commit":
            return commit(self.hub, repo, name, rest, body, query.get("create_pr") == ["1"])
        if verb in ("", "revision"):
            return info(repo, name, rest or "main")
        if verb == "tree":
            return tree(repo, rest, recursive=query.get("recursive") in (["true"], ["True"]))
        if verb not in VERBS:
            raise Refusal(404, "", f"no such route: {verb}")
        return VERBS[verb](repo, rest, body)

    def file(self, repo: Repo, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        content = repo.files(revision).get(path)
        if content is None:
            raise Refusal(404, "EntryNotFound", f"no file {path}", repo.commit_of(revision))
        described = entry(path, content)
        etag = described.get("lfs", described)["oid"]
        return content, {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit_of(revision)}


@contextmanager
def connect(hub: Hub, cache: Path):
    """Make an empty Hub the endpoint of this process, with a folder for downloads."""
    hub.repos.clear()
    hub.large.clear()
    hub.uploads.clear()
    hub.fault = lambda method, path: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_test")
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(hf_api.api, "endpoint", hub.url)
        patch.setattr("transformers.utils.hub._hf_api", None)  # created once, for the endpoint at that time
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield hub


@contextmanager
def serve():
    """A Hub on a free local port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
