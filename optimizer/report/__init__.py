"""Results for people: reports, pages and pictures; start at `report.py`."""
