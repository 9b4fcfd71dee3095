"""From a recipe to an outcome: checkpoints, merge kernels, live models, and where they run.

Start at ``workers.job`` (one evaluation, no Ray in it), then ``workers.pool`` for how many of
them run at once. ``workers.kernels`` holds the arithmetic of merging.
"""
