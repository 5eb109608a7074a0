"""Where samples come from: folders, lists, COCO files, Hub datasets."""
