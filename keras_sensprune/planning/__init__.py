"""Phases, rounds and searches on top of `fit`: from a budget to a sparse network."""
