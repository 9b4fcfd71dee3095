"""Choosing one merge from recorded scores: by preference, by floors, or by its id.

The rule of :func:`choose` needs no evaluation. It goes by what is believed of every merge that was
scored (``optimizer.results.belief``), since choosing by the scores that the search itself
maximized picks lucky noise. Where too little was scored for a model, it reads the ``select`` split
alone.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from configs.errors import ArchiveError, ConfigError, Problem
from configs.evaluation import SplitName
from optimizer.candidate import Candidate
from optimizer.results.belief import believed_candidates, chance_of, knee_of, meets
from optimizer.results.front_view import SHORT_ID, ScoredCandidate, front_of, scored_candidates
from optimizer.scalarize import preferred_mean

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen candidate, the split whose scores decided, and the rule in words."""

    candidate: Candidate
    split: SplitName
    rule: str


def choose(
    archive: "Archive",
    *,
    prefer: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    knee: bool = False,
    recipe_id: str | None = None,
) -> Choice:
    """Choose one merge.

    Without any wish it is the one that the search itself chose; an unfinished search has not
    chosen yet, and the best preference-weighted mean decides.

    Args:
        archive: The record of the search.
        prefer: Objective -> relative weight of the mean that is maximized; the job's own
            preference where None.
        floors: Objective -> smallest acceptable score.
        knee: Take the knee of the front of what meets the floors; excludes ``prefer``.
        recipe_id: Prefix of the id of the wanted recipe; excludes the other three.

    Raises:
        ConfigError: Unknown objective, floors that nothing satisfies, an id that names no
            scored recipe or several.
        ArchiveError: Nothing was scored yet.
    """
    split: SplitName = "select" if archive.scores("select") else "search"
    if recipe_id is not None:
        if prefer or floors or knee:
            raise _wrong_id("an id names one recipe; leave --prefer, --at-least and --knee out")
        return Choice(_by_id(archive, recipe_id), split, f"recipe id {recipe_id}")
    if not prefer and not floors and not knee and (chosen := archive.choice()) is not None:
        return Choice(archive.candidate(chosen), split, "the choice of the search")
    rows = ranked(archive, prefer=prefer, floors=floors, knee=knee)
    return choice_from(archive, rows, prefer=prefer, floors=floors, knee=knee)


def recorded_choice(archive: "Archive", index: int, rule: str | None = None) -> Choice:
    """Return a candidate that somebody chose.

    Args:
        archive: The record of the search.
        index: Of the candidate.
        rule: How it was chosen, in words, for its card.

    Raises:
        ArchiveError: There is none of that index, or it was never scored.
    """
    archive.weights_digest(index)
    split: SplitName = "select" if archive.scores("select") else "search"
    said = " ".join((rule or f"candidate {index}").split())  # a card has it in one line
    return Choice(archive.candidate(index), split, said)


def choice_from(
    archive: "Archive",
    rows: Sequence[ScoredCandidate],
    *,
    prefer: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    knee: bool = False,
) -> Choice:
    """Return the first of what :func:`ranked` gave for the same wish, with the rule in words."""
    best = rows[0]
    split: SplitName = "select" if archive.scores("select") else "search"
    if best.posterior is not None:
        is_held_out = best.candidate.index in archive.scores("select")
        split = "select" if is_held_out else "search"
    preference = _checked(archive, prefer or {}, floors or {}, knee=knee)
    return Choice(best.candidate, split, _rule(best, preference, floors or {}, split, knee=knee))


def ranked(
    archive: "Archive",
    *,
    prefer: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    knee: bool = False,
    believed: Sequence[ScoredCandidate] | None = None,
) -> list[ScoredCandidate]:
    """Return what meets the floors, what is wanted most first, ``mean`` by the preference.

    With ``knee`` the first is the knee of the front, and the others follow by the mean.
    ``believed`` is what ``optimizer.results.belief.believed_candidates`` gives, where that is
    known.

    Raises:
        ConfigError: Unknown objective, or floors that nothing satisfies.
        ArchiveError: Nothing was scored yet.
    """
    preference = _checked(archive, prefer or {}, floors or {}, knee=knee)
    rows, split = _believed(archive, believed)
    meeting = [row for row in rows if meets(row, floors or {})]
    if not meeting:
        raise _unreachable(rows, floors or {}, split)
    weighed = [replace(row, mean=preferred_mean(row.believed, preference)) for row in meeting]
    weighed.sort(key=lambda row: (-row.mean, row.candidate.index))
    if knee:
        first = knee_of(front_of(weighed))
        weighed.remove(first)
        weighed.insert(0, first)
    return weighed


