"""Matrix products per training step, counted in the program that XLA makes of it: the cost that no machine changes."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import Sensitivity, SensitivityRegularizer, make_pruning_step
from keras_sensprune.training.session import attach

L = 3  # layers: L products forward, L for the kernels' gradients, L - 1 for those of the hidden layers
FORWARD, BACKWARD = L, 2 * L - 1
EVERY = {"every": 1, "estimator": "exact"}
OWN = {"output_fn": lambda model, x: model(x, training=False)}
MODES = {
    # name: (configuration, products in every step, products in a refresh)
    "none": (Sensitivity("none"), FORWARD + BACKWARD, 0),
    "default": (Sensitivity(), FORWARD + BACKWARD, BACKWARD),
    "unspecific, sampled": (Sensitivity("unspecific"), FORWARD + BACKWARD, BACKWARD),
    # the logits' values are not needed for their derivatives
    "own forward pass": (Sensitivity(**OWN), FORWARD + BACKWARD, FORWARD - 1 + BACKWARD),
    "exact specific": (Sensitivity("specific", every=1), FORWARD + 2 * BACKWARD, 0),
    # the gradient of the loss is what training computes anyway
    "loss": (Sensitivity("loss", every=1), FORWARD + BACKWARD, 0),
    # the forward pass in inference mode is the very same here
    "exact specific, own forward pass": (Sensitivity("specific", every=1, **OWN), FORWARD + 2 * BACKWARD, 0),
    # 10 outputs are one turn, which needs no loop
    "exact unspecific": (Sensitivity("unspecific", **EVERY), FORWARD + 11 * BACKWARD, 0),
    # per output only the hidden layers' gradients, and one product per kernel for all outputs together
    "exact unspecific, factored": (
        Sensitivity("unspecific", reduction="mean_of_abs", **EVERY),
        FORWARD + BACKWARD + L + 10 * (L - 1),
        0,
    ),
}


def network(outputs=10, regularizer=None):
    units = (30, 20, outputs)
    body = [keras.layers.Dense(n, "relu" if n != outputs else None, kernel_regularizer=regularizer) for n in units]
    model = keras.Sequential([keras.Input((40,)), *body])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    return model


def data(outputs=10):
    return tf.ones((16, 40)), tf.constant(np.arange(16) % outputs)


def products(step, x, y):
    """(products in the entry computation, products in branches and loops) of the optimized program."""
    program = tf.function(lambda x, y: step((x, y)), jit_compile=True).experimental_get_compiler_ir(x, y)
    inside = outside = 0
    for computation in re.split(r"\n(?=\S)", program(stage="optimized_hlo")):
        found = len(re.findall(r"= \S+ (?:dot|custom-call)\(", computation))
        if computation.startswith("ENTRY"):
            outside += found
        else:
            inside += found
    return outside, inside


@pytest.mark.parametrize("name", MODES)
def test_products_per_step(name):
    config, always, sometimes = MODES[name]
    with make_pruning_step(network(regularizer=SensitivityRegularizer(1e-4)), config) as step:
        assert products(step, *data()) == (always, sometimes)


def test_in_fit_xla_compiles_steps_that_refresh_and_steps_that_do_not_as_two_programs():
    model = network(regularizer=SensitivityRegularizer(1e-4))
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.jit_compile = True
    model.optimizer.build(model.trainable_variables)
    programs = attach(model, Sensitivity()).rule._programs
    assert products(lambda batch: programs[False](batch), *data()) == (FORWARD + BACKWARD, 0)
    assert products(lambda batch: programs[True](batch), *data()) == (FORWARD + 2 * BACKWARD, 0)
    assert model.jit_compile is True


def test_a_step_with_l2_has_as_many_as_a_plain_one():
    for regularizer in (None, keras.regularizers.L2(1e-4)):
        assert products(network(regularizer=regularizer).train_step, *data()) == (FORWARD + BACKWARD, 0)


@pytest.mark.parametrize("config", [Sensitivity(), Sensitivity("unspecific"), Sensitivity("unspecific", **EVERY)])
def test_the_program_does_not_grow_with_the_outputs(config):
    sizes = []
    for outputs in (20, 1000):
        model = network(outputs, SensitivityRegularizer(1e-4))
        with make_pruning_step(model, config) as step:
            graph = tf.function(lambda x, y, step=step: step((x, y))).get_concrete_function(*data(outputs)).graph
        functions = graph.as_graph_def().library.function
        sizes.append(len(graph.get_operations()) + sum(len(function.node_def) for function in functions))
    assert sizes[1] <= sizes[0] + 20  # a backward pass per output would be 5 products for each of 990 more


def test_two_floats_per_weight_are_kept_by_default():
    model = network(regularizer=SensitivityRegularizer(1e-4))
    with make_pruning_step(model) as step:
        for weight in step._session.weights:
            held = [v for v in vars(weight).values() if isinstance(v, keras.Variable) and v is not weight.variable]
            assert sum(v.dtype == "float32" and v.shape == weight.variable.shape for v in held) == 2 == len(held)
