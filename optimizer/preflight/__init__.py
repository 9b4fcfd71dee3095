"""What is looked at before a search: job, pool, machine and cost; start at `preflight.py`."""
