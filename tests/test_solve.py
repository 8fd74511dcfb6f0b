"""The engine: halting, continuous batching, memory, attempts and their selection."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_model

from air_model import solve_puzzles
from air_model.answers_air import symmetric_views
from air_model.attempts_air import _choose
from air_model.modeling_air import AirModel
from air_model.processing_air import GridTask, MazeTask, SudokuTask, task_from_config
from air_model.solving_air import bf16_is_fast, normal_of, solving_dtype

TASK = SudokuTask(4)
SOLVED = TASK.encode("1234341221434321")


def puzzles_of(n: int, blanks: int = 8, seed: int = 0) -> np.ndarray:
    """n solvable 4 x 4 Sudokus: symmetric copies of one grid with some cells emptied."""
    rng = np.random.default_rng(seed)
    grids = TASK.random_symmetries(rng, n).apply(np.tile(SOLVED, (n, 1)))
    holes = np.argsort(rng.random((n, 16)), axis=1)[:, :blanks]
    np.put_along_axis(grids, holes, TASK.blank_token, axis=1)
    return grids


def halting_model(seed: int = 0, **overrides) -> AirModel:
    """A tiny model whose q head says different things of different puzzles and steps."""
    model = tiny_model(seed=seed, halt_max_steps=8, **overrides)
    with torch.no_grad():
        model.q_head.weight.copy_(torch.randn(model.q_head.weight.shape, generator=torch.Generator().manual_seed(1)))
        model.q_head.bias.zero_()
    return model


@torch.no_grad()
def spread_halting(model: AirModel, inputs: torch.Tensor) -> None:
    """Shift the q head so that the puzzles halt at as many different steps as can be, none by a hair."""
    wishes, carry = [], None
    for _ in range(model.config.halt_max_steps):
        out = model(inputs, carry=carry)
        carry = out.carry
        wishes.append(out.q_halt_logits - out.q_continue_logits)
    wishes = torch.stack(wishes)
    values = wishes.flatten().sort().values
    wide = values.diff() > 1e-3
    middles = ((values[1:] + values[:-1]) / 2)[wide]
    kinds = [len((wishes > at).int().argmax(0)[(wishes > at).any(0)].unique()) for at in middles]
    model.q_head.bias[0] -= middles[kinds.index(max(kinds))]


class Oracle:
    """Stands in for a model's forward: from the wanted view on, it answers right; q as told."""

    def __init__(self, monkeypatch, model: AirModel, right_views: set[bytes], q: float = 3.0) -> None:
        self.model, self.right, self.q, self.seen = model, right_views, q, []
        self.forward = model.forward
        monkeypatch.setattr(model, "forward", self)

    def __call__(self, input_ids, *args, **kwargs):
        out = self.forward(input_ids, *args, **kwargs)
        for row, puzzle in enumerate(input_ids.numpy().astype(np.uint8)):
            self.seen.append(puzzle.tobytes())
            grid = brute_force(puzzle) if puzzle.tobytes() in self.right else np.full(16, 2)
            out.logits[row] = torch.nn.functional.one_hot(torch.tensor(grid).long(), 6).float()
        out.q_halt_logits[:], out.q_continue_logits[:] = self.q, self.q - 1
        return out


def brute_force(puzzle: np.ndarray) -> np.ndarray:
    """The solution of a 4 x 4 Sudoku by trying."""
    grid = puzzle.copy()

    def go() -> bool:
        holes = np.flatnonzero(grid == 1)
        if not len(holes):
            return True
        for digit in range(2, 6):
            grid[holes[0]] = digit
            if not TASK.conflicts(grid).any() and go():
                return True
        grid[holes[0]] = 1
        return False

    assert go()
    return grid


