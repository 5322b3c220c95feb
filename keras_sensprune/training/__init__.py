"""All the Keras plumbing: which weights, which gradients, when to prune."""
