"""Segmenter, overlays and `hf-vit-seg predict` on every kind of image file."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from typer.testing import CliRunner

from hf_vit_seg.atomic_io import write_files
from hf_vit_seg.cli import app
from hf_vit_seg.data.images.files import ImageFileError, find_images, read_image
from hf_vit_seg.data.sources.folders import FoldersSource
from hf_vit_seg.drawing.overlays import draw_overlay
from hf_vit_seg.drawing.palettes import class_palette, generate_palette
from hf_vit_seg.errors import WriteError
from hf_vit_seg.inference import ModelError, Segmenter
from hf_vit_seg.inference.files.prediction import create_jobs
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.models.modeling_segformer import SegFormerForSemanticSegmentation, SegFormerModel

NAMES = ("sky", "road", "car", "tree", "a rather long name of a class that nobody reads to the end")
PALETTE = [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]]


def config(labels: int = 5) -> SegFormerConfig:
    return SegFormerConfig(
        hidden_sizes=(16, 32, 40, 64),
        depths=(1, 1, 1, 1),
        decode_head_hidden_size=32,
        id2label={i: NAMES[i] if labels == 5 else f"thing {i}" for i in range(labels)},
    )


def save_model(folder: Path, labels: int = 5, palette: list[list[int]] | None = None) -> Path:
    torch.manual_seed(1)
    model = SegFormerForSemanticSegmentation(config(labels))
    with torch.no_grad():
        model.get_parameter("decode_head.classifier.bias").normal_()
    model.save_pretrained(folder)
    options: dict[str, Any] = {"size": {"height": 64, "width": 64}, "palette": palette}
    SemanticSegmentationImageProcessor(**options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), palette=PALETTE)


@pytest.fixture(scope="module")
def segmenter(model) -> Segmenter:
    return Segmenter.from_pretrained(str(model), device="cpu")


def photo(height: int = 40, width: int = 60) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 6 % 256, columns * 4 % 256, (rows + columns) % 256], -1).astype(np.uint8))


def predict(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_label_map_counts_and_overlay(segmenter):
    result = segmenter(photo(), scores=True)
    assert result.label_map.shape == result.scores.shape == (40, 60)
    assert result.label_map.dtype == np.uint8
    counts = result.counts()
    assert sum(count.pixels for count in counts) == 40 * 60
    assert sum(count.share for count in counts) == pytest.approx(1)
    assert [count.pixels for count in counts] == sorted((count.pixels for count in counts), reverse=True)
    for count in counts:
        assert count.pixels == (result.label_map == count.index).sum()
        assert list(count.color) == PALETTE[count.index]
    assert result.overlay(legend=False).size == (60, 40)
    assert result.overlay(legend=False, opacity=0).tobytes() == photo().tobytes()
    assert set(np.unique(np.asarray(result.label_image()))) <= set(range(5))


def test_label_map_matches_plain_argmax(segmenter, model):
    processor = AutoImageProcessor.from_pretrained(model)
    with torch.inference_mode():
        logits = segmenter.model(**processor(photo(), return_tensors="pt")).logits
    resized = torch.nn.functional.interpolate(logits, size=(40, 60), mode="bilinear", align_corners=False)
    result = segmenter(photo(), scores=True)
    assert np.array_equal(result.label_map, resized.argmax(1)[0].numpy())
    np.testing.assert_allclose(result.scores, resized.softmax(1).amax(1)[0].numpy(), atol=1e-5)


def test_arrays_give_the_results_of_images(segmenter):
    array = np.array(photo())
    for image in (array, torch.from_numpy(array), array.transpose(2, 0, 1)):
        assert np.array_equal(segmenter(image).label_map, segmenter(photo()).label_map)
        assert segmenter(image).image.size == photo().size
    with pytest.raises(ValueError, match="overlay"):
        segmenter(torch.from_numpy(array).float()).overlay()
    with pytest.raises(ValueError, match="one image"):
        segmenter(array[None])


def test_single_class_has_a_background(tmp_path):
    segmenter = Segmenter.from_pretrained(str(save_model(tmp_path, labels=1)), dtype="bfloat16")
    result = segmenter(photo(), scores=True)
    assert segmenter.names == ("background", "thing 0")
    assert result.scores is not None
    assert np.array_equal(result.label_map == 1, result.scores > 0.5)


def test_more_than_256_classes_are_16_bit(tmp_path):
    result = Segmenter.from_pretrained(str(save_model(tmp_path, labels=300)))(photo())
    result.label_image().save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as read:
        assert read.mode == "I;16"
        assert np.array_equal(np.asarray(read), result.label_map)


def test_palettes_are_distinct_and_stable():
    assert len({tuple(color) for color in generate_palette(256).tolist()}) == 256
    assert np.array_equal(generate_palette(150)[:7], generate_palette(7))
    assert class_palette([[1, 2, 3]], 3)[0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="palette"):
        class_palette([[1, 2, 300]], 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 900), (900, 5), (60, 40), (3000, 2000)])
@pytest.mark.parametrize("classes", [1, 12, 90])
def test_overlay_legend_is_outside_the_image(size, classes):
    labels = np.arange(size[0] * size[1]).reshape(size[1], size[0]) % classes
    rows = [(f"class number {i}", (i, 0, 0), 1 / classes) for i in range(classes)]
    picture = draw_overlay(photo(size[1], size[0]), labels, generate_palette(classes), rows)
    shown = draw_overlay(photo(size[1], size[0]), labels, generate_palette(classes), [])
    assert picture.width > shown.width or picture.height > shown.height
    assert max(picture.size) < 6000
    assert np.asarray(picture)[-1, -1].tolist() == [255, 255, 255]


def folder_of_everything(folder: Path) -> set[str]:
    """Write an image of every kind and return the stems of the valid ones."""
    folder.mkdir()
    gray = np.asarray(photo().convert("L")).astype(np.uint16) * 257
    good = {
        "rgb.jpg": photo(), "cmyk.jpg": photo().convert("CMYK"), "gray.png": photo().convert("L"),
        "palette.png": photo().convert("P"), "alpha.png": photo().convert("RGBA"), "la.png": photo().convert("LA"),
        "bits.png": photo().convert("1"), "sixteen.png": Image.fromarray(gray), "sixteen.tif": Image.fromarray(gray),
        "one.png": photo(1, 1), "thin.png": photo(2, 300), "web.webp": photo(),
    }  # fmt: skip
    for name, image in good.items():
        image.save(folder / name)
    photo().save(folder / "moving.gif", save_all=True, append_images=[photo().rotate(180)])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image")
    photo(200, 200).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "notes.md").write_text("passed over")
    return {Path(name).stem for name in good} | {"moving"}


def test_folder_with_mixed_files(model, tmp_path):
    good = folder_of_everything(tmp_path / "in")
    out = tmp_path / "in" / "out"
    code, text = predict(model, tmp_path / "in", "--out", out, "--scores", "--device", "cpu")
    assert code == 1
    for name, reason in {
        "empty.png": "empty",
        "text.jpg": "not a supported image file",
        "cut.jpg": "cannot be decoded",
    }.items():
        assert name in text
        assert reason in text
    assert "notes.md" not in text
    written = {path.name for path in out.iterdir()}
    kinds = (".png", ".overlay.png", ".scores.png", ".json")
    assert {stem + kind for stem in good for kind in kinds} <= written
    assert len(written) == 4 * (len(good) + 1)  # sixteen.tif got a unique name; no partial files are left
    assert (out / "sixteen_tif.json").exists()
    for report in out.glob("*.json"):
        content = json.loads(report.read_text())
        with Image.open(report.with_suffix(".png")) as labels:
            assert labels.mode == "P"
            assert labels.size == (content["width"], content["height"])
            pixels = np.bincount(np.asarray(labels).ravel(), minlength=5)
        assert {entry["id"]: entry["pixels"] for entry in content["classes"]} == {
            int(i): int(pixels[i]) for i in np.flatnonzero(pixels)
        }


def test_results_are_replaced_only_with_overwrite(model, tmp_path):
    photo().save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert predict(model, tmp_path / "a.png", "--out", out)[0] == 0
    first = (out / "a.json").read_text()
    code, text = predict(model, tmp_path / "a.png", "--out", out)
    assert code == 2
    assert "--skip-existing" in text
    assert predict(model, tmp_path / "a.png", "--out", out, "--skip-existing")[0] == 0
    assert (out / "a.json").read_text() == first
    assert predict(model, tmp_path / "a.png", "--out", out, "--overwrite", "--no-overlay")[0] == 0
    assert (out / "a.json").read_text() != first


def test_output_paths_are_unique_and_inputs_kept(tmp_path):
    for name in ("x/a.png", "y/a.png", "a.jpg", "a.png", "a.overlay.png", "y/z/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(2, 2).save(tmp_path / name)
    named = [str(tmp_path / name) for name in ("x/a.png", "y/a.png", "a.jpg", "a.png", "a.overlay.png", "a.png")]
    images = find_images([*named, str(tmp_path / "y")])
    assert len(images) == 6
    jobs = create_jobs(images, tmp_path)
    results = [str(job.result(kind)) for job in jobs for kind in (".png", ".overlay.png", ".json", ".scores.png")]
    assert len(set(results)) == len(results)
    assert not {str(image.path) for image in images} & set(results)
    assert [
        job.target.relative_to(tmp_path / "out") for job in create_jobs(find_images([str(tmp_path)]), tmp_path / "out")
    ][-1] == Path("y/z/a")


def test_folder_lists_the_same_images_as_training(tmp_path):
    """A folder for training can be used for prediction: images and arrays."""
    for name in ("a.png", "b.npy"):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
            if name.endswith("png"):
                photo(2, 2).save(tmp_path / part / name)
            else:
                np.save(tmp_path / part / name, np.zeros((3, 2, 2), np.uint8))
    source = FoldersSource(images=str(tmp_path / "images"), masks=str(tmp_path / "masks")).open("segmentation")
    found = find_images([str(tmp_path / "images")])
    names = [str(image.relative_path) for image in found]
    assert names == [source.name(i) for i in range(len(source))] == ["a.png", "b.npy"]


def test_patterns_with_and_without_matches(model, tmp_path):
    for name in ("one[1].png", "two.png"):
        photo(2, 2).save(tmp_path / name)
    assert len(find_images([str(tmp_path / "*.png")])) == 2
    assert len(find_images([str(tmp_path / "one[1].png")])) == 1
    code, text = predict(model, tmp_path / "nothing*.png", "--out", tmp_path / "out")
    assert code == 2
    assert "does not match any file" in text
    (tmp_path / "bare").mkdir()
    assert "contains no images" in predict(model, tmp_path / "bare", "--out", tmp_path / "out")[1]


def test_exif_rotation_is_applied(tmp_path):
    tag = Image.Exif()
    tag[0x112] = 6
    photo(40, 60).rotate(90, expand=True).save(tmp_path / "turned.png", exif=tag)
    assert read_image(tmp_path / "turned.png").tobytes() == photo(40, 60).tobytes()


def test_decompression_bombs_raise_before_decoding(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageFileError, match=r"tiled TIFF.*raise --max-pixels"):
        read_image(tmp_path / "bomb.png")
    photo().save(tmp_path / "small.png")
    with pytest.raises(ImageFileError, match="60x40"):
        read_image(tmp_path / "small.png", max_pixels=2399)
    assert read_image(tmp_path / "small.png", max_pixels=2400).size == (60, 40)


def test_failed_write_leaves_no_file(tmp_path):
    def broken(path: Path) -> None:
        path.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(WriteError, match="No space"):
        write_files({tmp_path / "a.json": lambda path: path.write_text("whole"), tmp_path / "a.png": broken})
    assert list(tmp_path.iterdir()) == []


def test_model_bug_prints_one_traceback_and_exits_70(model, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        photo().save(tmp_path / name)

    def failing(*arguments: object, **options: object) -> None:
        raise ValueError("wrong shapes inside")

    monkeypatch.setattr(SegFormerForSemanticSegmentation, "forward", failing)
    code, output = predict(model, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out")
    assert code == 70
    assert output.count("Traceback (most recent call last)") == 1 and output.count("in failing") == 1
    assert "0 of 2 images segmented" in output


def test_out_of_memory_is_a_failure_with_advice(model, tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")

    def failing(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(SegFormerForSemanticSegmentation, "forward", failing)
    code, output = predict(model, tmp_path / "a.png", "--out", tmp_path / "out")
    assert code == 1
    assert "Traceback" not in output and "--window" in output and "a.png" in output


def test_input_error_traceback_is_optional(tmp_path):
    command = [tmp_path / "absent", tmp_path / "absent.png", "--out", tmp_path / "out"]
    code, output = predict(*command)
    assert code == 2 and "Traceback" not in output
    code, output = predict(*command, "--traceback")
    assert code == 2 and "Error: " in output and "Traceback (most recent call last)" in output
    code, output = predict(*command)
    assert code == 2 and "Traceback" not in output


def test_unusable_models_are_reported(model, tmp_path):
    photo().save(tmp_path / "a.png")

    def predict_error(name: Path, *options: str) -> str:
        code, text = predict(name, tmp_path / "a.png", "--out", tmp_path / "out", *options)
        assert code == 2
        assert "Traceback" not in text
        return text

    assert "does not exist" in predict_error(tmp_path / "absent")
    SegFormerForSemanticSegmentation(config()).save_pretrained(tmp_path / "bare")
    assert "no image processor" in predict_error(tmp_path / "bare")
    SegFormerModel(config()).save_pretrained(tmp_path / "headless")
    assert "no trained segmentation head" in predict_error(tmp_path / "headless")
    SegFormerForSemanticSegmentation(config()).save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cut cannot be loaded as a segmentation model" in predict_error(tmp_path / "cut")
    assert "quantum" in predict_error(model, "--device", "quantum")
    assert "exclude each other" in predict_error(model, "--overwrite", "--skip-existing")
    with pytest.raises(ModelError, match="floating-point"):
        Segmenter.from_pretrained(str(model), dtype="int8")


def test_real_weights_on_a_photo(shared, tmp_path):
    from hf_vit_seg.conversion.convert import convert

    convert(shared / "data" / "segformer_b0_ade" / "hf", tmp_path / "b0")
    segmenter = Segmenter.from_pretrained(str(tmp_path / "b0"))
    image = next((shared / "data" / "camvid" / "test" / "images").glob("*.jpg"))
    found = {count.name for count in segmenter(read_image(image)).counts()[:5]}
    assert {"road", "building"} <= found


def test_segmentation_is_displayed_as_its_overlay(segmenter):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    found = segmenter(Image.fromarray(pixels))
    with Image.open(BytesIO(found._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(found.overlay()))
    with Image.open(BytesIO(replace(found, image=None)._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), found.label_map)


def test_palette_of_other_classes_is_not_used(tmp_path):
    """`from_pretrained(num_labels=2, id2label=...)` keeps the processor, which has the colors of the old classes."""
    folder = save_model(tmp_path / "five", palette=PALETTE)
    fewer = SegFormerForSemanticSegmentation.from_pretrained(
        folder, num_labels=2, id2label={0: "background", 1: "nucleus"}, ignore_mismatched_sizes=True
    )
    segmenter = Segmenter(fewer, AutoImageProcessor.from_pretrained(folder), "cpu")
    assert np.array_equal(segmenter.palette, generate_palette(2))
    assert Segmenter.from_pretrained(str(folder), "cpu").palette.tolist() == PALETTE
