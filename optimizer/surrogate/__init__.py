"""What a search believes of merges that it has not scored; start at `surrogate.py`."""
