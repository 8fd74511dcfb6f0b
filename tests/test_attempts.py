"""Search by pins, on scripted models: what is guessed, what is accepted, and what stands when it ends early."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_config, tiny_model
from test_solve import SOLVED, TASK, halting_model, puzzles_of

from air_model import AirModel, attempts_air, solve_puzzles
from air_model.answers_air import keep_givens, pins_of, symmetric_views
from air_model.attempts_air import GUESS_COST, LOST_COST, RESTART, _split, _wall_up, beliefs_of, default_attempts
from air_model.processing_air import GridTask, MazeTask, SudokuTask, Symmetry
from air_model.search_air import bottlenecks, flood


class Believer:
    """Stands in for a model's forward: it knows the solution, but for `wrong` digits in some cells, which it believes
    a little more than the right ones. What is pinned it shows; once that is wrong, it knows nothing any more."""

    def __init__(self, monkeypatch, model: AirModel, wrong: dict[int, int], doubt: float = 0.4) -> None:
        self.wrong, self.doubt, self.inner, self.seen = wrong, doubt, model.forward, []
        monkeypatch.setattr(model, "forward", self)

    def __call__(self, input_ids, *args, **kwargs):
        out = self.inner(input_ids, *args, **kwargs)
        beliefs = torch.full_like(out.logits, 1e-4)
        for row, grid in enumerate(input_ids.numpy()):
            self.seen.append(grid.copy())
            lost = ((grid != SOLVED) & (grid != TASK.blank_token)).any()
            for cell, token in enumerate(grid):
                right = int(SOLVED[cell])
                if token != TASK.blank_token:
                    beliefs[row, cell, token] = 1.0
                elif lost:
                    beliefs[row, cell, 2:] = 0.25
                elif cell in self.wrong:
                    beliefs[row, cell, self.wrong[cell]], beliefs[row, cell, right] = 1 - self.doubt, self.doubt
                else:
                    beliefs[row, cell, right] = 1.0
        out.logits[:] = beliefs.log()
        out.q_halt_logits[:], out.q_continue_logits[:] = -1.0, 1.0
        return out


@pytest.fixture
def puzzle() -> np.ndarray:
    grid = SOLVED.copy()
    grid[8:] = TASK.blank_token
    return grid


def softmax_model(**overrides) -> AirModel:
    return tiny_model(loss_type="softmax_cross_entropy", **overrides)


def other_digit(cell: int) -> int:
    return int(SOLVED[cell]) % 5 + 2 if SOLVED[cell] < 5 else 2


def test_a_wrong_belief_at_one_cell_is_corrected_by_the_second_guess(monkeypatch, puzzle):
    model, cell = softmax_model(), 10
    Believer(monkeypatch, model, {cell: other_digit(cell)})
    answers = solve_puzzles(model, None, puzzle[None], attempts=16, halt="rules")
    assert answers.verdict.valid.all() and (answers.tokens[0] == SOLVED).all()
    assert answers.pins == [[(cell, int(SOLVED[cell]))]]
    assert answers.attempts.tolist() == [3] and answers.view.tolist() == [2]  # as given, the likelier digit, the other


def test_guesses_at_two_cells_follow_one_another(monkeypatch, puzzle):
    model, cells = softmax_model(), (9, 14)
    Believer(monkeypatch, model, {cell: other_digit(cell) for cell in cells})
    answers = solve_puzzles(model, None, puzzle[None], attempts=64, halt="rules", return_rollout=True)
    assert sorted(answers.pins[0]) == [(cell, int(SOLVED[cell])) for cell in cells]
    tree = answers.trees[0]
    chosen = tree[answers.view[0]]
    assert chosen.accepted and tree[tree[chosen.parent].parent].parent == -1
    assert [node.cost for node in tree] == sorted(node.cost for node in tree), "the cheapest first"
    assert answers.act_steps[0] == sum(node.act_steps for node in tree)


def test_single_pass_and_search_agree_where_the_first_answer_is_right(monkeypatch, puzzle):
    model = softmax_model()
    Believer(monkeypatch, model, {})
    for attempts in (1, 256):
        answers = solve_puzzles(model, None, puzzle[None], attempts=attempts, halt="rules")
        assert answers.attempts.tolist() == answers.act_steps.tolist() == [1] and answers.verdict.valid.all()


@pytest.mark.parametrize("loss_type", ["stablemax_cross_entropy", "softmax_cross_entropy"])
def test_the_cell_whose_two_best_digits_are_most_evenly_believed_is_split(loss_type):
    beliefs = torch.full((1, 16, 6), 0.01)
    beliefs[0, 3, 2:] = torch.tensor([0.45, 0.40, 0.15, 0.01])
    beliefs[0, 5, 2:] = torch.tensor([0.30, 0.30, 0.20, 0.20])  # even, but much is left beyond the two
    beliefs[0, 7, 2:] = torch.tensor([0.49, 0.49, 0.01, 0.01])  # given
    grids = torch.full((1, 16), TASK.blank_token, dtype=torch.uint8)
    grids[0, 7] = 2
    logits = beliefs.log() if loss_type.startswith("softmax") else 1 - 1 / beliefs
    cells, costs = _split(TASK, grids.numpy(), grids.numpy(), beliefs_of(logits, loss_type), np.zeros(len(grids)))
    shares = np.array([0.45, 0.40, 0.15, 0.01]) / 1.01
    assert cells.tolist() == [3] and list(costs[0]) == [2, 3, 4, 5]
    assert np.allclose(list(costs[0].values()), GUESS_COST - np.log(shares), atol=1e-3)
    full = np.full_like(grids, 2)
    assert _split(TASK, full, full, beliefs_of(logits, loss_type), np.zeros(1))[1] == [{}]


def test_cells_that_clash_in_the_answer_are_split_first():
    grids = np.full((1, 16), TASK.blank_token, np.uint8)
    beliefs = np.tile([0.7, 0.2, 0.05, 0.05], (1, 16, 1))
    beliefs[0, 9] = 0.49, 0.49, 0.01, 0.01  # the most even, and in the corner of no clash
    beliefs[0, 2] = 0.6, 0.38, 0.01, 0.01
    answers = np.array(TASK.as_tokens("1234341221434321"))[None]
    cell = lambda: _split(TASK, grids, answers, beliefs, np.zeros(1))[0].tolist()  # noqa: E731
    assert cell() == [9]
    answers[0, 2] = answers[0, 3]
    assert cell() == [2]


class OnApple(torch.Tensor):
    """A tensor on an Apple GPU, as far as it says so and cannot be float64 there."""

    device = torch.device("mps")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        assert not (isinstance(found, cls) and found.dtype == torch.float64), "MPS does not support float64"
        return found.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else found


def test_guesses_below_a_node_that_looks_lost_cost_more_where_the_model_learned_to_tell():
    costs = []
    for q_lost in (False, True):
        model = softmax_model(q_continue=False, q_lost=q_lost)
        with torch.no_grad():
            model.q_head.weight[1], model.q_head.bias[1] = 0, 2
        tree = solve_puzzles(model, None, puzzles_of(1, blanks=14), attempts=4, return_rollout=True).trees[0]
        costs.append([node.cost for node in tree[:2]])
    assert costs[1] == pytest.approx([0, costs[0][1] + LOST_COST * np.log1p(np.exp(2))])


@pytest.mark.parametrize("loss_type", ["stablemax_cross_entropy", "softmax_cross_entropy"])
def test_an_apple_gpu_which_has_no_float64_knows_what_it_believes(loss_type):
    logits = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(0))
    found = beliefs_of(logits.as_subclass(OnApple), loss_type)
    np.testing.assert_allclose(found, beliefs_of(logits, loss_type), rtol=1e-5)


def test_an_untrained_model_never_calls_a_refused_grid_solved_and_keeps_to_its_nodes():
    puzzles = puzzles_of(5, blanks=12)
    answers = solve_puzzles(halting_model(seed=3), None, puzzles, attempts=7, halt="rules", return_rollout=True)
    assert (answers.attempts <= 7).all() and (answers.attempts[~answers.verdict.valid] == 7).all()
    assert (answers.verdict.valid == TASK.verdicts(puzzles, answers.tokens).valid).all()
    for tree, chosen in zip(answers.trees, answers.view):  # the fewest clashes, then the highest q_halt
        grids = np.stack([node.answer for node in tree])
        faults = (TASK.conflicts(grids) | (grids < 2)).sum(-1).tolist()
        marks = [(fault, -round(node.q_halt_logit, 3)) for fault, node in zip(faults, tree)]
        assert chosen == marks.index(min(marks)) > 0
    two = [halting_model(seed=seed) for seed in (0, 3)]
    found = [solve_puzzles(models, None, puzzles, attempts=7, halt="rules").tokens for models in (two, two[::-1])]
    assert np.array_equal(*found), "the best of all models, in any order"


def test_a_search_computes_in_bfloat16_where_that_is_fast_and_a_single_pass_does_not(monkeypatch):
    monkeypatch.setattr(attempts_air, "bf16_is_fast", lambda device: True)
    for attempts, dtype in ((2, torch.bfloat16), (1, torch.float32)):
        seen = []
        look = lambda update, z_h, z_l: seen.append(z_h.dtype)  # noqa: E731, B023
        solve_puzzles(tiny_model(), None, puzzles_of(1), attempts=attempts, max_act_steps=1, hook=look)
        assert {*seen} == {dtype}


@pytest.mark.parametrize(
    ("maze", "restless", "steps"),
    [(False, True, [6, 3, 3]), (False, False, [2, 2, 2]), (True, True, [6, 6, 6]), (True, False, [3, 3, 3])],
)
def test_a_refused_node_ends_where_it_stands_still_and_below_a_sudokus_first_after_half_of_the_steps(
    monkeypatch, puzzle, maze, restless, steps
):
    model = maze_model() if maze else softmax_model()
    inner = model.forward

    def forward(*args, **kwargs):
        out = inner(*args, **kwargs)
        out.logits[:], out.logits[..., 2], out.logits[..., 3] = (
            0.0,
            1.0,
            (2.0 * restless * (out.carry.steps % 2))[:, None],
        )
        return out

    monkeypatch.setattr(model, "forward", forward)
    options = {"attempts": 3, "halt": "rules", "max_act_steps": 6, "return_rollout": True}
    answers = solve_puzzles(model, None, (ROUND if maze else puzzle)[None], **options)
    assert [node.act_steps for node in answers.trees[0]] == steps


def test_a_search_ends_when_every_grid_has_been_refused():
    puzzle = np.array([TASK.encode("1234341221434.21")], np.uint8)
    puzzle[0, -1] = 5  # 4 in the last corner: no digit fits the open cell
    answers = solve_puzzles(halting_model(), None, puzzle, attempts=50, halt="rules", check=False)
    assert not answers.verdict.valid.any() and answers.attempts.tolist() == [5]  # as given, and each of four digits


def test_a_search_does_not_depend_on_what_else_is_in_the_batch():
    model, puzzles, ids = halting_model(num_puzzle_identifiers=3), puzzles_of(6, blanks=11), torch.arange(6) % 3
    torch.nn.init.normal_(model.puzzle_embedding.weight, generator=torch.Generator().manual_seed(0))
    options = {"attempts": 9, "halt": "rules", "dtype": "float32"}
    together = solve_puzzles(model, None, puzzles, puzzle_ids=ids, batch_size=4, **options)
    alone = [
        solve_puzzles(model, None, one[None], puzzle_ids=[i], batch_size=3, **options) for one, i in zip(puzzles, ids)
    ]
    for name in ("attempts", "act_steps"):
        assert getattr(together, name).tolist() == [int(getattr(one, name)[0]) for one in alone]
    assert together.pins == [one.pins[0] for one in alone]
    assert (together.tokens == np.concatenate([one.tokens for one in alone])).all()
    assert not (together.tokens == solve_puzzles(model, None, puzzles, **options).tokens).all(), "ids matter"


def test_nothing_is_computed_ahead_while_other_puzzles_wait():
    puzzles = puzzles_of(60, blanks=14)
    answers = solve_puzzles(halting_model(), None, puzzles, attempts=3, halt="max", batch_size=2)
    assert answers.stats["slot_steps"] - answers.act_steps.sum() <= 8 * 2 and answers.stats["fill"] > 0.9


def test_givens_of_an_answer_are_the_puzzles_own():
    maze = MazeTask(5)
    grids = np.stack([maze.encode("S    " + " " * 15 + "####G")])
    model = tiny_model(task="maze", grid_height=5, vocab_size=6)
    found = solve_puzzles(model, None, grids, attempts=8).tokens
    assert (found[grids != maze.SPACE] == grids[grids != maze.SPACE]).all()
    puzzles = puzzles_of(3)
    given = puzzles != TASK.blank_token
    for options in ({}, {"attempts": 4}, {"attempts": 4, "retry": "views"}):
        assert (solve_puzzles(tiny_model(), None, puzzles, **options).tokens[given] == puzzles[given]).all()


def test_a_generic_grid_says_of_no_cell_that_it_was_given():
    answers = np.array([[2, 3, 2, 3]])
    assert (keep_givens(GridTask(2, 2, 4), np.array([[1, 2, 3, 3]]), answers) == answers).all()


@pytest.mark.parametrize("retry", ["pins", "views"])
def test_ctrl_c_keeps_the_best_answers_so_far(monkeypatch, retry):
    model, puzzles = halting_model(), puzzles_of(4, blanks=14)
    forward, calls = model.forward, []

    def broken_off(*args, **kwargs):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", broken_off)
    options = {"attempts": 50, "retry": retry, "halt": "rules", "batch_size": 2}
    answers = solve_puzzles(model, None, puzzles, interruptible=True, **options)
    assert answers.stats["interrupted"] and 0 < answers.attempts.sum() < 50
    assert len(answers.tokens) == 4 and (answers.tokens[answers.attempts == 0] == puzzles[answers.attempts == 0]).all()
    with pytest.raises(KeyboardInterrupt):
        solve_puzzles(model, None, puzzles, **options)


def test_a_listener_hears_of_every_node_and_may_end_the_search(monkeypatch, puzzle):
    model, heard = softmax_model(), []
    Believer(monkeypatch, model, {cell: other_digit(cell) for cell in (9, 14)})

    def listen(i: int, nodes: list) -> None:
        heard.append((i, len(nodes), nodes[-1].accepted))
        if len(nodes) >= most:
            raise KeyboardInterrupt

    most, options = 99, {"attempts": 64, "halt": "rules", "on_nodes": listen, "interruptible": True}
    whole = solve_puzzles(model, None, puzzle[None], **options)
    assert [count for _, count, _ in heard] == sorted({count for _, count, _ in heard})
    assert heard[-1] == (0, int(whole.attempts[0]), True) and {i for i, _, _ in heard} == {0}
    most = 2
    early = solve_puzzles(model, None, puzzle[None], **options)
    assert early.stats["interrupted"] and 2 <= early.attempts[0] < whole.attempts[0] and not early.verdict.valid[0]


def test_the_roll_out_of_a_search_is_that_of_the_chosen_node(monkeypatch, puzzle):
    model = softmax_model()
    answers = solve_puzzles(model, None, puzzle[None], attempts=6, halt="rules", return_rollout=True)
    z_h, z_l, updates = answers.rollout
    node = answers.trees[0][answers.view[0]]
    last = z_h[0, node.act_steps * len(model.config.schedule) - 1]
    assert len(updates) == z_h.shape[1] == z_l.shape[1]
    assert (keep_givens(TASK, puzzle, last) == answers.tokens[0]).all()


def test_the_roll_out_of_a_search_knows_the_user_s_hook(puzzle):
    model, seen = softmax_model(), []

    def push(update, z_h, z_l):
        seen.append(set(update.rows.tolist()))
        return torch.full_like(z_h, 0.5), z_l

    answers = solve_puzzles(model, None, puzzle[None], attempts=6, halt="rules", return_rollout=True, hook=push)
    node = answers.trees[0][answers.view[0]]
    last = answers.rollout[0][0, node.act_steps * len(model.config.schedule) - 1]
    assert (keep_givens(TASK, puzzle, last) == answers.tokens[0]).all()
    assert seen[-1] <= set().union(*seen[: -node.act_steps * len(model.config.schedule)])  # the chosen node's number


def test_a_search_s_default_is_cut_to_the_views_there_are_without_a_warning(recwarn):
    answers = solve_puzzles(maze_model(), None, ROUND[None], attempts=None, retry="views", max_act_steps=1)
    assert answers.attempts.tolist() == [16] and not recwarn


def test_a_second_checkpoint_searches_only_what_the_first_left(monkeypatch, puzzle):
    first, second = softmax_model(seed=1), softmax_model(seed=2)
    Believer(monkeypatch, second, {10: other_digit(10)})
    answers = solve_puzzles([first, second], None, np.stack([SOLVED, puzzle]), attempts=4, halt="rules")
    assert answers.verdict.valid.all() and answers.attempts.tolist() == [1, 4 + 3]
    assert answers.view.tolist() == [0, 4 + 2]


@pytest.mark.parametrize("side", [4, 6, 8, 9, 12, 16])
def test_the_same_call_searches_sudokus_of_every_size(side):
    model = AirModel(tiny_config(grid_height=side)).eval()
    task = SudokuTask(side)
    answers = solve_puzzles(model, None, ["." * side * side], attempts=3, halt="rules", max_act_steps=2)
    assert answers.attempts.tolist() == [3] and answers.tokens.shape == (1, task.seq_len)
    assert default_attempts(task) == 256


RING = MazeTask(5)  # two ways from S to G: of 7 moves by the right, of 9 by the left
ROUND = RING.encode(" S   " + " ### " * 3 + "    G")


def takes_the_long_way(monkeypatch, model: AirModel, doubted: int | None = None) -> None:
    """A forward that marks the longer of two ways as long as it is open; cell `doubted` it believes a little less."""
    inner = model.forward

    def forward(input_ids, *args, **kwargs):
        out = inner(input_ids, *args, **kwargs)
        logits = torch.full_like(out.logits, -9.0)
        for row, maze in enumerate(input_ids.numpy().astype(np.uint8)):
            other, short = maze.copy(), RING.label(maze)
            other[np.flatnonzero(short == RING.PATH)[2]] = RING.WALL
            marks = RING.label(other) == RING.PATH if RING.solutions(other) else short == RING.PATH
            logits[row, torch.arange(25), torch.from_numpy(np.where(marks, RING.PATH, maze)).long()] = 9.0
            if doubted is not None and (input_ids[row].numpy() == ROUND).all():
                logits[row, doubted, RING.PATH] = 5.0
        out.logits[:] = logits
        out.q_halt_logits[:], out.q_continue_logits[:] = -1.0, 1.0
        return out

    monkeypatch.setattr(model, "forward", forward)


def maze_model() -> AirModel:
    return tiny_model(task="maze", grid_height=5, vocab_size=6, loss_type="softmax_cross_entropy")


def test_a_wall_where_a_maze_s_path_is_believed_least_opens_the_shorter_way(monkeypatch):
    model, doubted = maze_model(), 15
    takes_the_long_way(monkeypatch, model, doubted)
    assert not solve_puzzles(model, None, ROUND[None], attempts=16, retry="views", halt="rules").verdict.valid.any()
    answers = solve_puzzles(model, None, ROUND[None], attempts=None, halt="rules", return_rollout=True)
    assert answers.verdict.valid.all() and np.array_equal(answers.tokens[0], RING.label(ROUND))
    assert answers.pins == [[(doubted, RING.WALL)]] and answers.tokens[0, doubted] == RING.SPACE
    # As given and in two more views, then walled up below the first.
    assert [node.parent for node in answers.trees[0]] == [-1, -1, -1, 0] and answers.attempts.tolist() == [4]
    assert len({node.view for node in answers.trees[0][:3]}) == 3
    assert np.array_equal(answers.rollout[0].shape, (1, model.config.halt_max_steps * 6, 25))
    assert not (answers.rollout[0][0, :, doubted] == RING.WALL).any()  # as in the answer


def test_no_wall_closes_a_maze_and_a_corridor_is_looked_at_in_its_views_alone():
    maze = RING.encode("S    " + "#### " * 3 + "####G")
    marks = np.where(maze == RING.SPACE, RING.PATH, maze)
    assert _wall_up(RING, maze[None], marks[None], np.ones((1, 25, 4)), np.zeros(1))[1] == [{}]
    answers = solve_puzzles(maze_model(), None, maze[None], attempts=None, halt="max", max_act_steps=1)
    assert answers.verdict.valid.any() or answers.attempts.tolist() == [len(symmetric_views(RING, 16).cells)]
    assert default_attempts(RING) == 64


def test_a_search_at_a_maze_does_not_depend_on_what_else_is_in_the_batch(monkeypatch):
    model, mazes = maze_model(), np.stack([ROUND, RING.encode("S" + " " * 23 + "G"), ROUND[::-1]])
    takes_the_long_way(monkeypatch, model)
    options = {"attempts": 9, "halt": "rules"}
    together = solve_puzzles(model, None, mazes, batch_size=3, **options)
    alone = [solve_puzzles(model, None, one[None], batch_size=1, **options) for one in mazes]
    assert together.attempts.tolist() == [int(one.attempts[0]) for one in alone]
    assert together.pins == [one.pins[0] for one in alone] and together.verdict.valid.all()
    assert any(together.pins) and len({*together.attempts.tolist()}) > 1, "not all mazes take the same course"


def test_settings_that_do_not_go_together_end_in_a_sentence():
    model, grid = tiny_model(), tiny_model(task="grid", grid_height=2, vocab_size=6)
    with pytest.raises(ValueError, match="a generic grid has none"):
        solve_puzzles(grid, None, np.ones((1, 4), np.uint8), retry="pins", attempts=4)
    with pytest.raises(ValueError, match="attempts differ by their pins"):
        solve_puzzles(model, None, puzzles_of(1), retry="pins", attempts=4, noise=0.1)
    with pytest.raises(ValueError, match="retry must be"):
        solve_puzzles(model, None, puzzles_of(1), retry="again")
    assert solve_puzzles(model, None, puzzles_of(1), attempts=4, selection="vote").pins is None, "votes are for views"


def test_the_pipeline_goes_on_by_default_and_tells_its_guesses(monkeypatch, puzzle):
    model = softmax_model()
    Believer(monkeypatch, model, {10: other_digit(10)})
    pipe = transformers.pipeline("puzzle-solving", model=model, device="cpu")
    found = pipe(TASK.decode(puzzle), return_rollout=True)
    assert found["solved"] and found["pins"] == [{"row": 3, "column": 3, "digit": "4"}]
    assert [node["accepted"] for node in found["tree"]] == [False, False, True]
    single = pipe(TASK.decode(puzzle), attempts=1)
    assert not single["solved"] and single["attempts"] == 1


def test_a_puzzle_of_many_nodes_knows_them_apart_in_a_hook():
    model, puzzles, names = halting_model(), puzzles_of(3, blanks=14), set()

    def watch(update, z_h, z_l):
        names.update(update.rows.tolist())

    answers = solve_puzzles(model, None, puzzles, attempts=5, halt="max", hook=watch)
    assert {name % 3 for name in names} == {0, 1, 2} and len(names) >= answers.attempts.sum()


def test_a_search_tree_is_drawn_and_told(tmp_path):
    from PIL import Image

    from air_model.analysis.search import _places, animate_search, draw_search

    answers = solve_puzzles(halting_model(), None, puzzles_of(1, blanks=14), attempts=6, return_rollout=True)
    x, depth = _places(answers.trees[0])
    assert len({*zip(x, depth)}) == 6 and depth[0] == 0, "no two nodes in one place"
    assert draw_search(TASK, answers.trees[0], tmp_path / "tree.png").stat().st_size > 5000
    film = Image.open(animate_search(TASK, answers.trees[0], tmp_path / "tree.gif", frames=4))
    assert film.n_frames == 4, "whatever the number of nodes"
    broad = [answers.trees[0][0], *(replace(answers.trees[0][1], parent=0) for _ in range(60))]
    assert Image.open(animate_search(TASK, broad, tmp_path / "broad.gif", frames=2)).width <= 2400


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_title_of_a_small_tree_is_inside_its_picture(nodes):
    from air_model.analysis.search import _figure_of
    from air_model.answers_air import Node

    figure = _figure_of(TASK, [Node(k - 1, 0, 2, 0.0, k == nodes - 1, 1, 0.0, np.zeros(81)) for k in range(nodes)])
    figure.canvas.draw()
    title = figure.axes[0].title.get_window_extent()
    assert title.y1 <= figure.bbox.y1 and 0 <= title.x0 and title.x1 <= figure.bbox.x1


def test_a_drawn_search_names_the_view_of_each_beginning():
    from air_model.analysis.search import _figure_of
    from air_model.answers_air import Node

    views = (0, 0, 1, 2)
    tree = [Node(0 if k == 1 else -1, 0, 2, 0.0, False, 1, 0.0, np.zeros(81), view) for k, view in enumerate(views)]
    texts = [text.get_text() for text in _figure_of(TASK, tree).axes[0].texts]
    assert [text for text in texts if text.startswith("view")] == ["view 1", "view 2", "view 3"]


def test_a_long_search_begins_anew_in_another_view_and_answers_in_the_puzzles_own_orientation():
    model, puzzle = tiny_model(), TASK.as_tokens("1" + "." * 15)
    answers = solve_puzzles(
        model, None, puzzle[None], attempts=3 * RESTART + 3, halt="max", max_act_steps=1, return_rollout=True
    )
    tree = answers.trees[0]
    assert [k for k, node in enumerate(tree) if node.parent < 0] == [0, RESTART, 3 * RESTART]
    node, views = tree[-1], symmetric_views(TASK, 3)
    view = Symmetry(views.cells[node.view], views.tokens[node.view])
    grid = puzzle.copy()
    for cell, token in pins_of(tree, len(tree) - 1):
        grid[cell] = token
    seen = model.solve(torch.from_numpy(view.apply(grid))[None], max_act_steps=1).predictions[0].numpy()
    assert node.view == 2 and np.array_equal(node.answer, keep_givens(TASK, puzzle, view.inverse().apply(seen)))
    assert np.array_equal(answers.rollout[0][0, -1], answers.tokens[0])


def test_bottlenecks_are_the_cells_whose_loss_parts_two_cells():
    rng = np.random.default_rng(0)
    for _ in range(100):
        passable = rng.random((5, 7)) < rng.uniform(0.5, 0.95)
        start, goal = rng.choice(35, 2, replace=False)
        passable.flat[[start, goal]] = True
        parted = []
        for cell in range(35):
            without = passable.copy()
            without.flat[cell] &= cell in (start, goal)
            source = np.arange(35).reshape(1, 5, 7) == start
            parted.append(cell in (start, goal) or flood(without[None], source)[0, goal] < 0)
        assert bottlenecks(passable, int(start), int(goal)).tolist() == parted
