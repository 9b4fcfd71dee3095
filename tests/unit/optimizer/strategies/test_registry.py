"""Strategies that installed packages bring."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.schema import JobConfig
from optimizer.space import SearchSpace
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.registry import (
    ENTRY_POINTS,
    can_choose,
    check_strategy,
    make_strategy,
    strategy_factory,
    strategy_names,
)
from tests.plug_ins import Install, pretend, run_with_package


class Penalized(DirichletStrategy):
    takes_l1 = True


class Silent:
    def ask(self) -> None:
        """Propose nothing."""


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes entry points known, as an installed package does."""
    monkeypatch.setitem(sys.modules, "strategies_of_others", sys.modules[__name__])
    return pretend(monkeypatch, ENTRY_POINTS)


def test_strategy_of_an_installed_package_is_found_by_its_entry_point(
    plug_in: Install,
    make_job: Callable[..., JobConfig],
    make_space: Callable[[JobConfig], SearchSpace],
) -> None:
    plug_in(penalized="strategies_of_others:Penalized")
    job = make_job(search={"strategy": "penalized", "l1": 0.1})
    check_strategy(job)
    assert isinstance(make_strategy(job, make_space(job)), Penalized)
    assert strategy_names()[-1] == "penalized"
    assert not can_choose("penalized")


def test_package_that_is_installed_brings_its_strategy(tmp_path: Path) -> None:
    source = (
        "from optimizer.strategies.sobol import SobolStrategy\n\n"
        "class Mine(SobolStrategy):\n    pass\n"
    )
    code = "import optimizer.strategies.registry as r; print(r.strategy_factory('mine').__name__)"
    assert run_with_package(tmp_path, "mergefront.strategies", source, "Mine", code) == "Mine\n"


def test_own_strategies_are_not_replaced(plug_in: Install) -> None:
    plug_in(dirichlet="strategies_of_others:Penalized")
    assert strategy_factory("dirichlet") is DirichletStrategy
    assert strategy_names().count("dirichlet") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no.such.module:STRATEGY", "does not load: No module named"),
        ("math:pi", "must be a class with ask, tell and stop; 3.14.* has no ask, tell, stop"),
        ("strategies_of_others:Silent", "has no tell, stop"),
    ],
)
def test_entry_point_that_is_no_strategy_is_refused(
    plug_in: Install, value: str, message: str
) -> None:
    plug_in(mine=value)
    with pytest.raises(ConfigError, match=message) as raised:
        strategy_factory("mine")
    assert [problem.path for problem in raised.value.problems] == ["search.strategy"]


def test_unknown_strategy_is_refused_with_the_nearest_name_of_all(plug_in: Install) -> None:
    plug_in(penalized="strategies_of_others:Penalized")
    with pytest.raises(ConfigError, match="did you mean `penalized`"):
        strategy_factory("penalised")


def test_samples_are_refused_of_a_strategy_without_a_model(
    make_job: Callable[..., JobConfig],
) -> None:
    with pytest.raises(ConfigError, match="needs them on the same items") as raised:
        check_strategy(make_job(search={"strategy": "nsga2", "racing": {"sampling": True}}))
    (problem,) = raised.value.problems
    assert problem.path == "search.racing.sampling"
    assert "`surrogate_cma`" in str(problem)
    check_strategy(make_job(search={"strategy": "nsga2"}))
    check_strategy(make_job(search={"racing": {"sampling": True}}))
