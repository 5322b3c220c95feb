"""All the mathematics, on tensors: no model, no file, no clock."""
