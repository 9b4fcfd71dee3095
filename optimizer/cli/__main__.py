"""``python -m optimizer.cli``: the command ``mergefront``."""

from optimizer.cli.app import main

main()
