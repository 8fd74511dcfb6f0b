"""Candidate lattices (training/lattices.py): what is read, struck out and pinned, what costs, and a run of them."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file
from test_solve import SOLVED, TASK
from training_runs import TINY, sudokus

from air_model.datasets_builders import PuzzleSet
from air_model.pipeline_air import load_model
from air_model.records import read_run
from air_model.training import run as whole
from air_model.training.batches import LOSSES, Puzzles, uniforms
from air_model.training.lattices import Lattice, LatticeTrainer, lattice_losses, new_lattices, pinned, struck_out
from air_model.training.launch import RunError
from air_model.training.recipe import make_recipe

pytestmark = pytest.mark.usefixtures("quick_ends")
RUN = {
    **TINY, "data": "given", "lattices": True, "loss_type": "softmax_cross_entropy", "q_continue": False,
    "easier_share": 0.0, "eval_every": 0,
}  # fmt: skip

LEARNS = {
    "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "cell_embedding": True, "optimizer": "muon",
    "head_relations": ["row", "column", "box", "all"], "position_embedding": "none", "puzzle_embedding_size": 0,
    "prefix_length": 1, "max_steps": 80, "batch_size": 32, "muon_lr": 1e-2, "weight_decay": 0.0,
}  # fmt: skip


def lattice_of(grid: np.ndarray) -> torch.Tensor:
    """(1, S, 4) bool: one candidate in a given cell, all of them in an open one."""
    tokens = torch.from_numpy(grid).long()[None]
    return (tokens[..., None] == torch.arange(2, 6)) | (tokens == TASK.blank_token)[..., None]


def half_open() -> np.ndarray:
    return np.where(np.arange(16) % 2, SOLVED, TASK.blank_token).astype(np.uint8)


@pytest.mark.parametrize(
    "overrides", [{}, {"cell_embedding": True}, {"position_embedding": "learned"}, {"input_operator": "tanh_linear"}]
)
def test_clues_and_blanks_read_as_sets_of_candidates_are_encoded_as_their_tokens(overrides):
    air = tiny_model(**overrides)
    x = air.encode_cells(Lattice(air).embed(lattice_of(half_open())), None, torch.float32)
    expected = air.encode(torch.from_numpy(half_open()).long()[None], None, torch.float32)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


def test_striking_out_revives_nothing_and_goes_by_what_the_head_believes():
    live = lattice_of(half_open())
    keep = torch.full((1, 16, 4), 5.0)
    keep[:, ::2, 0] = -5.0
    struck = struck_out(live, keep)
    assert not (struck & ~live).any() and (live & ~struck)[:, ::2, 0].all() and (live & ~struck).sum() == 8


def test_one_open_cell_is_pinned_and_a_lattice_without_one_stays_as_it_is():
    generator = torch.Generator().manual_seed(0)
    live = torch.cat([lattice_of(half_open()).expand(8, -1, -1), lattice_of(SOLVED)])
    found = pinned(live, torch.zeros(9, 16, 6), generator)
    before, after = live.sum(-1), found.sum(-1)
    assert not (found & ~live).any()
    assert (before != after).sum(1).tolist() == [1] * 8 + [0] and (after[before != after] == 1).all()


def test_a_cell_is_pinned_to_a_candidate_whatever_the_model_believes_of_the_others():
    live = lattice_of(half_open())
    live[:, ::2, 2:] = False
    logits = torch.zeros(1, 16, 6)
    logits[..., 4] = 50.0  # a digit that was struck out
    for seed in range(8):
        found = pinned(live, logits, torch.Generator().manual_seed(seed))
        assert (found.sum(-1) >= 1).all() and not (found & ~live).any()


def test_new_lattices_hold_the_solution_unless_a_wrong_digit_was_filled_in():
    inputs, labels = (torch.from_numpy(np.stack([grid] * 64)).long() for grid in (half_open(), SOLVED))
    live = new_lattices(inputs, labels, 4, uniforms(torch.Generator().manual_seed(0), 64, slice(None)))
    stands = live.gather(2, labels[..., None] - 2)[..., 0].all(1)
    assert live.any(-1).all() and 0.5 < stands.float().mean() < 1
    assert set(live.sum(-1).unique().tolist()) == {1, 4}
    assert (live[:, 1::2].sum(-1) == 1).all() and live.gather(2, labels[..., None] - 2)[:, 1::2].all(), "clues stay"


def test_processes_share_the_lattices_of_one_batch():
    inputs, labels = (torch.from_numpy(np.stack([grid] * 8)).long() for grid in (half_open(), SOLVED))

    def part(rows: slice) -> torch.Tensor:
        return new_lattices(inputs[rows], labels[rows], 4, uniforms(torch.Generator().manual_seed(0), 8, rows))

    assert torch.equal(part(slice(None)), torch.cat([part(slice(0, 4)), part(slice(4, 8))]))


def test_the_loss_is_least_where_the_solution_alone_is_kept():
    live, labels = lattice_of(half_open()), torch.from_numpy(SOLVED).long()[None]
    right = torch.nn.functional.one_hot(labels, 6).float() * 20 - 10
    yes, no = torch.tensor([10.0]), torch.tensor([-10.0])
    best = lattice_losses(right, right[..., 2:], yes, no, live, labels)[0]
    assert best < 0.01
    for logits, keep, solved, lost in (
        (-right, right, no, no), (right, -right, yes, no), (right, right, no, no), (right, right, yes, yes)
    ):  # fmt: skip
        assert lattice_losses(logits, keep[..., 2:], solved, lost, live, labels)[0] > best + 0.5


def test_digits_of_a_lattice_that_lost_the_solution_are_not_asked():
    live, labels = lattice_of(half_open()), torch.from_numpy(SOLVED).long()[None]
    live[0, 0] = torch.nn.functional.one_hot((labels[0, 0] - 1) % 4, 4).bool()  # another digit than the solution's
    logits, keep, q = torch.randn(1, 16, 6), torch.zeros(1, 16, 4), torch.zeros(1)
    assert lattice_losses(logits, keep, q, q, live, labels)[1] == 0


def test_a_run_of_lattices_that_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    sets = sudokus(24), sudokus(10, 1)
    monkeypatch.setattr(whole, "load_data", lambda recipe: sets)
    step = LatticeTrainer.train_step

    def stop_after_seven(self):
        step(self)
        if self.step == 7:
            self.stop_reason = "signal"

    whole.run_training(make_recipe(RUN), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(LatticeTrainer, "train_step", stop_after_seven)
        whole.run_training(make_recipe(RUN), tmp_path / "stopped")
    assert read_run(tmp_path / "stopped")["status"] == "stopped"
    whole.run_training(make_recipe(RUN), tmp_path / "stopped", resume=True)
    ours, theirs = (
        load_file(tmp_path / n / "checkpoints/checkpoint_12/model.safetensors") for n in ("whole", "stopped")
    )
    assert "keep.weight" in ours and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_lattices_teach_the_digits_of_open_cells(tmp_path):
    run = LatticeTrainer(make_recipe({**RUN, **LEARNS}), tmp_path, sudokus(24), None)
    for _ in range(80):
        if run.step == 60:
            run.totals.zero_()
        run.train_step()
    losses = dict(zip(LOSSES, (run.totals[-len(LOSSES) :] / 20).tolist()))
    assert losses["lm_loss"] < 1.25 < np.log(4), "by chance: log 4"


def test_a_lattice_ends_solved_lost_or_old_and_else_goes_on_with_what_is_left(tmp_path):
    run, labels = LatticeTrainer(make_recipe(RUN), tmp_path, sudokus(24), None), torch.from_numpy(SOLVED).long()
    right = torch.nn.functional.one_hot(labels - 2, 4).bool()
    live = lattice_of(half_open()).repeat(8, 1, 1)
    keep, lost, steps = torch.full((8, 16, 4), 5.0), torch.full((8,), -1.0), torch.ones(8, dtype=torch.int32)
    keep[1][~right] = -5.0  # solved
    keep[2:4, 0][:, right[0]] = -5.0  # lost, and called so or not
    lost[2] = 1.0
    keep[4, 0] = -5.0  # nothing is left in a cell
    steps[5] = run.config.halt_max_steps
    logits = 50.0 * torch.nn.functional.one_hot(labels, 6).float().expand(8, -1, -1)
    piece = {
        "logits": logits,
        "keep": keep,
        "q_halt_logits": lost,
        "q_continue_logits": lost,
        "carry": {"steps": steps},
    }
    run.slots.puzzles = Puzzles(live, labels.expand(8, -1), labels[:8])
    run._advance_slots(1, [piece], torch.zeros(len(LOSSES)))
    assert run.slots.halted.tolist() == [False, True, True, False, True, True, False, False]
    left = run.slots.puzzles.inputs
    assert (left[0].sum(), left[4].sum()) == (live[0].sum() - 3, live[4].sum() - 4) and (left[0] & right).sum() == 16


def test_a_run_of_lattices_leaves_an_ordinary_model(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "load_data", lambda recipe: (sudokus(24), sudokus(10, 1)))
    report = whole.run_training(make_recipe(RUN), tmp_path)
    model = load_model(str(tmp_path / "model"))
    assert not [name for name in model.state_dict() if "keep" in name] and model.config.halt_max_steps == 4
    assert model.config.q_lost
    assert report["metrics"]["eval"]["n"] == 8 and report["metrics"]["train"]["lm_loss"] > 0


@pytest.mark.parametrize(
    "values, said",
    [
        ({"loss_type": "stablemax_cross_entropy"}, "loss_type=softmax_cross_entropy"),
        ({"q_continue": True}, "q_continue=False"),
    ],
)
def test_what_lattices_cannot_train_is_refused_with_what_to_set(tmp_path, values, said):
    with pytest.raises((RunError, ValueError), match=said):
        LatticeTrainer(make_recipe({**RUN, **values}), tmp_path, sudokus(4), None)


def test_lattices_need_whole_solutions(tmp_path):
    puzzles = sudokus(4)
    labels = puzzles.labels.copy()
    labels[0, 0] = 0
    with pytest.raises(RunError, match="its whole solution"):
        LatticeTrainer(make_recipe(RUN), tmp_path, PuzzleSet(puzzles.inputs, labels, TASK), None)
