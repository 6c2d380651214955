"""The readable float64 twin of every operator.

A twin is a few lines of plain torch with the op's formulas.  It is the oracle of the tests, the
fallback where no kernel serves, and, being differentiable to any order, the double backward of the
kernels.
"""

from pyddfast.ops.reference.kd import kd_loss, mse_ce, soft_ce

__all__ = ["kd_loss", "mse_ce", "soft_ce"]
