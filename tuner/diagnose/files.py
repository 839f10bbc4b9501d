"""Writes a diagnosis: its numbers, and pictures of the ranking, confusions, damping ratios and misclassified images."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from tuner.core.metrics import EpochMetrics
from tuner.diagnose.attribution import Diagnosis, Score
from tuner.diagnose.repair import Outcome, Retrained
from tuner.diagnose.trained_model import TrainedModel
from tuner.report.figures import COLOURS, GREY, PALE, SMALL, WIDTH, numbers, panels
from tuner.train.train_state import TrainState
from tuner.workloads.data import require_images

FILES = ("diagnosis.json", "diagnosis.png", "errors.png", "repaired.pt")
MOST_CLASSES = 20
"""Largest number of classes whose names and counts are written; with more classes the picture has colours only."""


def write_files(
    folder: Path,
    trained: TrainedModel,
    network: TrainState,
    diagnosis: Diagnosis,
    score: Score,
    chosen: Sequence[str],
    repaired: Sequence[tuple[Retrained, Outcome]],
) -> list[Path]:
    """Writes numbers, pictures and, after a repair, the repaired weights; returns the files.

    Each file replaces an earlier one.  There is no ``errors.png`` for a model without a convolution.  Raises OSError.
    """
    content = {
        "run": trained.name,
        "split": diagnosis.split,
        "classes": diagnosis.classes,
        "confusion": diagnosis.confusion.tolist(),
        "score": score,
        "named": list(chosen),
        "groups": {g.group.name: {"parameters": g.num_parameters, **_finite(g.scores)} for g in diagnosis.groups},
        "repair": {
            one.name: {
                "groups": one.groups,
                "epoch": one.epoch,
                "cost": one.cost,
                **dataclasses.asdict(outcome),
                "net": outcome.net,
            }
            for one, outcome in repaired
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    numbers, ranking, errors, weights = (folder / name for name in FILES)
    numbers.write_text(json.dumps(content, indent=1) + "\n")
    diagnosis_picture(diagnosis, score, chosen, trained.history).savefig(ranking)
    written = [numbers, ranking]
    if picture := attribution_picture(network, diagnosis, score):
        picture.savefig(errors)
        written.append(errors)
    if repaired:
        torch.save({name: tensor.cpu() for name, tensor in repaired[0][0].state.items()}, weights)
        written.append(weights)
    return written


def _finite(scores: Mapping[Score, float]) -> dict[Score, float | None]:
    """The scores, with None for inf, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def as_metrics(diagnosis: Diagnosis, repaired: Sequence[tuple[Retrained, Outcome]]) -> dict[str, float]:
    """The numbers of a diagnosis and its repairs by their names in MLflow."""
    metrics = {"errors": float(diagnosis.num_errors)}
    for scores in diagnosis.groups:
        metrics |= {f"{name}/{scores.group.name}": value for name, value in scores.scores.items()}
    for retrained, outcome in repaired:
        of = retrained.name.replace(" ", "_")
        metrics |= {
            f"{of}/fixed": float(outcome.num_fixed),
            f"{of}/broken": float(outcome.num_broken),
            f"{of}/net": float(outcome.net),
            f"{of}/parameter_share": retrained.parameter_share,
            f"{of}/cost": retrained.cost,
        }
    return metrics


def diagnosis_picture(
    diagnosis: Diagnosis, score: Score, chosen: Sequence[str], history: Sequence[EpochMetrics]
) -> Figure:
    """The groups' scores, with the ``chosen`` groups in colour, and the errors by true and predicted class.

    If the training logged damping ratios, a third panel shows them by epoch.
    """
    damping = [(metrics.epoch, metrics.damping_ratio) for metrics in history if metrics.damping_ratio is not None]
    titles = [f"{score} score", "errors: class and taken for", *(["damping ratio"] if damping else [])]
    figure, (ranking, confusion, *rest) = panels(
        titles, height=max(2.6, 0.2 * len(diagnosis.groups)), sharex=False, sharey=False
    )
    _bars(ranking, diagnosis, score, chosen)
    _confusions(confusion, diagnosis)
    for axes in rest:
        axes.plot(*zip(*damping, strict=True), color=COLOURS[0], marker="o", markersize=3)
        axes.axhline(1.0, color=GREY, linewidth=0.9, linestyle=":")
        axes.set_yscale("log")
        numbers(axes.yaxis, "log")
        numbers(axes.xaxis, "count")
        axes.set_xlabel("epoch; above 1 overdamped, below underdamped", fontsize=SMALL)
    return figure


