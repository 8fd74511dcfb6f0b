"""Candidate lattices of workshop/lattice.py: what is read, struck out and pinned, and what costs."""

import numpy as np
import torch
from conftest import tiny_model
from test_solve import SOLVED, TASK

from air_model.training.batches import PuzzleSampler
from air_model.workshop.lattice import Lattice, advance, fresh, loss_of


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
