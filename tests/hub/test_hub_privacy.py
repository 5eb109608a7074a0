"""Pushed files contain no local information: all bytes are searched, and files with local information are rejected."""

import io
import json
import platform
import re
import shutil
import socket
import sys
from pathlib import Path, PurePosixPath

import pytest
import transformers
from hub_models import contents, save_tiny_model
from paths import REPOSITORY
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from tiny_runs import forget_accelerate, run, settings, write_data, write_recipe
from typer.testing import CliRunner

from hf_vit_seg import architectures
from hf_vit_seg.cli import app
from hf_vit_seg.data.sources.hub_datasets import HuggingFaceSource
from hf_vit_seg.hub import PushError, Target, push, push_space
from hf_vit_seg.hub.privacy import check_private
from hf_vit_seg.hub.push_commands import files_view
from hf_vit_seg.local_paths import common_folder, is_local_path, publishable, publishable_path
from hf_vit_seg.provenance import CARD, provenance_from
from hf_vit_seg.text_files import parse
from hf_vit_seg.training.evaluate_saved import evaluate_model
from hf_vit_seg.training.recipe.files import publishable_recipe_text
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS

NUCLEI = REPOSITORY / "examples" / "nuclei" / "model"
USER, HOST, TOKEN = "janedoe77", "secrethost42", "hf_DistinctiveTokenOfJaneDoe1234567890"


@pytest.fixture
def home(hub, tmp_path, monkeypatch) -> Path:
    """The home directory of a user whose name, machine and tokens are unique strings."""
    folder = tmp_path / "home" / USER
    folder.mkdir(parents=True)
    own = {"HOME": str(folder), "USER": USER, "LOGNAME": USER, "HOSTNAME": HOST, "HF_TOKEN": TOKEN}
    for name, value in (own | {"WANDB_API_KEY": "0123456789abcdef" * 2}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    return folder


def find_leaks(hub, *private: str | Path) -> list[str]:
    """Which of these texts, and of the local strings, are in which file or message that was sent."""
    words = [USER, HOST, TOKEN, "0123456789abcdef", str(REPOSITORY), sys.prefix, *map(str, private)]
    sent = {f"object {oid}": content for oid, content in hub.large.items()}
    for name, repo in hub.repos.items():
        sent[f"{name} itself"] = json.dumps([repo.titles, repo.details]).encode()
        for files in repo.commits.values():
            sent |= {f"{name}/{path}": path.encode() + b"\0" + content for path, content in files.items()}
    return [f"{word} in {place}" for place, content in sent.items() for word in words if word.encode() in content]


def test_absolute_paths_are_removed_before_push(hub, home, tmp_path):
    data, base = write_data(home / "data" / "shapes"), save_tiny_model(home / "models" / "base")
    (base / CARD).write_text(f"---\nlicense: mit\nbase_model: {home}/models/first\ndatasets: [{home}/data]\n---\n")
    changes = settings(
        data, model={"from_pretrained": str(base), "lora": {"rank": 2}}, output=str(home / "runs" / "mine")
    )
    run(write_recipe(home, changes), home / "runs" / "mine", "loop.steps=1", "loop.evaluate_every=1")
    best = home / "runs" / "mine" / "best"
    local = load_recipe(best / "recipe.yaml")
    forget_accelerate()
    evaluate_model(str(best), local, "validation", best / "evaluation_validation")
    assert local.data.train["images"] == str(data / "train" / "images"), "the run's own recipe must keep its paths"

    push(home / "runs" / "mine", Target("me/run", message="the first"), sample_image=True)
    push_space(str(best), Target("me/demo"))
    transformers.AutoModelForSemanticSegmentation.from_pretrained(best).push_to_hub("me/plain")
    transformers.AutoImageProcessor.from_pretrained(best).push_to_hub("me/plain")
    assert find_leaks(hub, tmp_path) == []

    files = contents(hub, "me/run")
    (tmp_path / "pushed.yaml").write_bytes(files["recipe.yaml"])
    pushed = load_recipe(tmp_path / "pushed.yaml")
    written = parse(files["recipe.yaml"].decode())
    assert written["data"]["train"]["images"] == "./train/images" and written["saved_paths"] == {}
    assert written["data"]["train"]["masks"] == "./train/masks"
    assert written["data"]["validation"]["images"] == "./validation/images"
    assert (written["model"]["from_pretrained"], written["output"]) == ("./base", "./mine")
    assert pushed.data.train["images"] == str(tmp_path / "train" / "images")
    assert pushed.loop == local.loop and pushed.data.classes == local.data.classes
    assert {"sample_image.png", "metrics.json"} <= files.keys() and b"license: mit" in files["README.md"]
    assert "sample_image.png" not in {PurePosixPath(path).name for path in hub.repo("me/demo", "space").files()}


def test_data_images_are_published_only_on_request(hub, home, tmp_path):
    model = Path(shutil.copytree(NUCLEI, tmp_path / "run" / "best", ignore=shutil.ignore_patterns("samples")))
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    with pytest.raises(PushError, match="has no sample images to publish; omit --sample-image"):
        push(model, Target("me/model"), sample_image=True)
    assert not hub.repos
    note, exif = PngInfo(), Image.Exif()
    note.add_text("path", str(home))
    note.add_itxt("path", str(home), zip=True)
    exif[0x013B] = USER  # Artist
    (tmp_path / "run" / "samples").mkdir()
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    picture.save(tmp_path / "run" / "samples" / f"{USER}.png", pnginfo=note, exif=exif)
    push(model, Target("me/model"), sample_image=True)
    sent = Image.open(io.BytesIO(contents(hub)["sample_image.png"]))
    assert sent.tobytes() == picture.tobytes() and not sent.info and not sent.getexif() and find_leaks(hub) == []
    push(model, Target("me/model"))  # which also removes files of an earlier push
    assert "sample_image.png" not in contents(hub) and b"sample_image.png" not in contents(hub)["README.md"]


def test_dry_run_lists_files_and_uploads_nothing(hub, home, tmp_path):
    model, asked = save_tiny_model(tmp_path / "model"), []
    (model / "notes.txt").write_text("mine")
    size = (model / "model.safetensors").stat().st_size
    hub.fault = lambda method, path: asked.append(path)
    for command in (["push", str(model), "me/model"], ["push-space", str(model), "me/demo"]):
        done = CliRunner().invoke(app, [*command, "--dry-run"])
        assert done.exit_code == 0, done.output
        assert re.search(rf"model\.safetensors +{size / 1000:.1f} kB", done.output), done.output
        assert re.search(r"README\.md +[\d.]+ k?B|README\.md +\d+ bytes", done.output) and "picture" not in done.output
    assert not asked and not hub.repos
    hub.fault = lambda method, path: None
    done = CliRunner().invoke(app, ["push", str(model), "me/model"])
    listed = {line.split()[0] for line in done.output.splitlines() if re.search(r" (bytes|kB|MB)$", line.rstrip())}
    assert done.exit_code == 0 and listed == set(contents(hub)), done.output
    spoilt = (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"path": str(home)}}))
    refused = CliRunner().invoke(app, ["push", str(model), "me/model", "--dry-run"])
    assert spoilt and refused.exit_code == 2 and "model.safetensors.index.json, line 1" in refused.output


