"""What all figures share, and those made of boards: pictures, film strips and animations of a roll-out.

    draw_rollout(rollout, puzzle, task, "rollout.png")          # both states side by side, after any update
    draw_film_strip(rollout, puzzle, task, "strip.png")         # both states at several ACT steps
    animate_rollout(rollout, puzzle, task, "rollout.gif")       # every update; changed cells marked

`rollout` is `AirModel.solve(..., return_rollout=True).rollout` (or anything with z_h, z_l and updates), `task` a
GridTask. Colours: z_H vermillion, z_L blue, the rest Okabe-Ito. Nothing here touches pyplot's global state: a server
may draw from several threads.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from air_model.processing_air import PAD, GridTask
from air_model.records import whole

STATE_COLOURS = {"h": "#D55E00", "l": "#0072B2"}
STATE_NAMES = {"h": "$z_H$", "l": "$z_L$"}
STATE_ROLES = {"h": "proposal", "l": "scratchpad"}
INK, MUTED, FAINT = "#222222", "#6B7280", "#D6DAE0"
CLUE, HELD, PADDED = "#E9ECF0", "#B4BBC6", "#8A93A1"  # cell backgrounds: given, held back as blank, held back as PAD
WRONG, CHANGED = "#CC79A7", "#F0E442"
MAZE_WALL, MAZE_START, MAZE_GOAL = "#33373D", "#009E73", "#CC79A7"
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
GRID = "#EDEFF2"
THEIRS, OURS = "#999999", "#D55E00"  # published numbers and our own
DPI, ANIMATION_DPI = 150, 80


# ---- files ---------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """A figure of width x height inches with its own canvas."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **how: Any) -> tuple[Figure, np.ndarray]:
    """A figure of width x height inches, and its axes (rows, columns)."""
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def save(figure: Figure, path: str | Path, dpi: int | None = None, tight: bool = False) -> Path:
    """Write the figure atomically, with DPI dots per inch by default; the suffix (.png, .pdf, .svg) says how.

    tight: first move the axes so that their labels fit.
    """
    path = Path(path)
    if tight:
        figure.tight_layout()
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi or DPI, metadata=undated.get(path.suffix))
    return path


def tint(colour: str, amount: float) -> tuple[float, float, float]:
    """`colour` mixed into white; amount 1 is the colour itself."""
    return tuple(1 - amount * (1 - channel) for channel in to_rgb(colour))


def styled(ax: Axes, title: str = "", x: str = "", y: str = "", size: float = 8) -> None:
    """Title on the left, axis labels in grey, no ticks, and no frame but the left and lower axis lines."""
    if title:
        ax.set_title(title, fontsize=10, color=INK, loc="left")
    for label, put in ((x, ax.set_xlabel), (y, ax.set_ylabel)):
        if label:
            put(label, fontsize=9, color=MUTED)
    ax.tick_params(length=0, labelsize=size, colors=MUTED)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=FAINT, linewidth=1.0)


def grid_lines(task: GridTask, rows: int, columns: int) -> list[list[tuple[float, float]]]:
    """Line segments across a board, after every so many rows and columns."""
    height, width = task.height, task.width
    lines = [[(-0.5, r - 0.5), (width - 0.5, r - 0.5)] for r in range(rows, height, rows)]
    return lines + [[(c - 0.5, -0.5), (c - 0.5, height - 0.5)] for c in range(columns, width, columns)]


# ---- one board -----------------------------------------------------------------------------------------------------


