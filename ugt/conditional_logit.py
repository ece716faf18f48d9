"""The conditional logit: weights of signals under which the item that was taken is most probable among those that were offered.

Shapes: U users, M items offered, S signals.
Source: McFadden (1974), "Conditional logit analysis of qualitative choice behavior".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PENALTY = 1e-3  # of the squared weights


@dataclass(frozen=True)
class ConditionalLogit:
    """Weights of the signals in units of their spread."""

    mean_S: NDArray[np.float64]
    spread_S: NDArray[np.float64]
    weight_S: NDArray[np.float64]

    @classmethod
    def fit(cls, signal_UMS: NDArray, target_U: NDArray, forbidden_UM: NDArray[np.bool_]) -> ConditionalLogit:
        """Of the item (0..M-1) each user took, among those not forbidden. Convex, so the start does not matter."""
        from scipy.optimize import minimize

        x_UMS = np.asarray(signal_UMS, np.float64)
        mean_S, spread_S = x_UMS[~forbidden_UM].mean(0), x_UMS[~forbidden_UM].std(0)
        spread_S = np.where(spread_S > 1e-9, spread_S, 1)
        x_UMS = (x_UMS - mean_S) / spread_S
        users = np.arange(len(x_UMS))

        def loss(weight_S: NDArray) -> tuple[float, NDArray]:
            score_UM = np.where(forbidden_UM, -np.inf, x_UMS @ weight_S)
            top_U1 = score_UM.max(1, keepdims=True)
            p_UM = np.exp(score_UM - top_U1)
            total_U1 = p_UM.sum(1, keepdims=True)
            nll_U = np.log(total_U1[:, 0]) + top_U1[:, 0] - score_UM[users, target_U]
            slope_S = (np.einsum("um,ums->us", p_UM / total_U1, x_UMS) - x_UMS[users, target_U]).mean(0)
            return float(nll_U.mean() + PENALTY * (weight_S**2).sum()), slope_S + 2 * PENALTY * weight_S

        found = minimize(loss, np.zeros(x_UMS.shape[2]), jac=True, method="L-BFGS-B")
        return cls(mean_S, spread_S, found.x)

    def score(self, signal_MS: NDArray, forbidden: NDArray | None = None) -> NDArray[np.float64]:
        """Of each item, [M]; -inf for those `forbidden` (places among the M)."""
        score_M = ((signal_MS - self.mean_S) / self.spread_S) @ self.weight_S
        if forbidden is not None:
            score_M[forbidden] = -np.inf
        return score_M
