"""The pictures of a run, as small PNG files; drawn without a display.

matplotlib takes nearly a second to import, and is when the first picture is drawn: a training that
goes on doesn't wait for it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG = "tab:green", "tab:red"


class Curve(NamedTuple):
    """A line with an error band.

    Attributes:
        label: its name in the legend.
        mean: values ``[points]``.
        ci95: half the width of the 95 % confidence interval, ``[points]``.
    """

    label: str
    mean: np.ndarray
    ci95: np.ndarray


def training_curve(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    metric: str = "accuracy",
    adapts: bool = True,
) -> None:
    """Draws a metric, and its validation where there is one, against meta-steps.

    Args:
        path: the PNG file to write.
        records: the lines of ``metrics.jsonl``.
        metric: the name in them; ``"loss"`` is drawn on a logarithmic axis.
        adapts: whether it is measured on tasks after adaptation; else the training is an ordinary
            one, and the words are its.
    """
    figure, axes = _figure(6.0, 3.8)
    tasks = " tasks" if adapts else ""
    for name, label, style in (
        (metric, f"training{tasks}", "-"),
        (f"validation_{metric}", f"validation{tasks}", "o-"),
    ):
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, style, label=label, linewidth=1.2, markersize=4)
    if metric == "loss":
        axes.set_yscale("log")
    if adapts:
        axes.set(xlabel="meta-steps", ylabel=f"query {metric} after adaptation")
    else:
        axes.set(xlabel="steps", ylabel=metric)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def inner_steps(
    path: Path,
    curves: Sequence[Curve],
    *,
    ylabel: str,
    log: bool = False,
    xlabel: str = "inner steps",
) -> None:
    """Draws scores against the number of inner steps, or of rounds, with 95 % confidence bands.

    Args:
        path: the PNG file to write.
        curves: one a line; the first point is before adaptation.
        ylabel: what the scores are, with their unit.
        log: whether the scores' axis is logarithmic.
        xlabel: what is counted.
    """
    figure, axes = _figure(6.0, 3.8)
    for curve in curves:
        steps = np.arange(len(curve.mean))
        low, high = curve.mean - curve.ci95, curve.mean + curve.ci95
        if log:
            low = np.maximum(low, curve.mean / 100)
        axes.plot(steps, curve.mean, "o-", label=curve.label, linewidth=1.2, markersize=4)
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0)
    if log:
        axes.set_yscale("log")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    # Above the axes: a long label would hide the curves.
    figure.legend(loc="outside upper center", fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, path)


def by_level(
    path: Path,
    rounds: Mapping[int, tuple[Sequence[int], Sequence[float]]],
    *,
    control: tuple[Sequence[int], Sequence[float]] | None,
    trained: int,
    xlabel: str,
    ylabel: str,
) -> None:
    """Draws scores against how hard the tasks are, a curve for each round of self-evolution.

    Args:
        path: the PNG file to write.
        rounds: by number, levels and scores; round 0 is the model before the first one.
        control: levels and scores of a model that was trained as long on real data alone.
        trained: the hardest level of the real data, where a line is drawn.
        xlabel: what a level is.
        ylabel: what the scores are, with their unit.
    """
    from matplotlib import colormaps

    figure, axes = _figure(7.0, 4.2)
    last = max(rounds)
    for number, (levels, scores) in sorted(rounds.items()):
        colour = colormaps["viridis"](0.95 * number / max(last, 1))
        named = number in (0, last) or number % max(1, round(last / 5)) == 0
        axes.plot(
            levels, scores, color=colour, linewidth=1.3, label=f"round {number}" if named else None
        )
    if control is not None:
        axes.plot(*control, "--", color="tab:red", linewidth=1.5, label="control: real data only")
    axes.axvline(trained, color="grey", linewidth=0.8, linestyle=":")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, path)


def episode_grid(
    path: Path,
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    predictions: np.ndarray,
    *,
    per_class: int = 5,
    classes: int = 10,
) -> None:
    """Draws an episode: a row a class, its support images, then its query images.

    A query image is framed green where its class was predicted, red where it was not, with the
    predicted class above it.

    Args:
        path: the PNG file to write.
        support: images ``[n_way * k_shot, height, width, channels]`` and classes
            ``[n_way * k_shot]``.
        query: the same of the query set.
        predictions: predicted classes of the query images.
        per_class: at most so many support, and so many query, images a class are drawn.
        classes: at most so many classes are drawn.
    """
    rows = np.unique(support[1])[:classes]
    shots = min(per_class, max(int((support[1] == label).sum()) for label in rows))
    queries = min(per_class, max(int((query[1] == label).sum()) for label in rows))
    figure = empty(0.85 * (shots + queries) + 0.8, 0.95 * len(rows) + 0.6, dpi=90)
    grid = figure.subplots(
        len(rows),
        shots + queries + 1,  # the empty column in between separates support from query
        squeeze=False,
        width_ratios=[1] * shots + [0.3] + [1] * queries,
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(False)
    for row, label in enumerate(rows):
        grid[row, 0].set_ylabel(f"class {label}", fontsize=8)
        for column, image in enumerate(support[0][support[1] == label][:shots]):
            _image(grid[row, column], image, "lightgrey")
        chosen = np.flatnonzero(query[1] == label)[:queries]
        for column, index in enumerate(chosen, start=shots + 1):
            guess = predictions[index]
            colour = RIGHT if guess == label else WRONG
            _image(grid[row, column], query[0][index], colour)
            grid[row, column].set_title(f"→ {guess}", fontsize=8, color=colour, pad=2)
    figure.suptitle("support | query → predicted class", fontsize=9)
    save(figure, path)


def regression_fit(
    path: Path,
    *,
    inputs: np.ndarray,
    truth: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
    fits: Mapping[str, Sequence[tuple[str, np.ndarray]]],
) -> None:
    """Draws a one-dimensional regression task: the truth, the points learnt from, and fits.

    Args:
        path: the PNG file to write.
        inputs: where the curves are drawn, ``[points]``.
        truth: the target function there, ``[points]``.
        support: inputs and targets learnt from, ``[k_shot]`` each.
        fits: for each panel's title, named curves ``[points]``, least adapted first.
    """
    figure = empty(4.2 * len(fits), 3.6, dpi=90)
    panels = figure.subplots(1, len(fits), squeeze=False, sharey=True)[0]
    for axes, (title, curves) in zip(panels, fits.items(), strict=True):
        axes.plot(inputs, truth, color="black", linewidth=1.5, label="truth")
        for index, (label, values) in enumerate(curves):
            shade = 0.35 + 0.65 * (index + 1) / len(curves)
            axes.plot(
                inputs, values, "--" if index == 0 else "-", color="tab:blue", alpha=shade,
                linewidth=1.3, label=label,
            )  # fmt: skip
        axes.plot(*support, "v", color="tab:red", label="support")
        axes.set(title=title, xlabel="x")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7)
    save(figure, path)


def empty(width: float, height: float, dpi: int = 100) -> "Figure":
    """A figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def _figure(width: float, height: float) -> tuple["Figure", Any]:
    figure = empty(width, height)
    return figure, figure.subplots()


def _image(axes: Any, image: np.ndarray, frame: str) -> None:
    pixels = np.asarray(image, np.float32)
    if pixels.shape[-1] == 1:
        axes.imshow(1 - pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axes.imshow(np.clip(pixels, 0, 1))
    axes.set_frame_on(True)
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=1.8)


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(str(path))
