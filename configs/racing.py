"""What a job file says of how much is spent on a candidate: racing, gates, screening.

``configs.schema.SearchSettings`` holds these sections.
"""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from configs.section import Section

Toggle = bool | Literal["auto"]

BEFORE: dict[str, dict[str, object]] = {
    "racing": {"sampling": False, "sample_items": None},
    "screening": {"sampling": False},
}
"""Section of ``search`` -> settings that there were not always -> what they were before."""


class Racing(Section):
    """Whether and when a candidate that is already worse stops being scored."""

    enabled: bool = True
    """Score candidates block by block, and stop those that have lost."""
    first_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of each task's items in the first block; every further block doubles what was
    scored. At least 8 items of a task are in the first one."""
    confidence: float = Field(default=0.98, gt=0.5, lt=1)
    """How sure it must be that a candidate is of no use, over all looks at it together."""
    margin: float = Field(default=1.0, ge=0)
    """By how much a candidate may seem better in an objective and still count as no better
    there, in standard errors of the score of a whole split (their median)."""
    sampling: Toggle = "auto"
    """Score every candidate on a sample of each task's items only, the next ones in turn,
    instead of racing. ``auto`` does where the strategy learns more from many candidates on few
    items than from few on many (``surrogate_cma``), and a sample has less than two thirds of the
    items. So are baselines, but the very first, the base, and those of other methods. The best are
    then scored on all ``select`` items, as those of any search are, and all baselines on the
    ``report`` items."""
    sample_items: int | None = Field(default=16, ge=1)
    """Most items of a task in a sample, where ``first_share`` of them is more; null: that share.
    At least 8 items of a task are in one, on an accelerator a batch: fewer take as long."""

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, sampling: Toggle, info: ValidationInfo) -> Toggle:
        if sampling is True and info.data.get("enabled") is False:
            raise ValueError("samples are taken in place of a race; take out `enabled: false`")
        return sampling


class Gates(Section):
    """When a candidate counts as broken, and is stopped before much is spent on it."""

    likelihood: float | None = Field(default=2.0, gt=1)
    """References take so many times the bits that they take the worst of the sources, and at
    least one per byte more, in every task with a ``companion``; null does not look."""
    items: int = Field(default=32, ge=1)
    """How many references are looked at, of all tasks together: one forward pass each. Where
    candidates are sampled or screened, those of ``screening.items`` serve as well."""
    repetition: float | None = Field(default=0.9, gt=0, le=1)
    """Share of the texts of the first block of a race that end in repetitions, where the
    sources' do not; null does not look."""


class Screening(Section):
    """Whether candidates are chosen by their companions before one of them is scored."""

    enabled: Toggle = "auto"
    """Screen, where the strategy can choose (``surrogate_cma``); ``auto`` does where a task has
    ``companion: true``, without which nothing can be screened by, and candidates are scored on
    everything: on real merges, samples with references beside find more than references that
    choose."""
    candidates: int = Field(default=6, ge=2)
    """How many candidates are screened for each that is scored."""
    items: int = Field(default=24, ge=1)
    """How many references are looked at, of all tasks together, also where candidates are sampled
    and not screened: the same for every candidate, baselines included, and no others. Companions
    vary so little between candidates on the same items that 8 of a task say as much as 32 to 64
    scores."""
    sampling: bool = True
    """Whether screening leaves ``racing.sampling`` its ``auto``: who is chosen, and baselines, are
    then scored on samples; else on everything."""
