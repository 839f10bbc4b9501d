"""One training in plain PyTorch: ``for metrics in train(spec): ...``."""

from tuner.train.trainer import train

__all__ = ["train"]
