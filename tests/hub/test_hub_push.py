"""Pushed models load with the package, without it, by pipeline, after a second push, pinned, and offline."""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import hub_server
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from bare_environment import bare_packages, read_bare
from hub_models import contents, save_tiny_model
from hub_server import Refusal, Repo
from object_models import save_object_model
from paths import REPOSITORY
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_vit_seg import architectures, plugins
from hf_vit_seg.cli import app
from hf_vit_seg.hub import PushError, Target, push
from hf_vit_seg.hub.heads import HEADS
from hf_vit_seg.models.external_heads import EXTERNAL_HEADS
from hf_vit_seg.plugins import heads

EXAMPLES = REPOSITORY / "examples"
NUCLEI, PLUGIN = EXAMPLES / "nuclei" / "model", EXAMPLES / "plugin" / "src"
CASES = [(name, auto) for name, architecture in architectures().items() for auto in architecture.models]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def reference_output(place: str | Path, auto: str, image: Path, **options) -> np.ndarray:
    """The output of a model of the package for the image."""
    processor = transformers.AutoImageProcessor.from_pretrained(place, **options)
    model = getattr(transformers, auto).from_pretrained(place, **options).eval()
    with torch.no_grad():
        outputs = model(**processor(Image.open(image), return_tensors="pt"))
    for kind in ("logits", "heatmaps", "last_hidden_state", "masks_queries_logits", "distances"):
        if kind in outputs:
            return outputs[kind].numpy()
    return outputs.feature_maps[-1].numpy()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The architecture and head of the example plugin, registered as if its package was installed."""
    site = tmp_path / "site"
    information = site / "conv_token-0.1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: conv-token\nVersion: 0.1.0\n")
    (information / "entry_points.txt").write_text(
        "[hf_vit_seg.architectures]\nconv_token = conv_token.plugin_conv_token:ARCHITECTURE\n"
        "[hf_vit_seg.heads]\ntop_down = conv_token.top_down_head:TopDownHead\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(PLUGIN))
    with patch.dict(EXTERNAL_HEADS):
        for found in (plugins, heads):
            found.cache_clear()
            found()
        yield "conv_token"
    monkeypatch.undo()
    plugins.cache_clear()
    heads.cache_clear()


@pytest.mark.slow
def test_pushed_model_loads_without_the_package(hub, plugin, image, tmp_path):
    """(a) to (e), for every architecture and head including a plugin's, in one process without the package."""
    cases, offline = [], []
    models = [*CASES, *((plugin, auto) for auto in architectures()[plugin].models)]
    for name, auto in models:
        folder, repo = tmp_path / f"{name}-{auto}", f"me/{name}-{auto}"
        push(save_tiny_model(folder, name, auto), Target(repo))
        wanted = reference_output(repo, auto, image)
        if auto != "AutoBackbone":  # whose directories transformers 5.23 does not load
            np.testing.assert_allclose(reference_output(folder, auto, image), wanted, rtol=1e-3, atol=1e-4)
        np.save(folder.with_suffix(".npy"), wanted)
        case = {"model": repo, "auto": auto, "image": str(image), "wanted": str(folder.with_suffix(".npy"))}
        tag = {"pipeline": HEADS[auto].tag} if HEADS[auto].pipeline else {}
        if "Universal" in auto:
            tag["may_be_empty"] = True  # random weights are certain of no object
        cases.append(case | tag | {"again": f"{repo}-again"})
        snapshot = huggingface_hub.snapshot_download(repo, local_dir=folder.with_suffix(".snapshot"))
        offline.append(case | {"model": snapshot, "directory": True} | tag)
    pinned = push_twice(tmp_path / "pinned", cases[0], image)
    (tmp_path / "packages").mkdir()
    packages = bare_packages(tmp_path / "packages")
    own = {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    read_bare(packages, [*cases, pinned], HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), **own)
    asked = []
    hub.fault = lambda method, path: asked.append(path)
    read_bare(packages, offline, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "elsewhere"), HF_ENDPOINT=hub.url)
    assert not asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "auto"),
    [
        ("vit", "query", "AutoModelForUniversalSegmentation"),
        ("vit", "query", "AutoModelForSemanticSegmentation"),
        ("segformer", "distance", "AutoModelForUniversalSegmentation"),
    ],
)
def test_pipeline_of_models_for_objects_without_the_package(hub, image, tmp_path, name, head, auto):
    """The subtasks of a pushed model of objects, and of its semantic variant, whose classes are in one file."""
    universal = save_object_model(tmp_path / "model", name, decode_head=head)
    folder = tmp_path / auto
    model = getattr(transformers, auto).from_pretrained(universal)
    model.save_pretrained(folder)
    processors = architectures()[name].processor_classes("instance" if "Universal" in auto else None)
    processors["torchvision"](size={"height": 64, "width": 64}).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())["auto_map"]
    push(folder, Target("me/objects"))
    assert json.loads(contents(hub, "me/objects")["config.json"])["auto_map"].items() >= saved.items()
    own = type(model).__name__
    assert saved["AutoModelForImageSegmentation"] == f"modeling_{name}_universal.{own}"
    np.save(tmp_path / "wanted.npy", reference_output("me/objects", auto, image))
    subtasks = ["panoptic", "instance", "semantic"] if "Universal" in auto else ["semantic"]
    case = {"model": "me/objects", "auto": auto, "image": str(image), "wanted": str(tmp_path / "wanted.npy")}
    case |= {"pipeline": "image-segmentation", "subtasks": subtasks}
    (tmp_path / "packages").mkdir()
    own_settings = {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    packages = bare_packages(tmp_path / "packages")
    read_bare(packages, [case], HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), **own_settings)


