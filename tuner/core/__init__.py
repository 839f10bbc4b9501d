"""What at least three rooms need: the specs of a search and of a training, its metrics, errors, retries, storage."""
