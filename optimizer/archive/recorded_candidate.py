"""A proposal as it is read from an archive: its recipe is decoded when it is first asked for.

Most questions go by scores. To read a recipe and to compute its id again takes as long as all else
of a candidate ten times over, and a front of thirty merges may be one of thousands.
"""

import json
from collections.abc import Mapping
from typing import Any

from configs.errors import ArchiveError
from configs.recipe import MergeRecipe
from optimizer.archive.records import blob_to_floats
from optimizer.candidate import Candidate


class RecordedCandidate(Candidate):
    """A candidate whose recipe is compared with its recorded id before anybody sees it."""

    __slots__ = ("_recipe_id", "_recipe_json")

    _recipe_id: str
    _recipe_json: str

    def __getattr__(self, name: str) -> object:
        """Decode the recipe; called for what was not set yet, and so once.

        Raises:
            ArchiveError: The recipe is not the one that was recorded, or none.
        """
        if name != "recipe":
            raise AttributeError(name, name=name, obj=self)
        recipe = self._decoded()
        object.__setattr__(self, "recipe", recipe)
        return recipe

    def _decoded(self) -> MergeRecipe:
        recipe = MergeRecipe.model_validate(json.loads(self._recipe_json))
        if recipe.recipe_id != self._recipe_id:
            raise ArchiveError(
                f"the recipe of candidate {self.index} has id {recipe.recipe_id[:12]}, recorded "
                f"was {self._recipe_id[:12]}: the archive is damaged, restore it from a copy",
                candidate=self.index,
            )
        return recipe


def decode_candidate(row: Mapping[Any, Any], *, checked: bool = False) -> Candidate:
    """Build a candidate from its row.

    Args:
        row: Of the table ``proposals``.
        checked: Whether the recipe is read now, and not only when it is asked for.

    Raises:
        ArchiveError: ``checked``, and the recipe is not the one that was recorded.
    """
    candidate = RecordedCandidate.__new__(RecordedCandidate)
    for name, value in (
        ("index", row["candidate"]),
        ("genotype", blob_to_floats(row["genotype_f64"])),
        ("origin", row["origin"]),
        ("seen", row["seen"]),
        ("_recipe_id", row["recipe_id"]),
        ("_recipe_json", row["recipe"]),
    ):
        object.__setattr__(candidate, name, value)
    candidate.__post_init__()
    if checked:
        _ = candidate.recipe
    return candidate
