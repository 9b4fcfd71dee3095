"""What decides, remembers and exports: search space, strategies, archive, driver, CLI.

Start at ``optimizer.driver`` for the loop, at ``optimizer.strategies.strategy`` for what proposes,
and at ``optimizer.archive.archive`` for what is remembered.
"""
