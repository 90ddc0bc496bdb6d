"""Draw the pictures of docs/tutorials/how-it-works.md from a real search; about half a minute.

    python docs/scripts/pictures.py

The network and its training are those of docs/tutorials/first-prune.md: the first code block of that page is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hyperprune import Budget, HyperModel, Search, export_pruned, hyperize
from hyperprune.plots import plot_groups, save_figure
from hyperprune.plots.canvas import BLUE, GUIDE, VERMILION, new_figure

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
STEPS = 300
BUDGET = 0.5
LOOK = 4  # steps between two points of the course


def main() -> None:
    """Train, search, draw."""
    space = first_block_of(TUTORIALS / "first-prune.md")
    hyper = hyperize(space["model"], space["images"][:1])
    save_figure(plot_groups(hyper.coupling, "Net"), TUTORIALS / "how-groups.png")
    weights = {"dense": weight_of_back(hyper)}
    course = searched(hyper, space, weights)
    weights["exported"] = export_pruned(hyper).get_parameter("back.weight").detach()
    save_figure(weights_figure(weights), TUTORIALS / "how-weights.png")
    save_figure(course_figure(course), TUTORIALS / "how-search.png")


def first_block_of(page: Path) -> dict[str, Any]:
    """Run the page's first block of Python and return its names."""
    (block, *_) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    space: dict[str, Any] = {"__name__": page.stem}
    exec(block, space)
    return space


def weight_of_back(hyper: HyperModel) -> Tensor:
    """Return the generated weight, shape ``[32, 64, 3, 3]``."""
    return hyper.model.get_submodule("back").weight.detach().clone()


def searched(hyper: HyperModel, space: dict[str, Any], weights: dict[str, Tensor]) -> list[tuple[int, float, float]]:
    """Search; return step, share of the MACs and accuracy, and note the weight at half time."""
    optimizer = torch.optim.Adam(hyper.parameter_groups(lr=1e-3))
    search = Search(hyper, optimizer, Budget(macs=BUDGET), steps=STEPS)
    course = [(0, 1.0, space["accuracy"](hyper))]
    while not search.done:
        space["training_step"](hyper, optimizer)
        search.step()
        if search.step_count % LOOK == 0:
            course.append((search.step_count, search.progress().macs_fraction, space["accuracy"](hyper)))
        if search.step_count == STEPS // 2:
            weights["half searched"] = weight_of_back(hyper)
    return course


def weights_figure(weights: dict[str, Tensor]) -> Figure:
    """Show the size of each kernel as a square; panels are as wide as their weights."""
    figure = new_figure(9.0, 2.9)
    axes = figure.subplots(1, len(weights), width_ratios=[weight.shape[1] for weight in weights.values()])
    brightest = float(torch.stack([sizes(weight).max() for weight in weights.values()]).max())
    for panel, (title, weight) in zip(axes, weights.items(), strict=True):
        panel.imshow(sizes(weight), cmap="cividis", vmin=0, vmax=brightest, interpolation="nearest")
        panel.set_title(f"{title}: {weight.shape[0]} x {weight.shape[1]}", fontsize=10)
        panel.set_xlabel("channels of wide, read", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    axes[0].set_ylabel("channels of back, made", fontsize=9)
    return figure


def sizes(weight: Tensor) -> Tensor:
    """Return the norm of each kernel, shape ``[made, read]``."""
    return weight.flatten(2).norm(dim=2)


def course_figure(course: list[tuple[int, float, float]]) -> Figure:
    """Draw MACs as stairs and accuracy as a line, in per cent."""
    figure = new_figure(7.0, 3.2)
    panel = figure.subplots()
    steps, macs, accuracy = zip(*course, strict=True)
    panel.step(steps, [100 * share for share in macs], where="post", color=BLUE, label="MACs, share of the dense")
    panel.plot(steps, [100 * share for share in accuracy], color=VERMILION, label="accuracy on the test images")
    panel.axhline(100 * BUDGET, color=GUIDE, linestyle=":", label="budget")
    panel.set(xlabel="training step of the search", ylabel="per cent", ylim=(0, 105))
    panel.legend(frameon=False, loc="lower left")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
