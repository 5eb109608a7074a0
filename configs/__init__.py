"""Data that ships with the package: model variants (`models/*.yaml`) and training recipes (`recipes/*.yaml`)."""