def push_twice(folder: Path, case: dict, image: Path) -> dict:
    """A case pinned to a revision that is not the latest."""
    name, auto = CASES[0]
    first = push(save_tiny_model(folder, name, auto), Target("me/pinned")).commit.oid
    np.save(folder.with_suffix(".npy"), reference_output("me/pinned", auto, image, revision=first))
    push(save_tiny_model(folder, name, auto, seed=1), Target("me/pinned"))
    assert not np.allclose(reference_output("me/pinned", auto, image), np.load(folder.with_suffix(".npy")), atol=1e-3)
    return case | {"model": "me/pinned", "revision": first, "wanted": str(folder.with_suffix(".npy"))}


@pytest.mark.parametrize("where", ["PUT /lfs/", "/objects/batch", "/commit/", "/preupload/", "/validate-yaml"])
def test_interrupted_push_keeps_the_old_revision_and_resumes(hub, tmp_path, where):
    push(save_tiny_model(tmp_path / "first"), Target("me/model"))
    before, ref, uploads = contents(hub), hub.repo("me/model").refs["main"], len(hub.uploads)

    def cut(method: str, path: str) -> None:
        if where in f"{method} {path}":
            raise Refusal(403, "", "the line is cut")

    hub.fault = cut
    with pytest.raises(PushError, match=r"me/model is unchanged: .*same command again to resume"):
        push(save_tiny_model(tmp_path / "second", seed=1), Target("me/model"))
    assert contents(hub) == before and hub.repo("me/model").refs["main"] == ref
    hub.fault = lambda method, path: None
    push(tmp_path / "second", Target("me/model"))
    assert len(hub.uploads) == uploads + 1, "the weights were sent more than once"
    assert contents(hub)["model.safetensors"] == (tmp_path / "second" / "model.safetensors").read_bytes()


def test_lost_response_is_not_reported_as_failure(hub, tmp_path, monkeypatch):
    def lose_response(*asked) -> None:
        made(*asked)
        raise Refusal(504, "", "the gateway is tired")

    made = hub_server.commit
    monkeypatch.setattr(hub_server, "commit", lose_response)
    with pytest.raises(PushError, match=r"me/model may have the new files: no response .*504"):
        push(save_tiny_model(tmp_path / "model"), Target("me/model"))
    assert "model.safetensors" in contents(hub)


def test_bare_name_uses_the_user_namespace(hub, tmp_path):
    done = CliRunner().invoke(app, ["push", str(save_tiny_model(tmp_path / "model")), "mine"])
    assert done.exit_code == 0 and "/tester/mine/commit/" in done.output, done.output
    assert b'from_pretrained("tester/mine")' in contents(hub, "tester/mine")["README.md"]


@pytest.mark.parametrize("private", [True, False])
def test_push_respects_requested_visibility(hub, tmp_path, private):
    folder = save_tiny_model(tmp_path / "model")
    push(folder, Target("me/model", private=private))
    before, found = contents(hub), "private" if private else "public"
    with pytest.raises(PushError, match=f"me/model already exists and is {found}"):
        push(save_tiny_model(folder, seed=1), Target("me/model", private=not private))
    assert contents(hub) == before
    for said in (None, private):
        push(folder, Target("me/model", private=said))
    assert contents(hub) != before and hub.repo("me/model").private == private


