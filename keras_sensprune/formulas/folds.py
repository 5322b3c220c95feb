"""Cross-validation: which example is in which fold, and which setting the folds favor."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error, integer_argument


def stratified_folds(labels: Any, folds: int, seed: int) -> np.ndarray:
    r"""The fold of each example: folds of equal size, in which all classes have equal shares.

    The examples are shuffled, sorted by class (a stable sort), and dealt out in turn. So with $n$ examples, $n_c$ of
    them of class $c$, and $k$ folds, every fold has $\lfloor n/k \rfloor$ or $\lceil n/k \rceil$ examples and
    $\lfloor n_c/k \rfloor$ or $\lceil n_c/k \rceil$ of class $c$. A class of one example is missing in the training
    of one fold.

    Args:
        labels: class of each example, shape (n,); all equal for folds without classes.
        folds: $k$, from 2 to $n$.
        seed: of the shuffling, an integer of at least 0.

    Returns:
        int64 array of shape (n,) with numbers from 0 to $k - 1$.

    Raises:
        ArgumentError: if `labels` has another shape, `seed` is no such integer, or `folds` is not from 2 to $n$.

    Example:
        >>> from keras_sensprune.formulas.folds import stratified_folds
        >>> fold = stratified_folds([0, 0, 0, 0, 1, 1], 2, seed=0)
        >>> sorted(fold[:4].tolist()), sorted(fold[4:].tolist())
        ([0, 0, 1, 1], [0, 1])
    """
    classes = np.asarray(labels)
    if classes.ndim != 1:
        raise argument_error("labels", "an array of shape (n,)", classes.shape)
    integer_argument("seed", seed, 0)
    if integer_argument("folds", folds, 2) > classes.size:
        raise argument_error("folds", f"at most the number of examples, {classes.size}", folds)
    shuffled = np.random.default_rng(seed).permutation(classes.size)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    fold = np.empty(classes.size, np.int64)
    fold[by_class] = np.arange(classes.size) % folds
    return fold


def one_standard_error(errors: Any, sparsities: Any) -> tuple[int, int]:
    r"""The sparsest setting that is within one standard error of the best one, and the best one.

    $$b = \arg\min_j \bar e_j, \qquad c = \arg\max_j \{\bar s_j : \bar e_j \le \bar e_b + \sigma_b / \sqrt k\},$$ with
    $\bar e_j$ the mean error of setting $j$ over $k$ folds, $\sigma_b$ the standard deviation (with $k - 1$ in its
    denominator) of the errors of setting $b$, and $\bar s_j$ the mean sparsity of setting $j$. Among equally sparse
    settings the one with the lower error is taken, then the first.

    Args:
        errors: shape (settings, folds); less is better.
        sparsities: of the same shape, fractions.

    Returns:
        The numbers $c$ and $b$.

    Raises:
        ArgumentError: if the arrays are of other shapes, have fewer than 2 folds, or hold values that are not finite.

    Example:
        >>> from keras_sensprune.formulas.folds import one_standard_error
        >>> one_standard_error([[1.0, 3.0], [2.5, 2.5], [4.0, 4.0]], [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]])
        (1, 0)

    Reference: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, section 3.4.3.
    """
    e, s = np.asarray(errors, float), np.asarray(sparsities, float)
    if e.ndim != 2 or not e.size or e.shape[1] < 2 or e.shape != s.shape:
        raise argument_error("errors", "two arrays of shape (settings, folds), 2 folds or more", (e.shape, s.shape))
    if not (np.isfinite(e).all() and np.isfinite(s).all()):
        raise argument_error("errors", "finite", errors, "Leave out the settings whose training diverged.")
    mean, sparsity = e.mean(axis=1), s.mean(axis=1)
    best = int(np.argmin(mean))
    allowed = mean[best] + e[best].std(ddof=1) / np.sqrt(e.shape[1])
    order = np.lexsort((mean, -sparsity))  # the sparsest first, among equals the lowest error
    chosen = next(number for number in order.tolist() if mean[number] <= allowed)
    return chosen, best
