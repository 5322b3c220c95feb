"""A network as a controller of its strength sees it: an error that rises with the log of the factor, late and noisy."""

import math

import numpy as np

from keras_sensprune.formulas.strength import adapted_gain, controlled_factor, spent_share

LOW, HIGH = 0.01, 100.0  # the default bounds of a factor


class Plant:
    """x_{t+1} = a x_t + (1 - a) (1 + g (log f_t - u)), with a = exp(-1 / lag); noise is added to what is measured.

    Args:
        gain: g, by how much of the tolerance the error rises per unit of log f.
        lag: in epochs; 0 means none.
        goal: u, the log of the factor at which the error settles at the tolerance, x = 1.
        drift: is added to the goal's error in every epoch: pruning that cannot be undone, or overfitting.
        noise: standard deviation of a measured x.
        seed: of the noise.
    """

    def __init__(self, gain, lag=3.0, goal=1.0, drift=0.0, noise=0.0, seed=0):
        self.gain, self.goal, self.drift, self.noise = gain, goal, drift, noise
        self.kept = math.exp(-1.0 / lag) if lag else 0.0
        self.shift, self.error = 0.0, 0.0
        self.rng = np.random.default_rng(seed)

    def epoch(self, factor):
        """Trains for one epoch; returns the measured x."""
        self.shift += self.drift
        settled = 1.0 + self.gain * (math.log(factor) - self.goal) + self.shift
        self.error = self.kept * self.error + (1.0 - self.kept) * max(0.0, settled)
        return self.error + self.noise * self.rng.normal()


class Law:
    """The law of the package with what it remembers, called with a factor and a share that is not cut yet."""

    def __init__(self):
        self.gain, self.before = 1.0, None

    def __call__(self, factor, spent):
        spent = spent_share(spent, 0.0, 1.0)
        self.gain = adapted_gain(self.gain, spent, self.before)
        found = controlled_factor(factor, spent, self.before, self.gain, LOW, HIGH)
        self.before = spent
        return found


def run(plant, law, epochs, factor=1.0):
    """(true errors, factors) of so many epochs under a law: (factor, spent) -> factor."""
    errors, factors = [], []
    for _ in range(epochs):
        factors.append(factor)
        spent = plant.epoch(factor)
        errors.append(plant.error)
        factor = law(factor, spent)
    return np.array(errors), np.array(factors)