def test_push_destination(hub, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    push(folder, Target("me/model", private=True, message="the first"))
    repo = hub.repo("me/model")
    assert repo.private and repo.titles == ["the first"]
    first = repo.refs["main"]
    save_tiny_model(folder, seed=1)
    done = push(folder, Target("me/model", create_pr=True))
    assert repo.refs["main"] == first and done.commit.pr_url.endswith("/discussions/1")
    assert contents(hub, revision="refs/pr/1")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    push(folder, Target("me/model", branch="tried"))
    assert repo.refs["main"] == first and "config.json" in contents(hub, revision="tried")
    with pytest.raises(PushError, match="use either a branch or a pull request"):
        Target("me/model", branch="tried", create_pr=True)
    with pytest.raises(PushError, match="expected a repository such as"):
        Target("no such: name")


def test_new_weights_replace_old_weight_files(hub, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    sharded = Path(shutil.copytree(folder, tmp_path / "sharded"))
    halves = shards(sharded)
    push(sharded, Target("me/model"))
    assert {half.name for half in halves} <= contents(hub).keys()
    push(folder, Target("me/model"))
    assert [path for path in contents(hub) if path.startswith("model") and "safetensors" in path] == [
        "model.safetensors"
    ]
    push(sharded, Target("me/model"))
    assert "model.safetensors" not in contents(hub)
    loaded = transformers.AutoModelForSemanticSegmentation.from_pretrained("me/model")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_files_of_the_previous_model_are_deleted_and_user_files_kept(hub, tmp_path):
    repo = hub.repos["model/me/model"] = Repo("model")
    own = ["handler.py", "LICENSE", "notes/model.safetensors", ".eval_results/mine.yaml", "metrics/metrics.json"]
    stale = [".eval_results/me__cells.yaml", "model.safetensors.index.fp16.json", "sample_image.png"]
    repo.commits["0" * 40] = dict.fromkeys([*own, *stale], b"")
    push(Path(shutil.copytree(NUCLEI, tmp_path / "nuclei")), Target("me/model"))
    assert {"recipe.yaml", "metrics.json", "preprocessor_config.json", "modeling_segformer.py"} <= set(contents(hub))
    bare = save_tiny_model(tmp_path / "bare", "vit")
    (bare / "preprocessor_config.json").unlink()
    done = push(bare, Target("me/model"))
    assert set(contents(hub)) == {*done.files, *own} and "modeling_segformer.py" not in done.files


def test_push_to_hub_of_models_and_processors_includes_code(hub, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    transformers.AutoModelForSemanticSegmentation.from_pretrained(folder).push_to_hub("me/model")
    transformers.AutoImageProcessor.from_pretrained(folder).push_to_hub("me/model")
    mine = contents(hub)
    push(folder, Target("me/pushed"))
    code = {name for name in contents(hub, "me/pushed") if name.endswith(".py")}
    assert code == {name for name in mine if name.endswith(".py")} | {"handler.py"}
    auto_map = json.loads(mine["config.json"])["auto_map"]
    assert auto_map["AutoModelForSemanticSegmentation"] == "modeling_segformer.SegFormerForSemanticSegmentation"


@pytest.mark.usefixtures("plugin")
def test_plugin_head_is_pushed_with_its_code(hub, tmp_path):
    config = architectures()["backbone"].variant_config("tiny-swin", decode_head="top_down", num_labels=3)
    model = transformers.AutoModelForSemanticSegmentation.from_config(config)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/saved")
    model.push_to_hub("me/pushed")
    push(tmp_path / "saved", Target("me/with-card"))
    assert b"(hf_vit_seg 0.1.0 and conv-token 0.1.0)" in contents(hub, "me/with-card")["README.md"]
    for repo in ("me/saved", "me/pushed", "me/with-card"):
        assert "top_down_head.py" in contents(hub, repo)
        assert b"TopDownHead" in contents(hub, repo)["external_heads.py"]
        loaded = transformers.AutoModelForSemanticSegmentation.from_pretrained(repo)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    del EXTERNAL_HEADS["top_down"]
    with pytest.raises(ValueError, match=r"no decode_head 'top_down'.* the card .* names the package to install"):
        transformers.AutoModelForSemanticSegmentation.from_pretrained("me/with-card")


def test_push_command(hub, tmp_path):
    (save_tiny_model(tmp_path / "model") / "notes.txt").write_text("mine")
    run = CliRunner().invoke
    done = run(app, ["push", str(tmp_path / "model"), "me/model", "--private", "--message", "as said"])
    assert done.exit_code == 0, done.output
    assert f"{hub.url}/me/model/commit/" in done.output and "left out: notes.txt" in done.output
    assert "the license is unknown" in done.output and "notes.txt" not in contents(hub)
    assert hub.repo("me/model").private and hub.repo("me/model").titles == ["as said"]
    refused = run(app, ["push", str(tmp_path), "me/model"])
    assert refused.exit_code == 2 and "contains no model" in refused.output


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "expected config.json and model.safetensors"),
        (lambda folder: cut_short(folder / "model.safetensors"), "the weights are truncated or not safetensors"),
        (lambda folder: shards(folder)[1].unlink(), "missing model-00002-of-00002.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model.fp16.safetensors"),
            "missing model.safetensors",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "model.lora.merge=true"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'),
            "the architecture of config.json is not installed",
        ),
        (
            lambda folder: edit(folder, "config.json", architectures=["Other"]),
            "has the class Other, expected one of SegFormer",
        ),
        (lambda folder: (folder / "README.md").write_text("---\n- :a: b: c\n---\n"), "README.md"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_invalid_push_raises(hub, tmp_path, spoil, reason):
    spoil(save_tiny_model(tmp_path / "model"))
    with pytest.raises(ValueError, match=reason):
        push(tmp_path / "model", Target("me/model"))
    assert not hub.repos


def edit(folder: Path, file: str, **fields) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shards(folder: Path) -> list[Path]:
    """The same weights in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    halves = {name: dict(list(weights.items())[n::2]) for n, name in enumerate(names)}
    for name, half in halves.items():
        save_file(half, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, half in halves.items() for key in half}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return [folder / name for name in names]