def _bars(axes: Axes, diagnosis: Diagnosis, score: Score, chosen: Sequence[str]) -> None:
    ranked = diagnosis.ranking(score)[::-1]
    values = [scores.scores[score] for scores in ranked]
    most = max([value for value in values if math.isfinite(value)], default=1.0)
    lengths = [min(value, 1.05 * most) for value in values]
    axes.barh(
        [scores.group.name for scores in ranked],
        lengths,
        color=[COLOURS[0] if scores.group.name in chosen else PALE for scores in ranked],
    )
    axes.grid(visible=False, axis="y")
    numbers(axes.xaxis, "plain")


def _confusions(axes: Axes, diagnosis: Diagnosis) -> None:
    errors = diagnosis.confusion.copy()
    np.fill_diagonal(errors, 0)
    axes.imshow(errors, cmap="Greys", vmin=0, vmax=max(int(errors.max()), 1), aspect="auto")
    axes.grid(visible=False)
    if len(errors) <= MOST_CLASSES:
        places = range(len(errors))
        axes.set_xticks(places, diagnosis.classes, rotation=90)
        axes.set_yticks(places, diagnosis.classes)
        for row, column in zip(*errors.nonzero(), strict=True):
            dark = errors[row, column] > errors.max() / 2
            axes.text(
                column, row, str(errors[row, column]), ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip


def attribution_picture(network: TrainState, diagnosis: Diagnosis, score: Score) -> Figure | None:
    """The misclassified images with the largest loss, each under a heat map of the pixels that led to the prediction.

    The map is Captum's Grad-CAM at the last convolution of the first group in the ranking that has one.  Returns None
    for a model without a convolution.  Source: Selvaraju et al., "Grad-CAM", arXiv 1610.02391.
    """
    moved = [scores.group for scores in diagnosis.ranking(score) if scores.scores["raw"] > 0]
    layer = _last_convolution(network.model, [path for group in moved for path in group.modules])
    if layer is None:
        return None
    network.model.eval()
    data = require_images(network.data)
    images = torch.stack([example.image for example in diagnosis.examples]).to(network.device, network.dtype)
    taken = torch.tensor([example.predicted for example in diagnosis.examples], device=network.device)
    maps = LayerGradCam(network.model, layer).attribute(images, target=taken, relu_attributions=True)
    assert isinstance(maps, Tensor)
    heat = LayerAttribution.interpolate(maps.detach(), tuple(images.shape[2:]), "bilinear")[:, 0].cpu().numpy()
    pixels = (images * data.deviation + data.mean).clamp(0, 255).cpu().permute(0, 2, 3, 1).numpy() / 255
    columns = min(6, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    figure = Figure(figsize=(WIDTH, 1.25 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, example, image, seen in zip(grid.flat, diagnosis.examples, pixels, heat, strict=False):
        axes.imshow(image.squeeze(-1), cmap="gray", vmin=0, vmax=1)
        axes.imshow(seen, cmap="inferno", alpha=0.45, vmin=0, vmax=float(seen.max()) or 1.0)
        axes.set_title(
            f"{diagnosis.classes[example.label]} > {diagnosis.classes[example.predicted]}", fontsize=8, pad=2
        )
    return figure


def _last_convolution(model: nn.Module, paths: Sequence[str]) -> nn.Module | None:
    for path in paths:
        found = [part for part in model.get_submodule(path).modules() if isinstance(part, nn.Conv2d)]
        if found:
            # A 1x1 convolution may be a block's shortcut, so a larger one is preferred.
            return [*found, *(layer for layer in found if max(layer.kernel_size) > 1)][-1]
    return None
