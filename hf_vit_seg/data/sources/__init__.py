"""Data sources: folders, lists, COCO files, Hub datasets."""
