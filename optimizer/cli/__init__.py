"""The command ``mergefront``: start at `app.py`; what is heavy is imported by what needs it."""
