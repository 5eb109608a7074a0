"""Options that every command has, the help, JSON output, and what is suggested for a misspelled name."""

import json
import shlex
import shutil
import subprocess
import sys
from inspect import signature

import pytest
import typer.main
from paths import REPOSITORY
from tiny_runs import settings, write_data, write_recipe
from typer.testing import CliRunner

import hf_vit_seg
from hf_vit_seg.cli import app, model_formats
from hf_vit_seg.error_reporting import GENERAL
from hf_vit_seg.loading.devices import select_device
from hf_vit_seg.models.segmentation_heads import find_head
from hf_vit_seg.training.model.building import build_model
from hf_vit_seg.training.recipe_loading import RecipeFileError, load_recipe

NUCLEI = str(REPOSITORY / "examples" / "nuclei" / "model")
PROGRAM = typer.main.get_command(app)
COMMANDS = PROGRAM.commands


def invoke(*words: str):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, words)


def options(name: str) -> dict[str, object]:
    parent = PROGRAM.make_context("hf-vit-seg", [name], resilient_parsing=True)
    context = COMMANDS[name].make_context(name, [], parent=parent, resilient_parsing=True)
    parameters = COMMANDS[name].get_params(context)
    return {option: each for each in parameters for option in each.opts if option.startswith("-")}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_general_options(name):
    found = options(name)
    for option in ("--help", "-h", "--quiet", "-q", "--traceback"):
        assert found[option].rich_help_panel == GENERAL, option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_panel(name):
    assert {option for option, each in options(name).items() if not each.rich_help_panel} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_the_same_name_in_all_commands(name):
    found = options(name)
    assert "--force" not in found
    assert ("-o" in found) == ("--out" in found)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_the_command_accepts(name):
    shown = invoke(name, "-h")
    assert shown.exit_code == 0
    last = shown.output.strip().splitlines()[-1]
    words = shlex.split(last.strip().removeprefix("Example:"))
    assert words[:2] == ["hf-vit-seg", name]
    COMMANDS[name].make_context(name, words[2:])


def test_multi_process_training_has_the_same_options():
    command = [sys.executable, "-m", "hf_vit_seg.training", "-h"]
    assert subprocess.run([*command[:-1], "--help"], capture_output=True).returncode == 0


def test_models_and_plugins_as_json():
    rows = json.loads(invoke("models", "--json").stdout)
    assert {row["architecture"] for row in rows} == hf_vit_seg.architectures().keys()
    assert next(row for row in rows if row["variant"] == "nano")["model_type"] == "segformer_seg"
    assert {row["architecture"] for row in rows if "pose" in row["tasks"]} == {"vit"}
    found = json.loads(invoke("plugins", "--json").stdout)
    assert {"group": "architectures", "name": "vit", "error": None}.items() <= next(
        row.items() for row in found if row["name"] == "vit"
    )


def test_check_data_as_json_equals_the_report(tmp_path):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    shown = invoke("check-data", str(recipe), "-o", str(tmp_path / "check"), "--json")
    assert json.loads(shown.stdout) == json.loads((tmp_path / "check" / "report.json").read_text())


