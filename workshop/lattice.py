"""Train an AIR on candidate lattices: what a Sudoku's cells may still hold, narrowed down by the model itself.

    python workshop/lattice.py --init-from checkpoints/air-sudoku-9x9 --data train_1000.csv.gz --minutes 60 \\
        --output-dir runs/lattice       # the same once more goes on from its weights, the rate falling anew

After Lattice Deduction Transformers (arXiv:2605.08605). The model reads a set of candidates for each cell (the tokens'
own embeddings, mixed: a clue is a set of one, a blank the set of all) and computes two ACT steps from fresh states.
Then candidates that it hardly believes are struck out, one random open cell is pinned to a digit drawn by belief, and
the next step trains on what is left, until it is solved, lost or old. What it learns shows in one pass and in search.
--output-dir becomes a model folder (the mean of the weights) with what a run needs to go on beside it.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from air_model.datasets_builders import load_puzzles
from air_model.modeling_air import AirModel
from air_model.optim_air import Optimizers, WeightEMA, build_optimizers
from air_model.pipeline_air import load_model, save_release
from air_model.processing_air import AirProcessor, task_from_config
from air_model.records import whole_folder
from air_model.solving_air import bf16_is_fast
from air_model.training.batches import PuzzleSampler

STRIKE = 0.1  # belief below which a candidate goes; a right one lost costs eight times a wrong one kept
TEMPERATURE, OLD = 1.5, 100  # of the drawn digit; steps that a lattice is trained on at most
WRONG, EASIER = 0.25, 0.55  # shares of new lattices with wrong and with right digits filled in
STATE = "lattice.safetensors"


class Lattice(nn.Module):
    """An AirModel that reads candidates (B, S, n) bool; `keep` says of each whether it may stand."""

    def __init__(self, air: AirModel) -> None:
        super().__init__()
        self.air, n, d = air, air.config.grid_height, air.config.hidden_size
        self.keep, self.dtype = nn.Linear(d, n), torch.bfloat16 if bf16_is_fast() else torch.float32
        with torch.no_grad():  # what the language head believes, to begin with
            self.keep.weight.copy_(0.1 * air.lm_head.weight[2:])
            self.keep.bias.fill_(-4.0)

    def encode(self, live: Tensor) -> Tensor:
        """The injected x (B, T, D): linear in the candidates, and what the tokens give for clues and blanks."""
        air, prefix = self.air, self.air.config.num_prefix_positions
        table = air.embed_tokens.weight
        base = (table[2:].sum(0) - table[1]) / (live.shape[-1] - 1)
        blank = torch.ones(1, live.shape[1], dtype=torch.long)
        x, parts = air.encode(blank, None, torch.float32), 1 + 3 * air.config.cell_embedding
        change = live.float() @ (table[2:] - base) + base - table[1]  # of a blank's embedding
        x = x + F.pad(change * math.sqrt(table.shape[1]) * parts**-0.5, (0, 0, prefix, 0))
        return x.to(self.dtype)

    def read(self, z_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Digits (B, S, n), keep (B, S, n) and q (B, 2): solved, and lost."""
        cells = z_h[:, self.air.config.num_prefix_positions :].float()
        return self.air.decode_state(z_h)[..., 2:].float(), self.keep(cells), self.air.q_head(z_h[:, 0])

    def forward(self, live: Tensor, before: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What two ACT steps from fresh states read, after `before` steps without gradient."""
        x, carry = self.encode(live), self.air.initial_carry(len(live), dtype=self.dtype)
        z_h, z_l, found = carry.z_h, carry.z_l, []
        with torch.no_grad():
            for _ in range(before):
                z_h, z_l = self.air.recur(z_h, z_l, x.detach())
        for _ in range(2):
            z_h, z_l = self.air.recur(z_h, z_l, x)
            found.append(self.read(z_h))
        return found


def fresh(sampler: PuzzleSampler, step: int) -> tuple[Tensor, Tensor]:
    """New lattices (B, S, n) bool and solutions (B, S), digits from 0; some with right or wrong digits filled in."""
    puzzles = sampler.draw(step)
    inputs, labels, n = puzzles.inputs, puzzles.labels, sampler.task.height
    kind, open_cells = torch.rand(len(inputs), 1), inputs == 1
    share = torch.rand(len(inputs), 1)
    filled = open_cells & (torch.rand(inputs.shape) < share) & (kind < WRONG + EASIER)
    spoilt = filled & (torch.rand(inputs.shape) < 0.3 * torch.rand(len(inputs), 1)) & (kind < WRONG)
    digits = labels - 2
    shown = torch.where(spoilt, (digits + torch.randint(1, n, digits.shape)) % n, digits)
    alive = F.one_hot(shown, n).bool()
    return alive | (open_cells & ~filled)[..., None], digits


def loss_of(found: list, live: Tensor, digits: Tensor) -> Tensor:
    """Mean over the ACT steps: keep (a yes or no for each candidate), the digit of open cells, lost, and solved."""
    stands = live.gather(2, digits[..., None])[..., 0]
    lost, open_cells = (~stands).any(1), live.sum(-1) > 1
    target, asked = F.one_hot(digits, live.shape[-1]) * live, (live & open_cells[..., None]).float()
    counted = (open_cells & ~lost[:, None]).float()
    total = torch.zeros(())
    for logits, keep, q in found:
        weight = torch.where(target > 0, 4.0, 0.5) * asked
        kept = F.binary_cross_entropy_with_logits(keep, target.float(), weight, reduction="sum") / asked.sum().clamp(1)
        cells = F.cross_entropy(logits.transpose(1, 2), digits, reduction="none") * counted
        solved = (logits.masked_fill(~live, -math.inf).argmax(-1) == digits).all(1)
        judged = F.binary_cross_entropy_with_logits(q, torch.stack([solved, lost], 1).to(q))
        total = total + kept + cells.sum() / counted.sum().clamp(1) + 0.2 * judged
    return total / len(found)


@torch.no_grad()
def advance(live: Tensor, logits: Tensor, keep: Tensor) -> Tensor:
    """Strike out what is hardly believed, and pin one random open cell to a digit drawn by belief."""
    live = live & (keep.sigmoid() >= STRIKE)
    count = live.sum(-1)
    cell = (torch.rand(count.shape) * (count > 1)).argmax(1)
    rows = torch.arange(len(live))[(count > 1).any(1) & (count > 0).all(1)]
    beliefs = (logits[rows, cell[rows]].masked_fill(~live[rows, cell[rows]], -math.inf) / TEMPERATURE).softmax(-1)
    pinned = live.clone()
    pinned[rows, cell[rows]] = F.one_hot(torch.multinomial(beliefs, 1)[:, 0], live.shape[-1]).bool()
    return pinned


def save(target: Path, lattice: Lattice, average: WeightEMA, optimizers: Optimizers, step: int) -> None:
    """A model folder with the mean of the weights, and beside it what else a run needs to go on."""
    tensors, values = optimizers.state()
    state = {f"weights.{k}": v for k, v in lattice.state_dict().items()}
    state |= {f"mean.{k}": v for k, v in average.shadow.items() if k.startswith("keep.")}
    state |= {f"optimizer.{k}": v for k, v in tensors.items()}
    metadata = {"step": str(step), "optimizer": json.dumps(values)}
    with whole_folder(target) as folder:
        with average.applied():
            save_release(lattice.air, folder, AirProcessor.from_config(lattice.air.config))
        save_file({k: v.contiguous() for k, v in state.items()}, folder / STATE, metadata)


def load(start: Path, rates: dict[str, float]) -> tuple[Lattice, WeightEMA, Optimizers, int]:
    """What `save` wrote, or a new run from a model folder; with the steps done."""
    lattice, step, state, values = Lattice(load_model(str(start))), 0, {}, {}
    lattice.air.config.loss_type = "softmax_cross_entropy"
    if (start / STATE).is_file():
        try:
            with safe_open(start / STATE, "pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
                step, values = int(file.metadata()["step"]), json.loads(file.metadata()["optimizer"])
        except SafetensorError as error:
            raise ValueError(f"{start / STATE} is damaged ({error}). Start anew from a model folder.") from None

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}

    lattice.load_state_dict(part("mean."), strict=False)
    average = WeightEMA(lattice, 0.998, warmup=True)
    lattice.load_state_dict(part("weights."), strict=bool(state))
    optimizers = build_optimizers(lattice, "muon", weight_decay=0.1, **rates)
    optimizers.load_state(part("optimizer."), values)
    return lattice, average, optimizers, step


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init-from", required=True, help="model folder, or an earlier --output-dir to go on from")
    parser.add_argument("--data", required=True, help="puzzles with answers; those to train on")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="the rate falls to nothing over them")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--muon-lr", type=float, default=2.5e-3)
    parser.add_argument("--lr", type=float, default=1.6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    try:
        return train(parse_arguments(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def train(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    goes_on = (args.output_dir / STATE).is_file()
    if not goes_on and args.output_dir.is_dir() and any(args.output_dir.iterdir()):
        raise ValueError(f"{args.output_dir} holds other files, and would be written over. Name a new folder.")
    puzzles, start = load_puzzles(args.data), args.output_dir if goes_on else Path(args.init_from)
    lattice, average, optimizers, first = load(start, {"lr": args.lr, "muon_lr": args.muon_lr})
    if (task := task_from_config(lattice.air.config)) != puzzles.task or task.name != "sudoku":
        raise ValueError(
            f"{start} solves {task}, and {args.data} holds {puzzles.task}: both must be Sudokus of one size."
        )
    torch.manual_seed(args.seed + first)
    print(f"From {start}, step {first}, in {lattice.dtype}.", flush=True)
    for stack in lattice.air.stacks:
        stack.compile(dynamic=False)
    lattice.train()
    sampler = PuzzleSampler(puzzles, args.batch_size, seed=args.seed)
    began, step, losses = time.time(), first, []
    live, digits = fresh(sampler, step + 1)
    age = torch.zeros(len(live), dtype=torch.long)
    with contextlib.suppress(KeyboardInterrupt):  # what has been learned is written all the same
        while (spent := (time.time() - began) / 60 / args.minutes) < 1:
            step += 1
            found = lattice(live, before=int(torch.tensor([0, 0, 1, 2])[torch.randint(4, ())]))
            loss = loss_of(found, live, digits)
            loss.backward()
            optimizers.set_lr_factor(max(0.02, min((step - first) / 50, 1 - spent)))
            optimizers.step()
            optimizers.zero_grad()
            average.update(step - first)
            logits, keep, q = (t.detach() for t in found[-1])
            struck = (live & (keep.sigmoid() >= STRIKE)).sum(-1)
            live, age = advance(live, logits, keep), age + 1
            lost = ~live.gather(2, digits[..., None])[..., 0].all(1)
            over = (struck == 1).all(1) | (lost & ((q[:, 1] > 0) | (struck == 0).any(1))) | (age >= OLD)
            new, solutions = fresh(sampler, step + 1)
            live, digits = torch.where(over[:, None, None], new, live), torch.where(over[:, None], solutions, digits)
            age[over] = 0
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"The loss of step {step} is {losses[-1]}. Go on from {args.output_dir} at lower rates."
                )
            if step % 50 == 0:
                mean = statistics.fmean(losses[-50:])
                print(f"step {step}: loss {mean:.3f}, {100 * spent:.0f} % of the time", flush=True)
            if step % 500 == 0:
                save(args.output_dir, lattice, average, optimizers, step)
    save(args.output_dir, lattice, average, optimizers, step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
