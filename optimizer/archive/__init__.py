"""The one record of a search: where it is kept, what is written and read; start at `archive.py`."""
