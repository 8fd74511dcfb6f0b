"""One interface for everything that meddles with the states: freeze, swap, reset, perturb, decode through the other.

    run_with(study, Freeze("z_l", start=4))          # from ACT step 4 on, z_L stays as it was at the end of step 3
    run_with(study, parse_intervention("perturb:z_h:0.1:0-4"))
    run_with(study, None)                            # the normal run; a do-nothing intervention equals it bit for bit

An intervention is a hook on `AirModel.solve` (what it does to the states) and a view (what is decoded). All work
puzzle by puzzle, so results do not depend on the batch size. All ACT steps are run (`halt="max"`), so the puzzles of
a batch are always at the same one; steps are counted from 0, windows are half open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from air_model.analysis.common import Study
from air_model.modeling_air import AirModel
from air_model.solving_air import AirRollout, AirSolution, AirUpdate, Hook, Recorder, chain, freezer

States = tuple[Tensor, Tensor]  # z_h, z_l


@dataclass(frozen=True)
class Intervention:
    """Does nothing; base of the others."""

    @property
    def name(self) -> str:
        return "nothing"

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        """What it does after every update; `first` is the number of the call's first puzzle in the data."""
        return None

    def view(self, z_h: Tensor, z_l: Tensor) -> States:
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


@dataclass(frozen=True)
class _OfState(Intervention):
    """Concerns one state, "z_h" or "z_l"."""

    state: str

    def __post_init__(self) -> None:
        if self.state not in ("z_h", "z_l"):
            raise ValueError(f"state must be 'z_h' or 'z_l', got {self.state!r}.")

    def own(self, z_h: Tensor, z_l: Tensor) -> Tensor:
        return z_h if self.state == "z_h" else z_l

    def put(self, value: Tensor, z_h: Tensor, z_l: Tensor) -> States:
        """`value` in place of the state."""
        return (value, z_l) if self.state == "z_h" else (z_h, value)

    def begin(self, model: AirModel, z: Tensor) -> Tensor:
        """The state before the first update, for all puzzles of z."""
        return getattr(model.initial_carry(1, dtype=z.dtype), self.state).expand_as(z)


def _step(update: AirUpdate) -> int:
    return int(update.steps[0])


def _inside(step: int, start: int, stop: int | None) -> bool:
    return start <= step and (stop is None or step < stop)


def _window(start: int, stop: int | None) -> str:
    return f"{start}-{'' if stop is None else stop}"


@dataclass(frozen=True)
class Freeze(_OfState):
    """Hold a state from the beginning of ACT step `start` until that of `stop` (None: to the end)."""

    start: int = 0
    stop: int | None = None

    @property
    def always(self) -> bool:
        return self.start == 0 and self.stop is None

    @property
    def name(self) -> str:
        return f"freeze:{self.state}" + ("" if self.always else f":{_window(self.start, self.stop)}")

    @property
    def skips(self) -> str | None:
        return self.state[-1] if self.always else None

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        if self.always:
            return freezer(model, self.state)
        last, held = len(model.config.schedule) - 1, []

        def hold(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> States | None:
            step, z = _step(update), self.own(z_h, z_l)
            if step == self.start - 1 and update.index == last:
                held[:] = [z]
            if not _inside(step, self.start, self.stop):
                return None
            return self.put(held[0] if self.start else self.begin(model, z), z_h, z_l)

        return hold


@dataclass(frozen=True)
class Reset(_OfState):
    """Put a state back to its start at the end of ACT step `at`."""

    at: int

    @property
    def name(self) -> str:
        return f"reset:{self.state}:{self.at}"

    def hook(self, model: AirModel, first: int = 0) -> Hook:
        end = (self.at, len(model.config.schedule) - 1)

        def reset(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> States | None:
            return self.put(self.begin(model, z_h), z_h, z_l) if (_step(update), update.index) == end else None

        return reset


@dataclass(frozen=True)
class Swap(Intervention):
    """Exchange z_H and z_L at the end of ACT step `at`."""

    at: int

    @property
    def name(self) -> str:
        return f"swap:{self.at}"

    def hook(self, model: AirModel, first: int = 0) -> Hook:
        end = (self.at, len(model.config.schedule) - 1)
        return lambda update, z_h, z_l: (z_l, z_h) if (_step(update), update.index) == end else None


@dataclass(frozen=True)
class Perturb(_OfState):
    """Add Gaussian noise to a state after each of its updates in [start, stop); scale 1 is the state's own size (RMS).

    The noise of a puzzle depends on `seed`, its number in the data and the update, not on its batch.
    """

    scale: float
    start: int = 0
    stop: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale >= 0:
            raise ValueError(f"The scale of a perturbation must be 0 or more, got {self.scale}.")

    @property
    def name(self) -> str:
        return f"perturb:{self.state}:{self.scale:g}:{_window(self.start, self.stop)}"

    def hook(self, model: AirModel, first: int = 0) -> Hook | None:
        if self.scale == 0:
            return None

        def disturb(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> States | None:
            step = _step(update)
            if update.level != self.state[-1] or not _inside(step, self.start, self.stop):
                return None
            z = self.own(z_h, z_l).float()
            noise = torch.empty(z.shape)
            for i, row in enumerate(update.rows.tolist()):
                key = torch.Generator().manual_seed(_mixed((self.seed, first + row, step, update.index)))
                noise[i] = torch.randn(z.shape[1:], generator=key)
            size = z.square().mean((1, 2), keepdim=True).sqrt()
            return self.put((z + self.scale * size * noise.to(z.device)).to(z_h.dtype), z_h, z_l)

        return disturb


def _mixed(keys: tuple[int, ...]) -> int:
    """One 63-bit seed out of several numbers."""
    seed = 0
    for key in keys:
        seed = (seed * 1_000_003 + key + 0x9E3779B97F4A7C15) % (2**63)
    return seed


@dataclass(frozen=True)
class Through(_OfState):
    """Decode a state through the other's statistics: its features, standardised over the positions of a puzzle, take
    the mean and spread that the other state's features have there. The run itself stays as it is."""

    @property
    def name(self) -> str:
        return f"through:{self.state}"

    def view(self, z_h: Tensor, z_l: Tensor) -> States:
        own, other = (z.float() for z in ((z_h, z_l) if self.state == "z_h" else (z_l, z_h)))
        scaled = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True).clamp_min(1e-6)
        moved = scaled * other.std(1, keepdim=True) + other.mean(1, keepdim=True)
        return self.put(moved.to(z_h.dtype), z_h, z_l)


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
    intervention = intervention or Intervention()
    intervention.check(steps)
    recorder = Recorder(study.model, len(study), steps)

    def record(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        recorder(update, *intervention.view(z_h, z_l))

    with skipped_updates(study.model, intervention.skips):
        hooks = chain(intervention.hook(study.model, first), record, hook)
        solution = study.solve(hook=hooks, max_act_steps=steps)
    solution.rollout = AirRollout(recorder.z_h, recorder.z_l, recorder.updates)
    return solution
