"""What decides, remembers and exports: search space, strategies, archive, driver, CLI.

Start at ``optimizer.driver`` for the loop, at ``optimizer.strategy`` for what proposes, and at
``optimizer.archive`` for what is remembered.
"""
