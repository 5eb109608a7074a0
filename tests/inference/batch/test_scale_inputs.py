"""Inputs of batch inference: every kind of source lists and reads the same images."""

import io
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
from huggingface_hub import HfApi, HfFileSystem
from many_images import encoded, write_parquet, write_photos, write_tar
from PIL import Image
from tiny_segmenters import save_segmenter

from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.data.storage.addresses import ConnectionLost, StorageError
from hf_vit_seg.inference.batch.batch_inputs import InputError, find_sources
from hf_vit_seg.inference.batch.image_readers import Readers
from hf_vit_seg.inference.batch.manifest import Manifest, RunSettings, plan_manifest
from hf_vit_seg.inference.batch.run import BatchRun, segment_images
from hf_vit_seg.inference.batch.storage import Storage
from hf_vit_seg.inference.files.prediction import PredictOptions


def read_all(out: Path, *inputs: str, column: str = "") -> dict[str, bytes]:
    """The encoded images of inputs by the names of their results, read as two shards are."""
    manifest = plan_manifest(RunSettings("model", "", inputs, column=column, shards=2), Storage(str(out)))
    readers, found = Readers(manifest), {}
    for shard in range(manifest.shards):
        for row in manifest.rows(shard):
            file = readers.read(row)
            found[row.target] = file.data if isinstance(file, ImageBytes) else file.read_bytes()
    return found


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_folder_with_tar_and_parquet_files(tmp_path):
    folder = write_photos(tmp_path / "in", 2)
    write_tar(folder / "shard.tar", {"x/5.png": encoded(5), "x/5.json": b"{}", "x/5.seg.png": encoded(6)})
    write_parquet(folder / "table.parquet", 4)
    (folder / ".hidden.png").write_bytes(encoded(9))
    expected = {"0": encoded(0), "sub/1": encoded(1), "shard/x/5": encoded(5)}
    expected |= {f"table/{number:08d}": encoded(number) for number in range(4)}
    assert read_all(tmp_path / "out", str(folder)) == expected


def test_single_files_and_patterns(tmp_path):
    folder = write_photos(tmp_path / "in", 6)
    assert read_all(tmp_path / "a", str(folder / "0.png"), str(folder / "sub/*.png")).keys() == {"0", "1", "3", "5"}
    assert read_all(tmp_path / "b", (folder / "2.png").as_uri()) == {"2": encoded(2)}


def test_results_are_not_inputs(tmp_path):
    folder = write_photos(tmp_path, 2)
    assert len(read_all(folder / "sub", str(folder))) == 1


