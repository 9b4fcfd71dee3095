"""Merges whose coefficients are learned: what is checked before, learned, and written.

Start at ``plan.plan_learning``, then ``learn.learn_merge``; what is minimized is in
``workers.learning``.
"""
