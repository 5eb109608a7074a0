"""The model card: valid metadata, metrics in both formats, snippets that run, and the license from source to push."""

import io
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import transformers
import yaml
from hf_vit_seg.conversion.convert import convert
from hf_vit_seg.conversion.registry import all_sources
from hub_models import contents, save_tiny_model
from hub_server import Refusal, Repo
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st
from paths import REPOSITORY
from PIL import Image
from tiny_runs import run as train
from tiny_runs import settings, write_data, write_recipe
from typer.testing import CliRunner

from hf_vit_seg import architectures
from hf_vit_seg.cli import app
from hf_vit_seg.hub import Target, push
from hf_vit_seg.hub.card import CardOptions, is_custom_card, model_card, write_run_cards
from hf_vit_seg.hub.card_text import package_bibtex
from hf_vit_seg.hub.model_directory import model_directory
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.provenance import CARD, MARK, Provenance, card_metadata, find_provenance, provenance_from, write_card
from hf_vit_seg.text_files import read_json_object
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory, lineage
from hf_vit_seg.training.evaluation.evaluate import Evaluation, build_report
from hf_vit_seg.training.recipe.files import recipe_text
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import read_report, write_report

NUCLEI = REPOSITORY / "examples" / "nuclei" / "model"
NVLABS = REPOSITORY / "tests" / "oracles" / "nvlabs_segformer" / "segformer.tiny.7cls.pth"
NVIDIA = {
    "license": "other",
    "license_name": "nvidia-source-code-license-for-segformer",
    "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}
# Tags of pipelines in huggingface_hub's client.
PIPELINE_TAGS = {name.replace("_", "-") for name in dir(huggingface_hub.InferenceClient) if not name.startswith("_")}


def copy_model(folder: Path) -> Path:
    """The built-in model without its evaluation on the test split."""
    return Path(shutil.copytree(NUCLEI, folder, ignore=shutil.ignore_patterns("evaluation_*")))


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory as written by training: a best model, samples, and test scores."""
    out = tmp_path / "run"
    copy_model(out / "best")
    (out / "log.jsonl").write_text("{}\n")
    (out / "test").mkdir()
    report = replace(read_report(NUCLEI / METRICS), dataset="me/nuclei-data", dataset_split="validation")
    write_report(report, out / "best" / METRICS)
    write_report(replace(report, split="test", dataset_split="test"), out / "test" / METRICS)
    (out / "samples").mkdir()
    Image.new("RGB", (8, 8), "blue").save(out / "samples" / "a.png")
    write_card(out / "best", Provenance(license="cc0-1.0", datasets=("me/nuclei-data",)), "nuclei")
    return out


def test_card_of_a_run(hub, run):
    push(run, Target("me/nuclei"), sample_image=True)
    files = contents(hub, "me/nuclei")
    text, report = files["README.md"].decode(), read_report(NUCLEI / "metrics.json")
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "cc0-1.0" and data["datasets"] == ["me/nuclei-data"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-segmentation")
    results = ModelCard(text).data.eval_results
    assert {result.dataset_split for result in results} == {"validation", "test"}
    for result in results:
        assert result.metric_value == report.scores[result.metric_type]
        assert result.dataset_type == "me/nuclei-data" and "its image processor" in result.metric_args["protocol"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/me__nuclei-data.yaml"]))
    assert (entry.dataset_id, entry.value) == ("me/nuclei-data", report.scores["mean_iou"])
    assert "mean_iou; test split" in (entry.notes or "")
    picture = Image.open(io.BytesIO(files["sample_image.png"]))
    assert picture.tobytes() == Image.new("RGB", (8, 8), "blue").tobytes() and "](sample_image.png)" in text
    row = f"| nucleus | {report.class_columns()['iou'][1]:.4f} |"
    for said in (row, "| 1 | nucleus | #ff7800 |", "learning rate 0.002", "loop:", report.protocol, "944,946"):
        assert said in text, said
    assert "Preprocessing: rescaled by 1/255, normalized" in text


def test_local_data_is_not_reported_to_leaderboards(hub, tmp_path):
    push(shutil.copytree(NUCLEI, tmp_path / "model"), Target("me/nuclei"))
    files = contents(hub, "me/nuclei")
    assert not [path for path in files if path.startswith(".eval_results")]
    assert ModelCard(files["README.md"].decode()).data.eval_results[0].dataset_name == "nuclei"


def test_evaluate_results_are_listed(hub, run):
    report = read_report(run / "best" / METRICS)
    later = run / "best" / "evaluation_test"
    (later / "samples").mkdir(parents=True)
    write_report(replace(report, split="test", dataset_split="test", scores={"mean_iou": 0.75}), later / METRICS)
    write_report(replace(report, split="train", protocol="flipped"), run / "best" / "evaluation_train" / METRICS)
    done = push(run, Target("me/nuclei"))
    assert not done.left_out
    text = contents(hub, "me/nuclei")["README.md"].decode()
    assert re.findall(r"## Results on the (\w+) split", text) == ["test", "validation", "train"] and "0.7500" in text
    assert b"value: 0.75\n" in contents(hub, "me/nuclei")[".eval_results/me__nuclei-data.yaml"]


def test_each_model_of_a_run_has_its_scores(hub, run):
    """The test split was evaluated with the best model, as were the samples."""
    shutil.copytree(run / "best", run / "last")
    push(run / "last", Target("me/nuclei"))
    files = contents(hub, "me/nuclei")
    assert b"on the test split" not in files["README.md"] and "sample_image.png" not in files


FOLDERS = load_recipe("nuclei").data.train


def on_the_hub(split: str, name: str = "me/data") -> dict:
    return {"kind": "huggingface", "name": name, "split": split}


@pytest.mark.parametrize(
    ("train", "validation", "credited", "ranked"),
    [
        (on_the_hub("train"), on_the_hub("validation"), "me/data", True),
        (on_the_hub("train"), on_the_hub("train", "me/other"), "me/other", True),
        (FOLDERS, on_the_hub("test"), "me/data", True),
        (on_the_hub("train"), FOLDERS, "nuclei", False),
        (on_the_hub("train"), None, "nuclei", False),
        (on_the_hub("train[:80%]"), on_the_hub("train[80%:]"), "me/data", False),
        (on_the_hub("train+validation"), on_the_hub("validation"), "me/data", False),
    ],
)
def test_scores_name_the_evaluated_dataset(hub, tmp_path, train, validation, credited, ranked):
    model, recipe = copy_model(tmp_path / "model"), load_recipe("nuclei")
    share = 0.2 if validation is None else None
    data = recipe.data.model_copy(update={"train": train, "validation": validation, "validation_share": share})
    recipe = recipe.model_copy(update={"data": data})
    (model / "recipe.yaml").write_text(recipe_text(recipe, model))
    write_card(model, lineage(recipe), "nuclei")
    found = Evaluation({"mean_iou": 0.5}, samples=6, protocol="")
    write_report(build_report(found, recipe, ("background", "nucleus"), "validation"), model / METRICS)
    push(model, Target("me/model"))
    files = contents(hub)
    (result,) = ModelCard(files["README.md"].decode()).data.eval_results
    assert result.dataset_type == credited
    leaderboards = [path for path in files if path.startswith(".eval_results")]
    assert leaderboards == ([f".eval_results/{credited.replace('/', '__')}.yaml"] if ranked else [])


def test_single_tag_string(hub, run):
    (run / "best" / CARD).write_text("---\ntags: medical\n---\n# Mine\n")
    push(run, Target("me/nuclei"))
    tags = ModelCard(contents(hub, "me/nuclei")["README.md"].decode()).data.tags
    assert tags[0] == "medical" and "m" not in tags


@pytest.mark.parametrize("name", ["segformer", "cvt", "vit"])
def test_parameter_count_matches_torch(tmp_path, name):
    folder = save_tiny_model(tmp_path / "model", name)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model_directory(folder).parameters == model.num_parameters()


def test_single_class_model(hub, tmp_path):
    """Its label map uses 0 for the background, with which transformers' pipeline fails."""
    folder = save_tiny_model(tmp_path / "model", num_labels=1, id2label={0: "nucleus"})
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    processor.palette = [[0, 0, 0], [255, 120, 0]]
    processor.save_pretrained(folder)
    push(folder, Target("me/model"))
    text = contents(hub)["README.md"].decode()
    assert "| 0 | background | #000000 |\n| 1 | nucleus | #ff7800 |" in text
    assert "pipeline(" not in text and "2 classes" in text


def test_short_palette(hub, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    processor.palette = [[1, 2, 3]]
    processor.save_pretrained(folder)
    push(folder, Target("me/model"))
    colors = re.findall(r"^\| (\d) \| .* \| (#\w{6}) \|$", contents(hub)["README.md"].decode(), re.MULTILINE)
    drawn = Segmenter.from_pretrained(str(folder)).palette
    assert colors == [(str(index), "#" + bytes(color).hex()) for index, color in enumerate(drawn)]


@pytest.mark.parametrize("auto", architectures()["vit"].models)
def test_card_snippets_run(hub, auto, tmp_path, monkeypatch):
    push(save_tiny_model(tmp_path / "model", "vit", auto), Target("me/model"))
    Image.new("RGB", (70, 50), "green").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", contents(hub)["README.md"].decode(), re.DOTALL)
    assert len(snippets) == (3 if "pipeline" in snippets[-1] else 2)
    names: dict = {}
    for snippet in snippets:
        names.clear()
        exec(snippet, names)  # as a reader would do
    # a model with random weights finds no objects
    assert names.get("results") or ("Universal" in auto and "results" in names) or names["outputs"]


def test_custom_text_is_kept(hub, run):
    card = run / "best" / CARD
    own = "---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nA story.\n"
    card.write_text(own)
    push(run, Target("me/nuclei"))
    pushed = ModelCard(contents(hub, "me/nuclei")["README.md"].decode())
    assert pushed.text.strip() == "# Mine\n\nA story." and pushed.data.license == "mit"
    assert {"mine", "vision"} <= set(pushed.data.tags) and pushed.data.eval_results
    card.write_text(str(pushed))
    push(run, Target("me/again"))
    assert contents(hub, "me/again")["README.md"].decode().count("model-index") == 1
    card.write_text(f"{own}\n{MARK}\n")
    push(run, Target("me/third"))
    assert "A story" not in contents(hub, "me/third")["README.md"].decode()


def test_license_is_carried_from_source_to_hub(hub, tmp_path):
    done = CliRunner().invoke(app, ["convert", str(NVLABS), str(tmp_path / "converted")])
    assert done.exit_code == 0 and "nvidia-source-code-license" in done.output
    assert NVIDIA.items() <= card_metadata(tmp_path / "converted").items()
    push(tmp_path / "converted", Target("me/converted"))
    card = ModelCard(contents(hub, "me/converted")["README.md"].decode())
    assert NVIDIA.items() <= card.data.to_dict().items()
    assert NVIDIA["license_link"] in card.text and "NVlabs/SegFormer" in card.text
    # Fine-tuned from the directory and from the Hub.
    hub_data = {"kind": "huggingface", "name": "me/data", "split": "train"}
    for start, base in ((str(tmp_path / "converted"), ()), ("me/converted", ("me/converted",))):
        recipe = load_recipe("nuclei")
        model = recipe.model.model_copy(update={"from_pretrained": start, "architecture": None, "variant": None})
        data = recipe.data.model_copy(update={"train": hub_data})
        known = lineage(recipe.model_copy(update={"model": model, "data": data}))
        assert NVIDIA.items() <= known.metadata().items()
        assert known.base_model == base and known.datasets == ("me/data",)
    assert lineage(load_recipe("nuclei")) == Provenance()


def test_unreadable_license_is_reported_and_required(hub, tmp_path, caplog):
    convert(NVLABS, tmp_path / "converted")
    push(tmp_path / "converted", Target("me/converted"))
    hub.repos["model/me/bare"] = Repo("model")
    assert find_provenance("me/bare").license is None and not caplog.records

    def cut(method: str, path: str) -> None:
        raise Refusal(503, "", "out for lunch")

    hub.fault = cut
    assert find_provenance("me/converted") == Provenance(base_model=("me/converted",))
    assert "the card of me/converted cannot be read, so its license is not copied" in caplog.text
    hub.fault = lambda method, path: None
    assert find_provenance("me/converted").license_name == NVIDIA["license_name"]
    hub.fault = cut  # read again from the cache, without the Hub
    assert find_provenance("me/converted").license_name == NVIDIA["license_name"]


def test_card_next_to_checkpoint_defines_the_license(tmp_path):
    (tmp_path / "in").mkdir()
    checkpoint = Path(shutil.copy(NVLABS, tmp_path / "in" / "model.pth"))
    (tmp_path / "in" / CARD).write_text("---\nlicense: mit\nbase_model: me/base\ndatasets: [me/data]\n---\n# Mine\n")
    convert(checkpoint, tmp_path / "out")
    found = provenance_from(card_metadata(tmp_path / "out"))
    assert (found.license, found.license_name, found.base_model) == ("mit", None, ("me/base",))
    assert found.datasets == ("me/data",) and "NVlabs" in (found.source or "")


def test_nvidia_derived_weights_have_its_license():
    licenses = {(a.name, source.name): source.weights.license_name for a, source in all_sources()}
    segformers = {key: name for key, name in licenses.items() if key[0] == "segformer"}
    assert segformers and set(segformers.values()) == {NVIDIA["license_name"]}
    assert {name for key, name in licenses.items() if key not in segformers} == {None}


texts = st.text("abcdefg:#-'\"{}[] ", min_size=1).filter(str.strip)


@given(
    st.builds(
        Provenance,
        license=st.none() | texts,
        license_link=st.none() | texts,
        source=st.none() | texts,
        license_name=st.none() | st.text("abc-.9", min_size=1),
        datasets=st.lists(texts).map(tuple),
    )
)
def test_card_metadata_round_trip(tmp_path_factory, provenance):
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, provenance, "title")
    assert provenance_from(card_metadata(folder)) == provenance
    assert MARK in huggingface_hub.ModelCard.load(folder / CARD).text


def test_empty_template_is_not_a_card():
    form = ModelCard.from_template(ModelCardData(library_name="transformers"), model_description="A model.").content
    assert not is_custom_card(form)
    assert is_custom_card(form.replace("[More Information Needed]", "Cells under a microscope.", 1))
    assert is_custom_card("# Mine\n")
    assert not is_custom_card(f"# Ours\n{MARK}\n")


def test_keypoints_are_listed_with_their_mirror_images(tmp_path):
    names = ["snout", "L_fin", "R_fin"]
    vit = architectures()["vit"]
    config = vit.variant_config("tiny", num_labels=3, id2label=dict(enumerate(names)), pose_flip_pairs=[[1, 2]])
    transformers.AutoModelForPoseEstimation.from_config(config).save_pretrained(tmp_path)
    text = str(model_card(model_directory(tmp_path), "me/fish"))
    assert "| id | name | in a flipped image |\n|---:|---|---|\n| 0 | snout | snout |\n| 1 | L_fin | R_fin |" in text


def section(card: str, title: str) -> str:
    """The text of a section of a card."""
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run directory with a test split and a description of the data."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_data(folder / "data")
    recipe = settings(data, name="shapes")
    recipe["data"] |= {"test": recipe["data"]["validation"], "description": "discs and bars", "license": "mit"}
    train(write_recipe(folder, recipe), folder / "out", "loop.steps=2")
    return folder / "out"


def test_readme_of_a_run_is_the_card(trained):
    """The one that is pushed, without the code and what needs it."""
    for name in ("best", "last"):
        card = ModelCard.load(trained / name / CARD)
        assert MARK in card.content and "trust_remote_code" not in card.text and "custom_code" not in card.data.tags
        assert card.text.strip().splitlines()[2] == "# shapes"
        assert "discs and bars" in section(card.text, "Intended use and limits")
        training = section(card.text, "Training")
        assert "License of the data: mit" in training and "10 samples" in training and "2 steps of 2 images" in training
        versions = section(card.text, "Environment")
        assert f"torch {version('torch')}" in versions and f"transformers {version('transformers')}" in versions
        citation = section(card.text, "Citation")
        assert "https://arxiv.org/abs/2105.15203" in citation and "@software{hf_vit_seg," in citation
    first, second = (
        re.findall(r"## Results on the (\w+) split", (trained / name / CARD).read_text()) for name in ("best", "last")
    )
    assert (first, second) == (["test", "validation"], ["validation"])
    figure = re.search(r"!\[.*?\]\((.*?)\)", (trained / "best" / CARD).read_text())
    assert (trained / "best" / figure[1]).is_file()


def test_snippets_of_the_readme_of_a_run_work(trained, tmp_path, monkeypatch):
    Image.new("RGB", (70, 50), "green").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (trained / "best" / CARD).read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        names: dict = {}
        exec(re.sub(r'"[^"]*/best"', repr(str(trained / "best")), snippet), names)
        assert names.get("results") or names["label_map"].shape == (50, 70)


def test_metadata_of_a_pushed_run_follows_the_rules_of_the_hub(hub, trained):
    target = Target("me/shapes")
    push(trained, target, sample_image=True)
    files = contents(hub, "me/shapes")
    card = ModelCard(files["README.md"].decode())
    card.validate()  # by the rules of the test Hub
    assert card.data.pipeline_tag in PIPELINE_TAGS and card.data.library_name == "transformers"
    assert all(re.fullmatch(r"[\w.-]+", tag) for tag in card.data.tags) and "custom_code" in card.data.tags
    assert {result.dataset_split for result in card.data.eval_results} == {"test", "validation"}
    (example,) = card.data.widget
    assert example["src"] == "widget_image.png"
    first = sorted((trained.parent / "data" / "validation" / "images").iterdir())[0]
    with Image.open(io.BytesIO(files["widget_image.png"])) as shown, Image.open(first) as image:
        assert shown.tobytes() == image.convert("RGB").tobytes()
    push(trained, target)
    assert "widget_image.png" not in contents(hub, "me/shapes")
    assert ModelCard(contents(hub, "me/shapes")["README.md"].decode()).data.get("widget") is None


def test_pushed_card_has_newer_scores_than_the_local_one(hub, trained, tmp_path):
    best = Path(shutil.copytree(trained / "best", tmp_path / "best"))
    report = read_report(best / METRICS)
    write_report(replace(report, scores={"mean_dice": 0.25}), best / METRICS)
    push(best, Target("me/again"))
    assert ModelCard(contents(hub, "me/again")["README.md"].decode()).data.metrics == ["mean_dice"]


def test_edited_readme_of_a_run_is_kept(trained, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "out"))
    (copy / "best" / CARD).write_text("# Mine\n")
    (copy / "last" / CARD).unlink()
    write_run_cards(RunDirectory(copy))
    assert (copy / "best" / CARD).read_text() == "# Mine\n" and MARK in (copy / "last" / CARD).read_text()


