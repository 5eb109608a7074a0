"""Splits as lists of stems."""

import pytest
from PIL import Image

from hf_vit_seg.data.sources.source_registry import SourceError, open_source

STEMS = ["2007_000032", "2007_000039", "a b", "x/1.2", "only_image"]


def open_voc(folder, text: str, **settings):
    """Pairs and images without masks, as in Pascal VOC."""
    for stem in STEMS:
        for part, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            if stem != "only_image" or suffix == "jpg":
                path = folder / part / f"{stem}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 3)).save(path)
    (folder / "train.txt").write_text(text, encoding="utf-8")
    places = {"images": f"{folder}/JPEGImages", "masks": f"{folder}/SegmentationClass"}
    return open_source({"kind": "folders", **places, "stems": f"{folder}/train.txt", **settings}, "segmentation")


def names(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_listed_stems_are_the_samples_in_order(tmp_path, end):
    text = end.join(["\ufeff2007_000039", "2007_000032 ", ""]) if end else "2007_000039\n\n# test\n2007_000032"
    source = open_voc(tmp_path, text)
    assert names(source) == ["2007_000039.jpg", "2007_000032.jpg"]
    assert source.read(0).target.shape == (3, 4)


@pytest.mark.parametrize("line", ["a b", "a b.jpg", "a b.png"])
def test_stems_may_have_spaces_and_suffixes(tmp_path, line):
    assert names(open_voc(tmp_path, line)) == ["a b.jpg"]


@pytest.mark.parametrize("line", ["x/1.2", r"x\1.2", "x/1.2.jpg"])
def test_stems_may_have_folders_and_dots(tmp_path, line):
    assert names(open_voc(tmp_path, line)) == ["x/1.2.jpg"]


def test_templates_have_lists_too(tmp_path):
    source = open_voc(tmp_path, "000032\n", images=f"{tmp_path}/JPEGImages/2007_{{stem}}.jpg",
                      masks=f"{tmp_path}/SegmentationClass/2007_{{stem}}.png")  # fmt: skip
    assert names(source) == ["2007_000032.jpg"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "2008_1\n", "a b\na b\n", "a b\na b.jpg\n", "only_image\na b\n"])
def test_other_lists_raise(tmp_path, text):
    with pytest.raises(SourceError):
        open_voc(tmp_path, text)


def test_listed_images_without_a_mask_can_be_skipped(tmp_path):
    assert names(open_voc(tmp_path, "only_image\na b\n", unpaired="skip")) == ["a b.jpg"]


def test_missing_or_binary_list_raises(tmp_path):
    with pytest.raises(SourceError, match="stems"):
        open_voc(tmp_path, "a b", stems=f"{tmp_path}/no.txt")
    (tmp_path / "other.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="UTF-8"):
        open_voc(tmp_path, "a b", stems=f"{tmp_path}/other.txt")
