"""One interface for everything that meddles with the states: freeze, swap, reset, perturb, decode through the other.

    run_with(study, parse_intervention("freeze:z_l:4-"))    # from ACT step 4 on, z_L stays as it was after step 3
    run_with(study, parse_intervention("perturb:z_h:0.1:0-4"))
    run_with(study)                                         # the normal run; what does nothing equals it bit for bit

An intervention is a hook on `AirModel.solve` (what it does to the states) and a view (what is decoded). All work
puzzle by puzzle, so results do not depend on the batch size. All ACT steps are run (`halt="max"`), so the puzzles of
a batch are always at the same one; steps are counted from 0, windows are half open.
"""

import re
from dataclasses import dataclass

from torch import Tensor

from air_model.analysis.common import Study
from air_model.modeling_air import AirModel
from air_model.solving_air import AirRollout, AirSolution, AirUpdate, Hook, Recorder, chain, normal_of

States = tuple[Tensor, Tensor]  # z_h, z_l

STATE, WINDOW = "(?P<state>z_[hl])", r"(?P<start>\d*)-(?P<stop>\d*)"
FORMS = {  # kind: how what follows it is read, and how it is written
    "freeze": (f"{STATE}(:{WINDOW})?", "{state}:{window}"),
    "reset": (rf"{STATE}:(?P<start>\d+)", "{state}:{start}"),
    "swap": (r"(?P<start>\d+)", "{start}"),
    "perturb": (rf"{STATE}:(?P<scale>[\d.]+(e-?\d+)?)(:{WINDOW})?", "{state}:{scale:g}:{window}"),
    "through": (STATE, "{state}"),
}


@dataclass(frozen=True)
class Intervention:
    """What is done to the states, or to how they are decoded; by default nothing.

    kind: "freeze" holds a state throughout the window as it was before; "perturb" adds Gaussian noise to a state after
    each of its updates in the window, scale 1 being the state's own size (RMS); "reset" puts a state back to its
    start, and "swap" exchanges the two, at the end of ACT step `start`; "through" decodes a state through the other's
    statistics: its features, standardised over the positions of a puzzle, take the mean and spread that the other
    state's features have there, while the run stays as it is.
    state: "z_h" or "z_l". start, stop: the window in ACT steps; None: to the end.
    """

    kind: str = "nothing"
    state: str = "z_h"
    start: int = 0
    stop: int | None = None
    scale: float = 0.0

    @property
    def name(self) -> str:
        """As `parse_intervention` reads it."""
        window = f"{self.start}-{'' if self.stop is None else self.stop}"
        _, written = FORMS.get(self.kind, ("", ""))
        text = f"{self.kind}:{written.format(**vars(self), window=window)}"
        return text.removesuffix(":0-" if self.skips else ":")

    @property
    def skips(self) -> str | None:
        """Level whose updates need not be computed at all."""
        return self.state[-1] if self.kind == "freeze" and self.start == 0 and self.stop is None else None

    def check(self, max_act_steps: int) -> None:
        """Raise ValueError where it lies beyond the run."""
        stop = max_act_steps if self.stop is None else self.stop
        if not 0 <= self.start < max_act_steps or not self.start <= stop <= max_act_steps:
            raise ValueError(
                f"{self.name} lies beyond the run: it has {max_act_steps} ACT steps, counted from 0 to "
                f"{max_act_steps - 1}."
            )

    def hook(self, model: AirModel, first: int = 0) -> Hook:
        """What it does after every update; `first` is the number of the call's first puzzle in the data."""
        last, before = len(model.config.schedule) - 1, {}

        def act(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> States | None:
            step, z = int(update.steps[0]), z_h if self.state == "z_h" else z_l
            beginning = getattr(model.initial_carry(1, dtype=z.dtype), self.state).expand_as(z)
            at_end = (step, update.index) == (self.start, last)
            inside = self.start <= step and (self.stop is None or step < self.stop)
            if step < self.start:
                before["z"] = z
            if self.kind == "swap" and at_end:
                return z_l, z_h
            if self.kind == "reset" and at_end:
                return self._put(beginning, z_h, z_l)
            if self.kind == "freeze" and inside:
                return self._put(before.get("z", beginning), z_h, z_l)
            if self.kind == "perturb" and inside and update.level == self.state[-1]:
                return self._put(self._noisy(z, update, first), z_h, z_l)
            return None

        return act

    def view(self, z_h: Tensor, z_l: Tensor) -> States:
        """The states as they are decoded."""
        if self.kind != "through":
            return z_h, z_l
        own, other = (z.float() for z in ((z_h, z_l) if self.state == "z_h" else (z_l, z_h)))
        scaled = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True).clamp_min(1e-6)
        moved = scaled * other.std(1, keepdim=True) + other.mean(1, keepdim=True)
        return self._put(moved.to(z_h.dtype), z_h, z_l)

    def _put(self, value: Tensor, z_h: Tensor, z_l: Tensor) -> States:
        """`value` in place of the state."""
        return (value, z_l) if self.state == "z_h" else (z_h, value)

    def _noisy(self, z: Tensor, update: AirUpdate, first: int) -> Tensor:
        """The noise of a puzzle depends on its number in the data and the update, not on its batch."""
        keys = (update.steps.long() << 48) + (update.index << 40) + first + update.rows
        size = z.float().square().mean((1, 2), keepdim=True).sqrt()
        return (z.float() + self.scale * size * normal_of(keys, z.shape[1:])).to(z.dtype)


def parse_intervention(text: str) -> Intervention:
    """Read one intervention as the command line writes it.

    freeze:STATE[:WINDOW]   reset:STATE:STEP   swap:STEP   perturb:STATE:SCALE[:WINDOW]   through:STATE
    STATE is z_h or z_l; STEP counts from 0; WINDOW is FROM-TO (TO excluded) or FROM-.
    """
    kind, _, rest = text.lower().partition(":")
    found = re.fullmatch(FORMS[kind][0], rest) if kind in FORMS else None
    if found is None:
        raise ValueError(
            f"Cannot read the intervention {text!r}. Known: freeze:z_l:4-8, reset:z_h:5, swap:3, perturb:z_l:0.1:0-4, "
            "through:z_l."
        )
    read = {"state": str, "start": int, "stop": int, "scale": float}
    return Intervention(kind, **{key: read[key](value) for key, value in found.groupdict().items() if value})


def run_with(
    study: Study, intervention: Intervention | None = None, *, first: int = 0, hook: Hook | None = None
) -> AirSolution:
    """Solve all puzzles of the study under an intervention; the solution's rollout shows both states at every update.

    Args:
        intervention: None for the normal run. first: number of the study's first puzzle in the data (seeds of noise).
        hook: an observer of the states as the intervention leaves them.
    """
    model, max_act_steps = study.model, study.config.halt_max_steps
    intervention = intervention or Intervention()
    intervention.check(max_act_steps)
    recorder, update_state = Recorder(model, len(study), max_act_steps), model.update

    def update_unless_held(level: str, z_h: Tensor, z_l: Tensor, x: Tensor) -> Tensor:
        if level == intervention.skips:
            return z_h if level == "h" else z_l
        return update_state(level, z_h, z_l, x)

    def record(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        recorder(update, *intervention.view(z_h, z_l))

    model.update = update_unless_held
    try:
        solution = study.solve(hook=chain(intervention.hook(model, first), record, hook))
    finally:
        del model.update
    solution.rollout = AirRollout(recorder.z_h, recorder.z_l, recorder.updates)
    return solution
