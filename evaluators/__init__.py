"""Scoring a live model: items, suites, generation and the lm-eval adapter.

This package knows a model and a tokenizer, and nothing of merges, searches or Ray. Start at
``evaluators.evaluator`` for the contract, at ``evaluators.suite`` for all that a job scores, and at
``evaluators.harness`` for how lm-eval is used.
"""