def test_weak_classes_are_named(tmp_path):
    model = Path(shutil.copytree(NUCLEI, tmp_path / "model"))
    report = read_report(model / "evaluation_test" / METRICS)
    scores = {**report.scores, "per_category_iou": np.array([0.97, 0.123])}
    write_report(replace(report, scores=scores), model / "evaluation_test" / METRICS)
    said = section(str(model_card(model_directory(model), "me/nuclei")), "Intended use and limits")
    assert "nucleus (0.12)" in said and "background (" not in said


def test_card_of_the_example_has_the_scores_of_the_readme():
    card, readme = ModelCard.load(NUCLEI / CARD), (REPOSITORY / "README.md").read_text()
    (score,) = [
        result.metric_value
        for result in card.data.eval_results
        if (result.dataset_split, result.metric_type) == ("test", "mean_iou")
    ]
    assert f"**{score:.3f}**" in readme and "60 images of the test split" in card.text
    (figure,) = model_directory(NUCLEI).samples
    picture = figure.relative_to(NUCLEI).as_posix()
    fresh = model_card(model_directory(NUCLEI), "examples/nuclei/model", CardOptions(picture, has_code=False))
    assert str(fresh) == card.content
    assert f"]({picture})" in card.text
    config = read_json_object(NUCLEI / "config.json")
    assert f"transformers {config['transformers_version']}" in section(card.content, "Environment")


def test_citation_is_that_of_the_repository():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    entry = package_bibtex()
    assert citation["title"] in entry and citation["authors"][0]["name"] in entry and citation["version"] in entry
