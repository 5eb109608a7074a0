"""`push-space`: what lies in the Space, the versions that it pins, and that it runs on what lies there."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from hub_server import Refusal
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.hub import PushError, Target, push_space, space

REPOSITORY = Path(__file__).resolve().parent.parent
NUCLEI = REPOSITORY / "examples" / "nuclei" / "model"
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


def test_a_space_and_its_versions(hub, pushed):
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


def test_a_space_runs_on_what_lies_in_it(pushed):
    own = os.environ | {"HF_VIT_SEG_MODELS": "model", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=pushed, env=own, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_model_of_the_hub(hub):
    push_space("me/model", Target("me/demo"))
    repo = hub.repo("me/demo", "space")
    assert repo.details["HF_VIT_SEG_MODELS"] == "me/model"
    assert SpaceCard(repo.files()["README.md"].decode()).data.models == ["me/model"]
    assert not [path for path in repo.files() if path.startswith("model/")]


def test_a_variable_that_cannot_be_set_is_told(hub):
    def refused(method: str, path: str) -> None:
        if path.endswith("/variables"):
            raise Refusal(403, "", "not yours")

    hub.fault = refused
    with pytest.raises(PushError, match="is pushed, but does not know its model: set HF_VIT_SEG_MODELS to me/model"):
        push_space("me/model", Target("me/demo"))
    push_space("me/model", Target("me/demo", create_pr=True))


def test_without_gradio(hub, monkeypatch):
    monkeypatch.setattr(space, "installed", lambda name: None)
    with pytest.raises(PushError, match="pip install 'gradio>="):
        push_space(str(NUCLEI), Target("me/demo"))
    assert not hub.repos


def test_no_sub_package_is_forgotten():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    elsewhere = {name.partition(".")[2] for name in settings["package-dir"]}
    assert elsewhere == {*space.BESIDE, "space"}
