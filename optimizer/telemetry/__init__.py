"""Who is told of a search beside the person who watches it; start at `telemetry.py`."""
