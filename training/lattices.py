"""Training on candidate lattices (`lattices: true`): what Sudoku cells may still hold, narrowed down by the model.

After Lattice Deduction Transformers (arXiv:2605.08605). A slot holds a set of candidates for each cell, where it holds
a token otherwise. An optimizer step computes ACT steps from fresh states and trains on the last two. Then candidates
that the model hardly believes are struck out, one random open cell is pinned to a digit drawn by belief, and the next
step trains on what is left, until it is solved, lost or old (`train_act_steps`). What it learns shows in one pass of
the unchanged model, and in search.

Shape letters: B slots, S cells, n digits, T state positions, D hidden.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from air_model.modeling_air import AirModel
from air_model.training.batches import LOSSES, Puzzles, joined, seeded, step_metrics
from air_model.training.launch import RunError
from air_model.training.trainer import Trainer

STRIKE = 0.1  # belief below which a candidate goes; a right one lost costs eight times a wrong one kept
TEMPERATURE = 1.5  # of the digit that is drawn
WRONG = 0.25  # share of new lattices with cells filled in of which some are wrong
WARM = (0, 0, 1, 2)  # ACT steps without gradient before the two that are trained on, one of these at random
READ = ("logits", "keep", "q_halt_logits", "q_continue_logits")  # what is read off the states of a step


class Lattice(nn.Module):
    """An AirModel that reads candidates, with a head that says of each whether it may stand."""

    def __init__(self, air: AirModel) -> None:
        super().__init__()
        self.air, self.keep = air, nn.Linear(air.config.hidden_size, air.config.vocab_size - 2)
        nn.init.zeros_(self.keep.weight)  # nothing is struck out before it has learned something
        nn.init.zeros_(self.keep.bias)
        self.warm = 0  # ACT steps without gradient; the trainer draws them for every step

    def initial_carry(self, batch_size: int, device: Any = None) -> dict[str, Tensor]:
        """Lattices carry no states from step to step, only how often they were trained on."""
        return {"steps": torch.zeros(batch_size, dtype=torch.int32, device=device)}

    def embed(self, live: Tensor) -> Tensor:
        """(B, S, D), linear in the candidates (B, S, n): of one its digit's embedding, of all the blank's."""
        table = self.air.embed_tokens.weight
        base = (table[2:].sum(0) - table[1]) / (live.shape[-1] - 1)
        return live.float() @ (table[2:] - base) + base

    def forward(self, live: Tensor, ids: Tensor, labels: Tensor, carry: dict[str, Tensor]) -> dict[str, Any]:
        """Two ACT steps with gradient on candidates (B, S, n) bool, whose solutions are labels (B, S) tokens.

        Returns what an AirOutput has, and keep (B, S, n), the logit of a candidate's standing. The q head's second
        number, which q_continue has elsewhere, says whether the lattice has lost the solution.
        """
        air, dtype = self.air, self.air.activation_dtype(live.device.type)
        losses, warm = [], self.warm
        with torch.autocast(live.device.type, enabled=False):  # precision is explicit, as in AirModel.forward
            x, start = air.encode_cells(self.embed(live), ids, dtype), air.initial_carry(len(live), live.device, dtype)
            z_h, z_l = start.z_h, start.z_l
            for step in range(warm + 2):
                with torch.set_grad_enabled(step >= warm and torch.is_grad_enabled()):
                    z_h, z_l = air.recur(z_h, z_l, x)
                if step >= warm:
                    cells = z_h[:, air.config.num_prefix_positions :].float()
                    read = air.decode_state(z_h).float(), self.keep(cells), *air.q_head(z_h[:, 0]).unbind(-1)
                    losses.append(lattice_losses(*read, live, labels))
        means = torch.stack([torch.stack(found) for found in losses]).mean(0)
        return {**dict(zip(LOSSES, means)), **dict(zip(READ, read)), "carry": {"steps": carry["steps"] + 1}}


def lattice_losses(
    logits: Tensor, keep: Tensor, solved: Tensor, lost: Tensor, live: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(all, digits of the open cells, solved, lost): means of what one ACT step reads off a lattice.

    Whether candidates may stand is asked in open cells, and digits only of lattices that still hold the solution.
    """
    held = live.gather(2, labels[..., None] - 2)[..., 0].all(1)  # (B,)
    open_cells = live.sum(-1) > 1
    target, asked = F.one_hot(labels - 2, live.shape[-1]) * live, (live & open_cells[..., None]).float()
    weight = torch.where(target > 0, 4.0, 0.5) * asked
    kept = F.binary_cross_entropy_with_logits(keep, target.float(), weight, reduction="sum") / asked.sum().clamp(1)
    counted = (open_cells & held[:, None]).float()
    cells = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * counted
    cells = cells.sum() / counted.sum().clamp(1)
    right = (among(logits, live).argmax(-1) == labels).all(1)
    judged = [F.binary_cross_entropy_with_logits(q, t.to(q)) for q, t in ((solved, right), (lost, ~held))]
    return kept + cells + 0.1 * sum(judged), cells, *judged


