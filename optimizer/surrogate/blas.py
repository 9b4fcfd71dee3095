"""One thread for the linear algebra of a search's beliefs.

Their matrices are small: a second thread gains little, waits for the first in a busy loop, and
takes the core from a worker beside the driver. Sums over one thread also have the same bits on
every number of cores, and so have the asks of a search that is resumed on another machine.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _controller() -> ThreadpoolController:
    # Made at the first call, when numpy's and scipy's libraries are loaded.
    return ThreadpoolController()


def with_one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function's calls of BLAS and LAPACK use one thread; torch has its own."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited
