"""The front as somebody wishes to see it: by a preference, above floors, from its knee.

What the command ``front`` prints and the service answers; the rules are those of
``optimizer.results.select``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem
from configs.evaluation import SplitName
from optimizer.results.front_view import ScoredCandidate, front_of, scored_candidates

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive


def numbers(texts: Iterable[str], key: str, title: str) -> dict[str, float]:
    """Read ``NAME=NUMBER`` texts.

    Args:
        texts: One pair each.
        key: Who gave them, for problems: an option or a parameter.
        title: Of the error.

    Raises:
        ConfigError: One is something else; lists all that are.
    """
    found: dict[str, float] = {}
    problems = []
    for text in texts:
        name, _, value = text.partition("=")
        try:
            # Without a sign of equality there is no number either.
            found[name.strip()] = float(value)
        except ValueError:
            problems.append(Problem(key, f"expected NAME=NUMBER, found `{text[:100]}`"))
    if problems:
        raise ConfigError(title, problems)
    return found


@dataclass(frozen=True, slots=True)
class FrontWish:
    """What a front is asked for.

    Attributes:
        prefer: Objective -> weight of the mean that is maximized; None is the job's preference.
        floors: Objective -> smallest acceptable score.
        knee: Whether the knee comes first.
        raw: Whether raw search scores rank, and not the posterior.
    """

    prefer: Mapping[str, float] | None = None
    floors: Mapping[str, float] | None = None
    knee: bool = False
    raw: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the front is asked for."""
        return not (self.prefer or self.floors or self.knee)


def wished_front(
    archive: "Archive",
    split: SplitName,
    wish: FrontWish,
    believed: Sequence[ScoredCandidate] | None = None,
) -> tuple[list[ScoredCandidate], str | None]:
    """Return the front, and the rule by which its first row is the first where one was given.

    Args:
        archive: The record of the search.
        split: Whose scores.
        wish: What is asked for.
        believed: What ``surrogate.belief.believed_candidates`` gives, where that is known already.

    Raises:
        ConfigError: The wish makes no sense, or nothing meets its floors.
        ArchiveError: Something is wished for, and nothing was scored yet.
    """
    is_raw = wish.raw or split != "search"
    if not wish.is_plain and is_raw:
        flag = "--raw" if wish.raw else "--split"
        message = "leave it out with --prefer, --at-least and --knee: they go by the posterior"
        raise ConfigError("the command line cannot be read", [Problem(flag, message)])
    if wish.is_plain and is_raw:
        return front_of(scored_candidates(archive, split)), None
    # What believes takes longer to import than a raw front takes to read.
    from optimizer.results.belief import believed_candidates
    from optimizer.results.select import choice_from, ranked

    if wish.is_plain:
        return front_of(believed_candidates(archive) if believed is None else believed), None
    wanted = ranked(
        archive, prefer=wish.prefer, floors=wish.floors, knee=wish.knee, believed=believed
    )
    choice = choice_from(archive, wanted, prefer=wish.prefer, floors=wish.floors, knee=wish.knee)
    rows = front_of(wanted)
    first = [row for row in rows if row.candidate.index == choice.candidate.index]
    others = [row for row in rows if row.candidate.index != choice.candidate.index]
    return [*first, *others], choice.rule
