"""The studies by name, in the order of the page."""

from scripts.papers.dare import DARE
from scripts.papers.recycling import RECYCLING
from scripts.papers.study import Study

STUDIES: dict[str, Study] = {study.name: study for study in (DARE, RECYCLING)}
