"""From a budget to a sparse network: which settings, in which order, and what each cost."""
