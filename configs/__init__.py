"""Data that ships with the package: variants (`models/*.yaml`), recipes (`recipes/*.yaml`), labels (`labels/*.json`)."""
