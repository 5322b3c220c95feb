"""What `fit` with PruneAtEpochEnd promises, crossed with the ways in which models are made and trained."""

import functools
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sensprune import PruneAtEpochEnd, Sensitivity, SensitivityRegularizer
from keras_sensprune.errors import ModelError
from keras_sensprune.training.state import _ACTIVE
from keras_sensprune.training.step import SESSION
from tests.steps import ForeignStep, OwnStep, with_step

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 12)).astype("float32")
Y = RNG.integers(0, 4, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def regularizer(strength=1e-2):
    return SensitivityRegularizer(strength)


def sequential(strength=1e-2):
    r = regularizer(strength)
    layers = [keras.layers.Dense(8, "relu", kernel_regularizer=r), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(0.2, seed=3), keras.layers.Dense(4, kernel_regularizer=r)]
    return keras.Sequential([keras.Input((12,)), *layers])


def functional(strength=1e-2):
    r = regularizer(strength)
    inputs = keras.Input((12,))
    shared = keras.layers.Dense(12, "tanh", kernel_regularizer=r)
    x = shared(shared(inputs)) + inputs
    return keras.Model(inputs, keras.layers.Dense(4, "softmax", kernel_regularizer=r)(x))


class Subclassed(keras.Model):
    def __init__(self, strength=1e-2):
        super().__init__()
        self.hidden = keras.layers.Dense(8, "relu", kernel_regularizer=regularizer(strength))
        self.head = keras.layers.Dense(4, kernel_regularizer=regularizer(strength))

    def call(self, x, training=False):
        return self.head(self.hidden(x))


def subclassed(strength=1e-2):
    model = Subclassed(strength)
    model(X[:1])
    return model


def nested(strength=1e-2):
    inner = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(8, "relu", kernel_regularizer=regularizer(strength))]
    )
    inputs = keras.Input((12,))
    return keras.Model(inputs, keras.layers.Dense(4, kernel_regularizer=regularizer(strength))(inner(inputs)))


def recurrent(strength=1e-2):
    r = regularizer(strength)
    lstm = keras.layers.LSTM(5, kernel_regularizer=r, recurrent_regularizer=r)
    return keras.Sequential([keras.Input((12,)), keras.layers.Reshape((4, 3)), lstm, keras.layers.Dense(4)])


def convolutional(strength=1e-2):
    r = regularizer(strength)
    conv = keras.layers.Conv1D(6, 3, activation="relu", kernel_regularizer=r)
    head = [keras.layers.Flatten(), keras.layers.Dense(4, kernel_regularizer=r)]
    return keras.Sequential([keras.Input((12,)), keras.layers.Reshape((6, 2)), conv, *head])


def stepped(kind):
    def build(strength=1e-2):
        inner = sequential(strength)
        return with_step(keras.Model(inner.inputs, inner.outputs), kind)

    return build


MODELS = {
    "sequential": sequential,
    "functional": functional,
    "subclassed": subclassed,
    "nested": nested,
    "recurrent": recurrent,
    "convolutional": convolutional,
    "own train_step": stepped(OwnStep),
    "foreign train_step": stepped(ForeignStep),
}
SLOW = {("recurrent", "jit"), ("recurrent", "steps_per_execution")}  # compiling loops takes long
ROUTES = {
    "graph": {},
    "jit": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "steps_per_execution": {"steps_per_execution": 3},
}


CELLS = [
    pytest.param(name, route, marks=[pytest.mark.slow] if (name, route) in SLOW else [])
    for name in MODELS
    for route in ROUTES
]


def compiled(build, strength=1e-2, optimizer=None, **settings):
    keras.utils.set_random_seed(0)
    model = build(strength)
    loss = "sparse_categorical_crossentropy" if build is functional else LOSS  # functional() ends in softmax
    metrics = None if isinstance(model, OwnStep) else ["accuracy"]  # their steps update no metrics
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=metrics, **settings)
    return model


