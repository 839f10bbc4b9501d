"""Optuna: which trials exist, which is next, and what happened to each."""
