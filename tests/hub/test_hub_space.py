"""`push-space`: the files in the Space, its pinned versions, and that it runs from these files."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import transformers
from hub_models import save_tiny_model
from hub_server import Refusal, Repo
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from paths import REPOSITORY
from typer.testing import CliRunner

from hf_vit_seg import architectures
from hf_vit_seg.cli import app
from hf_vit_seg.hub import PushError, Target, push, push_space, space
from hf_vit_seg.provenance import Provenance, write_card

NUCLEI = REPOSITORY / "examples" / "nuclei" / "model"
NVIDIA = {
    "license": "other",
    "license_name": "nvidia-source-code-license-for-segformer",
    "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}
LOOK = """
import sys
from pathlib import Path
from hf_vit_seg import architectures
from hf_vit_seg.demo.catalogue import Catalogue, default_models, example_images
from hf_vit_seg.inference.segmenter import Segmenter

catalogue = Catalogue(default_models())
assert len(catalogue.titles("segmentation")) == 2, catalogue.failures
assert {"cvt", "segformer", "vit"} <= architectures().keys()
assert Segmenter.from_pretrained("model")(example_images()[0]).label_map.size
places = [m.__file__ for name, m in sys.modules.items() if name.startswith("hf_vit_seg") and m.__file__]
assert all(Path(place).is_relative_to(Path.cwd()) for place in places), places
"""


@pytest.fixture
def pushed(hub, tmp_path) -> Path:
    """The files of a Space with the nuclei model."""
    done = CliRunner().invoke(app, ["push-space", str(NUCLEI), "me/demo", "--private"])
    assert done.exit_code == 0 and f"{hub.url}/spaces/me/demo/commit/" in done.output, done.output
    for path, content in hub.repo("me/demo", "space").files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def test_space_metadata_and_pinned_requirements(hub, pushed):
    repo = hub.repo("me/demo", "space")
    assert repo.private and repo.details["sdk"] == "gradio" and repo.details["HF_VIT_SEG_MODELS"] == "model"
    data = SpaceCard.load(pushed / "README.md").data
    assert data.sdk_version == version("gradio") and data.sdk == "gradio" and (pushed / data.app_file).is_file()
    assert data.python_version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert '"me/demo"' in (pushed / "README.md").read_text()
    lines = (pushed / "requirements.txt").read_text().split()
    pins = {Requirement(line).name: str(Requirement(line).specifier).removeprefix("==") for line in lines}
    assert all(version(name).partition("+")[0] == pin for name, pin in pins.items())
    wanted = [Requirement(text) for text in requires("hf_vit_seg") or () if "extra" not in text]
    assert {requirement.name for requirement in wanted} == pins.keys()
    assert all(requirement.specifier.contains(pins[requirement.name]) for requirement in wanted)


def test_space_runs_from_its_files(pushed):
    own = os.environ | {"HF_VIT_SEG_MODELS": "model", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=pushed, env=own, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_repeated_push_keeps_one_wheel(hub):
    repo = "me/demo"
    push_space(str(NUCLEI), Target(repo))
    files = hub.repo(repo, "space").files()
    own = dict.fromkeys(("notes.md", "photos/a.jpg", "hf_vit_seg_notes/a.md"), b"mine")
    files |= own | {"hf_vit_seg-0.0.1.dist-info/METADATA": b"Name: hf_vit_seg", "hf_vit_seg/gone.py": b""}
    before = set(files)
    push_space(str(NUCLEI), Target(repo))
    gone = before - hub.repo(repo, "space").files().keys()
    assert gone == {"hf_vit_seg-0.0.1.dist-info/METADATA", "hf_vit_seg/gone.py"}


@pytest.fixture
def model_on_the_hub(hub) -> None:
    hub.repos["model/me/model"] = Repo("model")


@pytest.mark.parametrize("known", [{"license": "mit"}, NVIDIA, {}])
def test_space_has_the_license_of_its_weights(hub, tmp_path, known):
    model = save_tiny_model(tmp_path / "model")
    write_card(model, Provenance(**known), "model")
    push_space(str(model), Target("me/demo"))
    card = SpaceCard(hub.repo("me/demo", "space").files()["README.md"].decode())
    assert {name: value for name, value in card.data.to_dict().items() if name.startswith("license")} == known
    assert f"weights in `model/`: {Provenance(**known).describe_license()}" in card.text


def test_model_requirements_are_pinned(hub, tmp_path):
    config = architectures()["backbone"].config(
        backbone_config={"model_type": "timm_backbone", "backbone": "resnet10t", "use_pretrained_backbone": False},
        decode_head="all_mlp",
    )
    transformers.AutoModelForSemanticSegmentation.from_config(config).save_pretrained(tmp_path / "model")
    push_space(str(tmp_path / "model"), Target("me/demo"))
    files = hub.repo("me/demo", "space").files()
    assert f"timm=={version('timm')}" in files["requirements.txt"].decode().split()
    push(tmp_path / "model", Target("me/model"))
    assert re.search(r"needs .*\btimm\b", hub.repo("me/model").files()["README.md"].decode())


@pytest.mark.parametrize("name", ["/some/nope", "me/nope"])
def test_missing_model_raises(hub, name):
    with pytest.raises(PushError, match=f"^{name} is neither a local directory nor an accessible model on the Hub"):
        push_space(name, Target("me/demo"))
    assert not hub.repos


def test_built_in_model(hub):
    push_space("nuclei", Target("me/demo"))
    repo = hub.repo("me/demo", "space")
    assert repo.details["HF_VIT_SEG_MODELS"] == "nuclei"
    data = SpaceCard(repo.files()["README.md"].decode()).data
    assert data.models is None and data.license == "apache-2.0"


@pytest.mark.usefixtures("model_on_the_hub")
def test_hub_model(hub):
    push_space("me/model", Target("me/demo"))
    repo = hub.repo("me/demo", "space")
    assert repo.details["HF_VIT_SEG_MODELS"] == "me/model"
    assert SpaceCard(repo.files()["README.md"].decode()).data.models == ["me/model"]
    assert not [path for path in repo.files() if path.startswith("model/")]


@pytest.mark.usefixtures("model_on_the_hub")
def test_failing_variable_is_reported(hub):
    def refuse_variables(method: str, path: str) -> None:
        if path.endswith("/variables"):
            raise Refusal(403, "", "not yours")

    hub.fault = refuse_variables
    with pytest.raises(PushError, match="is pushed, but its model is not set; set HF_VIT_SEG_MODELS to me/model"):
        push_space("me/model", Target("me/demo"))
    push_space("me/model", Target("me/demo", create_pr=True))


def test_missing_gradio_raises(hub, monkeypatch):
    monkeypatch.setattr(space, "installed_version", lambda name: None)
    with pytest.raises(PushError, match="pip install 'gradio>="):
        push_space(str(NUCLEI), Target("me/demo"))
    assert not hub.repos


def test_wheel_contains_all_subpackages():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    elsewhere = {name.partition(".")[2] for name in settings["package-dir"]}
    assert elsewhere == {*space.BESIDE, "space"}