def regularized(model):
    return [v for v in model.trainable_variables if isinstance(v.regularizer, SensitivityRegularizer)]


def zeros(model):
    kernels = [v.numpy() for v in regularized(model)]
    return sum(int(np.sum(k == 0)) for k in kernels) / sum(k.size for k in kernels)


def fit(model, *callbacks, epochs=3, **settings):
    settings = {"batch_size": 8, "verbose": 0, **settings}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **settings).history


def pristine(model):
    """Whether nothing of the package is left on a model."""
    hooks = {"train_step", "compute_loss", SESSION} & set(vars(model))
    active = [v.path for v in regularized(model) if id(v) in _ACTIVE]
    return not hooks and not active and all(v.constraint is None for v in regularized(model))


@functools.cache
def trained(name, route):
    """(model, history) of two epochs with pruning."""
    model = compiled(MODELS[name], **ROUTES[route])
    return model, fit(model, PruneAtEpochEnd(0.1), epochs=2)


@pytest.mark.parametrize(("name", "route"), CELLS)
def test_zeros_after_fit_are_what_the_log_said_and_the_model_comes_back(name, route):
    model, history = trained(name, route)
    assert 0 < history["sparsity"][0] < history["sparsity"][-1] < 1
    assert zeros(model) == pytest.approx(history["sparsity"][-1], abs=1e-12)
    assert history["compression"][-1] == pytest.approx(1 / (1 - history["sparsity"][-1]))
    assert pristine(model)
    for kernel in regularized(model):
        value = kernel.numpy()
        assert np.all(np.abs(value[value != 0]) >= 0.1)  # pruned once more after the last step
        assert not np.any(np.signbit(value[value == 0]))  # +0.0, never -0.0


