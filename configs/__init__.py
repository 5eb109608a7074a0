"""Data of the package: variants (`models/*.yaml`), recipes (`recipes/*.yaml`), labels (`labels/*.json`)."""
