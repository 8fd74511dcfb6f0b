"""Search by pins, drawn: the guesses of a tree, what the rules refused, and the way to the answer.

study_searches(model, puzzles, folder)      # search.json, figures/search_N.png and .gif
draw_search(task, tree, "tree.png")         # one tree of `Answers.trees`; animate_search: as it grows
"""

import collections
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from air_model.analysis.figures import PALETTE, new_figure, save, save_animation
from air_model.answers_air import Node
from air_model.attempts_air import solve_puzzles
from air_model.datasets_builders.loading import PuzzleSet
from air_model.modeling_air import AirModel
from air_model.pipeline_air import describe
from air_model.processing_air import GridTask
from air_model.records import write_json

REFUSED, ON_THE_WAY, ACCEPTED = "#999999", PALETTE[4], PALETTE[2]


def study_searches(
    model: AirModel, puzzles: PuzzleSet, folder: str | os.PathLike, pictures: int = 2, **options: Any
) -> list[Path]:
    """Search at every puzzle; the trees as JSON, the first few as pictures. Returns what was written.

    Args:
        options: of `solve_puzzles`: dtype, batch_size, progress.

    Raises:
        ValueError: a task without rules.
    """
    if not puzzles.task.has_rules:
        raise ValueError(f"A search by pins needs rules that judge an answer; {puzzles.task} has none.")
    options |= {"attempts": None, "halt": "rules", "check": False, "return_rollout": True}
    answers = solve_puzzles(model, puzzles.task, puzzles.inputs, puzzle_ids=puzzles.ids_for(model), **options)
    answers.rollout = None  # not part of the file
    found = [{"puzzle": puzzles.task.decode(puzzle), **describe(puzzles.task, puzzle, answers, i)}
             for i, puzzle in enumerate(puzzles.inputs)]  # fmt: skip
    pictured = enumerate(answers.trees[:pictures])
    drawn = [draw(puzzles.task, tree, Path(folder) / f"figures/search_{i}.{end}") for i, tree in pictured
             for draw, end in ((draw_search, "png"), (animate_search, "gif"))]  # fmt: skip
    return [write_json(Path(folder) / "search.json", found), *drawn]


def draw_search(task: GridTask, tree: list[Node], path: str | os.PathLike) -> Path:
    """The tree from the puzzle in each of its views (top) to the last guesses; numbers are the order of judging."""
    return save(_figure_of(task, tree), path)


def animate_search(task: GridTask, tree: list[Node], path: str | os.PathLike, frames: int = 60) -> Path:
    """The same tree as it grows, as a .gif: guesses, refusals, and in the end the way to the answer."""
    images = []
    for shown in np.unique(np.linspace(1, len(tree), min(frames, len(tree))).astype(int)):
        figure = _figure_of(task, tree, int(shown))
        figure.set_dpi(min(figure.dpi, 2400 / figure.get_figwidth()))  # a film as wide as the picture takes gigabytes
        figure.canvas.draw()
        images.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    return save_animation(images, Path(path), 350)


def _figure_of(task: GridTask, tree: list[Node], shown: int | None = None) -> Figure:
    """Of the first nodes alone, where `shown` says how many; each stays where it is in the whole tree."""
    x, depth = _places(tree)
    whole, tree = len(tree), tree[:shown]
    way, at = set(), next((k for k, node in enumerate(tree) if node.accepted), -1)
    while at >= 0:
        way.add(at)
        at = tree[at].parent
    figure = new_figure(max(6.4, 0.62 * (max(x) + 1) + 1), 1.1 + 0.8 * (max(depth) + 1))
    top = 1 - 0.3 / figure.get_figheight()  # inches for the title, whatever the height
    ax = figure.add_axes((0.02, 0.02, 0.96, top - 0.02))
    colours = [ACCEPTED if node.accepted else ON_THE_WAY if k in way else REFUSED for k, node in enumerate(tree)]
    y = [-level for level in depth]
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the lines to the children
    label = {"ha": "center", "fontsize": 6, "color": "#333333", "bbox": clear}
    for k, node in enumerate(tree):
        if node.parent >= 0:
            ends = [x[node.parent], x[k]], [y[node.parent], y[k]]
            ax.plot(*ends, color=colours[k], lw=2.4 if k in way else 0.9, zorder=1)
            row, column = divmod(node.cell, task.width)
            name = f"r{row + 1}c{column + 1}\n= {task.alphabet[node.token]}"
            ax.text(x[k], y[k] - 0.17, name, va="top", **label)
        else:
            ax.text(x[k], y[k] + 0.17, f"view {node.view + 1}", va="bottom", **label)
        ax.text(x[k], y[k], str(k + 1), ha="center", va="center", fontsize=7, color="white", zorder=3)
    ax.scatter(x[: len(tree)], y[: len(tree)], s=170, color=colours, zorder=2)
    end = f"answer {len(tree)} accepted (green)" if way else "none accepted" if len(tree) == whole else "so far none"
    ax.set_title(
        f"{len(tree)} node{'s' * (len(tree) > 1)} tried, each a guess more than its parent: {end}; grey: refused",
        fontsize=9,
    )
    ax.set_xlim(-0.8, max(x) + 0.8)
    ax.set_ylim(-max(depth) - 0.7, 0.5)
    ax.axis("off")
    return figure


def _places(tree: list[Node]) -> tuple[list[float], list[int]]:
    """Column and depth of each node: leaves side by side, parents in the middle of their children."""
    depth, x, columns = [0] * len(tree), [0.0] * len(tree), itertools.count()
    below: dict[int, list[int]] = collections.defaultdict(list)  # children of each node; of -1 the roots
    for k, node in enumerate(tree):  # parents come before their children
        below[node.parent].append(k)
        depth[k] = depth[node.parent] + 1 if node.parent >= 0 else 0

    def place(k: int) -> float:
        children = [place(child) for child in below[k]]
        x[k] = sum(children) / len(children) if children else float(next(columns))
        return x[k]

    for root in below[-1]:
        place(root)
    return x, depth
