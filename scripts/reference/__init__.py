"""The reference pages of the documentation, generated from what they describe.

Start at ``scripts.reference.pages``, which ``docs/conf.py`` calls before each build.
"""
