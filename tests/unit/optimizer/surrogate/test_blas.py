import contextlib

import numpy as np
from scipy import linalg
from threadpoolctl import threadpool_info, threadpool_limits

from optimizer.surrogate.blas import with_one_thread


def blas_threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_linear_algebra_has_one_thread_inside_and_its_own_again_outside():
    linalg.cholesky(np.eye(2))  # both libraries, numpy's and scipy's, are loaded
    inside: list[set[int]] = []

    @with_one_thread
    def compute(raises: bool) -> None:
        inside.append(blas_threads())
        if raises:
            raise ArithmeticError

    with threadpool_limits(2, user_api="blas"):
        compute(raises=False)
        with contextlib.suppress(ArithmeticError):
            compute(raises=True)
        assert blas_threads() == {2}
    assert inside == [{1}, {1}]
