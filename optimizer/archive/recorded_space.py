"""The search space of an archive, from what it recorded."""

from typing import TYPE_CHECKING

from optimizer.space import SearchSpace
from workers.checkpoint import CheckpointReader
from workers.vocabulary import decide_vocabulary

if TYPE_CHECKING:
    from configs.schema import DtypeName
    from optimizer.archive.archive import Archive


def recorded_space(archive: "Archive") -> SearchSpace:
    """Return the search space of an archive.

    The data type of merges is that of the recorded recipes; the checkpoints are looked at only
    when nothing was proposed yet.

    Raises:
        CheckpointError: Nothing was proposed, and the base cannot be read.
    """
    candidates = archive.candidates()
    if candidates:
        recipe = candidates[0].recipe
        return SearchSpace(
            archive.job, archive.sources, dtype=recipe.dtype, vocabulary=recipe.vocabulary
        )
    with CheckpointReader(archive.sources.reference.directory) as reader:
        dtype: DtypeName = reader.dtype
    vocabulary = decide_vocabulary(archive.sources, archive.job.models.vocabulary)
    return SearchSpace(archive.job, archive.sources, dtype=dtype, vocabulary=vocabulary)
