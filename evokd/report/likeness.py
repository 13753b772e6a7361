"""Students and teacher side by side, as KD-Zero's figures 6 to 8 show them: training curves, embeddings, correlations, activation maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evokd.evaluate.sight import class_correlation
from evokd.report.figures import BLUE, GREY, INK, RED, Figure, drawn

if TYPE_CHECKING:
    from evokd.portraits import Portraits

COLOURS = {"plain": GREY, "KD": BLUE, "evolved": RED, "teacher": INK}
POINTS, CLASSES = 500, 10  # images and classes of an embedding's picture


def figures_of(folder: Path | None, seen: Portraits) -> list[Figure]:
    """All of them, drawn."""
    where = "Students are trained as the first seed of the finals; pictures are of test images, and nothing was chosen by them."
    curves = "Cross-entropy on known labels of single batches, and beside it the distillation loss, whose scale is its own."
    embeddings = f"t-SNE of the classifier's input, {CLASSES} classes at most. Distances between clusters mean little. {where}"
    correlation = (
        "Correlation of every two classes' logits over test images, student's minus teacher's; in brackets its mean size."
    )
    maps = "Where the last stage speaks for the true class; the first test image of each class. One scale a picture, blue 0 to red 1."
    return [
        Figure("Training curves", curves, draw_training(folder, seen)),
        Figure("Embeddings", embeddings, draw_embeddings(folder, seen)),
        Figure("Logit correlations, student − teacher", correlation, draw_correlation(folder, seen)),
        Figure("Grad-CAM", maps, draw_maps(folder, seen, "cam")),
        Figure("Grad-CAM++", maps, draw_maps(folder, seen, "cam_plus")),
    ]


def draw_training(folder: Path | None, seen: Portraits) -> str:
    def draw(figure) -> None:
        for axes, column, title in zip(figure.subplots(1, 2), (1, 2), ("cross-entropy, nats", "distillation loss"), strict=True):
            for name, curve in seen.curves.items():
                if any(point[column] for point in curve):
                    axes.plot(
                        [p[0] for p in curve], [p[column] for p in curve], color=COLOURS[name], label=name, marker="o", ms=3
                    )
            axes.set(xlabel="step", ylabel=title)
            if axes.lines:
                axes.set_yscale("log")
                axes.legend(frameon=False)

    return drawn(folder, "training", (8, 3), draw)


def draw_embeddings(folder: Path | None, seen: Portraits) -> str:
    classes = sorted(set(seen.labels.tolist()))[:CLASSES]
    chosen = np.flatnonzero(np.isin(seen.labels, classes))[:POINTS]
    labels = seen.labels[chosen]

    def draw(figure) -> None:
        from matplotlib import colormaps

        tints = colormaps["tab10"]
        panels = figure.subplots(1, len(seen.sights), squeeze=False)[0]
        for axes, (name, sight) in zip(panels, seen.sights.items(), strict=True):
            points = laid_out(sight.embedding.numpy()[chosen])
            for place, label in enumerate(classes):
                mine = points[labels == label]
                axes.scatter(mine[:, 0], mine[:, 1], s=7, color=tints(place), label=str(label), linewidths=0)
            axes.set(title=name, xticks=[], yticks=[], box_aspect=1)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(classes), frameon=False, markerscale=2, handletextpad=0.1)

    return drawn(folder, "embeddings", (2.6 * len(seen.sights), 3.2), draw)


def laid_out(embedding: np.ndarray) -> np.ndarray:
    """(N,D) → (N,2) by t-SNE (van der Maaten & Hinton, 2008) from its principal components; the same in every call."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(embedding) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=0).fit_transform(embedding)


def correlation_gaps(seen: Portraits) -> dict[str, np.ndarray]:
    """Student → class correlations of its logits minus the teacher's, (K,K)."""
    teacher = class_correlation(seen.sights["teacher"].logits)
    return {name: (class_correlation(seen.sights[name].logits) - teacher).numpy() for name in seen.students}


def draw_correlation(folder: Path | None, seen: Portraits) -> str:
    gaps = correlation_gaps(seen)
    limit = max([float(np.abs(gap).max()) for gap in gaps.values()] + [1e-3])

    def draw(figure) -> None:
        panels = figure.subplots(1, len(gaps), squeeze=False)[0]
        for axes, (name, gap) in zip(panels, gaps.items(), strict=True):
            shown = axes.imshow(gap, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(f"{name} ({np.abs(gap).mean():.3f})", fontsize=10)
            axes.set(xlabel="class", ylabel="class" if axes is panels[0] else "")
            if len(gap) <= 20:
                axes.set(xticks=range(len(gap)), yticks=range(len(gap)))
        figure.colorbar(shown, ax=list(panels), shrink=0.8, label="difference of correlations")

    return drawn(folder, "correlation", (2.9 * len(gaps) + 1, 3.1), draw)


def draw_maps(folder: Path | None, seen: Portraits, kind: str) -> str:
    """Rows of images; columns: the image, then every network's map over it."""
    pictures = [_picture(image) for image in seen.images]

    def draw(figure) -> None:
        grid = figure.subplots(len(pictures), 1 + len(seen.sights), squeeze=False)
        for row, (axes, picture) in enumerate(zip(grid, pictures, strict=True)):
            axes[0].set_ylabel(f"class {seen.labels[row]}", fontsize=9)
            _overlaid(axes, picture, [getattr(sight, kind)[row].numpy() for sight in seen.sights.values()])
        for axes, name in zip(grid[0], ["image", *seen.sights], strict=True):
            axes.set_title(name, fontsize=10)

    return drawn(folder, kind, (1.35 * (1 + len(seen.sights)) + 0.3, 1.35 * len(pictures) + 0.3), draw)


def _picture(image: np.ndarray) -> np.ndarray:
    """(C,H,W) of 0 to 255 → (H,W,3) of 0 to 1; one channel is grey."""
    rows = image.transpose(1, 2, 0) / 255
    return np.repeat(rows[:, :, :1], 3, axis=2) if rows.shape[2] != 3 else rows


def _overlaid(axes, picture: np.ndarray, maps: Sequence[np.ndarray]) -> None:
    axes[0].imshow(picture, interpolation="nearest")
    for place, heat in zip(axes[1:], maps, strict=True):
        place.imshow(0.4 + 0.6 * picture, interpolation="nearest")  # on black, colours could not be told apart
        place.imshow(heat, cmap="jet", vmin=0, vmax=1, alpha=0.55, interpolation="bilinear")
    for place in axes:
        place.set(xticks=[], yticks=[])
        for spine in place.spines.values():
            spine.set_visible(False)
