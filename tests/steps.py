"""Training steps of the user's own, for models of any kind."""

import keras
import tensorflow as tf


class OwnStep:
    """A train_step that computes its loss through compute_loss."""

    def own_loss(self, x, y):
        return self.compute_loss(x, y, self(x, training=True))

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.own_loss(*data)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}


class ForeignStep(OwnStep):
    """A train_step with a loss of its own."""

    def own_loss(self, x, y):
        return sum(keras.ops.mean((output - 1) ** 2) for output in keras.tree.flatten(self(x, training=True)))


def with_step(model, kind):
    """The model, with the train_step of such a class in place of its own."""
    model.__class__ = type(kind.__name__, (kind, type(model)), {})
    return model
