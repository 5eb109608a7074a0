"""One writer at a time: the directory lock, and that every command acquires it."""

import errno
import fcntl
import shutil
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
from lock_holder import hold_lock, kill
from paths import REPOSITORY
from tiny_runs import finish, run, settings, start, write_data, write_recipe
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.directory_lock import LOCK, InUseError, LockError, lock_directory, lock_file, lock_owner
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training.checkpoints import main_process
from hf_vit_seg.training.checkpoints.main_process import PreparationError, lock_on_main_process, on_main_process
from hf_vit_seg.training.checkpoints.run_directory import RunDirectoryError
from hf_vit_seg.training.loop import run_outputs
from hf_vit_seg.training.loop import trainer as run_module

NUCLEI = REPOSITORY / "examples" / "nuclei" / "model"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A minimal run directory."""
    recipe = write_recipe(tmp_path, settings(tmp_path / "data"))
    (tmp_path / "run" / "best").mkdir(parents=True)
    for place in (tmp_path / "run", tmp_path / "run" / "best"):
        shutil.copy(recipe, place)
    (tmp_path / "run" / "log.jsonl").touch()
    return tmp_path / "run"


def state(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


COMMANDS = {
    "resume": ["train", "{run}/recipe.yaml", "--out", "{run}", "--resume"],
    "overwrite": ["train", "{run}/recipe.yaml", "--out", "{run}", "--overwrite"],
    "evaluate": ["evaluate", "{run}/best"],
    "evaluate --out": ["evaluate", str(NUCLEI), "--recipe", "{run}/recipe.yaml", "--out", "{run}"],
    "predict": ["predict", str(NUCLEI), str(NUCLEI.parent / "data"), "--out", "{run}"],
    "check-data": ["check-data", "{run}/recipe.yaml", "--out", "{run}"],
    "export": ["export", str(NUCLEI), "{run}", "--to", "torchscript"],
    "convert": ["convert", str(NUCLEI), "{run}", "--overwrite"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_directory_locked_by_another_process_raises(folder, name):
    with hold_lock(folder) as process:
        before = state(folder)
        result = CliRunner().invoke(app, [part.format(run=folder) for part in COMMANDS[name]])
        assert result.exit_code == 2, result.output
        assert f"{folder} is being written by process {process.pid} on " in result.output
        assert len(result.output.strip().splitlines()) == 1
        assert state(folder) == before
        kill(process)
        assert (folder / LOCK).exists()
        with lock_directory(folder):
            assert (folder / LOCK).exists()
    assert not (folder / LOCK).exists()


def test_workers_of_a_killed_process_release_its_lock(tmp_path):
    with hold_lock(tmp_path / "run", "fork") as process:
        with pytest.raises(InUseError), lock_directory(tmp_path / "run"):
            pass
        kill(process)
        with lock_directory(tmp_path / "run"):
            pass


def test_run_killed_before_its_first_step_can_restart(tmp_path):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    with hold_lock(tmp_path / "run") as process:
        kill(process)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    run(recipe, tmp_path / "run", "loop.steps=1", "loop.evaluate_every=null", "evaluation.samples=0")
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_run_holds_its_lock_from_data_check_to_test(tmp_path, monkeypatch):
    """flock does not check which process opened the file a second time."""
    seen = []

    def note(name, work):
        def note_lock(*arguments, **options):
            with pytest.raises(InUseError), lock_directory(tmp_path / "run"):
                pass
            seen.append(name)
            return work(*arguments, **options)

        return note_lock

    for name in ("prepare_training", "write_evaluation", "save_checkpoint"):
        monkeypatch.setattr(run_module, name, note(name, getattr(run_module, name)))
    monkeypatch.setattr(run_outputs, "draw_plots", note("draw_plots", run_outputs.draw_plots))
    changes = settings(write_data(tmp_path / "data"))
    changes["data"]["test"] = changes["data"]["validation"]
    run(write_recipe(tmp_path, changes), tmp_path / "run", "loop.steps=1", "evaluation.samples=0")
    assert seen == ["prepare_training", "save_checkpoint", "draw_plots", "write_evaluation"]


def test_run_finished_while_waiting_is_not_replaced(folder, monkeypatch):
    """The directory is checked again after the lock is acquired."""
    traces = folder / "log.jsonl", folder / "recipe.yaml", folder / "best"
    recipe = folder.with_name("recipe.yaml")
    aside = folder.with_name("aside")
    folder.rename(aside)
    locked = run_module.lock_on_main_process

    def late(*arguments):
        shutil.copytree(aside, folder)
        return locked(*arguments)

    monkeypatch.setattr(run_module, "lock_on_main_process", late)
    with pytest.raises(RunDirectoryError, match="already contains a run"):
        run(recipe, folder)
    assert all(path.exists() for path in traces)


@pytest.mark.slow
def test_all_processes_exit_when_the_main_one_gets_no_lock(folder):
    with hold_lock(folder):
        command = [str(folder / "recipe.yaml"), "--out", str(folder), "--resume"]
        output = finish(start(command, processes=2), expected=1)
    assert output.count("is being written by") == 1


@pytest.mark.parametrize("error", [InUseError("in use"), OSError(errno.ENOSPC, "no space")])
def test_main_process_failure_reaches_the_others(monkeypatch, error):
    sent = []
    monkeypatch.setattr(main_process, "broadcast_object_list", lambda outcome: sent.append(list(outcome)))

    def failing():
        raise error

    with pytest.raises(type(error)):
        on_main_process(SimpleNamespace(is_main_process=True), failing)
    expected = isinstance(error, HfVitSegError)
    assert sent == [[None, (str(error), expected)]]

    def receive(outcome):
        outcome[:] = sent[0]

    monkeypatch.setattr(main_process, "broadcast_object_list", receive)
    with pytest.raises(PreparationError if expected else RuntimeError, match=error.args[-1]):
        on_main_process(SimpleNamespace(is_main_process=False), failing)


def test_processes_of_the_same_run_share_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(main_process, "broadcast_object_list", lambda outcome: None)
    with ExitStack() as stack:
        for is_main in (True, False, False):
            stack.enter_context(lock_on_main_process(SimpleNamespace(is_main_process=is_main), tmp_path))


def test_one_of_many_concurrent_starts_gets_a_new_directory(tmp_path):
    tried, outcomes = Barrier(8), []

    def attempt() -> None:
        tried.wait()
        try:
            with lock_directory(tmp_path / "new" / "run"):
                outcomes.append(True)
                tried.wait()
        except InUseError:
            outcomes.append(False)
            tried.wait()

    threads = [Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_created_empty_directory_is_removed(tmp_path):
    with lock_directory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with lock_directory(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()
    with lock_directory(tmp_path / "a" / "b"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_file_instead_of_directory_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LockError, match="cannot be created"), lock_directory(tmp_path / "file"):
        pass


def test_lock_of_a_replacement_directory_is_preserved(tmp_path):
    """As `convert` replaces its output."""
    out = tmp_path / "out"
    out.mkdir()
    with ExitStack() as replacing, ExitStack() as other:
        replacing.enter_context(lock_directory(out))
        out.rename(tmp_path / "old")
        out.mkdir()
        other.enter_context(lock_directory(out))
        shutil.rmtree(tmp_path / "old")
        replacing.close()
        with pytest.raises(InUseError), lock_directory(out):
            pass
        other.close()
        assert not (out / LOCK).exists()


def test_files_have_separate_locks(tmp_path):
    with ExitStack() as stack:
        for name in ("model.pth", "other.pth"):
            stack.enter_context(lock_file(tmp_path / name))
        with pytest.raises(InUseError, match=r"model\.pth is being written"), lock_file(tmp_path / "model.pth"):
            pass
    assert not list(tmp_path.iterdir())


def test_replaced_directory_is_covered_by_the_run_lock(folder, tmp_path):
    run_folder = folder.resolve()
    assert lock_owner(folder / "best" / "evaluation_test") == run_folder
    assert lock_owner(folder / "test") == run_folder
    assert lock_owner(folder) == folder
    assert lock_owner(folder / "predictions") == folder / "predictions"
    assert lock_owner(tmp_path / "elsewhere" / "best") == tmp_path / "elsewhere" / "best"
    (tmp_path / "link").symlink_to(folder / "best")
    assert lock_owner(tmp_path / "link") == run_folder


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_warns(tmp_path, monkeypatch, caplog, number):
    def refuse(*arguments):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_directory(tmp_path / "out"):
        (tmp_path / "out" / "result").touch()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_other_file_system_errors_raise(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LockError, match="input/output error"), lock_directory(tmp_path / "out"):
        pass
