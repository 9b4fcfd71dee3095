"""Coefficients of a merge that are learned by gradient descent, on texts without answers.

Start at ``dam`` and ``adamerging``, which say what is minimized. Both work on a ``LearnableMerge``
(``merged_model``): one live model that holds the merge and gives the gradient of its coefficients.
"""