@pytest.mark.parametrize("given", ["memory://many/in", "memory://many/in/*.png"])
def test_addresses(given, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/many/in/1.png": encoded(1), "/many/in/sub/2.png": encoded(2), "/many/in/note.txt": b"text"})
    try:
        expected = {"1": encoded(1)} | ({} if "*" in given else {"sub/2": encoded(2)})
        assert read_all(tmp_path, given) == expected
    finally:
        memory.rm("/many", recursive=True)


def test_single_address_and_containers_at_addresses(tmp_path):
    memory = fsspec.filesystem("memory")
    tar = write_tar(tmp_path / "a.tar", {"1.png": encoded(1)}).read_bytes()
    memory.pipe(
        {"/one/x.bin": encoded(0), "/two/a.tar": tar, "/two/b.parquet": write_parquet(tmp_path / "b", 1).read_bytes()}
    )
    try:
        assert read_all(tmp_path / "x", "memory://one/x.bin") == {"x": encoded(0)}
        assert read_all(tmp_path / "y", "memory://two") == {"a/1": encoded(1), "b/00000000": encoded(0)}
        assert read_all(tmp_path / "z", "memory://two/a.tar") == {"a/1": encoded(1)}
    finally:
        memory.rm("/one", recursive=True)
        memory.rm("/two", recursive=True)


def test_hub_address(hub, tmp_path, monkeypatch):
    HfApi().create_repo("me/photos", repo_type="dataset")
    HfApi().upload_folder(repo_id="me/photos", repo_type="dataset", folder_path=write_photos(tmp_path / "in", 3))
    HfFileSystem.clear_instance_cache()
    try:
        found = read_all(tmp_path / "out", "hf://datasets/me/photos")
    finally:
        HfFileSystem.clear_instance_cache()
    assert found == {"0": encoded(0), "2": encoded(2), "sub/1": encoded(1)}


def save_dataset(folder: Path) -> datasets.Dataset:
    rows = {"picture": [{"bytes": encoded(number), "path": None} for number in range(5)], "number": list(range(5))}
    features = datasets.Features({"picture": datasets.Image(), "number": datasets.Value("int64")})
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(folder)
    return data


def test_saved_dataset(tmp_path):
    save_dataset(tmp_path / "saved")
    found = read_all(tmp_path / "out", str(tmp_path / "saved"))
    assert [decoded(found[f"saved/{number:08d}"]).tolist() for number in range(5)] == [
        decoded(encoded(number)).tolist() for number in range(5)
    ]


def test_dataset_of_parquet_files_is_streamed(tmp_path):
    save_dataset(tmp_path / "saved").to_parquet(tmp_path / "data" / "test-0.parquet")
    found = read_all(tmp_path / "out", f"datasets://{tmp_path / 'data'}?split=test")
    assert list(found) == [f"data/{number:08d}" for number in range(5)]
    assert all((decoded(found[f"data/{n:08d}"]) == decoded(encoded(n))).all() for n in range(5))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("missing", ImageFileError),
        ("empty", ImageFileError),
        ("text.tar", ImageFileError),
        ("text.parquet", ImageFileError),
        ("numbers.parquet", InputError),
        ("nothing://there", StorageError),
        ("memory://missing", ImageFileError),
        ("datasets://name?spilt=test", InputError),
    ],
)
def test_unusable_inputs_raise(tmp_path, monkeypatch, given, error):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("text.tar", "text.parquet"):
        Path(name).write_text("text" * 400)
    datasets.Dataset.from_dict({"number": [1]}).to_parquet("numbers.parquet")
    with pytest.raises(error):
        plan_manifest(RunSettings("model", "", (given,)), Storage("out"))
    assert not Path("out/.manifest/manifest.json").exists()


