"""The strategies by name."""

import difflib

from configs.errors import ConfigError
from configs.schema import JobConfig
from optimizer.cma_strategy import CmaStrategy
from optimizer.dirichlet_strategy import DirichletStrategy
from optimizer.space import SearchSpace
from optimizer.strategy import Strategy, StrategyFactory

STRATEGIES: dict[str, StrategyFactory] = {
    "cma": CmaStrategy,
    "dirichlet": DirichletStrategy,
}


def make_strategy(job: JobConfig, space: SearchSpace) -> Strategy:
    """Build the strategy that the job names.

    Raises:
        ConfigError: There is no strategy of that name.
    """
    name = job.search.strategy
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(STRATEGIES)}"
        raise ConfigError.single("search.strategy", f"unknown strategy `{name}`; {hint}")
    return STRATEGIES[name](job, space)