class Board:
    """One decoded grid of a state, "h" or "l", drawn into `ax`; `show` repaints it, so that an animation costs little.

    label: (S,) tokens of the right answer; with it wrong cells are marked (Sudoku) or its path dotted (maze).
    """

    def __init__(self, ax: Axes, task: GridTask, puzzle: np.ndarray, level: str, label: np.ndarray | None = None):
        self.ax, self.task, self.puzzle, self.label = ax, task, puzzle, label
        self.colour = STATE_COLOURS[level]
        self.lettered = task.name != "maze"  # mazes show colours
        height, width = task.height, task.width
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], aspect="equal")
        self.image = ax.imshow(np.ones((height, width, 3)), interpolation="nearest")
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set(color=INK, linewidth=1.6, zorder=7)
        self.frames = [LineCollection([], colors=c, linewidths=w, zorder=6) for c, w in ((INK, 2.6), (CHANGED, 1.5))]
        for frame in self.frames:
            ax.add_collection(frame)
        cell = min(ax.bbox.width / width, ax.bbox.height / height) / ax.figure.dpi  # inches
        if self.lettered:
            self._letter(cell)
        else:
            self._mark_maze(cell)

    def _letter(self, cell: float) -> None:
        """Lines, a letter for each cell and the crosses of the wrong ones, still empty."""
        ax, task = self.ax, self.task
        ax.add_collection(LineCollection(grid_lines(task, 1, 1), colors="#C3C8D0", linewidths=0.6, zorder=2))
        if task.name == "sudoku":
            boxes = grid_lines(task, task.box_height, task.box_width)
            ax.add_collection(LineCollection(boxes, colors=INK, linewidths=1.4, zorder=3))
        style = {"ha": "center", "va": "center_baseline", "fontsize": cell * 72 * 0.56, "zorder": 4}
        self.texts = [ax.text(i % task.width, i // task.width, "", **style) for i in range(task.seq_len)]
        (self.crosses,) = ax.plot([], [], "x", color=WRONG, ms=cell * 13, mew=max(0.8, cell * 4), zorder=5)

    def _mark_maze(self, cell: float) -> None:
        """S and G, and the dots of the right path."""
        style = {"ha": "center", "va": "center_baseline", "fontsize": cell * 72 * 0.8, "color": "white", "zorder": 5}
        for token, letter, colour in ((self.task.START, "S", MAZE_START), (self.task.GOAL, "G", MAZE_GOAL)):
            for i in np.flatnonzero(self.puzzle == token):
                text = self.ax.text(i % self.task.width, i // self.task.width, letter, weight="bold", **style)
                text.set_path_effects([withStroke(linewidth=cell * 9, foreground=colour)])
        if self.label is not None:
            row, column = np.divmod(np.flatnonzero(self.label == self.task.PATH), self.task.width)
            self.ax.plot(column, row, ".", color="black", ms=cell * 72 * 0.28, mew=0, zorder=4)

    def background(self, tokens: np.ndarray, changed: np.ndarray | None) -> np.ndarray:
        """(S, 3) colours of the cells."""
        task = self.task
        if not self.lettered:
            table = ["#C2CAD6", MAZE_WALL, "#FFFFFF", MAZE_START, MAZE_GOAL, self.colour]
            return np.array([to_rgb(c) for c in table])[tokens]
        colours = np.ones((task.seq_len, 3))
        colours[self.puzzle != task.blank_token] = to_rgb(CLUE)
        colours[tokens == task.blank_token] = to_rgb(HELD)
        colours[tokens == PAD] = to_rgb(PADDED)
        colours[self.wrong(tokens)] = tint(WRONG, 0.28)
        if changed is not None:
            colours[changed & (tokens > task.blank_token)] = tint(CHANGED, 0.8)
        return colours

    def wrong(self, tokens: np.ndarray) -> np.ndarray:
        """(S,) committed cells that differ from the label, or, without one, break a rule."""
        committed = tokens > self.task.blank_token
        if self.label is not None:
            return committed & (tokens != self.label) & (self.label != PAD)
        altered = ~self.task._kept(self.puzzle, tokens)
        clashing = self.task.conflicts(tokens) if self.task.name == "sudoku" else False
        return committed & (altered | clashing)

    def show(self, tokens: np.ndarray, before: np.ndarray | None = None) -> None:
        """Paint `tokens` (S,); cells that differ from `before` (S,) are marked as changed."""
        task = self.task
        changed = None if before is None else tokens != before
        self.image.set_data(self.background(tokens, changed).reshape(task.height, task.width, 3))
        if self.lettered:
            for token, given, text in zip(tokens, self.puzzle, self.texts):
                clue = given != task.blank_token and given == token
                letter = "" if token in (task.blank_token, PAD) else task.alphabet[token]
                text.set(text=letter, color=INK if clue else self.colour, weight="bold" if clue else "normal")
            row, column = np.divmod(np.flatnonzero(self.wrong(tokens)), task.width)
            self.crosses.set_data(column + 0.34, row - 0.34)
        elif changed is not None:
            row, column = np.divmod(np.flatnonzero(changed), task.width)
            around = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)])
            for frame in self.frames:
                frame.set_segments(np.stack([column, row], -1)[:, None] + around)


