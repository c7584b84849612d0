"""Draws the pictures of the gallery and writes its page."""

from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

from .races import FACTORS, RACERS, REFERENCE, TASKS, Race, bowl, race, rosenbrock

THEMES = {"light": ("#1f2328", "#d0d7de", "#9a6700"), "dark": ("#d8dee6", "#3d444d", "#e3b341")}
"""The colours of text, of level lines and of AdamW, by theme."""
OWN = "#3b82f6"
TITLES = {"valley": "Rosenbrock's valley", "bowl": "A bowl with noise", "digits": "Loss on the digits"}
PLANES = {
    "valley": (rosenbrock, (-1.7, 1.7), (-0.7, 1.9), (1.0, 1.0)),
    "bowl": (bowl, (-2.3, 1.0), (-1.1, 1.3), (0.0, 0.0)),
}
"""The function, the bounds of the picture and the minimum."""

PAGE = """\
# Gallery

Twelve optimizers next to AdamW (the dashed line), on three small problems:

- **Rosenbrock's valley**, $(1 - x)^2 + 20 (y - x^2)^2$, {valley} steps from (−1.2, 1) without noise: the way leads
  round a bend, along a floor that is nearly flat.
- **A bowl with noise**, $x^2 / 2 + 5 y^2$, {bowl} steps from (−2, 1). Every gradient has normal noise of deviation 1
  added to it, the same for all.
- **The digits** of scikit-learn: a network with one hidden layer of 24, {digits} steps of 128 images; the loss of
  each batch.

Each run has the best of {rates} constant learning rates, a hundredth to a hundred times a usual one, by the mean loss of the
last fifth of its steps. `jax.vmap` over the optimizers runs all rates in one compiled program. There is no weight
decay. Other arguments are the defaults, and `sgd` has momentum 0.9. In the plane the two numbers are a matrix with
one row, so that methods for matrices have one. The pictures are drawn when this site is built, by
`docs/_site/races.py`. They show how the methods move. They do not rank them: for that, see the measured comparison
in [Choose an optimizer](../choose.md).
"""

CARD = """\
## {title}

{says} [Its page](../api/{name}.md).

::::{{grid}} 1 3 3 3
:gutter: 1

{pictures}
::::

Rates: valley {valley:.2g}, bowl {bowl:.2g}, digits {digits:.2g}. Last loss on the digits (mean of the last fifth):
{loss:.3f}; AdamW {reference:.3f}.
"""

PICTURE = """\
:::{{grid-item}}
```{{image}} {name}_{task}_light.svg
:alt: {title} of {name} next to AdamW
:class: only-light
```
```{{image}} {name}_{task}_dark.svg
:alt: {title} of {name} next to AdamW
:class: only-dark
```
:::"""


def write(folder: Path) -> None:
    """Writes `gallery/index.md` and its pictures."""
    out = folder / "gallery"
    out.mkdir(parents=True, exist_ok=True)
    runs = {task: make() for task, make in TASKS.items()}
    reference = {task: race(REFERENCE, run) for task, run in runs.items()}
    parts = [PAGE.format(**{task: len(x.losses) for task, x in reference.items()}, rates=len(FACTORS))]
    parts[0] += "\nAdamW's own rates are " + ", ".join(f"{x.rate:.2g} ({task})" for task, x in reference.items()) + ".\n"
    for name, racer in RACERS.items():
        found = {task: race(racer, run) for task, run in runs.items()}
        for task, one in found.items():
            draw(out, name, task, one, reference[task])
        pictures = "\n".join(PICTURE.format(name=name, task=task, title=TITLES[task]) for task in runs)
        rates = {task: one.rate for task, one in found.items()}
        losses = {"loss": last(found["digits"]), "reference": last(reference["digits"])}
        title = name.replace("_", r"\_")
        parts.append(CARD.format(name=name, title=title, says=racer.says, pictures=pictures, **rates, **losses))
        jax.clear_caches()
    (out / "index.md").write_text("\n".join(parts))


def last(x: Race) -> float:
    """Returns the mean loss of the last fifth of the steps."""
    return float(x.losses[-len(x.losses) // 5 :].mean())


def draw(out: Path, name: str, task: str, own: Race, reference: Race) -> None:
    """Draws an optimizer's run beside AdamW's, once for light and once for dark pages."""
    for theme, (text, level, other) in THEMES.items():
        colours = {key: text for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")}
        style = colours | {"font.size": 9, "svg.hashsalt": "functional_opt", "svg.fonttype": "path"}
        with plt.rc_context(style):
            figure, ax = plt.subplots(figsize=(3.2, 2.6), layout="constrained")
            if task in PLANES:
                _plane(ax, task, own, reference, level, other)
            else:
                ax.plot(reference.losses, "--", color=other, lw=1.2, label="AdamW")
                ax.plot(own.losses, color=OWN, lw=1.4, label=name)
                ax.set(yscale="log", xlabel="step", ylim=(1e-3, 4))
            ax.set_title(TITLES[task], fontsize=10)
            ax.legend(fontsize=8, frameon=False, loc="upper right" if task == "digits" else "lower left")
            ax.spines[["top", "right"]].set_visible(False)
            figure.savefig(out / f"{name}_{task}_{theme}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def _plane(ax: plt.Axes, task: str, own: Race, reference: Race, level: str, other: str) -> None:
    f, xs, ys, minimum = PLANES[task]
    x, y = np.meshgrid(np.linspace(*xs, 120), np.linspace(*ys, 120))
    ax.contour(x, y, np.log1p(np.asarray(f(np.stack([x, y], -1)))), 12, colors=level, linewidths=0.7)
    for run, style, colour, label in ((reference, "--", other, "AdamW"), (own, "-", OWN, None)):
        path = np.clip(run.points, (xs[0], ys[0]), (xs[1], ys[1]))
        ax.plot(*path.T, style, color=colour, lw=1.2, label=label)
        ax.plot(*path[-1], "o", color=colour, ms=4)
    ax.plot(*minimum, "+", color=ax.xaxis.label.get_color(), ms=9)
    ax.set(xlim=xs, ylim=ys)
