"""Files on this disk, at fsspec addresses, and in tar files."""
