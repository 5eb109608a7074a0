"""Classification datasets with one folder of images per class."""

from typing import ClassVar

from hf_vit_seg.data.images.files import files_below, readable_suffixes
from hf_vit_seg.data.labels.names import compose
from hf_vit_seg.data.wording import format_list

from .file_source import FileSource
from .source import Place, SourceError, SourceRecord, existing_folder


class ClassFoldersSource(SourceRecord):
    """Images sorted into a folder for each class, `root/cat/1.jpg`, as in ImageNet.

    root: the parent folder of the class folders; their names in alphabetical order are the classes.
    """

    tasks: ClassVar = ("classification",)

    root: Place

    def open(self, task: str, channels: int = 3) -> FileSource:
        """Find the images. Raises SourceError if there are no class folders, or one has no images."""
        root = existing_folder(self.root, "root")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        suffixes = readable_suffixes()
        found = {folder.name: list(files_below(folder, suffixes)) for folder in folders}
        if not found:
            raise SourceError(f"{root} has no subfolders: create one folder of images per class")
        if empty := [name for name, files in found.items() if not files]:
            raise SourceError(
                f"{root}: found folders without images: {format_list(empty)}; remove them, as every folder is a class"
            )
        images = [f"{name}/{path.as_posix()}" for name, files in found.items() for path in files]
        labels = [label for label, files in enumerate(found.values()) for _ in files]
        return FileSource(root, images, root, labels, tuple(map(compose, found)), channels)


__all__ = ["ClassFoldersSource"]
