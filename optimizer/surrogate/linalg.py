"""Cholesky factors of covariances that rounding may have made singular."""

import numpy as np
from scipy.linalg import cholesky

from evaluators.scores import FloatArray

# Added to the diagonal, relative to its mean, so that equal merges do not make it singular.
_JITTER = 1e-7


def factor_of(covariance: FloatArray) -> FloatArray:
    """Lower Cholesky factor, ``(n, n)``; the jitter grows until there is one.

    Takes ``covariance`` for itself: its diagonal is another one afterwards.
    """
    diagonal = np.diag_indices_from(covariance)
    jitter = _JITTER * float(np.mean(covariance[diagonal]))
    while True:
        covariance[diagonal] += jitter
        try:
            return np.asarray(cholesky(covariance, lower=True, check_finite=False))
        except np.linalg.LinAlgError:
            jitter = 10.0 * max(jitter, 1e-12)