@pytest.mark.parametrize(("name", "route"), CELLS)
def test_at_strength_zero_the_run_is_bit_identical_to_plain_fit(name, route):
    results = []
    for callbacks in ([], [PruneAtEpochEnd(0.0)]):
        model = compiled(MODELS[name], 0.0, keras.optimizers.Adam(0.01), **ROUTES[route])
        history = fit(model, *callbacks, epochs=2)
        results.append(([v.numpy() for v in model.variables], history["loss"]))
    assert results[0][1] == results[1][1]
    for plain, pruned in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_array_equal(plain, pruned)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_equals_eager(name):
    others = {"eager", "steps_per_execution", "jit"} - {route for slow, route in SLOW if slow == name}
    if name in ("sequential", "own train_step", "foreign train_step"):
        others -= {"jit"}  # dropout under XLA draws other numbers
    for other in others:
        for a, b in zip(*(trained(name, route)[0].get_weights() for route in ("graph", other)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)  # 8 steps in float32, sums in another order


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_exact_zeros(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(sequential)
        history = fit(model, PruneAtEpochEnd(0.1))
    finally:
        keras.config.set_dtype_policy("float32")
    assert 0 < history["sparsity"][-1] == pytest.approx(zeros(model), abs=1e-12)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def data_forms():
    x, y = X.copy(), Y.copy()

    def batches():
        for start in range(0, 32, 8):
            yield x[start : start + 8], y[start : start + 8]

    yield "dataset", dict(x=tf.data.Dataset.from_tensor_slices((x, y)).batch(8), shuffle=False)
    yield "generator", dict(x=batches(), epochs=1, shuffle=False)
    yield "endless generator", dict(x=(b for _ in range(9) for b in batches()), steps_per_epoch=4, shuffle=False)
    yield "weights", dict(x=x, y=y, sample_weight=np.linspace(0, 1, 32, dtype="float32"), batch_size=8)
    yield "class_weight", dict(x=x, y=y, class_weight={0: 1.0, 1: 2.0, 2: 0.0, 3: 1.0}, batch_size=8)
    yield "validation_split", dict(x=x, y=y, validation_split=0.25, batch_size=8)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras says so of any generator that ends
@pytest.mark.parametrize(("form", "settings"), list(data_forms()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_form_of_data(form, settings):
    model = compiled(sequential)
    history = model.fit(verbose=0, callbacks=[PruneAtEpochEnd(0.1)], **{"epochs": 2, **settings}).history
    assert 0 < history["sparsity"][-1] == pytest.approx(zeros(model), abs=1e-12)


def test_validation_describes_the_pruned_model():
    model = compiled(sequential)
    history = fit(model, PruneAtEpochEnd(0.1), validation_data=(X, Y))
    again = model.evaluate(X, Y, verbose=0, return_dict=True, batch_size=8)
    assert history["val_accuracy"][-1] == pytest.approx(again["accuracy"], abs=1e-6)
    assert history["val_loss"][-1] == pytest.approx(again["loss"], abs=1e-5)
    assert len(history["sparsity"]) == 3


def test_dead_weights_stay_dead_in_a_second_fit_and_come_back_only_without_the_callback():
    model = compiled(sequential)
    fit(model, PruneAtEpochEnd(0.1))
    dead = [v.numpy() == 0 for v in regularized(model)]
    fit(model, PruneAtEpochEnd(0.0))
    for before, kernel in zip(dead, regularized(model), strict=True):
        assert np.all(kernel.numpy()[before] == 0)
    with pytest.warns(UserWarning, match="without the PruneAtEpochEnd callback"):
        fit(model)
    assert zeros(model) < 0.05


def test_start_epoch_and_frequency():
    model = compiled(sequential, run_eagerly=True)
    callback = PruneAtEpochEnd(0.1, start_epoch=1, frequency=2)
    history = fit(model, callback, epochs=5)
    changed = np.diff([0.0, *history["sparsity"]]) > 0
    assert changed.tolist() == [False, True, False, True, False]
    assert [r.threshold for r in callback.records] == [0.0, 0.1, 0.0, 0.1, 0.0]


def test_a_layer_is_never_emptied():
    model = compiled(sequential, run_eagerly=True)
    with pytest.warns(UserWarning, match="are below the threshold 10") as caught:
        fit(model, PruneAtEpochEnd(10.0), epochs=2)
    assert sorted(str(w.message) for w in caught) == sorted(  # once per tensor, not once per epoch
        f"All weights of {v.path!r} are below the threshold 10; its largest one was kept so that the layer is not "
        "empty. Lower the threshold or the strength for this layer."
        for v in regularized(model)
    )
    assert [np.count_nonzero(v.numpy()) for v in regularized(model)] == [1, 1]


def test_a_run_that_prunes_nothing_says_so():
    model = compiled(sequential, 0.0, run_eagerly=True)
    with pytest.warns(UserWarning, match="pruned nothing") as caught:
        fit(model, PruneAtEpochEnd(1e-9), epochs=2)
    assert str(caught[0].message) == (
        "PruneAtEpochEnd(threshold=1e-09) pruned nothing in 2 epoch(s): no regularized weight was that small. "
        "Train longer, or raise the threshold or the strength."
    )


def test_a_weight_that_starts_all_zero_is_not_frozen():
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(4, kernel_initializer="zeros", kernel_regularizer=regularizer())
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile("sgd", LOSS)
    fit(model, PruneAtEpochEnd(1e-6))
    assert np.count_nonzero(layer.get_weights()[0]) > 40


def test_the_users_own_constraint_is_applied_and_restored():
    keras.utils.set_random_seed(0)
    constraint = keras.constraints.NonNeg()
    layer = keras.layers.Dense(4, kernel_regularizer=regularizer(0.1), kernel_constraint=constraint)
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile("sgd", LOSS)
    fit(model, PruneAtEpochEnd(0.0), epochs=5)
    kernel = layer.get_weights()[0]
    assert kernel.min() >= 0  # the shrinkage after the constraint must not undo it
    assert 0 < np.mean(kernel == 0) < 1
    assert layer.kernel.constraint is constraint


class FailingStep(OwnStep):
    error: BaseException | None = None

    def train_step(self, data):
        if self.error is not None:
            raise self.error
        return super().train_step(data)


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
def test_an_exception_inside_the_step_restores_the_model(error):
    model = compiled(stepped(FailingStep), run_eagerly=True)
    model.error = error
    with pytest.raises(type(error)):
        fit(model, PruneAtEpochEnd(0.1))
    assert pristine(model)


def test_evaluate_and_predict_attach_nothing():
    model = compiled(sequential)
    before = model.get_weights()
    model.evaluate(X, Y, verbose=0, callbacks=[PruneAtEpochEnd(0.1)])
    model.predict(X, verbose=0, callbacks=[PruneAtEpochEnd(0.1)])
    assert pristine(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_plain_fit_after_a_pruned_fit_uses_a_clean_train_function():
    model = compiled(sequential, 0.0)
    fit(model)
    function = model.train_function
    fit(model, PruneAtEpochEnd(0.0))
    assert model.train_function is function
    fit(model, PruneAtEpochEnd(0.1))
    assert model.train_function is None  # there are zeros to lose: a new one is traced, which warns
    with pytest.warns(UserWarning, match="just pruned may grow again"):
        fit(model)
    assert zeros(model) < 0.05


def test_scalars_reach_tensorboard_and_the_progress_bar(tmp_path, capsys):
    model = compiled(sequential)
    board = keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)
    fit(model, PruneAtEpochEnd(0.1), board, epochs=1, verbose=2)
    assert "sparsity: 0." in capsys.readouterr().out
    files = [os.path.join(root, f) for root, _, names in os.walk(tmp_path) for f in names]
    tags = set()
    for file in files:
        for record in tf.data.TFRecordDataset(file):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert {"epoch_sparsity", "epoch_compression", "epoch_penalty"} <= tags


def test_output_fn_serves_where_logits_are_hidden():
    def build(hidden):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((12,))
        logits = keras.layers.Dense(4, kernel_regularizer=regularizer())(inputs)
        outputs = keras.layers.Softmax()(logits)
        model = keras.Model(inputs, keras.layers.Reshape((4,))(outputs) if hidden else outputs)
        model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy())
        return model, keras.Model(inputs, logits)

    results = []
    for hidden in (False, True):
        model, logits = build(hidden)
        config = (
            Sensitivity(output_fn=lambda _, x, logits=logits: logits(x, training=False)) if hidden else Sensitivity()
        )
        fit(model, PruneAtEpochEnd(0.05, config), shuffle=False)
        assert pristine(model)
        results.append(model.get_weights()[0])
    np.testing.assert_allclose(*results, atol=1e-6)
    with pytest.warns(UserWarning, match="logits behind them were not found"):
        fit(build(True)[0], PruneAtEpochEnd(0.05))


@pytest.mark.parametrize("name", ["own train_step", "foreign train_step"])
def test_the_control_shrinks_whatever_the_step_does_with_its_loss(name):
    with_decay, without = compiled(MODELS[name]), compiled(MODELS[name], 0.0)
    for model in (with_decay, without):
        fit(model, PruneAtEpochEnd(0.0, Sensitivity("none")), epochs=1)
    norms = [sum(float(np.sum(v.numpy() ** 2)) for v in regularized(model)) for model in (with_decay, without)]
    # 4 steps of w <- 0.99 w: the squared norm falls by about 0.99^8 = 0.92
    assert norms[0] == pytest.approx(0.99**8 * norms[1], rel=0.03)


def test_loss_kind_with_a_step_that_hides_its_loss_is_refused():
    model = compiled(stepped(ForeignStep))
    with pytest.raises(ModelError) as caught:
        fit(model, PruneAtEpochEnd(0.1, Sensitivity("loss")))
    assert str(caught.value) == (
        "Sensitivity(kind='loss') needs a train_step that calls `self.compute_loss(...)`. Call it there, or use "
        "another kind."
    )
    assert pristine(model)
