"""A folder of images for each class."""

from typing import ClassVar

from hf_vit_seg.data.images.files import files_below, readable_suffixes
from hf_vit_seg.data.wording import listed

from .file_source import FileSource
from .source import Place, SourceError, SourceRecord, existing_folder


class ClassFoldersSource(SourceRecord):
    """Images sorted into a folder for each class, `root/cat/1.jpg`, as in ImageNet.

    root: the folder of these folders, whose names are the classes, in alphabetical order.
    """

    tasks: ClassVar = ("classification",)

    root: Place

    def open(self, task: str, bands: int = 3) -> FileSource:
        """Find the images. SourceError when there are no folders, or one is without images."""
        root = existing_folder(self.root, "root")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        suffixes = readable_suffixes()
        found = {folder.name: list(files_below(folder, suffixes)) for folder in folders}
        if not found:
            raise SourceError(f"{root} has no folders: there is to be one for each class, with its images inside")
        if empty := [name for name, files in found.items() if not files]:
            raise SourceError(f"{root}: folders without images: {listed(empty)}; every folder is a class: remove these")
        images = [f"{name}/{path.as_posix()}" for name, files in found.items() for path in files]
        labels = [label for label, files in enumerate(found.values()) for _ in files]
        return FileSource(root, images, root, labels, tuple(found), bands)


__all__ = ["ClassFoldersSource"]
