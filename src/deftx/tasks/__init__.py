"""Tasks: what a model is trained on and scored by, and reading their data."""