def _legend(figure: Figure, film: "_Film", changes: bool, **more: Any) -> None:
    """What the colours of the boards mean, below them."""
    dots: list[Any] = []
    if film.task.name == "maze":
        colours = {"wall": MAZE_WALL, "S": MAZE_START, "G": MAZE_GOAL, "path in $z_H$": STATE_COLOURS["h"],
                   "path in $z_L$": STATE_COLOURS["l"], "held back (PAD)": "#C2CAD6"}  # fmt: skip
        looks = {label: {"facecolor": colour} for label, colour in colours.items()}
        changed = {"facecolor": "none", "edgecolor": "#B8AD00", "linewidth": 1.5}
        if film.label is not None:
            dots = [Line2D([], [], marker=".", ls="", color="black", label="right path")]
    else:
        looks = {
            "clue": {"facecolor": CLUE, "edgecolor": "#C3C8D0"},
            "held back (blank)": {"facecolor": HELD},
            "held back (PAD)": {"facecolor": PADDED},
            "breaks a rule" if film.label is None else "wrong": {"facecolor": tint(WRONG, 0.28), "edgecolor": WRONG},
        }
        changed = {"facecolor": tint(CHANGED, 0.8)}
    handles = [*(Patch(label=label, **look) for label, look in looks.items()), *dots]
    figure.legend(
        handles=[*handles, Patch(label="just changed", **changed)] if changes else handles, loc="lower center", ncol=8,
        frameon=False, fontsize=9, handlelength=1.1, handleheight=1.1, columnspacing=1.3, labelcolor=MUTED, **more,
    )  # fmt: skip


# ---- roll-outs -----------------------------------------------------------------------------------------------------


class _Film:
    """The numbers of one puzzle's roll-out that its pictures need; arguments as of `draw_rollout`."""

    def __init__(
        self, rollout: Any, puzzle: Any, task: GridTask, label: Any = None, row: int = 0, per_step: int | None = None
    ) -> None:
        self.task, self.puzzle = task, task.as_tokens(puzzle)
        label = PAD if label is None else task.as_tokens(label)
        self.counted = label != PAD  # cells whose answer is known
        self.label = label if np.any(self.counted) else None
        self.updates = list(rollout.updates)
        self.states = {}
        expected = (len(self.updates), task.seq_len)
        for level, grids in (("h", rollout.z_h), ("l", rollout.z_l)):
            grids = np.asarray(grids.cpu() if hasattr(grids, "cpu") else grids, np.int64)
            self.states[level] = grids[row] if grids.ndim == 3 else grids
            if self.states[level].shape != expected:
                raise ValueError(
                    f"A roll-out of this {task.name} must be {expected} (updates x cells), got "
                    f"{self.states[level].shape}. Pass the task of the model that made it."
                )
        self.per_step = per_step or _period(self.updates)
        if len(self.updates) % self.per_step:
            raise ValueError(f"{len(self.updates)} updates are not a whole number of ACT steps of {self.per_step}.")
        self.act_steps = len(self.updates) // self.per_step

    def name(self, at: int) -> str:
        """'ACT step 3 of 16 · L-update 2'."""
        step, index = divmod(at, self.per_step)
        level = self.updates[at]
        nth = self.updates[step * self.per_step : at + 1].count(level)
        return f"ACT step {step + 1} of {self.act_steps}  ·  {level.upper()}-update {nth}"

    def summary(self, level: str, at: int) -> str:
        """What a viewer counts on this board."""
        tokens, task = self.states[level][at], self.task
        held = int(((tokens == PAD) | ((tokens == task.blank_token) & (task.name == "sudoku"))).sum())
        parts = [f"{held} held back"] if held else []
        if self.label is not None:
            right = (tokens == self.label)[self.counted]
            parts.insert(0, f"{int(right.sum())} of {len(right)} cells right")
        elif task.has_rules and bool(task.verdicts(self.puzzle[None], tokens[None].astype(np.uint8)).valid[0]):
            parts.insert(0, "solved")
        return ",  ".join(parts) or "every cell committed"


