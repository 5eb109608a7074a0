"""Sources that are read with the library `datasets`: saved ones, parquet, image folders and Hub ids."""

import datasets
import numpy as np
import pytest
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from huggingface_hub import HfApi
from PIL import Image

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.sources.columns import HubDataset
from hf_vit_seg.data.sources.source_registry import SourceError, open_source

COUNT = 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def photos(count: int = COUNT) -> list[Image.Image]:
    return [Image.new("RGB", (7, 5), (number, 0, 0)) for number in range(count)]


def palette_masks(count: int = COUNT) -> list[Image.Image]:
    masks = []
    for number in range(count):
        mask = Image.new("P", (7, 5), number)
        mask.putpalette([255 - i // 3 for i in range(768)])
        masks.append(mask)
    return masks


def rows(**columns) -> Dataset:
    kinds = {"image": ImageFeature(), "mask": ImageFeature(), "label": ClassLabel(names=["b", "a"])}
    values = {"image": photos(), "mask": palette_masks(), "label": [0, 1, 1, 0], **columns}
    values = {name: value for name, value in values.items() if value is not None}
    return Dataset.from_dict(values, Features({name: kinds.get(name, Value("string")) for name in values}))


def open_hub_source(name: object, split: str = "train", task: str = "segmentation", channels: int = 3, **settings):
    return open_source({"kind": "huggingface", "name": str(name), "split": split, **settings}, task, channels)


def check(source, first: int = 0, count: int = COUNT) -> None:
    assert len(source) == count
    assert len({source.name(index) for index in range(count)}) == count
    for index in range(count):
        sample = source.read(index)
        assert sample.name == source.name(index)
        assert sample.image.shape == (3, 5, 7) and sample.image[0].unique().tolist() == [first + index]
        assert sample.target.shape == (5, 7) and sample.target.unique().tolist() == [first + index]
        assert source.files(index) == ()


def test_save_to_disk_format(tmp_path):
    rows().save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows(), "test": rows().select([2, 3])}).save_to_disk(tmp_path / "splits")
    check(open_hub_source(tmp_path / "one"))
    check(open_hub_source(tmp_path / "splits"))
    check(open_hub_source(tmp_path / "splits", "test"), 2, 2)
    check(open_hub_source(tmp_path / "splits", mask_column="mask"))
    with pytest.raises(SourceError, match="no split 'validation'; it has train, test"):
        open_hub_source(tmp_path / "splits", "validation")


def test_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    rows().to_parquet(tmp_path / "data/train-0.parquet")
    check(open_hub_source(tmp_path))
    check(open_hub_source(tmp_path, "train[2:]"), 2, 2)
    with pytest.raises(SourceError, match=r"cannot be opened: Unknown split .*test"):
        open_hub_source(tmp_path, "test")


def test_image_folders(tmp_path):
    for number, photo in enumerate(photos()):
        folder = tmp_path / "train" / ["dog", "cat", "dog", "bird"][number]
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
    source = open_hub_source(tmp_path, task="classification")
    assert source.class_names == ("bird", "cat", "dog")
    found = {int(source.read(i).image[0].max()): source.class_names[source.read(i).target] for i in range(4)}
    assert found == {0: "dog", 1: "cat", 2: "dog", 3: "bird"}


