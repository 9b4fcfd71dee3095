"""The studies by name, in the order of the page."""

from scripts.papers.dare import DARE
from scripts.papers.lora import LORA
from scripts.papers.rivals import RIVALS
from scripts.papers.study import Study

STUDIES: dict[str, Study] = {study.name: study for study in (DARE, LORA, RIVALS)}