def test_paths_are_listed_unchanged(tmp_path):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=60)
    console.print(files_view({"[bold]a.txt": b"12", "hf_vit_seg/a.py": b"1" * 600, "hf_vit_seg/b.py": b"1" * 400}))
    rows = [line.split("  ")[0].rstrip() for line in console.file.getvalue().splitlines()]
    assert rows == ["[bold]a.txt", "hf_vit_seg/ (this package)"] and "1.0 kB" in console.file.getvalue()


def add_to_card(folder: Path, text: str) -> str:
    (folder / CARD).write_text(f"---\nlicense: mit\n---\n# Mine\n\nA story.\n{text}\n")
    return "README.md, line"


def add_to_weights(folder: Path, text: str) -> str:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt", "from": text})
    return "model.safetensors, line 1"


def add_to_license(folder: Path, text: str) -> str:
    (folder / "LICENSE").write_text(f"Mine\nAll of it\n{text}\n")
    return "LICENSE, line 3"


def add_to_name(folder: Path, text: str) -> str:
    (folder / f"LICENSE{text.replace('/', '_')}").write_text("Mine\n")
    return "the names of the files"


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        *(
            (add_to_license, what)
            for what in ("home", "model", "token", "other token", "environment", "end", "address", "host")
        ),
        *((spoil, what) for spoil in (add_to_card, add_to_weights) for what in ("home", "token")),
    ],
)
def test_paths_in_user_text_raise_with_position(hub, home, tmp_path, monkeypatch, spoil, what):
    model = save_tiny_model(home / "models" / "mine" if what == "home" else tmp_path / "models" / "mine")
    monkeypatch.setenv("OTHER_API_KEY", "fedcba9876543210")
    private = {
        "home": f'from "{home}/data/a.png"',
        "model": f"in {model}",
        "token": f"token={TOKEN}",
        "other token": "hf_" + "aB3" * 12,
        "environment": "fedcba9876543210",
        "end": f"{home}.",
        "address": f"file://{home}/a%20b",
        "host": f"trained on {HOST}.",
    }[what]
    place = spoil(model, private)
    for publish in (push, push_space) if spoil is not add_to_card else (push,):  # a Space has its own card
        with pytest.raises(PushError, match=re.escape(place)) as refusal:
            publish(str(model), Target("me/model"))
        assert TOKEN not in str(refusal.value) and "fedcba" not in str(refusal.value)
    assert not hub.repos and not hub.large


def test_tokens_in_file_names_or_commit_message_raise(hub, home, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(PushError, match="the commit message, line 1"):
        push(model, Target("me/model", message=f"with {TOKEN}"))
    place = add_to_name(model, TOKEN)
    with pytest.raises(PushError, match=place):
        push(model, Target("me/model"))
    assert not hub.repos


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "text", ["me/model", "./data", "home/janedoe", f"/srv/{USER}s", "hf_vit_seg", "https://huggingface.co/me/model"]
)
def test_harmless_text_is_accepted(text):
    check_private({"README.md": text.encode(), "model.safetensors": b""}, text)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["gpu", "workstation", "localhost", "a-1"])