def _believed(
    archive: "Archive", believed: Sequence[ScoredCandidate] | None
) -> tuple[list[ScoredCandidate], SplitName]:
    """Return the rows to choose from, and the split of their raw scores."""
    rows = believed_candidates(archive) if believed is None else list(believed)
    split: SplitName = "search"
    if archive.scores("select") and all(row.posterior is None for row in rows):
        rows, split = scored_candidates(archive, "select"), "select"
    if not rows:
        raise ArchiveError(
            f"{archive.place}: no candidate was scored yet; continue with "
            f"`mergefront resume {archive.place}`"
        )
    return rows, split


def _checked(
    archive: "Archive",
    prefer: Mapping[str, float],
    floors: Mapping[str, float],
    *,
    knee: bool,
) -> dict[str, float]:
    """Return the preference, summing to one, after refusing what makes no sense."""
    objectives = list(archive.job.objectives)
    problems = [
        Problem(flag, f"`{name}` is no objective; {_nearest(name, objectives)}")
        for flag, wish in (("--prefer", prefer), ("--at-least", floors))
        for name in wish
        if name not in objectives
    ]
    problems += [
        Problem("--prefer", f"weight of `{name}` must be a number >= 0, found {weight}")
        for name, weight in prefer.items()
        if not (math.isfinite(weight) and weight >= 0)
    ]
    problems += [
        Problem("--at-least", f"floor of `{name}` must be a number, found {floor}")
        for name, floor in floors.items()
        if not math.isfinite(floor)
    ]
    if prefer and knee:
        problems.append(Problem("--knee", "is a choice of its own; leave --prefer out"))
    if prefer and not problems and sum(prefer.values()) <= 0:
        problems.append(Problem("--prefer", "at least one weight must be > 0"))
    if problems:
        raise ConfigError("cannot choose a merge", problems)
    if not prefer:
        return archive.job.preference
    return {name: prefer.get(name, 0.0) / sum(prefer.values()) for name in objectives}


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}there are {', '.join(names)}"


def _unreachable(
    rows: Sequence[ScoredCandidate], floors: Mapping[str, float], split: SplitName
) -> ConfigError:
    problems = []
    for name, floor in floors.items():
        best = max(rows, key=lambda row: row.believed[name].value)
        others = [
            row.believed[name].value
            for row in rows
            if all(
                row.believed[other].value >= bound
                for other, bound in floors.items()
                if other != name
            )
        ]
        text = f"{name}={floor:g}: the best `{name}` is {best.believed[name].value:.3f}"
        text += f" (recipe {best.short_id})"
        if len(floors) > 1:
            text += (
                f", {max(others):.3f} where the other floors hold"
                if others
                else ", and no merge meets the other floors"
            )
        problems.append(Problem("--at-least", text))
    where = "by the posterior" if rows[0].posterior is not None else f"on the {split} split"
    return ConfigError(f"no merge meets every floor {where}; lower one", problems)


def _by_id(archive: "Archive", prefix: str) -> Candidate:
    wanted = prefix.lower()
    scored = archive.scores("search").keys() | archive.scores("report").keys()
    known: dict[str, Candidate] = {}
    for candidate in archive.candidates():
        if candidate.index in scored:
            known.setdefault(candidate.recipe.recipe_id, candidate)
    matches = [recipe_id for recipe_id in known if wanted and recipe_id.startswith(wanted)]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        found = ", ".join(f"{recipe_id[: len(wanted) + 4]}" for recipe_id in matches[:8])
        raise _wrong_id(f"`{prefix}` names {len(matches)} recipes: {found}; give more digits")
    close = difflib.get_close_matches(wanted, [name[: len(wanted)] for name in known], n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    raise _wrong_id(
        f"no scored recipe begins with `{prefix}`; {hint}"
        f"`mergefront front {archive.place}` lists ids such as "
        + (", ".join(name[:SHORT_ID] for name in list(known)[:3]) or "none yet")
    )


def _wrong_id(message: str) -> ConfigError:
    return ConfigError("cannot choose a merge", [Problem("--id", message)])


def _rule(
    best: ScoredCandidate,
    preference: Mapping[str, float],
    floors: Mapping[str, float],
    split: SplitName,
    *,
    knee: bool,
) -> str:
    weights = ", ".join(f"{name} {weight:.2g}" for name, weight in preference.items() if weight)
    text = "knee of the front" if knee else f"best mean ({weights})"
    text += " by the posterior" if best.posterior is not None else f" on the {split} split"
    if floors:
        text += " with " + ", ".join(f"{name} >= {floor:g}" for name, floor in floors.items())
        if best.posterior is not None:
            text += f" (all hold with probability {chance_of(best, floors):.2f})"
    return text