def test_image_folders_with_masks(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    lines = []
    for number, (photo, mask) in enumerate(zip(photos(), palette_masks(), strict=True)):
        photo.save(folder / f"{number}.png")
        mask.save(folder / f"{number}_mask.png")
        lines.append(f'{{"file_name": "{number}.png", "mask_file_name": "{number}_mask.png"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    check(open_hub_source(tmp_path))


def test_labels(tmp_path):
    rows(species=["cat", "dog", "cat", "ant"]).save_to_disk(tmp_path / "one")
    source = open_hub_source(tmp_path / "one", task="classification")
    assert source.class_names == ("b", "a")
    assert [source.read(i).target for i in range(COUNT)] == [0, 1, 1, 0]
    words = open_hub_source(tmp_path / "one", task="classification", label_column="species")
    assert words.class_names == ("ant", "cat", "dog")
    assert [words.read(i).target for i in range(COUNT)] == [1, 2, 1, 0]
    with pytest.raises(SourceError, match=r"the column 'mask' has Image.*, expected labels"):
        open_hub_source(tmp_path / "one", task="classification", label_column="mask")


def test_rows_without_a_label_raise(tmp_path):
    rows(species=["cat", None, "cat", "ant"]).save_to_disk(tmp_path / "one")
    source = open_hub_source(tmp_path / "one", task="classification", label_column="species")
    assert source.class_names == ("ant", "cat")
    assert [source.read(i).target for i in (0, 2, 3)] == [1, 1, 0]
    with pytest.raises(ImageFileError, match="row 1: the column 'species' is empty"):
        source.read(1)


def test_integer_labels_without_names(tmp_path):
    Dataset.from_dict(
        {"image": photos(), "label": [3, 0, 2, 1]}, Features({"image": ImageFeature(), "label": Value("int64")})
    ).save_to_disk(tmp_path / "one")
    source = open_hub_source(tmp_path / "one", task="classification")
    assert source.class_names is None
    assert [source.read(i).target for i in range(COUNT)] == [3, 0, 2, 1]


def test_array_columns_are_multichannel_images(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 5), dtype=np.uint8)
    kinds = Features({"image": Array3D((6, 4, 5), "uint8"), "mask": Array3D((1, 4, 5), "int32")})
    Dataset.from_dict({"image": list(arrays), "mask": [a[:1].astype(np.int32) for a in arrays]}, kinds).save_to_disk(
        tmp_path / "one"
    )
    source = open_hub_source(tmp_path / "one", channels=6, mask_column="mask")
    for index in range(2):
        assert np.array_equal(source.read(index).image.numpy(), arrays[index])
        assert np.array_equal(source.read(index).target.numpy(), arrays[index][0])
    with pytest.raises(ImageFileError, match=r"row 0: found an array of shape \(6, 4, 5\), .* 3 or 1 channels"):
        open_hub_source(tmp_path / "one", mask_column="mask").read(0)


def test_missing_columns_raise(tmp_path):
    rows(mask=None).save_to_disk(tmp_path / "without")
    with pytest.raises(SourceError, match=r"set mask_column to .* are none, all columns are image, label"):
        open_hub_source(tmp_path / "without")
    for settings in ({"mask_column": "masks"}, {"image_column": "photo", "mask_column": "image"}):
        with pytest.raises(SourceError, match=r"no column '(masks|photo)'; it has image, label"):
            open_hub_source(tmp_path / "without", **settings)


def test_empty_and_broken_cells_raise_with_row(tmp_path):
    good, broken = palette_masks(2), {"bytes": b"nothing", "path": None}
    rows(image=[*photos(3), None], mask=[*good, broken, good[0]]).save_to_disk(tmp_path / "one")
    source = open_hub_source(tmp_path / "one")
    with pytest.raises(ImageFileError, match=r"one row 2, column 'mask': not a supported image file"):
        source.read(2)
    with pytest.raises(ImageFileError, match="row 3: the column 'image' is empty"):
        source.read(3)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"bytes": None, "path": None}, "neither the bytes"),
        ({"bytes": b"", "path": None}, "empty"),
        ({"bytes": None, "path": "gone.png"}, "does not exist"),
    ],
)
def test_cells_with_missing_files_raise_with_name(cell, reason):
    table = Dataset.from_dict({"image": [cell], "label": [0]})
    source = HubDataset("title", table, "image", "label")
    with pytest.raises(ImageFileError, match=reason) as error:
        source.read(0)
    assert str(error.value).startswith(("title row 0", "gone.png: "))


def test_ragged_arrays_raise_with_row(tmp_path):
    ragged = [[[1, 2], [3]], [[1, 2], [3, 4]]]
    table = Dataset.from_dict({"image": ragged, "label": [0, 0]})
    source = HubDataset("title", table, "image", "label", channels=1)
    with pytest.raises(ImageFileError, match="title row 0, column 'image'"):
        source.read(0)
    assert source.read(1).image.shape == (1, 2, 2)


def test_hub_id_and_revision_are_passed_to_datasets(monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(open_hub_source("owner/scenes", "train", config="full", revision="abc123"))
    assert calls == [(("owner/scenes", "full"), {"split": "train", "revision": "abc123"})]


def test_hub_datasets_are_downloaded_at_a_pinned_revision(hub, tmp_path, monkeypatch):
    """With the library itself, from the test Hub."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    HfApi().create_repo("owner/scenes", repo_type="dataset")
    revisions = []
    for kept in (rows(label=None), rows(label=None).select([3, 2])):
        kept.to_parquet(tmp_path / "rows.parquet")
        done = HfApi().upload_file(
            path_or_fileobj=tmp_path / "rows.parquet",
            path_in_repo="data/train-00000-of-00001.parquet",
            repo_id="owner/scenes",
            repo_type="dataset",
        )
        revisions.append(done.oid)
    check(open_hub_source("owner/scenes", revision=revisions[0]))
    newest = open_hub_source("owner/scenes")
    assert [int(newest.read(i).target.unique()) for i in range(len(newest))] == [3, 2]
    with pytest.raises(SourceError, match="owner/other"):
        open_hub_source("owner/other")


def test_datasets_errors_keep_their_message(monkeypatch, tmp_path):
    def load_dataset(*arguments, **options):
        raise ConnectionError("Couldn't reach\n the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(SourceError, match=r"^data: the dataset owner/scenes cannot be opened: Couldn't reach the Hub$"):
        open_hub_source("owner/scenes")
    with pytest.raises(SourceError, match="/nowhere: the folder does not exist"):
        open_hub_source(tmp_path / "nowhere")
