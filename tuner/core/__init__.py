"""What several packages use: the specs of a search and of a training, its metrics, errors, retries, storage."""
