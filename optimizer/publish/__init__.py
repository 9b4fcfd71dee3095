"""What leaves: checkpoints, model cards, recipes in either language; start at `export.py`."""