def test_train_and_evaluate_as_json_equal_the_metrics(tmp_path):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    trained = invoke("train", str(recipe), "loop.steps=1", "-o", str(tmp_path / "run"), "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["scores"].keys() >= {"mean_iou"}
    out = tmp_path / "evaluation"
    evaluated = invoke("evaluate", str(tmp_path / "run" / "best"), "-o", str(out), "--json")
    assert json.loads(evaluated.stdout) == json.loads((out / "metrics.json").read_text())


def test_export_and_convert_as_json(tmp_path):
    exported = invoke("export", NUCLEI, str(tmp_path / "program"), "--to", "torchscript", "--json")
    assert exported.exit_code == 0, exported.output
    parity = json.loads(exported.stdout)
    assert parity["passed"] and parity["path"] == str(tmp_path / "program" / "model.ts")
    oracle = str(REPOSITORY / "tests/oracles/nvlabs_segformer/segformer.tiny.7cls.pth")
    converted = json.loads(invoke("convert", oracle, str(tmp_path / "model"), "--json").stdout)
    assert (converted["architecture"], converted["path"]) == ("segformer", str(tmp_path / "model"))
    assert invoke("convert", oracle, str(tmp_path / "model")).exit_code == 2
    assert invoke("convert", oracle, str(tmp_path / "model"), "--overwrite", "--quiet").output == ""


def test_dry_run_of_push_lists_files_as_json():
    shown = json.loads(invoke("push", NUCLEI, "me/nuclei", "--dry-run", "--json").stdout)
    assert shown["repo_id"] == "me/nuclei" and shown["url"] is None
    assert (
        shown["files"]["model.safetensors"] == (REPOSITORY / "examples/nuclei/model/model.safetensors").stat().st_size
    )
    assert "README.md" in shown["files"] and "modeling_segformer.py" in shown["files"]
    assert shown["card"]["license"] == "cc0-1.0" and shown["card"]["pipeline_tag"] == "image-segmentation"
    assert "cc0-1.0" in invoke("push", NUCLEI, "me/nuclei", "--dry-run").output


def test_predict_as_json_counts_images_and_lists_errors(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("1023509cf8d4c155.webp", "1740b0a67ca337ea.webp"):
        shutil.copy(REPOSITORY / "examples/nuclei/data/test/images" / name, images / name)
    (images / "damaged.png").write_bytes(b"no image")
    words = ("predict", NUCLEI, str(images), "-o", str(tmp_path / "masks"), "--json")
    found = json.loads(invoke(*words).stdout)
    assert (found["task"], found["images"], found["done"], len(found["errors"])) == ("segmentation", 3, 2, 1)
    found = json.loads(invoke(*words, "--format", "parquet", "-o", str(tmp_path / "table"), "--workers", "1").stdout)
    assert (found["images"], found["done"], len(found["errors"])) == (3, 2, 1)


def test_demo_as_json_prints_its_address(monkeypatch):
    class Server:
        def get_blocks(self):
            return self

        def block_thread(self):
            print("not in the JSON")

    monkeypatch.setattr("hf_vit_seg.demo.launch", lambda *models, **options: (Server(), "http://127.0.0.1:7860/", None))
    assert json.loads(invoke("demo", "--json").stdout) == {"url": "http://127.0.0.1:7860/", "share_url": None}


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--protocol", "ade20"], "ade20k"),
        (["--blend", "gausian"], "gaussian"),
        (["--size", "proces"], "processor"),
        (["--dtype", "float3"], "float32"),
        (["--format", "webdatset"], "webdataset"),
        (["--device", "gpu"], "cuda"),
        (["--device", "cpuu"], "cpu"),
    ],
)
def test_nearest_choice_of_an_option_is_suggested(words, near, tmp_path):
    image = REPOSITORY / "examples/nuclei/data/test/images/1023509cf8d4c155.webp"
    shown = invoke("predict", NUCLEI, str(image), "-o", str(tmp_path / "out"), *words)
    assert shown.exit_code == 2 and f"did you mean '{near}'?" in shown.output
    assert "Value error" not in shown.output
    assert words[0] in shown.output or words[0] == "--device"
    assert not (tmp_path / "out").exists()


def test_available_devices_are_named():
    with pytest.raises(hf_vit_seg.errors.HfVitSegError, match="available here: cpu"):
        select_device("cuda:99")


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "convert", "push", "push-space", "demo"])
@pytest.mark.parametrize("model", ["nothing.pth", "./nothing", "/nothing/here", "a/b/c", "nothing/model.onnx"])
def test_missing_local_model_is_reported_without_the_hub(command, model, tmp_path, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("httpx.Client.send", refuse)
    image = REPOSITORY / "examples/nuclei/data/test/images/1023509cf8d4c155.webp"
    out = str(tmp_path / "out")
    more = {
        "predict": [str(image), "-o", out],
        "export": [out, "--to", "onnx"],
        "convert": [out],
        "push": ["me/model", "--dry-run"],
        "push-space": ["me/demo", "--dry-run"],
    }
    shown = invoke(command, model, *more.get(command, []))
    assert shown.exit_code == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["model.variant=nan0", "trackers=[tensorbord]"])
