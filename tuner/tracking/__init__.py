"""MLflow: runs, metrics and models."""
