"""One interface for everything that meddles with the states: freeze, swap, reset, perturb, decode through the other.

    run_with(study, Freeze("z_l", start=4))          # from ACT step 4 on, z_L stays as it was at the end of step 3
    run_with(study, parse_intervention("perturb:z_h:0.1:0-4"))
    run_with(study, None)                            # the normal run; a do-nothing intervention equals it bit for bit

An intervention is a hook on `AirModel.solve` (what it does to the states) and a view (what is decoded). All work
puzzle by puzzle, so results do not depend on the batch size. ACT steps are counted from 0; windows are half open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from air_model.analysis.common import Study
from air_model.modeling_air import AirModel
from air_model.solving_air import AirRollout, AirSolution, AirUpdate, Hook

STATE_NAMES = ("z_h", "z_l")


@dataclass(frozen=True)
class Intervention:
    """Does nothing; base of the others."""

    @property
    def name(self) -> str:
        return "nothing"

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        """What it does after every update; `first` is the number of the call's first puzzle in the data."""
        return None

    def view(self, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        """The states as they are decoded."""
        return z_h, z_l

    @property
    def skips(self) -> str | None:
        """Level whose updates need not be computed at all."""
        return None

    def check(self, max_act_steps: int) -> None:
        """Raise ValueError where it lies beyond the run."""
        start = getattr(self, "start", getattr(self, "at", 0))
        stop = getattr(self, "stop", None)
        if start < 0 or start >= max_act_steps or (stop is not None and not start <= stop <= max_act_steps):
            raise ValueError(
                f"{self.name} lies beyond the run: it has {max_act_steps} ACT steps, counted from 0 to "
                f"{max_act_steps - 1}."
            )


def _check_state(state: str) -> None:
    if state not in STATE_NAMES:
        raise ValueError(f"state must be 'z_h' or 'z_l', got {state!r}.")


def _window(start: int, stop: int | None) -> str:
    return f"{start}-{'' if stop is None else stop}"


def _rows_of(mask: Tensor) -> Tensor:
    return mask.view(-1, 1, 1)


def _replace(state: str, z_h: Tensor, z_l: Tensor, mask: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`value` in place of one state, for the rows in `mask`."""
    if state == "z_h":
        return torch.where(_rows_of(mask), value, z_h), z_l
    return z_h, torch.where(_rows_of(mask), value, z_l)


@dataclass(frozen=True)
class Freeze(Intervention):
    """Hold a state from the beginning of ACT step `start` until that of `stop` (None: to the end)."""

    state: str
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        _check_state(self.state)

    @property
    def name(self) -> str:
        whole = self.start == 0 and self.stop is None
        return f"freeze:{self.state}" + ("" if whole else f":{_window(self.start, self.stop)}")

    @property
    def skips(self) -> str | None:
        return self.state[-1] if self.start == 0 and self.stop is None else None

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        if self.stop is not None and self.stop <= self.start:
            return None
        held = _Memory()
        last = len(model.config.schedule) - 1

        def hold(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
            z = z_h if self.state == "z_h" else z_l
            if self.start == 0:
                start = getattr(model.initial_carry(1, dtype=z.dtype), self.state)
                held.put(update, start.expand_as(z), update.steps < 0)
            else:
                held.put(update, z, (update.steps == self.start - 1) & (update.index == last))
            inside = update.steps >= self.start
            if self.stop is not None:
                inside = inside & (update.steps < self.stop)
            return _replace(self.state, z_h, z_l, inside, held.values) if inside.any() else None

        return hold


class _Memory:
    """States remembered per puzzle while puzzles come and go in the batch."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.values: Tensor | None = None

    def put(self, update: AirUpdate, z: Tensor, mask: Tensor) -> None:
        """Remember z for the rows in `mask`; puzzles never seen before get theirs in any case."""
        if self.rows is None:
            self.rows, self.values = update.rows, z.clone()
        elif len(self.rows) != len(update.rows) or not torch.equal(self.rows, update.rows):
            same = update.rows[:, None] == self.rows
            old = self.values[same.int().argmax(1)]
            self.rows, self.values = update.rows, torch.where(_rows_of(same.any(1)), old, z)
        if mask.any():
            self.values = torch.where(_rows_of(mask), z, self.values)


@dataclass(frozen=True)
class Reset(Intervention):
    """Put a state back to its start at the end of ACT step `at`."""

    state: str
    at: int

    def __post_init__(self) -> None:
        _check_state(self.state)

    @property
    def name(self) -> str:
        return f"reset:{self.state}:{self.at}"

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        last = len(model.config.schedule) - 1

        def reset(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
            now = update.steps == self.at
            if update.index != last or not now.any():
                return None
            start = getattr(model.initial_carry(1, dtype=z_h.dtype), self.state)
            return _replace(self.state, z_h, z_l, now, start.expand_as(z_h))

        return reset


@dataclass(frozen=True)
class Swap(Intervention):
    """Exchange z_H and z_L at the end of ACT step `at`."""

    at: int

    @property
    def name(self) -> str:
        return f"swap:{self.at}"

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        last = len(model.config.schedule) - 1

        def swap(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
            now = _rows_of(update.steps == self.at)
            if update.index != last or not now.any():
                return None
            return torch.where(now, z_l, z_h), torch.where(now, z_h, z_l)

        return swap


@dataclass(frozen=True)
class Perturb(Intervention):
    """Add Gaussian noise to a state after each of its updates in [start, stop); scale 1 is the state's own size (RMS).

    The noise of a puzzle depends on `seed`, its number in the data and the update, not on its batch.
    """

    state: str
    scale: float
    start: int = 0
    stop: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_state(self.state)
        if not self.scale >= 0:
            raise ValueError(f"The scale of a perturbation must be 0 or more, got {self.scale}.")

    @property
    def name(self) -> str:
        return f"perturb:{self.state}:{self.scale:g}:{_window(self.start, self.stop)}"

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        if self.scale == 0:
            return None

        def disturb(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
            inside = update.steps >= self.start
            if self.stop is not None:
                inside = inside & (update.steps < self.stop)
            if update.level != self.state[-1] or not inside.any():
                return None
            z = z_h if self.state == "z_h" else z_l
            noise = torch.zeros(z.shape)
            for i in torch.nonzero(inside.cpu()).flatten().tolist():
                keys = (self.seed, first + int(update.rows[i]), int(update.steps[i]), update.index)
                noise[i] = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(_mixed(keys)))
            size = z.float().square().mean((1, 2), keepdim=True).sqrt()
            moved = (z.float() + self.scale * size * noise.to(z.device)).to(z.dtype)
            return _replace(self.state, z_h, z_l, inside, moved)

        return disturb


def _mixed(keys: tuple[int, ...]) -> int:
    """One 63-bit seed out of several numbers."""
    seed = 0
    for key in keys:
        seed = (seed * 1_000_003 + key + 0x9E3779B97F4A7C15) % (2**63)
    return seed


@dataclass(frozen=True)
class Through(Intervention):
    """Decode a state through the other's statistics: its features, standardised over the positions of a puzzle, take
    the mean and spread that the other state's features have there. The run itself stays as it is."""

    state: str

    def __post_init__(self) -> None:
        _check_state(self.state)

    @property
    def name(self) -> str:
        return f"through:{self.state}"

    def view(self, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        own, other = (z_h, z_l) if self.state == "z_h" else (z_l, z_h)
        spread = own.float().std(1, keepdim=True).clamp_min(1e-6)
        scaled = (own.float() - own.float().mean(1, keepdim=True)) / spread
        moved = (scaled * other.float().std(1, keepdim=True) + other.float().mean(1, keepdim=True)).to(own.dtype)
        return (moved, z_l) if self.state == "z_h" else (z_h, moved)


def parse_intervention(text: str) -> Intervention:
    """Read one intervention as the command line writes it.

    freeze:STATE[:WINDOW]   reset:STATE:STEP   swap:STEP   perturb:STATE:SCALE[:WINDOW]   through:STATE
    STATE is z_h or z_l; STEP counts from 0; WINDOW is FROM-TO (TO excluded) or FROM-.
    """
    kind, *fields = text.lower().split(":")
    try:
        if kind == "freeze" and len(fields) in (1, 2):
            return Freeze(fields[0], *_parsed_window(fields[1:]))
        if kind == "reset" and len(fields) == 2:
            return Reset(fields[0], int(fields[1]))
        if kind == "swap" and len(fields) == 1:
            return Swap(int(fields[0]))
        if kind == "perturb" and len(fields) in (2, 3):
            return Perturb(fields[0], float(fields[1]), *_parsed_window(fields[2:]))
        if kind == "through" and len(fields) == 1:
            return Through(fields[0])
    except ValueError as error:
        raise ValueError(f"Cannot read the intervention {text!r}: {error}") from None
    raise ValueError(
        f"Cannot read the intervention {text!r}. Known: freeze:z_l:4-8, reset:z_h:5, swap:3, perturb:z_l:0.1:0-4, "
        "through:z_l."
    )


def _parsed_window(fields: list[str]) -> tuple[int, int | None]:
    if not fields:
        return 0, None
    start, dash, stop = fields[0].partition("-")
    if not dash:
        raise ValueError(f"a window is FROM-TO or FROM-, got {fields[0]!r}")
    return int(start or 0), int(stop) if stop else None


class _Decoder:
    """A hook that decodes both states after every update, as an intervention views them, into (N, U, S) int8."""

    def __init__(self, model: AirModel, total: int, steps: int, intervention: Intervention | None):
        self.model, self.intervention = model, intervention
        self.updates = list(model.config.schedule) * steps
        shape, device = (total, len(self.updates), model.config.seq_len), model.lm_head.weight.device
        self.tokens = {level: torch.zeros(shape, dtype=torch.int8, device=device) for level in "hl"}

    def __call__(self, update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        at = update.steps.long() * len(self.model.config.schedule) + update.index
        views = dict(zip("hl", (z_h, z_l) if self.intervention is None else self.intervention.view(z_h, z_l)))
        for level, store in self.tokens.items():
            # In the normal run the other state is as it was: no need to decode it again within an ACT step.
            if self.intervention is None and level != update.level and update.index > 0:
                store[update.rows, at] = store[update.rows, at - 1]
            else:
                store[update.rows, at] = self.model.decode_state(views[level]).argmax(-1).to(torch.int8)


@contextlib.contextmanager
def skipped_updates(model: AirModel, level: str | None) -> Iterator[None]:
    """Inside, updates of this level return the state as it is: for states that are held all the time anyway."""
    if level is None:
        yield
        return
    update = model.update

    def keep(which: str, z_h: Tensor, z_l: Tensor, x: Tensor) -> Tensor:
        return update(which, z_h, z_l, x) if which != level else z_h if level == "h" else z_l

    model.update = keep
    try:
        yield
    finally:
        del model.update


def run_with(study: Study, intervention: Intervention | None = None, *, first: int = 0, hook: Hook | None = None,
             max_act_steps: int | None = None) -> AirSolution:  # fmt: skip
    """Solve all puzzles of the study under an intervention; the solution's rollout shows both states at every update.

    Args:
        intervention: None for the normal run.
        first: number of the study's first puzzle in the data (seeds of noise).
        hook: an observer of the states as the intervention leaves them.
    """
    steps = study.config.halt_max_steps if max_act_steps is None else max_act_steps
    hooks: list[Hook] = []
    if intervention is not None:
        intervention.check(steps)
        if (own := intervention.hook(study.model, first)) is not None:
            hooks.append(own)
    decoder = _Decoder(study.model, len(study), steps, intervention)
    hooks += [decoder] if hook is None else [decoder, hook]

    def chained(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        for one in hooks:
            z_h, z_l = one(update, z_h, z_l) or (z_h, z_l)
        return z_h, z_l

    with skipped_updates(study.model, None if intervention is None else intervention.skips):
        solution = study.solve(hook=chained, max_act_steps=steps)
    solution.rollout = AirRollout(decoder.tokens["h"], decoder.tokens["l"], decoder.updates)
    return solution
