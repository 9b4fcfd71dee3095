"""What is read out of a search: the front, the choice, the verdict; start at `front_view.py`."""
