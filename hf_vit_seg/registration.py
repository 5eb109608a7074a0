"""Register the architectures and the pipeline when transformers' Auto classes are first used.

`import hf_vit_seg` must be fast, so that it imports neither torch nor transformers. A finder on `sys.meta_path` follows
the imports of transformers, of this package, and of packages with plugins. Modules with Auto classes and pipelines are
watched after their import: the first access to one of their attributes registers everything.

Nothing is registered within an import of these packages, because modules are half executed there (transformers'
modeling_utils imports configuration_auto, for example), and because the thread holds import locks that other threads
wait for. What such an import used is registered at its end. Modules that were imported before this package cannot be
watched reliably; with one of them, `install_import_hook` registers immediately.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import RLock, local
from types import ModuleType
from typing import Any

from .entry_points import PACKAGE, PREFIX, entries, installed_versions

ARCHITECTURES, PIPELINE = "architectures", "pipeline"
AUTO_MODULES, PIPELINES = "transformers.models.auto.", "transformers.pipelines"
PLUGIN_GROUPS = (PREFIX + "architectures", PREFIX + "heads")

logger = logging.getLogger(__name__)
lock = RLock()
loaded: set[str] = set()  # the parts to register whose modules of transformers are imported
registered: set[str] = set()


class ThreadState(local):
    """The number of imports of followed packages that are in progress in this thread."""

    imports = 0


thread = ThreadState()


@contextmanager
def suspend_registration() -> Iterator[None]:
    """Access watched modules without registering, within an import."""
    thread.imports += 1
    try:
        yield
    finally:
        thread.imports -= 1


@contextmanager
def lock_registration() -> Iterator[None]:
    """Access watched modules without registering, while other threads wait for the registration."""
    with lock, suspend_registration():
        yield


def registered_part(name: str) -> str | None:
    """Return the part to register with a module of transformers."""
    return ARCHITECTURES if name.startswith(AUTO_MODULES) else PIPELINE if name == PIPELINES else None


class LazyRegistrationModule(ModuleType):
    """A module whose attributes are used only after the registration."""

    def __getattribute__(self, name: str) -> Any:
        if not thread.imports and not name.startswith("__"):
            register_all()
        return ModuleType.__getattribute__(self, name)


class ImportHookLoader(Loader):
    """Loads a module with its own loader, watches it, and registers what an import has used at its end."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __getattr__(self, name: str) -> Any:  # `get_code`, for `python -m`
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, which keeps no trace of this loader."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__, name = self.loader, module.__name__
        with suspend_registration():
            self.loader.exec_module(module)
        part = registered_part(name)
        if part is not None and part not in registered:
            module.__class__ = LazyRegistrationModule
            loaded.add(part)
        elif not thread.imports and should_register_after(name) and lock.acquire(blocking=False):
            # Do not wait for the lock: the thread that holds it may be waiting for the import of this module.
            try:
                register_all()
            finally:
                lock.release()


def should_register_after(name: str) -> bool:
    """Return whether to register after this import: not for modules of transformers that the architectures import."""
    return not loaded <= registered and (
        not name.startswith("transformers.") or name.startswith("transformers.models.")
    )


class ImportHookFinder(MetaPathFinder):
    """Finds modules of the followed packages with the other finders, and follows their import."""

    def __init__(self) -> None:
        targets = [entry.value for entry in entries(*PLUGIN_GROUPS)]
        self.packages = {PACKAGE, "transformers", *(target.partition(":")[0].partition(".")[0] for target in targets)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the other finders, with a loader that follows the import."""
        if fullname.partition(".")[0] not in self.packages:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = ImportHookLoader(spec.loader)  # pyright: ignore[reportArgumentType]
        return spec


def install_import_hook() -> None:
    """Register when transformers' Auto classes and pipelines are first used, or now if they are already imported.

    Repeated calls change nothing.
    """
    remove_finders()
    sys.meta_path.insert(0, ImportHookFinder())
    loaded.update(part for part in map(registered_part, list(sys.modules)) if part is not None)
    if not loaded <= registered:
        register_all()


def remove_finders() -> None:
    """Remove this module's finder, also of an earlier import of it."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]


def register_all() -> None:
    """Register with the parts of transformers that are imported, once per process."""
    with lock_registration():
        for part, step in STEPS.items():
            if part in loaded - registered:
                step()
                registered.add(part)
        for module in list(sys.modules.values()):
            if type(module) is LazyRegistrationModule:  # not isinstance, which would run the code of lazy modules
                module.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]
        if registered == STEPS.keys():
            remove_finders()


def register_architectures() -> None:
    """Register every installed architecture and segmentation head."""
    from .plugins import plugins

    if len(versions := installed_versions()) > 1:
        logger.warning(
            "several versions of hf_vit_seg are installed (%s), and entry points of one may load code of the other: "
            "uninstall all but one",
            ", ".join(f"{version} in {folder}" for version, folder in versions.items()),
        )
    plugins()


def register_pipeline() -> None:
    """Register the task "semantic-segmentation"."""
    from hf_vit_seg.inference import pipeline

    pipeline.register_pipeline()


STEPS: dict[str, Callable[[], None]] = {ARCHITECTURES: register_architectures, PIPELINE: register_pipeline}

__all__ = ["install_import_hook", "lock_registration", "register_all"]