def _period(updates: list[str]) -> int:
    """Updates per ACT step of a roll-out, from its letters: the published six where that fits, else their period."""
    for period in (6, *range(1, len(updates))):
        if updates[:period][-1] == "h" and updates[:period] * (len(updates) // period) == updates:
            return period
    return len(updates)


def _timeline(ax: Axes, film: _Film) -> None:
    """Both states' curves over all updates, and where ACT steps begin."""
    target, counted = (film.states["h"][-1], ...) if film.label is None else (film.label, film.counted)
    for level in "lh":
        y = 100 * (film.states[level] == target)[:, counted].mean(-1)
        x = np.arange(1, len(y) + 1)
        ax.plot(x, y, color=STATE_COLOURS[level], lw=1.8, label=STATE_NAMES[level], solid_capstyle="round")
    ticks = np.arange(film.act_steps) * film.per_step + 0.5
    every = max(1, film.act_steps // 16)
    ax.set(xlim=(0.5, len(x) + 0.5), ylim=(-4, 104), yticks=[0, 50, 100])
    ax.set_xticks(ticks[::every] + film.per_step / 2, range(1, film.act_steps + 1, every), fontsize=9)
    for tick in ticks[1:]:
        ax.axvline(tick, color=GRID, lw=0.8, zorder=0)
    ax.set_xlabel("ACT step", fontsize=9, color=MUTED, labelpad=2)
    what = "cells right, %" if film.label is not None else "cells as in the last $z_H$, %"
    ax.set_title(what, fontsize=9, color=MUTED, loc="left", pad=3)
    styled(ax, size=9)


def _two_boards(film: _Film, changes: bool) -> tuple[Figure, dict[str, Board], dict[str, Any], Any, Axes]:
    """Figure with both boards, their captions, a heading and the timeline."""
    task = film.task
    ratio = task.height / task.width
    board_width = 4.3 if ratio <= 1 else 4.3 / ratio
    board_height = board_width * ratio
    width, height = 2 * board_width + 1.3, board_height + 2.75
    figure = new_figure(width, height)
    boards, captions = {}, {}
    for column, level in enumerate("hl"):
        left = (0.4 + column * (board_width + 0.5)) / width
        ax = figure.add_axes((left, 1.9 / height, board_width / width, board_height / height))
        boards[level] = Board(ax, task, film.puzzle, level, film.label)
        name = f"{STATE_NAMES[level]}   {STATE_ROLES[level]}"
        ax.set_title(name, color=STATE_COLOURS[level], fontsize=15, weight="bold", pad=7)
        below = {"transform": ax.transAxes, "ha": "center", "va": "top", "fontsize": 10, "color": MUTED}
        captions[level] = ax.text(0.5, -0.03, "", **below)
    heading = figure.text(0.4 / width, 1 - 0.22 / height, "", fontsize=12, color=INK, va="center")
    timeline = figure.add_axes((0.75 / width, 0.78 / height, (width - 1.15) / width, 0.58 / height))
    _timeline(timeline, film)
    _legend(figure, film, changes, handletextpad=0.5, bbox_to_anchor=(0.5, 0.0))
    return figure, boards, captions, heading, timeline


def draw_rollout(rollout: Any, puzzle: Any, task: GridTask, path: str | Path, *, at: int = -1, **which: Any) -> Path:
    """One picture: z_H and z_L side by side after update `at` (default the last), and how they got there.

    Args:
        rollout: `.z_h`, `.z_l` (B, U, S) or (U, S) tokens and `.updates`, U letters "l" or "h".
        puzzle: text or tokens (S,). path: .png, .pdf or .svg. at: which update, counted from 0.
        which: `label`, text or tokens (S,): with it wrong cells are marked, without it cells that break a rule; `row`,
            which puzzle of the roll-out, default 0; `per_step`, updates per ACT step (`len(config.schedule)`),
            default read off the letters, which is not unique where an ACT step repeats itself otherwise than the
            published "llhllh".

    Returns:
        The path written.

    Raises:
        ValueError: the roll-out does not fit the task, or has no such update.
    """
    film = _Film(rollout, puzzle, task, **which)
    total = len(film.updates)
    if not -total <= at < total:
        raise ValueError(f"The roll-out has {total} updates, numbered 0 to {total - 1}; there is no update {at}.")
    at %= total
    figure, boards, captions, heading, timeline = _two_boards(film, changes=False)
    for level, board in boards.items():
        board.show(film.states[level][at])
        captions[level].set_text(film.summary(level, at))
    heading.set_text(film.name(at))
    timeline.axvline(at + 1, color=INK, lw=1.0)
    return save(figure, path)


def draw_film_strip(rollout: Any, puzzle: Any, task: GridTask, path: str | Path, **which: Any) -> Path:
    """Both states (rows) at the ends of some ACT steps (columns); arguments as of `draw_rollout`."""
    film = _Film(rollout, puzzle, task, **which)
    steps = np.unique(np.geomspace(1, film.act_steps, min(6, film.act_steps)).round().astype(int))
    ratio, side = task.height / task.width, 2.25
    width, height = 0.75 + len(steps) * (side + 0.18), 2 * (side * ratio + 0.42) + 0.95
    figure = new_figure(width, height)
    for line, level in enumerate("hl"):
        for column, at in enumerate(steps * film.per_step - 1):
            left = 0.6 + column * (side + 0.18)
            bottom = 0.55 + (1 - line) * (side * ratio + 0.42) + 0.2
            ax = figure.add_axes((left / width, bottom / height, side / width, side * ratio / height))
            Board(ax, task, film.puzzle, level, film.label).show(film.states[level][at])
            if line == 0:
                ax.set_title(film.name(at).replace(f" of {film.act_steps}", "").replace("  ·  ", "\n"), fontsize=10)
            if column == 0:
                ax.set_ylabel(STATE_NAMES[level], color=STATE_COLOURS[level], fontsize=17, rotation=0, labelpad=16)
            ax.set_xlabel(film.summary(level, at), fontsize=8, color=MUTED, labelpad=4)
    _legend(figure, film, changes=False)
    return save(figure, path)


def animate_rollout(rollout: Any, puzzle: Any, task: GridTask, path: str | Path, **which: Any) -> Path:
    """Both states through the roll-out until nothing changes any more, as a .gif: changed cells marked, the state just
    updated framed. Arguments as of `draw_rollout`; raises ValueError for another suffix."""
    path = Path(path)
    if path.suffix != ".gif":
        raise ValueError(f"Animations are written as .gif, got {path.name!r}.")
    film = _Film(rollout, puzzle, task, **which)
    moving = [np.flatnonzero((g[1:] != g[:-1]).any(-1)) for g in film.states.values()]
    last = max((int(m[-1]) + 1 for m in moving if len(m)), default=0)
    return save_animation(list(_frames(film, range(min(len(film.updates), last + 1 + film.per_step)))), path, 140)


def save_animation(images: Sequence[np.ndarray], path: Path, milliseconds: int) -> Path:
    """Pictures (height, width, 3) uint8 as a .gif, each for so long; the last one stays."""
    from PIL import Image

    # One palette for all frames: without it colours flicker and the file grows.
    some = np.concatenate([images[0], images[len(images) // 2], images[-1]])
    palette = Image.fromarray(some).quantize(colors=128, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.sum(-1).argmax()] = 255  # white stays white on a white page
    palette.putpalette(colours.astype(np.uint8).tobytes())
    frames = [Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [milliseconds] * (len(frames) - 1) + [2500]
    with whole(path) as partial:
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return path


def _frames(film: _Film, updates: Sequence[int]) -> Iterator[np.ndarray]:
    """(height, width, 3) uint8 of each update. Only what moves is drawn anew, and a board seen before is pasted."""
    figure, boards, captions, heading, timeline = _two_boards(film, changes=True)
    cursor = timeline.axvline(1, color=INK, lw=1.2)
    figure.set_dpi(ANIMATION_DPI)
    canvas, moving = figure.canvas, [heading, cursor, *captions.values()]
    for artist in (*moving, *(board.ax for board in boards.values())):
        artist.set_animated(True)  # drawn by hand; a caption changes where its board does not
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    seen: dict[tuple, Any] = {}
    for at in updates:
        canvas.restore_region(still)
        for level, board in boards.items():
            grid, before = film.states[level][at], film.states[level][max(at - 1, 0)]
            updated = film.updates[at] == level
            key = (level, grid.tobytes(), before.tobytes(), updated)
            if key not in seen:
                board.show(grid, before)
                for spine in board.ax.spines.values():
                    spine.set(color=board.colour if updated else FAINT, linewidth=3.0 if updated else 1.6)
                board.ax.draw(canvas.get_renderer())
                seen[key] = canvas.copy_from_bbox(board.ax.bbox.padded(45))
            canvas.restore_region(seen[key])
            captions[level].set_text(film.summary(level, at))
        heading.set_text(film.name(at))
        cursor.set_xdata([at + 1, at + 1])
        for artist in moving:
            artist.draw(canvas.get_renderer())
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
