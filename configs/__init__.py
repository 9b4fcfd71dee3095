"""The vocabulary of mergefront: job files and their schema, merge recipes, and errors.

Nothing here imports torch, ray or lm-eval; every other package imports this one. Start at
``configs.schema`` for what a job can say, and at ``configs.recipe`` for what a merge is.
"""
