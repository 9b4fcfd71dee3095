"""The studies by name, in the order of the page."""

from scripts.papers.dare import DARE
from scripts.papers.encoders import ENCODERS
from scripts.papers.front import FRONT
from scripts.papers.learned import LEARNED_MERGES
from scripts.papers.lora import LORA
from scripts.papers.merges import MERGES
from scripts.papers.recycling import RECYCLING
from scripts.papers.rivals import RIVALS
from scripts.papers.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        DARE,
        MERGES,
        ENCODERS,
        RECYCLING,
        LEARNED_MERGES,
        LORA,
        FRONT,
        RIVALS,
    )
}