def among(logits: Tensor, live: Tensor) -> Tensor:
    """Token logits (B, S, n + 2) with all but the candidates at minus infinity."""
    return logits.masked_fill(~F.pad(live, (2, 0)), -math.inf)


def new_lattices(inputs: Tensor, labels: Tensor, n: int, uniform: Callable[..., Tensor]) -> Tensor:
    """Candidates (B, S, n) bool of puzzles (B, S), of a WRONG share with cells filled in of which some are wrong."""
    cells = inputs.shape[1]
    filled = (inputs == 1) & (uniform(cells) < uniform(1)) & (uniform(1) < WRONG)
    wrong = filled & (uniform(cells) < 0.3 * uniform(1))
    other = 1 + (uniform(cells) * (n - 1)).long()
    digits = torch.where(filled, labels, inputs) - 2
    digits = torch.where(wrong, (digits + other) % n, digits)
    return (digits[..., None] == torch.arange(n, device=inputs.device)) | (digits < 0)[..., None]


def struck_out(live: Tensor, keep: Tensor) -> Tensor:
    """The candidates (B, S, n) that the model believes to STRIKE or more."""
    return live & (keep.sigmoid() >= STRIKE)


def pinned(live: Tensor, logits: Tensor, generator: torch.Generator) -> Tensor:
    """The candidates with one random open cell pinned to a digit drawn by belief; unchanged where there is none."""
    count = live.sum(-1)
    cell = (torch.rand(count.shape, generator=generator, device=live.device) * (count > 1)).argmax(1)
    rows = torch.arange(len(live), device=live.device)
    beliefs = (among(logits, live)[rows, cell, 2:] / TEMPERATURE).nan_to_num(neginf=-1e9).softmax(-1)
    digit = torch.multinomial(beliefs, 1, generator=generator)[:, 0]
    found = live.clone()
    found[rows, cell] = F.one_hot(digit, live.shape[-1]).bool()
    may = (count > 1).any(1) & (count > 0).all(1)
    return torch.where(may[:, None, None], found, live)


class LatticeTrainer(Trainer):
    """A Trainer whose slots hold candidates: `slots.puzzles.inputs` is (B, S, n) bool.

    Candidates and cells are averaged over the lattices of one forward pass, and pins are drawn by each process: unlike
    a Trainer's, the weights depend on how a batch is shared (processes, `accumulation`).
    """

    act_steps = 2 + sum(WARM) / len(WARM) / 3  # of a step; one without gradient costs a third

    def __init__(self, recipe: Any, output_dir: Any, train_set: Any, eval_set: Any | None) -> None:
        super().__init__(recipe, output_dir, train_set, eval_set)
        softmax = self.config.loss_type == "softmax_cross_entropy"
        for wrong, what in (
            (self.config.task != "sudoku", f"only Sudokus have candidates, and the data holds {train_set.task!r}"),
            (not softmax, "it draws by belief: set loss_type=softmax_cross_entropy"),
            (bool(self.train.corrupted_share), "lattices carry no states: leave corrupted_share out"),
            (bool((train_set.labels < 2).any()), "every training puzzle needs its whole solution"),
        ):
            if wrong:
                raise RunError(f"lattices=true cannot train here: {what}.")
        cells = self.slots.puzzles.inputs[..., None].expand(-1, -1, self.config.vocab_size - 2)
        self.slots.puzzles = self.slots.puzzles._replace(inputs=cells.bool())

    def _module(self) -> nn.Module:
        return Lattice(self.model)

    def _draw(self, step: int) -> Puzzles:
        inputs, labels, ids = super()._draw(step)
        self.trained.warm = random.Random(f"{self.train.seed} {step}").choice(WARM)
        live = new_lattices(inputs, labels, self.config.vocab_size - 2, self._uniform(4, step))
        return Puzzles(live, labels, ids)

    @torch.no_grad()
    def _advance_slots(self, step: int, pieces: list[Any], losses: Tensor) -> None:
        """Which candidates are left, which lattices are over, and the sums of what those score."""
        slots, (live, labels, ids) = self.slots, self.slots.puzzles
        logits, keep, q_solved, q_lost = joined(pieces, *READ)
        (steps,) = joined([out["carry"] for out in pieces], "steps")
        struck = struck_out(live, keep)
        left = pinned(struck, logits, seeded(self.explorer, self.train.seed, 5, step, self.rank))
        lost, count = ~left.gather(2, labels[..., None] - 2)[..., 0].all(1), struck.sum(-1)
        # One that is called lost and is not goes on: ended, such ones would fill the slots with what is held for lost.
        over = (count == 1).all(1) | (lost & ((q_lost > 0) | (count == 0).any(1)))
        over |= steps >= (self.train.train_act_steps or self.config.halt_max_steps)
        sums = step_metrics(among(logits, live), labels, q_solved, steps, over, self.config.ignore_index)
        self.totals += torch.cat([sums, losses])
        slots.puzzles, slots.carry, slots.halted = Puzzles(left, labels, ids), {"steps": steps}, over
