"""Package data: variants (`models/*.yaml`), recipes (`recipes/*.yaml`), labels (`labels/*.json`)."""
