"""Optuna: which trials there are, which is next, and what happened to each."""