def test_common_host_names_are_not_flagged(monkeypatch, name):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    check_private({"README.md": f"trained on {name}".encode()}, None)


def test_card_metadata_has_no_local_paths(hub, home, tmp_path):
    """Metadata that transformers' Trainer writes for a model loaded from a directory."""
    model = save_tiny_model(tmp_path / "model")
    metadata = f"license: mit\nbase_model: {home}/base\ndatasets: [me/data, {home}/d]\nnotes: {{log: {home}/run.log}}\n"
    (model / CARD).write_text(f"---\n{metadata}---\n# Mine\n\nA story.\n")
    push(model, Target("me/model"))
    text = contents(hub)[CARD].decode()
    assert "base_model" not in text and "- me/data\n" in text and "log: ./run.log" in text and find_leaks(hub) == []
    assert provenance_from({"base_model": f"{home}/x", "datasets": ["me/d", "~/d", "../d"]}).datasets == ("me/d",)


def test_config_and_report_have_no_local_paths(hub, home, tmp_path):
    model = Path(shutil.copytree(NUCLEI, tmp_path / "model"))
    for name in ("config.json", "preprocessor_config.json", METRICS):
        stored = json.loads((model / name).read_text())
        stored |= {"_name_or_path": f"{home}/m", "source": f"{home}/m"}
        stored |= {"dataset": str(home / "gone"), "dataset_split": "test"} if name == METRICS else {}
        (model / name).write_text(json.dumps(stored))
    push(model, Target("me/model"))
    assert find_leaks(hub) == []
    config = json.loads(contents(hub)["config.json"])
    assert config["source"] == "./m" and "_name_or_path" not in config
    assert json.loads(contents(hub)[METRICS])["dataset"] == "./gone"
    assert not [path for path in contents(hub) if path.startswith(".eval_results")]


def test_backbone_config_is_saved_without_its_path(tmp_path):
    backbone = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    backbone.save_pretrained(tmp_path / USER)
    stored = transformers.AutoConfig.from_pretrained(tmp_path / USER)
    kind = architectures()["backbone"].config
    for given in (stored, stored.to_dict()):
        kind(backbone_config=given, decode_head="linear").save_pretrained(tmp_path / "saved")
        assert USER not in (tmp_path / "saved" / "config.json").read_text()
    assert stored.name_or_path == str(tmp_path / USER), "the caller's own config must stay as it is"


def test_deleted_folder_is_not_a_hub_dataset(tmp_path):
    for name in (str(tmp_path / "gone"), "~/gone", "../gone"):
        source = HuggingFaceSource(name=name, split="train")
        assert source.hub_id() is None and source.hub_split() is None
    assert HuggingFaceSource(name="me/data", split="train").hub_id() == "me/data"


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("/a", True),
        ("~", True),
        ("~/a", True),
        ("~bob/a", True),
        ("../a", True),
        ("..", True),
        ("C:\\a", True),
        ("c:/a", True),
        ("\\\\host\\a", True),
        ("file:///a", True),
        ("a/b", False),
        ("./a", False),
        ("~5 mm", False),
        ("...", False),
        ("https://a.b/c", False),
        (r"\.norm\.", False),
        ("", False),
    ],
)
def test_local_paths_are_detected(text, local):
    assert is_local_path(text) == local


def test_paths_are_relative_to_their_common_folder(home, monkeypatch):
    data = {
        "train": {"kind": "folders", "images": "/mnt/d/cells/train/{stem}_a.png", "masks": "/mnt/d/cells/train"},
        "test": {"kind": "list", "file": f"/mnt/d/cells/{USER}/list.csv", "root": None},
        "classes": ["/m/01g317", "cell"],
    }
    base = common_folder(data)
    assert base == Path("/mnt/d/cells")
    assert publishable(data, base) == {
        "train": {"kind": "folders", "images": "./train/{stem}_a.png", "masks": "./train"},
        "test": {"kind": "list", "file": "./user/list.csv", "root": None},
        "classes": ["/m/01g317", "cell"],
    }
    for apart in (["/home/bob/a", "/home/ann/b"], [f"{home}", f"{home}/list.csv"], ["/a/b", "C:\\a"], []):
        assert common_folder(apart) is None
    assert publishable_path("/home/bob/cells") == "./cells" and publishable_path(str(home)) == "./user"
    assert publishable_path("C:\\Users\\bob\\cells") == "./cells" and publishable_path("file:///a/b") == "./b"
    assert publishable_path("/a/b/{stem}/c.png") == "./b/{stem}/c.png" and publishable_path("a/b") == "a/b"
    monkeypatch.chdir(home)
    assert publishable_path("../data") == "./data" and publishable_path("..") == "./home"


def test_recipe_without_local_paths_is_published_unchanged():
    text = (NUCLEI / "recipe.yaml").read_text()
    assert publishable_recipe_text(text) == text
