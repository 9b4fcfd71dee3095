"""What proposes candidates: the contract in `strategy.py`, by name in `registry.py`."""
