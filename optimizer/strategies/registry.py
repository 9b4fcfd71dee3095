"""Strategies by name: those below, and the entry points of the group ``mergefront.strategies``.

A strategy of your own is called like a class that takes a job and a search space
(:class:`~optimizer.strategies.strategy.Strategy`), in an installed package whose ``pyproject.toml``
has ``my_strategy = "module:OBJECT"`` under ``[project.entry-points."mergefront.strategies"]``.
"""

from collections.abc import Callable
from typing import cast

from configs.errors import ConfigError, Problem
from configs.plug_ins import Registry
from configs.schema import JobConfig
from optimizer.space import SearchSpace
from optimizer.strategies.cma import CmaStrategy
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.grid import GridStrategy
from optimizer.strategies.nsga2 import Nsga2Strategy
from optimizer.strategies.scalar_cma import ScalarCmaStrategy
from optimizer.strategies.sobol import SobolStrategy
from optimizer.strategies.strategy import Strategy, StrategyFactory, learns_from_samples
from optimizer.strategies.surrogate import SurrogateStrategy

STRATEGIES: dict[str, StrategyFactory] = {
    "surrogate_cma": SurrogateStrategy,
    "cma": CmaStrategy,
    "scalar_cma": ScalarCmaStrategy,
    "nsga2": Nsga2Strategy,
    "sobol": SobolStrategy,
    "dirichlet": DirichletStrategy,
    "grid": GridStrategy,
}

ENTRY_POINTS = "mergefront.strategies"


def strategy_names() -> tuple[str, ...]:
    """Return the names of all strategies, those of installed packages last."""
    return _REGISTRY.names()


def strategy_factory(name: str) -> StrategyFactory:
    """Return what builds the strategy of that name.

    Raises:
        ConfigError: There is none, or the package that brings it does not load.
    """
    return _REGISTRY.get(name)


def check_strategy(job: JobConfig) -> None:
    """Check that there is the job's strategy, and that it knows the settings that not all know.

    Raises:
        ConfigError: There is none of that name, or it has no use for ``search.l1``,
            ``search.racing.sampling`` or ``budget.min_gain_per_hour``; all of it at once.
    """
    problems = _unknown_settings(job)
    name, sampling = job.search.strategy, job.search.racing.sampling
    if sampling is True and not can_sample(name):
        problems.append(
            Problem(
                "search.racing.sampling",
                f"`{name}` compares candidates by their scores alone, so it needs them on the same "
                f"items (found sampling: true); take it out, or use strategy "
                f"{_those(learns_from_samples)}",
            )
        )
    least = job.budget.min_gain_per_hour
    if least is not None and not _expects_gain(strategy_factory(name)):
        problems.append(
            Problem(
                "budget.min_gain_per_hour",
                f"`{name}` cannot say what is still to be gained (found "
                f"min_gain_per_hour: {least:g}), since it has no model of the scores; take it "
                f"out, or use strategy {_those(_expects_gain)}",
            )
        )
    _refuse(job, problems)


def _unknown_settings(job: JobConfig) -> list[Problem]:
    """Return what a job says of its search that its strategy has no use for."""
    name = job.search.strategy
    factory = strategy_factory(name)
    if not job.search.l1 or _takes_l1(factory):
        return []
    return [
        Problem(
            "search.l1",
            f"`{name}` cannot penalize weights (found l1: {job.search.l1:g}), since it does not "
            f"maximize one number; take `l1` out, or use strategy {_those(_takes_l1)}",
        )
    ]


def _refuse(job: JobConfig, problems: list[Problem]) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{count} with strategy `{job.search.strategy}`", problems)


def _those(know: Callable[[StrategyFactory], bool]) -> str:
    return ", ".join(f"`{name}`" for name, factory in STRATEGIES.items() if know(factory))


def _expects_gain(factory: StrategyFactory) -> bool:
    return hasattr(factory, "expected_gain")


def _takes_l1(factory: StrategyFactory) -> bool:
    return bool(getattr(factory, "takes_l1", False))


def can_choose(name: str) -> bool:
    """Whether a strategy can choose by companions which of several candidates is scored.

    Raises:
        ConfigError: There is no strategy of that name.
    """
    return hasattr(strategy_factory(name), "promote")


def can_sample(name: str) -> bool:
    """Whether a strategy learns from samples of the items (``search.racing.sampling``).

    Raises:
        ConfigError: There is no strategy of that name.
    """
    return learns_from_samples(strategy_factory(name))


def make_strategy(job: JobConfig, space: SearchSpace) -> Strategy:
    """Build the strategy that the job names.

    Whether it knows when to end is not asked (:func:`check_strategy`): archives are read, too,
    of jobs that were accepted before that was.

    Raises:
        ConfigError: There is none of that name, or it has no use for ``search.l1``.
    """
    _refuse(job, _unknown_settings(job))
    return strategy_factory(job.search.strategy)(job, space)


def _as_strategy(_: str, loaded: object) -> StrategyFactory:
    if missing := [name for name in ("ask", "tell", "stop") if not hasattr(loaded, name)]:
        raise ValueError(
            f"must be a class with ask, tell and stop; {loaded!r:.80} has no {', '.join(missing)}"
        )
    return cast("StrategyFactory", loaded)


_REGISTRY = Registry(
    STRATEGIES, group=ENTRY_POINTS, path="search.strategy", kind="strategy", convert=_as_strategy
)