def test_wrong_setting_leaves_no_run_directory(override, tmp_path):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    assert invoke("train", str(recipe), override, "-o", str(tmp_path / "run")).exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["Segmenter", "InstanceSegmenter", "Classifier", "PoseEstimator"])
def test_wrong_argument_names_its_function(kind):
    with pytest.raises(TypeError, match=rf"{kind}\.from_pretrained\(\) got .* 'devise'; did you mean 'device'"):
        getattr(hf_vit_seg, kind).from_pretrained(NUCLEI, devise="cpu")
    with pytest.raises(TypeError, match=r"^load\(\) got .* 'tassk'; did you mean 'task'"):
        hf_vit_seg.load(NUCLEI, tassk="segmentation")


def test_arguments_of_convert_are_those_of_the_command():
    command = set(signature(model_formats.convert).parameters) - {"as_json", "quiet", "traceback", "revision"}
    assert command == set(signature(hf_vit_seg.convert).parameters) - {"hub"}


def test_quiet_prints_only_errors(tmp_path):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    run, images = tmp_path / "run", tmp_path / "data" / "validation" / "images"
    done = invoke("train", str(recipe), "loop.steps=1", "-o", str(run), "-q")
    assert (done.exit_code, done.output) == (0, "")
    done = invoke("predict", str(run / "best"), str(images), "-o", str(tmp_path / "masks"), "-q")
    assert (done.exit_code, done.output) == (0, "") and any((tmp_path / "masks").glob("*.overlay.png"))
    (images / "damaged.png").write_bytes(b"no image")
    done = invoke("predict", str(run / "best"), str(images), "-o", str(tmp_path / "masks"), "-q", "--skip-existing")
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1 and "damaged.png" in done.output
    assert invoke("train", "nucle", "-q").output.count("\n") == 1


@pytest.mark.parametrize("value", ["model.varian=tiny", "loop.stepz=3", "loop.steps", "loop.steps=[", "loop.steps=-1"])
def test_invalid_override_is_named(value):
    with pytest.raises(RecipeFileError) as caught:
        load_recipe("nuclei", ["seed=3", value, "loop.batch_size=4"])
    assert str(caught.value).startswith(f"override '{value}': ")


def test_invalid_file_is_named_also_with_valid_overrides(tmp_path):
    recipe = write_recipe(tmp_path, settings(tmp_path, losss={}))
    with pytest.raises(RecipeFileError) as caught:
        load_recipe(recipe, ["seed=3"])
    assert str(caught.value).startswith(f"{recipe}: losss ")


def test_overrides_that_are_invalid_together_are_named():
    with pytest.raises(RecipeFileError) as caught:
        load_recipe("nuclei", ["loop.stepz=3", "lop.steps=3"])
    assert str(caught.value).startswith("overrides loop.stepz=3 lop.steps=3: ")


def test_nearest_head_is_suggested(monkeypatch):
    monkeypatch.setitem(sys.modules["hf_vit_seg.models.segmentation_heads"].EXTERNAL_HEADS, "tiny_fpn", object)
    for name, near in (("tiny_fpm", "tiny_fpn"), ("mask_transfomer", "mask_transformer")):
        with pytest.raises(hf_vit_seg.errors.HfVitSegError, match=f"did you mean '{near}'"):
            find_head(name)


@pytest.mark.parametrize(
    ("overrides", "near"),
    [
        (["model.variant=nan0"], "did you mean 'nano'"),
        (["model.architecture=segfomer"], "did you mean 'segformer'"),
        (
            ["model.architecture=vit", "model.variant=tiny", "model.fields.decode_head=feature_piramid"],
            "feature_pyramid",
        ),
        (["model.fields.decode_head=linear"], "choice of heads are .*backbone.*vit"),
    ],
)
def test_nearest_names_of_models_are_suggested(overrides, near):
    with pytest.raises(hf_vit_seg.errors.HfVitSegError, match=near):
        build_model(load_recipe("nuclei", overrides), ["background", "nucleus"])


def test_nearest_recipe_is_suggested():
    with pytest.raises(RecipeFileError, match="did you mean 'nuclei_hybrid'"):
        load_recipe("nuclei_hybird")
