"""What papers on merging say, measured on small models that are trained here.

Start at ``study.py``: a study measures one zoo (a width, a seed) and states the papers' claims as
numbers. ``studies.py`` lists them, ``zoos.py`` says what they merge, ``bench.py`` what they measure
with, ``runner.py`` runs what is not there yet, ``page.py`` writes the results.
"""
