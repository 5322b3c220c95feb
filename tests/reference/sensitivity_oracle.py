"""Slow, independent oracle of the sensitivities: central differences of the logits in NumPy, float64.

Nothing here is shared with the library: no gradient, no loss and no mask of a framework is used. The caller gives a
function from weights to logits, and the weights omega of the positions and alpha of the outputs as plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Weights = list[np.ndarray]
Function = Callable[[Weights], np.ndarray]

EPS = float(np.finfo(np.float64).eps)

# First central difference: error h^2/6 |f'''| + eps |f| / h, least near h = eps^(1/3) = 6e-6, where it is about
# 6e-12 |f'''| + 4e-11 |f|.
STEP = EPS ** (1 / 3)
# Second central difference: error h^2/12 |f''''| + 4 eps |f| / h^2, least near h = eps^(1/4) = 1.2e-4, where it is
# about 1e-9 |f''''| + 6e-8 |f|.
SECOND_STEP = EPS ** (1 / 4)


def choose_entries(weights: Sequence[np.ndarray], most: int, seed: int = 0) -> list[np.ndarray]:
    """Flat indices of at most `most` random entries of each weight."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(w.size, min(most, w.size), replace=False)) for w in weights]


def _moved(weights: Sequence[np.ndarray], which: int, entry: int, by: float) -> Weights:
    copies = [np.array(w, dtype=np.float64) for w in weights]
    copies[which].flat[entry] += by
    return copies


def derivatives(
    f: Function, weights: Sequence[np.ndarray], entries: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """df/dw for each chosen entry of each weight: arrays of shape (entries, *shape of f)."""
    entries = [np.arange(w.size) for w in weights] if entries is None else entries
    return [
        np.stack([(f(_moved(weights, i, j, STEP)) - f(_moved(weights, i, j, -STEP))) / (2 * STEP) for j in chosen])
        for i, chosen in enumerate(entries)
    ]


def second_derivatives(f: Function, weights: Sequence[np.ndarray], entries: Sequence[np.ndarray]) -> list[np.ndarray]:
    """d2f/dw2 for each chosen entry of each weight."""
    h, middle = SECOND_STEP, f([np.array(w, dtype=np.float64) for w in weights])
    return [
        np.stack([(f(_moved(weights, i, j, h)) - 2 * middle + f(_moved(weights, i, j, -h))) / h**2 for j in chosen])
        for i, chosen in enumerate(entries)
    ]


def combine(dy: np.ndarray, alpha: np.ndarray | None, omega: np.ndarray, reduction: str) -> np.ndarray:
    """S of each entry from dy (entries, P, C), output weights alpha (P, C; None: 1/C) and position weights omega (P,).

    abs_of_mean, unspecific:  (1/C) sum_k |sum_p omega_p dy_pk|
    abs_of_mean, specific:    |sum_p omega_p sum_k alpha_pk dy_pk|
    mean_of_abs:              sum_p omega_p sum_k alpha_pk |dy_pk|
    """
    entries, positions, classes = dy.shape
    result = np.zeros(entries)
    for e in range(entries):
        if reduction == "mean_of_abs":
            for p in range(positions):
                for k in range(classes):
                    result[e] += omega[p] * (1 / classes if alpha is None else alpha[p, k]) * abs(dy[e, p, k])
        elif alpha is None:
            result[e] = (
                sum(abs(sum(omega[p] * dy[e, p, k] for p in range(positions))) for k in range(classes)) / classes
            )
        else:
            result[e] = abs(sum(omega[p] * alpha[p, k] * dy[e, p, k] for p in range(positions) for k in range(classes)))
    return result


def combine_curvature(
    dy: np.ndarray, d2y: np.ndarray, alpha: np.ndarray | None, omega: np.ndarray, reduction: str
) -> np.ndarray:
    """D of each entry: the derivative of S by w itself, with the signs of the first derivatives held."""
    classes = dy.shape[-1]
    output = np.full(dy.shape[1:], 1 / classes) if alpha is None else alpha
    if reduction == "mean_of_abs":
        return np.einsum("p,pk,epk->e", omega, output, np.sign(dy) * d2y)
    if alpha is None:
        first, second = (np.einsum("p,epk->ek", omega, d) / classes for d in (dy, d2y))
    else:
        first, second = (np.einsum("p,pk,epk->e", omega, output, d)[:, None] for d in (dy, d2y))
    return np.sum(np.sign(first) * second, axis=1)


def equal_positions(count: int, weights: np.ndarray | None = None) -> np.ndarray:
    """omega: 1/P, or `weights` scaled to the sum 1 (all zero stays zero)."""
    if weights is None:
        return np.full(count, 1 / count)
    total = float(np.sum(weights))
    return np.asarray(weights, np.float64) / total if total > 0 else np.zeros(count)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """alpha of class numbers; a number outside [0, classes) gives a row of zeros."""
    return np.array([[float(label == k) for k in range(classes)] for label in np.ravel(labels)])


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the rows of log sum exp(y) - y_label."""
    top = logits.max(axis=1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return float(np.mean(total - logits[np.arange(len(logits)), np.ravel(labels)]))
