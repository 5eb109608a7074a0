"""The tab that finds the objects of one image, for models of instance and panoptic segmentation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.inference.files.object_files import save_table
from hf_vit_seg.inference.found_segments import COLUMNS, FoundSegments

from .catalogue import ModelFacts
from .file_segmentation import DEFAULT_WINDOW, WHOLE, SegmentedFile, find_objects_in_file, selected_protocol
from .segmentation_tab import ImageTab
from .segmentation_view import view_of_objects


class ObjectTab(ImageTab[FoundSegments]):
    """Find objects: show each with its score and area, their number by class, and files to download."""

    task = "instance"
    has_flip = False
    downloads = ("Instance map (PNG)", "Objects (CSV)", "Report (JSON)")
    columns: ClassVar[Mapping[str, str]] = {name: "str" if name == "name" else "number" for name in COLUMNS}

    def function(self) -> Callable[..., Any]:
        """Detection of objects."""
        return self.find_objects

    def process(self, image: Path, *choices: Any) -> SegmentedFile[FoundSegments]:
        """Find the objects of an uploaded image."""
        model, view, window = choices
        return find_objects_in_file(self.catalogue, model, selected_protocol(view, window, objects=True), image)

    def view(self, segmented: SegmentedFile[FoundSegments], about: ModelFacts) -> dict[str, Any]:
        """Create the view of objects."""
        return view_of_objects(segmented.result, segmented.stem, segmented.caption, about)

    def rows(self, segmented: SegmentedFile[FoundSegments]) -> list[list[Any]]:
        """Class, score, area in pixels, centroid and box of each object."""
        return [list(row.values()) for row in segmented.result.table()]

    def save(self, segmented: SegmentedFile[FoundSegments], folder: Path) -> list[Path]:
        """Instance map, table and report."""
        numbers, table, text = (folder / f"{segmented.stem}{end}" for end in (".png", ".objects.csv", ".json"))
        segmented.result.instance_image().save(numbers, compress_level=1)
        save_table(segmented.result, table)
        text.write_text(json_text(segmented.report, indent=2), encoding="utf-8")
        return [numbers, table, text]

    def find_objects(
        self, image: str | None, model: str, view: str = WHOLE, window: float = DEFAULT_WINDOW
    ) -> tuple[Any, ...]:
        """Find objects: a row for each with class, score, area and box, the instance map (16-bit PNG), CSV and JSON."""
        return self.answer(image, model, view, window)


__all__ = ["ObjectTab"]
