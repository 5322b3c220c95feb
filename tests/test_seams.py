"""The private names of other packages that we use: one test each, so that an upgrade says which one has moved."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from tensorflow.python.eager import context, record


def classifier(**compile_args):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2, "softmax")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), **compile_args)
    return model


def test_logits_are_kept_behind_softmax_and_sigmoid():
    x = np.array([[1.0, -2.0]], "float32")
    for name in ("softmax", "sigmoid"):
        kept = keras.layers.Dense(2, name, kernel_initializer="identity")(x)._keras_logits
        np.testing.assert_array_equal(kept, x)


def test_masks_are_kept_on_tensors():
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    assert np.asarray(embedded._keras_mask).tolist() == [[True, False]]


def test_a_compiled_loss_tells_its_parts():
    model = classifier(loss_weights=0.5)
    compiled = model._compile_loss
    compiled.build(tf.zeros((1,)), tf.zeros((1, 2)))
    (entry,) = compiled._flat_losses
    assert (entry.path, entry.loss_weights) == ((), 0.5)
    assert entry.loss._fn_kwargs["from_logits"] is False


def test_layers_know_their_children_and_their_own_variables():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="inside")])
    model = keras.Sequential([keras.Input((3,)), inner])
    assert "inside" in [layer.name for layer in model._flatten_layers(include_self=False)]
    assert inner in model._layers
    layer = inner.get_layer("inside")
    layer.trainable = False
    assert [v.name for v in layer._trainable_variables] == ["kernel", "bias"]  # frozen ones stay in this list
    assert list(layer._losses) == []


def test_seed_generators_can_be_found():
    layer = keras.layers.Dropout(0.5, seed=7)
    assert [generator.state.numpy().tolist() for generator in layer._seed_generators] == [[7, 0]]
    seeds = keras.src.random.seed_generator
    general = seeds.global_seed_generator()
    assert keras.src.backend.common.global_state.get_global_attribute(seeds.GLOBAL_SEED_GENERATOR) is general
    assert general.state.shape == (2,)


def test_attention_keeps_a_private_copy_of_its_regularizer():
    assert keras.layers.MultiHeadAttention(1, 2, kernel_regularizer="l2")._kernel_regularizer is not None


def test_steps_are_looked_up_on_the_instance():
    model, seen = classifier(), []

    def spy(name):
        original = getattr(model, name)

        def hook(*args, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        object.__setattr__(model, name, hook)

    spy("train_step")
    spy("compute_loss")
    model.make_train_function(force=True)
    assert callable(model.train_function)
    model.fit(np.ones((2, 3)), np.zeros(2), verbose=0)
    assert {"train_step", "compute_loss"} <= set(seen)


def test_a_tape_can_be_paused_and_tells_whether_it_records():
    x = tf.Variable(2.0)
    assert not record.could_possibly_record()
    with tf.GradientTape() as tape:
        assert record.could_possibly_record()
        assert tape._recording
        with record.stop_recording():
            hidden = x * x
    assert not tape._recording
    assert tape.gradient(hidden, x) is None


def test_updates_can_be_made_in_one_place_for_all_replicas():
    done = []
    strategy = tf.distribute.get_strategy()
    tf.__internal__.distribute.interim.maybe_merge_call(lambda _, value: done.append(value), strategy, 3)
    assert done == [3]


def test_the_process_knows_the_cluster_that_it_has_joined():
    assert context.context()._collective_ops_server_def is None  # of a process that has joined none


def test_the_schema_of_the_file_format_has_what_sparse_weights_need():
    parameters = schema.SparsityParametersT()
    assert {"traversalOrder", "dimMetadata"} <= set(vars(parameters))
    assert schema.DimensionType.SPARSE_CSR != schema.DimensionType.DENSE
    assert {"arraySegmentsType", "arrayIndicesType"} <= set(vars(schema.DimensionMetadataT()))


def test_a_graph_can_be_read():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="d")])
    (node,) = (n for nodes in model._functional._nodes_by_depth.values() for n in nodes if not n.is_input)
    assert node.operation.name == "d"
    assert node.arguments.keras_tensors[0] is model._functional.inputs[0]
    operation, index, _ = model.outputs[0]._keras_history
    assert operation._inbound_nodes[index].input_tensors == list(node.input_tensors)


def test_a_lambda_in_memory_can_be_copied():
    from keras.src.saving import serialization_lib

    layer = keras.layers.Lambda(lambda x: 2 * x)
    with serialization_lib.SafeModeScope(False):
        copy = keras.layers.Lambda.from_config(layer.get_config())
    assert float(copy(keras.ops.ones(()))) == 2.0


def test_a_graph_can_be_run_on_other_layers():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    seen = []
    model._functional._run_through_graph(
        np.ones((1, 3), "float32"), operation_fn=lambda operation: seen.append(operation.name) or operation
    )
    assert len(seen) == 1


def test_both_runtimes_name_their_resolvers_alike():
    from ai_edge_litert import interpreter as litert
    from tensorflow.lite.python import interpreter as tflite

    for name in ("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"):
        assert getattr(litert.OpResolverType, name).name == getattr(tflite.OpResolverType, name).name


def test_a_callback_can_find_and_reorder_the_list_that_calls_it():
    calls = []

    class Noting(keras.callbacks.Callback):
        def set_model(self, model):
            super().set_model(model)
            owner = sys._getframe(1).f_locals["self"]
            assert isinstance(owner, keras.callbacks.CallbackList)
            owner.callbacks = owner.callbacks[::-1]

        def on_epoch_end(self, epoch, logs=None):
            calls.append(self)

    callbacks = [Noting(), Noting(), Noting()]
    keras.callbacks.CallbackList(callbacks, model=classifier()).on_epoch_end(0)
    assert calls == callbacks[::-1]  # turned three times, and each of them was asked


def test_optimizers_keep_lists_of_one_slot_per_weight():
    names = {
        "momentums": ("SGD", "Muon"),
        "_momentums": ("Adam", "RMSprop", "Nadam", "Lamb", "Lion", "ScheduleFreeAdamW"),
        "_m": ("Adamax",),
        "_linears": ("Ftrl",),
    }
    variables = [keras.Variable(np.ones((3, 2), "float32")), keras.Variable(np.ones(2, "float32"))]
    for slot, name in ((slot, name) for slot, group in names.items() for name in group):
        settings = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        optimizer = getattr(keras.optimizers, name)(use_ema=True, gradient_accumulation_steps=2, **settings)
        optimizer.build(variables)
        assert optimizer._trainable_variables == variables
        for kept in (slot, "_model_variables_moving_average", "_accumulated_gradients"):
            assert [tuple(v.shape) for v in getattr(optimizer, kept)] == [(3, 2), (2,)], (name, kept)


def test_wrappers_of_optimizers_name_what_they_wrap():
    inner = keras.optimizers.SGD()
    several = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(inner))
    assert keras.optimizers.LossScaleOptimizer(several).inner_optimizer is several
    assert several.optimizers == [inner]


def test_monitoring_callbacks_share_how_they_compare():
    from keras.src.callbacks.monitor_callback import MonitorCallback

    assert issubclass(keras.callbacks.EarlyStopping, MonitorCallback)
    callback = MonitorCallback("val_loss", "auto")
    callback.set_model(classifier())
    callback._set_monitor_op()
    assert callback._is_improvement(1.0, 2.0)
    assert callback._is_improvement(2.0, None)
    assert not callback._is_improvement(2.0, 1.0)
    unknown = MonitorCallback("val_nothing", "auto")
    unknown.set_model(classifier())
    with pytest.raises(ValueError, match="automatically determine"):
        unknown._set_monitor_op()
