"""Slow NumPy oracle of structured pruning: groups as explicit lists of indices, everything in loops."""

import numpy as np


def block_groups(shape, size):
    """Lists of indices: `size` consecutive entries of axis 0 in one column."""
    inputs, units = shape
    return [
        [(i, u) for i in range(start, min(start + size, inputs))]
        for start in range(0, inputs, size)
        for u in range(units)
    ]


def unit_groups(shape, gates=1):
    """Lists of indices: everything that has one number on the last axis, in all gates."""
    units = shape[-1] // gates
    return [[i for i in np.ndindex(*shape) if i[-1] % units == unit] for unit in range(units)]


def effective_sensitivity(weight, sensitivity, groups):
    """Per weight the mean sensitivity of the surviving weights of its group."""
    result = np.zeros(weight.shape)
    for group in groups:
        living = [float(sensitivity[i]) for i in group if weight[i] != 0]
        for i in group:
            result[i] = np.mean(living) if living else 0.0
    return result


def shrinkage(weight, sensitivity, groups, strength):
    """strength * w * max(0, 1 - S_g)."""
    return strength * weight * np.maximum(0, 1 - effective_sensitivity(weight, sensitivity, groups))


def mask(weight, groups, threshold):
    """Groups whose root mean square over the surviving weights is below the threshold go; the best one stays."""
    keep, scores = np.zeros(weight.shape, bool), []
    for group in groups:
        living = [float(weight[i]) ** 2 for i in group if weight[i] != 0]
        scores.append(np.sqrt(np.mean(living)) if living else -1.0)
        for i in group:
            keep[i] = weight[i] != 0 and scores[-1] >= threshold
    if not keep.any():
        for i in groups[int(np.argmax(scores))]:
            keep[i] = weight[i] != 0
    return keep


def n_of_m(weight, kept, of):
    """Of every `of` consecutive inputs the `kept` largest stay; among equals the lower index goes."""
    keep = np.zeros(weight.shape, bool)
    for group in block_groups(weight.shape, of):
        ranked = sorted(group, key=lambda i: (abs(weight[i]), i[0]))
        for i in ranked[max(0, len(group) - kept) :]:
            keep[i] = weight[i] != 0
    return keep


def penalty(weight, sensitivity, groups, strength):
    """strength * sum over the groups of 1/2 ||w_g||^2 max(0, 1 - S_g)."""
    total = 0.0
    for group in groups:
        living = [float(sensitivity[i]) for i in group if weight[i] != 0]
        mean = np.mean(living) if living else 0.0
        total += 0.5 * sum(float(weight[i]) ** 2 for i in group) * max(0.0, 1 - mean)
    return strength * total