def by_hand(model: AirModel, inputs: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Halting without a batch: each puzzle alone, forward after forward; logits and steps."""
    logits, steps = [], []
    for row in inputs:
        carry = None
        for step in range(1, limit + 1):
            with torch.no_grad():
                out = model(row[None], carry=carry)
            carry = out.carry
            if model.halts(out.q_halt_logits, out.q_continue_logits).item() or step == limit:
                break
        logits.append(out.logits[0])
        steps.append(step)
    return torch.stack(logits), torch.tensor(steps)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_halted_puzzle_returns_what_it_had_then_whatever_the_batch(batch_size):
    model = halting_model()
    inputs = torch.from_numpy(puzzles_of(16)).long()
    spread_halting(model, inputs)
    logits, steps = by_hand(model, inputs, 8)
    assert len(steps.unique()) > 2, "the test needs puzzles that halt at different steps"
    solution = model.solve(inputs, halt="q", batch_size=batch_size)
    assert solution.act_steps.tolist() == steps.tolist()
    assert torch.allclose(solution.logits, logits, atol=1e-4)


def test_a_model_without_q_continue_halts_where_q_halt_is_positive():
    model = halting_model(seed=5, q_continue=False)
    inputs = torch.from_numpy(puzzles_of(12)).long()
    solution = model.solve(inputs, halt="q")
    stopped = solution.act_steps < 8
    assert stopped.any() and (solution.q_halt_logits[stopped] > 0).all()


def test_continuous_batching_keeps_the_batch_full():
    model = halting_model()
    solution = model.solve(torch.from_numpy(puzzles_of(600)).long(), halt="q", batch_size=8)
    assert solution.stats["fill"] >= 0.95
    assert solution.stats["slot_steps"] == int(solution.act_steps.sum())


def test_sudokus_with_few_clues_start_first_so_that_none_runs_on_alone():
    inputs = torch.from_numpy(puzzles_of(40)).long()
    inputs[-1] = 1  # no clue at all
    steps = torch.where((inputs == 1).all(1), 8, 1)
    solution = halting_model().solve(inputs, halt=lambda rows, _, done: done == steps[rows], batch_size=4)
    assert solution.act_steps.tolist() == steps.tolist()
    assert solution.stats["passes"] == 12  # 47 steps in four slots; 17 with the longest one last


@pytest.mark.parametrize("halt", ["max", "q"])
def test_the_engines_own_batch_stays_full(halt):
    answers = solve_puzzles(halting_model(), None, puzzles_of(1300), halt=halt)
    assert answers.stats["batch_size"] > 50 and answers.stats["fill"] >= 0.95


def test_more_steps_than_the_config_has_are_allowed():
    solution = tiny_model().solve(torch.from_numpy(puzzles_of(2)).long(), max_act_steps=40)
    assert solution.act_steps.tolist() == [40, 40]


@pytest.mark.parametrize("halt", ["max", "q"])
def test_out_of_memory_halves_the_batch_warns_and_changes_no_answer(monkeypatch, halt):
    model = halting_model()
    inputs = torch.from_numpy(puzzles_of(9)).long()
    wanted = model.solve(inputs, halt=halt, batch_size=8)
    forward = model.forward

    def small_device(input_ids, *args, **kwargs):
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(input_ids, *args, **kwargs)

    monkeypatch.setattr(model, "forward", small_device)
    with pytest.warns(UserWarning, match="Out of memory with 8 puzzles at a time: going on with 4"):
        found = model.solve(inputs, halt=halt, batch_size=8)
    assert found.act_steps.tolist() == wanted.act_steps.tolist()
    assert torch.allclose(found.logits, wanted.logits, atol=1e-4)
    assert found.stats["batch_size"] == 2


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
     RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")],
    ids=["torch before 2.5", "python", "cublas"],
)  # fmt: skip
def test_every_kind_of_running_out_of_memory_halves_the_batch(monkeypatch, error):
    model = halting_model()
    forward = model.forward

    def small_device(input_ids, *args, **kwargs):
        if len(input_ids) > 3:
            raise error
        return forward(input_ids, *args, **kwargs)

    monkeypatch.setattr(model, "forward", small_device)
    with pytest.warns(UserWarning, match="Out of memory"):
        stats = model.solve(torch.from_numpy(puzzles_of(9)).long(), batch_size=6).stats
    assert stats["batch_size"] == 3 and 0 < stats["fill"] <= 1


@pytest.mark.parametrize("retry", ["pins", "views"])
def test_attempts_begun_anew_for_lack_of_memory_take_as_many_steps_and_look_the_same(monkeypatch, retry):
    model, forward = halting_model(seed=1), AirModel.forward
    options = {"attempts": 3, "retry": retry, "halt": "rules", "batch_size": 4, "dtype": "float32"}
    work = partial(solve_puzzles, model, None, puzzles_of(4), return_rollout=True, **options)
    wanted = work()

    def small_device(input_ids, *args, carry=None, **kwargs):
        if len(input_ids) > 1 and carry.steps.max() > 1:  # in the third step
            raise torch.OutOfMemoryError("out of memory")
        return forward(model, input_ids, *args, carry=carry, **kwargs)

    monkeypatch.setattr(model, "forward", small_device)
    with pytest.warns(UserWarning, match="Out of memory"):
        found = work()
    assert found.act_steps.tolist() == wanted.act_steps.tolist()
    assert all(np.array_equal(*states) for states in zip(found.rollout[:2], wanted.rollout[:2]))


def test_running_out_of_memory_for_the_first_states_halves_the_batch_as_well(monkeypatch):
    model = halting_model()
    start = model.initial_carry

    def small_device(batch_size, **kwargs):
        if batch_size > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return start(batch_size, **kwargs)

    wanted = model.solve(torch.from_numpy(puzzles_of(9)).long())
    monkeypatch.setattr(model, "initial_carry", small_device)
    with pytest.warns(UserWarning, match="Out of memory with 8 puzzles at a time: going on with 4"):
        found = model.solve(torch.from_numpy(puzzles_of(9)).long(), batch_size=8)
    assert torch.equal(found.predictions, wanted.predictions)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int8", "scripts/export.py"),
        (torch.int8, "scripts/export.py"),
        ("float23", "got 'float23'"),
        ("int64", "of torch"),
    ],
)
def test_a_dtype_that_nothing_is_solved_in_is_refused(dtype, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().solve(torch.ones(1, 81, dtype=torch.long), dtype=dtype)


def test_any_seed_makes_noise():
    answers = solve_puzzles(tiny_model(), TASK, puzzles_of(2), attempts=2, noise=1.0, seed=2**50)
    assert answers.attempts.tolist() == [2, 2]


def test_attempts_work_where_progress_bars_are_switched_off():
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        answers = solve_puzzles(halting_model(), None, puzzles_of(3), attempts=3, retry="views")
    finally:
        logging.enable_progress_bar()
    assert answers.attempts.max() == 3


def test_on_finish_may_add_rows_which_go_first_and_the_queue_says_the_order_of_the_others():
    model = halting_model()
    inputs = torch.from_numpy(puzzles_of(6)).long()
    order = []

    def finish(rows, predictions, q, steps, logits):
        order.extend(rows.tolist())
        return rows[rows < 3] + 3

    solution = model.solve(inputs, queue=torch.tensor([2, 0]), batch_size=1, on_finish=finish, return_rollout=True)
    assert order == [2, 5, 0, 3]  # further rows go before those that wait
    assert solution.act_steps.tolist() == [8, 0, 8, 8, 0, 8]


def test_packed_weights_give_nearly_the_same_states():
    model = tiny_model(hidden_size=256, num_attention_heads=4, intermediate_size=512)
    inputs = torch.from_numpy(puzzles_of(3)).long()
    with torch.no_grad():
        plain = model(inputs).logits
    packed = model.solve(inputs, max_act_steps=1).logits
    assert torch.allclose(packed, plain, atol=1e-4)
    assert not model.stack.layers[0].mlp.down_proj.held  # nothing stays


def test_calls_side_by_side_leave_each_other_s_weights_alone():
    model = tiny_model(hidden_size=256, num_attention_heads=4, intermediate_size=512)  # large enough to be packed
    inputs, others = torch.from_numpy(puzzles_of(2)).long(), []
    alone = model.solve(inputs, max_act_steps=2).logits

    def another(update, z_h, z_l):
        others.append(update.index)
        if len(others) == 2:  # ends while this one goes on
            model.solve(inputs, max_act_steps=1, dtype=torch.bfloat16)
            model.solve(inputs, max_act_steps=1)

    assert torch.equal(model.solve(inputs, max_act_steps=2, hook=another).logits, alone)


def test_solving_goes_on_from_the_states_that_it_is_given():
    model, inputs = halting_model(), torch.from_numpy(puzzles_of(3)).long()
    with torch.no_grad():
        first = model(inputs)
        second = model(inputs, carry=first.carry)
    found = model.solve(inputs, max_act_steps=1, carry=first.carry, batch_size=2)
    for name in ("logits", "q_halt_logits", "q_continue_logits"):
        torch.testing.assert_close(getattr(found, name), second[name], rtol=0, atol=1e-4)
        assert (second[name] - first[name]).abs().max() > 1e-2


@pytest.mark.parametrize("freeze", ["z_h", "z_l"])
def test_a_frozen_state_stays_what_the_carry_brought(freeze):
    model, inputs, seen = tiny_model(), torch.from_numpy(puzzles_of(3)).long(), []
    carry = model.initial_carry(3, dtype=torch.float32)
    carry[freeze] = setattr(carry, freeze, torch.randn_like(carry[freeze])) or getattr(carry, freeze)
    look = lambda update, z_h, z_l: seen.append((update.rows, {"z_h": z_h, "z_l": z_l}[freeze]))  # noqa: E731
    model.solve(inputs, max_act_steps=2, freeze=freeze, carry=carry, hook=look, batch_size=2)
    assert seen and all(torch.equal(z, getattr(carry, freeze)[rows]) for rows, z in seen)


# ---- attempts


def test_views_are_different_symmetries_and_the_first_is_the_puzzle_itself():
    views = symmetric_views(TASK, 10)
    assert (views.cells[0] == np.arange(16)).all() and (views.tokens[0] == np.arange(6)).all()
    assert len({(c.tobytes(), t.tobytes()) for c, t in zip(views.cells, views.tokens)}) == 10
    assert len(symmetric_views(MazeTask(5), 50).cells) == 16
    assert len(symmetric_views(MazeTask(5, 7), 50).cells) == 8


def test_half_of_a_mazes_views_go_from_goal_to_start_and_come_last():
    views, task = symmetric_views(MazeTask(5), 16), MazeTask(5)
    swaps = views.tokens[:, task.START] == task.GOAL
    assert swaps.tolist() == [False] * 8 + [True] * 8
    assert (symmetric_views(task, 8).cells == views.cells[:8]).all()
    assert len({(c.tobytes(), t.tobytes()) for c, t in zip(views.cells, views.tokens)}) == 16


@pytest.mark.parametrize("task", [SudokuTask(4), SudokuTask(6), MazeTask(4, 6)])
def test_answers_are_mapped_back(task):
    views = symmetric_views(task, 4)
    grids = np.random.default_rng(0).integers(1, task.vocab_size, (4, task.seq_len), dtype=np.uint8)
    assert (views.inverse().apply(views.apply(grids)) == grids).all()


def test_attempts_stop_at_the_first_answer_that_the_rules_accept(monkeypatch):
    model, puzzles = tiny_model(), puzzles_of(5)
    views = symmetric_views(TASK, 6)
    third = {row.tobytes() for row in puzzles[:2]}
    third |= {TASK.as_tokens(views.tokens[2][puzzle[views.cells[2]]]).tobytes() for puzzle in puzzles[2:]}
    oracle = Oracle(monkeypatch, model, third)
    answers = solve_puzzles(model, TASK, puzzles, attempts=6, batch_size=2, retry="views")
    assert answers.attempts.tolist() == [1, 1, 3, 3, 3]
    assert answers.act_steps.tolist() == [1, 1, 3, 3, 3]
    assert answers.verdict.valid.all() and answers.view.tolist() == [0, 0, 2, 2, 2]
    assert all((answers.tokens[i] == brute_force(puzzles[i])).all() for i in range(5))
    assert len(oracle.seen) == 11, "no view of an accepted puzzle may run"


def test_halting_by_the_rules_stops_at_the_first_accepted_step_and_never_at_a_wrong_answer(monkeypatch):
    model, puzzles = tiny_model(), puzzles_of(4)
    forward = model.forward

    def late(input_ids, *args, **kwargs):
        """Answers right from the third step on, but only the first two puzzles; q always wants to stop."""
        out = forward(input_ids, *args, **kwargs)
        for row, puzzle in enumerate(input_ids.numpy().astype(np.uint8)):
            knows = int(out.carry.steps[row]) >= 3 and puzzle.tobytes() in {p.tobytes() for p in puzzles[:2]}
            grid = torch.tensor(brute_force(puzzle) if knows else np.full(16, 2)).long()
            out.logits[row] = torch.nn.functional.one_hot(grid, 6).float()
        out.q_halt_logits[:], out.q_continue_logits[:] = 5.0, 0.0
        return out

    monkeypatch.setattr(model, "forward", late)
    answers = solve_puzzles(model, None, puzzles, halt="rules", batch_size=3)
    assert answers.act_steps.tolist() == [3, 3, 4, 4] and answers.verdict.valid.tolist() == [True, True, False, False]
    assert solve_puzzles(model, None, puzzles, halt="q").act_steps.tolist() == [1] * 4


def test_a_view_whose_refused_answer_stands_still_makes_room_for_the_next_but_a_single_pass_goes_on(monkeypatch):
    model, puzzle = tiny_model(), puzzles_of(1)
    Oracle(monkeypatch, model, set())  # the same refused answer at every step
    options = {"halt": "rules", "max_act_steps": 9, "retry": "views"}
    assert solve_puzzles(model, TASK, puzzle, attempts=3, **options).act_steps.tolist() == [3 * 4]
    assert solve_puzzles(model, TASK, puzzle, attempts=3, noise=0.1, **options).act_steps.tolist() == [3 * 9]
    assert solve_puzzles(model, TASK, puzzle, attempts=1, **options).act_steps.tolist() == [9]
    still = model.forward

    def restless(*args, **kwargs):
        out = still(*args, **kwargs)
        out.logits[:] = out.logits.roll(int(out.carry.steps[0]), -1)
        return out

    monkeypatch.setattr(model, "forward", restless)  # another answer at every step
    assert solve_puzzles(model, TASK, puzzle, attempts=3, **options).act_steps.tolist() == [3 * 9]


def test_a_wrong_answer_with_high_confidence_is_never_called_solved(monkeypatch):
    model, puzzles = tiny_model(), puzzles_of(3)
    Oracle(monkeypatch, model, set(), q=20.0)
    answers = solve_puzzles(model, TASK, puzzles, attempts=4, retry="views")
    assert not answers.verdict.valid.any() and answers.attempts.tolist() == [4, 4, 4]


def test_a_second_checkpoint_sees_only_what_the_first_left(monkeypatch):
    first, second, puzzles = tiny_model(seed=1), tiny_model(seed=2), puzzles_of(4)
    Oracle(monkeypatch, first, {puzzles[0].tobytes()})
    oracle = Oracle(monkeypatch, second, {row.tobytes() for row in puzzles})
    answers = solve_puzzles([first, second], TASK, puzzles)
    assert answers.attempts.tolist() == [1, 2, 2, 2] and answers.verdict.valid.all()
    assert puzzles[0].tobytes() not in oracle.seen


def test_the_label_is_not_needed_and_batches_change_no_answer():
    model, puzzles = halting_model(), puzzles_of(7)
    one = solve_puzzles(model, None, puzzles, attempts=3, noise=0.2, batch_size=1)
    many = solve_puzzles(model, None, puzzles[::-1], attempts=3, noise=0.2, batch_size=5)
    assert (one.tokens == many.tokens[::-1]).all() and one.act_steps.tolist() == many.act_steps[::-1].tolist()


def test_noise_leaves_the_first_attempt_alone():
    model, puzzles = halting_model(), puzzles_of(4)
    plain = solve_puzzles(model, None, puzzles)
    noisy = solve_puzzles(model, None, puzzles, noise=0.5)
    assert (plain.tokens == noisy.tokens).all()


def test_noise_is_standard_normal_and_a_function_of_its_key():
    numbers = normal_of(torch.arange(4000), (2, 3))
    assert abs(float(numbers.mean())) < 0.02 and abs(float(numbers.std()) - 1) < 0.02
    assert torch.equal(normal_of(torch.tensor([7]), (2, 3))[0], numbers[7])
    assert abs(float(np.corrcoef(numbers[1:, 0, 0], numbers[:-1, 0, 0])[0, 1])) < 0.05


def test_selection_takes_the_highest_q_then_the_vote():
    task = GridTask(2, 2, 4)
    puzzle = np.ones((1, 4), np.uint8)
    answers = np.array([[[2, 2, 2, 2]], [[3, 3, 3, 3]], [[3, 3, 3, 3]], [[1, 1, 1, 1]]], np.uint8)
    ran = np.ones((4, 1), bool)
    q = np.array([[0.5], [0.1], [0.2], [0.4]], np.float32)
    assert _choose(task, puzzle, answers, q, ran, "auto")[0] == 0
    assert _choose(task, puzzle, answers, np.zeros((4, 1), np.float32), ran, "auto")[0] == 1
    assert _choose(task, puzzle, answers, q, ran, "vote")[0] == 2
    ran[0] = False
    assert _choose(task, puzzle, answers, q, ran, "q")[0] == 3


def test_a_maze_takes_the_shortest_path_that_joins_start_and_goal():
    task = MazeTask(3, 3)
    puzzle = task.encode("S  " + "   " + "  G")[None]
    long_ = task.encode("Soo" + "ooo" + "ooG")  # joined, but with more marks than a path needs
    shorter = task.encode("Soo" + " oo" + "  G")
    shortest = task.encode("Soo" + "  o" + "  G")
    broken = task.encode("So " + "   " + " oG")
    q = np.array([[9.0], [1.0], [1.0], [8.0]], np.float32)
    answers = np.stack([broken, long_, shorter, long_])[:, None]
    assert _choose(task, puzzle, answers, q, np.ones((4, 1), bool), "auto")[0] == 2
    answers[1, 0] = shortest
    assert _choose(task, puzzle, answers, q, np.ones((4, 1), bool), "auto")[0] == 1


def test_more_attempts_than_symmetries_are_cut_with_a_warning_unless_there_is_noise():
    model = tiny_model(task="maze", grid_height=4)
    maze = ["S  #" + "#  #" + "#   " + "  #G"]
    with pytest.warns(UserWarning, match="16 symmetric views"):
        assert solve_puzzles(model, None, maze, attempts=20, max_act_steps=1, retry="views").attempts[0] == 16
    assert solve_puzzles(model, None, maze, attempts=20, max_act_steps=1, noise=0.3).attempts[0] == 20


def test_the_rollout_of_the_chosen_view_ends_in_its_answer():
    model, puzzles = halting_model(), puzzles_of(5)
    answers = solve_puzzles(model, None, puzzles, attempts=3, selection="q", return_rollout=True)
    assert len(set(answers.view.tolist())) > 1
    assert (answers.rollout[0][:, -1] == answers.tokens).all()


def test_puzzles_that_come_in_parts_are_joined_in_order(monkeypatch):
    import air_model.attempts_air as attempts_air

    model, puzzles = halting_model(), puzzles_of(7)
    seen = []
    whole = solve_puzzles(model, None, puzzles, attempts=2, retry="views")
    monkeypatch.setattr(attempts_air, "CELLS_AT_ONCE", 6 * puzzles.shape[1])
    keep = lambda rows, answers: seen.extend(rows)  # noqa: E731
    parts = solve_puzzles(model, None, puzzles, attempts=2, retry="views", on_answers=keep)
    assert (parts.tokens == whole.tokens).all() and sorted(seen) == list(range(7))


@pytest.mark.parametrize("retry", ["pins", "views"])
def test_in_parts_a_hook_hears_the_numbers_of_the_whole_and_ctrl_c_ends_all_of_them(monkeypatch, retry):
    import air_model.attempts_air as attempts_air

    model, puzzles, rows = halting_model(), puzzles_of(6, blanks=14), {}
    options = {"attempts": 2, "retry": retry, "max_act_steps": 1, "interruptible": True}
    for size in (6, 2):
        monkeypatch.setattr(attempts_air, "CELLS_AT_ONCE", size * 2 * puzzles.shape[1])
        hear = lambda update, z_h, z_l: rows.setdefault(size, set()).update(update.rows.tolist())  # noqa: E731, B023
        solve_puzzles(model, None, puzzles, hook=hear, **options)
    assert rows[2] == rows[6] >= set(range(6))

    def break_off(update, z_h, z_l):
        if 2 in update.rows:  # of the second part
            raise KeyboardInterrupt

    monkeypatch.setattr(attempts_air, "CELLS_AT_ONCE", 1)
    answers = solve_puzzles(model, None, puzzles, hook=break_off, return_rollout=True, **options)
    assert answers.stats["interrupted"] and answers.attempts[:2].all() and not answers.attempts[2:].any()
    assert (answers.tokens[2:] == puzzles[2:]).all()


def test_a_roll_out_knows_more_than_128_tokens():
    task = GridTask(2, 2, 200)
    model = tiny_model(task="grid", grid_height=2, grid_width=2, vocab_size=200)
    with torch.no_grad():
        model.lm_head.weight[:129] = 0
    answers = solve_puzzles(model, task, np.full((3, 4), 5, np.uint8), return_rollout=True)
    assert answers.tokens.min() > 128 and (answers.rollout[0][:, -1] == answers.tokens).all()


def test_bad_settings_end_in_one_sentence():
    model = tiny_model()
    for options, words in (
        ({"attempts": 0}, "attempts must be 1 or more"),
        ({"noise": -1.0}, "noise must be"),
        ({"selection": "best"}, "selection must be"),
        ({"max_act_steps": 0}, "max_act_steps must be"),
        ({"halt": "never"}, "halt must be"),
        ({"attempts": "8"}, "a whole number; got '8'"),
        ({"seed": -1}, "seed must be"),
        ({"dtype": "bf"}, "dtype must be a floating-point type of torch"),
        ({"puzzle_ids": [0, 0]}, "one whole number per puzzle"),
        ({"puzzle_ids": [0.5]}, r"got \(1,\) of torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            solve_puzzles(model, None, puzzles_of(1), **options)
    with pytest.raises(ValueError, match="was made for"):
        solve_puzzles(model, SudokuTask(6), puzzles_of(1))


def test_a_contradicting_puzzle_is_refused_with_its_cell_and_number():
    good, bad = TASK.decode(puzzles_of(1)[0]), "11.............."
    with pytest.raises(ValueError, match="Puzzle 2: .*row 1, column 1 and row 1, column 2 both hold 1"):
        solve_puzzles(tiny_model(), None, [good, bad])
    assert task_from_config(tiny_model().config) == TASK


def test_one_puzzle_and_a_generator_are_lists_and_noise_may_be_numpys():
    model, texts = halting_model(), [TASK.decode(grid) for grid in puzzles_of(2)]
    asked = [solve_puzzles(model, None, puzzles).tokens for puzzles in (texts, (text for text in texts), texts[0])]
    assert np.array_equal(asked[0], asked[1]) and np.array_equal(asked[0][:1], asked[2])
    solve_puzzles(model, None, texts, attempts=2, noise=np.float32(0.1))
    with pytest.raises(ValueError, match="Puzzle 1: "):
        solve_puzzles(model, None, (text for text in ["11..............", texts[0]]))


def test_a_roll_out_of_models_with_other_updates_is_refused():
    models = [halting_model(), halting_model(l_cycles=3)]
    with pytest.raises(ValueError, match="same updates"):
        solve_puzzles(models, None, puzzles_of(2), return_rollout=True)


@pytest.mark.parametrize(
    ("probes", "limits", "fast"),
    [
        ({}, {}, True),
        ({"avx512_bf16": False}, {}, True),  # AMX alone
        ({"avx512_bf16": False, "amx": False}, {}, False),  # plain AVX512, where oneDNN says that it can
        ({"onednn": False}, {}, False),
        ({"torch": "AVX2"}, {}, False),
        ({"torch": "DEFAULT"}, {}, False),
        ({}, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, False),
        ({}, {"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, False),
        ({}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
    ],
)
def test_bf16_is_fast_where_the_processor_has_it_and_the_environment_does_not_hide_it(
    monkeypatch, probes, limits, fast
):
    said = {"avx512_bf16": True, "amx": True, "onednn": True, "torch": "AVX512", **probes}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: said["avx512_bf16"])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: said["amx"])
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: said["onednn"])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: said["torch"])
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    assert bf16_is_fast() is fast


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not bf16_is_fast("cuda")
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert solving_dtype(None, on_gpu) is torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert solving_dtype(None, on_gpu) is torch.bfloat16


def test_solving_in_another_precision_leaves_what_listens_for_gradients():
    """DDP hangs its hooks on these nodes once; weights of another dtype in their place would drop them."""
    model = tiny_model()
    weight = model.lm_head.weight
    listening = weight.expand_as(weight).grad_fn.next_functions[0][0]
    model.solve(tiny_batch()[0], max_act_steps=1, dtype=torch.bfloat16)
    assert weight.expand_as(weight).grad_fn.next_functions[0][0] is listening
