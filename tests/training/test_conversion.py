"""In a loop of the user's own, AutoGraph converts the user's functions and leaves ours as they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer, make_pruning_step
from keras_sensprune.training import rule

LARGE, SMALL = np.full((4, 3), 2.0, "float32"), np.full((4, 3), 0.5, "float32")
TARGET = np.zeros((4, 2), "float32")


class Branching(keras.Sequential):
    """A loss with a branch in Python, which only AutoGraph makes a branch of the graph."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if tf.reduce_max(x) > 1.0:
            loss = 10.0 * loss
        return loss


def branching(regularizer=None):
    keras.utils.set_random_seed(3)
    layer = keras.layers.Dense(2, use_bias=False, kernel_regularizer=regularizer)
    model = Branching([keras.Input((3,)), layer])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def step_of(model):
    def step(data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
            if tf.reduce_max(x) < 1.0:  # another branch, in the step itself
                loss = -loss
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return step


@pytest.mark.parametrize(
    "config",
    [Sensitivity("none"), Sensitivity("loss", every=1), Sensitivity(every=2)],
    ids=lambda c: f"{c.kind}-{c.every}",
)
def test_branches_of_the_users_step_and_loss_are_converted(config):
    model = branching(SensitivityRegularizer(0.0))
    with make_pruning_step(model, config, step_of(model)) as step:
        compiled = tf.function(lambda x: step((x, TARGET)))
        found = [float(compiled(tf.constant(x))) for x in (LARGE, SMALL, LARGE)]
    eager = branching()
    expected = [float(step_of(eager)((tf.constant(x), TARGET))) for x in (LARGE, SMALL, LARGE)]
    assert found[1] < 0 < found[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # a sum of products in another order


@pytest.mark.parametrize("autograph", [True, False])
def test_ours_are_not(autograph, monkeypatch):
    seen = []

    class Spy(rule.StepHealth):
        def check_loss(self, loss):
            seen.append(tf.__internal__.autograph.control_status_ctx().status.name)
            super().check_loss(loss)

    monkeypatch.setattr(rule, "StepHealth", Spy)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=SensitivityRegularizer(0.1))])
    model.compile("sgd", "mse")
    with make_pruning_step(model, Sensitivity(every=1)) as step:
        tf.function(lambda x: step((x, TARGET)), autograph=autograph)(tf.constant(LARGE))
    assert set(seen) == {"DISABLED"}


def test_fit_converts_nothing_as_in_plain_keras():
    model = branching(SensitivityRegularizer(0.1))
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        model.fit(LARGE, TARGET, verbose=0, callbacks=[PruneAtEpochEnd(0.0)])
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        branching().fit(LARGE, TARGET, verbose=0)