def test_server_without_ranges_raises(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "data.parquet", 1)

    class WholeFile(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ValueError("the server does not support range requests")

    monkeypatch.setattr("hf_vit_seg.inference.batch.batch_inputs.open_binary", lambda given: WholeFile(b"PAR1" * 100))
    with pytest.raises(ImageFileError, match="range requests"):
        list(find_sources([str(path)]))


def test_column_of_images(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", 1, "photo")
    ((source, _),) = find_sources([str(path)])
    assert source.column == "photo"
    with pytest.raises(InputError):
        list(find_sources([str(path)], "number"))
    two = datasets.Dataset.from_dict({"one": [encoded(0)], "two": [encoded(1)]})
    two.to_parquet(tmp_path / "two.parquet")
    with pytest.raises(InputError):
        list(find_sources([str(tmp_path / "two.parquet")]))
    assert read_all(tmp_path / "out", str(tmp_path / "two.parquet"), column="two") == {"two/00000000": encoded(1)}


def planned(out: Path, given: str) -> Manifest:
    return plan_manifest(RunSettings("model", "", (given,)), Storage(str(out)))


def test_lost_connection_is_not_a_broken_image(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/lost/1.png", encoded(1))
    manifest = planned(tmp_path, "memory://lost")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = []

    def refuse(self, path, **options):
        calls.append(path)
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(type(memory), "cat_file", refuse)
    with pytest.raises(ConnectionLost):
        Readers(manifest).read(manifest.rows(0)[0])
    assert len(calls) == 4
    monkeypatch.undo()
    memory.rm("/lost", recursive=True)
    with pytest.raises(ImageFileError) as caught:
        Readers(manifest).read(manifest.rows(0)[0])
    assert not isinstance(caught.value, ConnectionLost)


def test_shortened_tar_raises(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1.png": encoded(1)})
    manifest = planned(tmp_path / "out", str(path))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageFileError):
        Readers(manifest).read(manifest.rows(0)[0])


def test_large_download_is_refused(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/large/1.png", encoded(1))
    manifest = planned(tmp_path, "memory://large")
    monkeypatch.setattr("hf_vit_seg.data.storage.addresses.MAX_DOWNLOAD", 10)
    with pytest.raises(ImageFileError):
        Readers(manifest).read(manifest.rows(0)[0])
    memory.rm("/large", recursive=True)


@pytest.mark.usefixtures("hub")
def test_missing_dataset_raises(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError):
        list(find_sources(["datasets://me/missing"]))


def test_stream_of_parquet_files_is_read_by_row_groups(tmp_path):
    """Each file is a source, so that processes read their own rows; results keep the numbers of the dataset."""
    data = save_dataset(tmp_path / "saved")
    for number, rows in enumerate((range(2), range(2, 5))):
        data.select(rows).to_parquet(tmp_path / "data" / f"train-{number}.parquet", batch_size=1)
    given = f"datasets://{tmp_path / 'data'}"
    manifest = planned(tmp_path / "manifest", given)
    assert [source.kind for source in manifest.sources] == ["parquet", "parquet"]
    found = read_all(tmp_path / "out", given)
    assert [f"data/{number:08d}" for number in range(5)] == list(found)
    assert all((decoded(found[f"data/{n:08d}"]) == decoded(encoded(n))).all() for n in range(5))


@pytest.fixture
def stream(monkeypatch) -> list[int]:
    """Serves a dataset that can only be streamed, of 12 rows; the numbers of the rows that are read."""
    read: list[int] = []

    def rows():
        for number in range(12):
            read.append(number)
            yield {"image": {"bytes": encoded(number), "path": None}}

    features = datasets.Features({"image": datasets.Image()})
    data = datasets.IterableDataset.from_generator(rows, features=features)
    for module in ("batch_inputs", "image_readers"):
        monkeypatch.setattr(f"hf_vit_seg.inference.batch.{module}.load_dataset", lambda source: data)
    return read


def test_stream_is_read_once_by_a_process(stream, tmp_path):
    model = save_segmenter(tmp_path / "model")
    run = BatchRun(
        PredictOptions(model=str(model)), ("datasets://me/stream",), str(tmp_path / "out"), shards=6, workers=1
    )
    summary = segment_images(run)
    assert summary.finished == 12 and not summary.failures
    assert stream == [*range(12), *range(12)]  # the first pass counts them


def test_skipped_rows_of_a_stream_are_not_stored(stream, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vit_seg.inference.batch.image_readers.KEPT_ROWS", 2)
    manifest = plan_manifest(RunSettings("model", "", ("datasets://me/stream",), shards=4), Storage(str(tmp_path)))
    stream.clear()
    readers = Readers(manifest)
    for shard in (0, 3):
        for row in manifest.rows(shard):
            assert isinstance(file := readers.read(row), ImageBytes) and file.data == encoded(row.offset)
            assert len(readers.opened[0].ahead) <= 2
    assert stream == list(range(12))


def test_few_readers_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vit_seg.inference.batch.image_readers.MAX_OPEN", 2)
    for number in range(4):
        write_parquet(tmp_path / f"{number}.parquet", 2)
    manifest = planned(tmp_path / "out", str(tmp_path))
    readers = Readers(manifest)
    for row in manifest.rows(0):
        readers.read(row)
        assert len(readers.opened) <= 2


def test_parquet_dataset_of_the_hub_is_read_by_row_groups(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    HfApi().create_repo("me/rows", repo_type="dataset")
    write_parquet(tmp_path / "rows.parquet", 4, "picture", group=2)
    for number in range(2):
        HfApi().upload_file(
            path_or_fileobj=tmp_path / "rows.parquet",
            path_in_repo=f"data/test-{number}.parquet",
            repo_id="me/rows",
            repo_type="dataset",
        )
    HfFileSystem.clear_instance_cache()
    try:
        given = "datasets://me/rows?split=test"
        found = read_all(tmp_path / "out", given)
        manifest = planned(tmp_path / "manifest", given)
    finally:
        HfFileSystem.clear_instance_cache()
    assert found == {f"rows/{number:08d}": encoded(number % 4) for number in range(8)}
    assert all(source.root.startswith("hf://datasets/me/rows@") for source in manifest.sources)
