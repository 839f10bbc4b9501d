"""Programs that produce the project's figures: ``python -m benchmarks.NAME``; README.md here lists them."""
