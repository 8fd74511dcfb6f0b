"""Candidate lattices of workshop/lattice.py: what is read, struck out and pinned, and what costs."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_solve import SOLVED, TASK

from air_model.training.batches import PuzzleSampler
from air_model.workshop.lattice import STATE, Lattice, advance, fresh, load, loss_of, main, save


def lattice_of(grid: np.ndarray) -> torch.Tensor:
    """(1, S, 4) bool: one candidate in a given cell, all of them in an open one."""
    tokens = torch.from_numpy(grid).long()[None]
    return (tokens[..., None] == torch.arange(2, 6)) | (tokens == TASK.blank_token)[..., None]


def half_open() -> np.ndarray:
    return np.where(np.arange(16) % 2, SOLVED, TASK.blank_token).astype(np.uint8)


def test_clues_and_blanks_read_as_sets_of_candidates_are_encoded_as_their_tokens():
    for overrides in ({}, {"cell_embedding": True}):
        air = tiny_model(puzzle_embedding_size=0, prefix_length=1, **overrides)
        x = Lattice(air).encode(lattice_of(half_open()))
        expected = air.encode(torch.from_numpy(half_open()).long()[None], None, torch.float32)
        torch.testing.assert_close(x.float(), expected, atol=0.05, rtol=0.01)


def test_striking_out_revives_nothing_and_pins_one_open_cell():
    torch.manual_seed(0)
    live = lattice_of(half_open()).expand(8, -1, -1)
    keep = torch.zeros(8, 16, 4)
    keep[:, ::2, 0] = -5.0  # hardly believed in the open cells
    found = advance(live, torch.zeros(8, 16, 4), keep)
    assert not (found & ~live).any() and not found[:, ::2, 0].any()
    before, after = (live & (keep > -1)).sum(-1), found.sum(-1)
    assert ((before != after).sum(1) == 1).all() and (after[before != after] == 1).all()


def test_new_lattices_hold_the_solution_unless_a_wrong_digit_was_filled_in():
    class Puzzles:
        inputs, labels = np.stack([half_open()] * 64), np.stack([SOLVED] * 64)
        puzzle_ids, groups, task = np.zeros(64, np.int64), np.arange(64), TASK

    torch.manual_seed(0)
    live, digits = fresh(PuzzleSampler(Puzzles(), 64, seed=0), 1)
    stands = live.gather(2, digits[..., None])[..., 0].all(1)
    assert live.any(-1).all() and 0.5 < stands.float().mean() < 1
    assert set(live.sum(-1).unique().tolist()) == {1, 4}


def test_the_loss_is_least_where_the_solution_alone_is_kept():
    live, digits = lattice_of(half_open()), torch.from_numpy(SOLVED).long()[None] - 2
    right = torch.nn.functional.one_hot(digits, 4).float() * 20 - 10
    q = torch.tensor([[10.0, -10.0]])
    best = loss_of([(right, right, q)], live, digits)
    assert best < 0.01
    for worse in ((-right, right, q), (right, -right, q), (right, right, -q)):
        assert loss_of([worse], live, digits) > best + 0.5


RATES = {"lr": 1e-3, "muon_lr": 1e-3}


@pytest.fixture
def saved(tmp_path):
    """A folder of a run of two steps, and what it held in memory."""
    torch.manual_seed(0)
    tiny_model(puzzle_embedding_size=0, prefix_length=1).save_pretrained(tmp_path / "start")
    held = load(tmp_path / "start", RATES)
    lattice, average, optimizers, _ = held
    live, digits = lattice_of(half_open()), torch.from_numpy(SOLVED).long()[None] - 2
    for step in (1, 2):
        loss_of(lattice(live, before=1), live, digits).backward()
        optimizers.step()
        optimizers.zero_grad()
        average.update(step)
    save(tmp_path / "run", lattice, average, optimizers, 2)
    return tmp_path / "run", held


def test_a_saved_run_goes_on_with_its_weights_their_mean_its_optimizers_and_its_steps(saved):
    folder, (lattice, average, optimizers, _) = saved
    again, mean, other, step = load(folder, RATES)
    assert step == 2
    for before, after in (
        (lattice.state_dict(), again.state_dict()),
        (average.shadow, mean.shadow),
        (optimizers.state()[0], other.state()[0]),
    ):
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert optimizers.state()[1] == other.state()[1]
    assert not all(torch.equal(v, lattice.state_dict()[k]) for k, v in mean.shadow.items()), "a mean of its own"


def test_a_wrong_file_ends_in_one_sentence_and_leaves_all_as_it_was(saved, tmp_path, capsys):
    folder, _ = saved
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    damaged = (folder / STATE).read_bytes()[:1000]
    (folder / STATE).write_bytes(damaged)
    (tmp_path / "sudokus.csv").write_text(f"question,answer\n{TASK.decode(half_open())},{TASK.decode(SOLVED)}\n")
    for data, output, said in (
        ("missing.csv", "new", "missing.csv"),
        ("sudokus.csv", "other", "would be written over"),
        ("sudokus.csv", "run", "is damaged"),
    ):
        names = {"--init-from": "start", "--data": data, "--output-dir": output}
        code = main([part for option, name in names.items() for part in (option, str(tmp_path / name))])
        error = capsys.readouterr().err
        assert code == 1 and said in error and "Traceback" not in error, error
    assert (tmp_path / "other" / "mine.txt").read_text() == "kept" and (folder / STATE).read_bytes() == damaged
