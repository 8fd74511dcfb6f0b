"""The Space without a browser: turns, checkpoints, the stream of updates, examples, the API, what is not served."""

import asyncio
import concurrent.futures
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gradio")

from conftest import ROOT, tiny_config, tiny_model

from air_model import AirModel
from air_model.analysis.attention import attention_maps
from air_model.analysis.common import Study
from air_model.answers_air import keep_givens
from air_model.attempts_air import solve_puzzles
from air_model.pipeline_air import save_release
from air_model.processing_air import make_task
from air_model.spaces_demo import app
from air_model.spaces_demo.engine import (
    Carries,
    Checkpoint,
    Engine,
    attention,
    faults,
    find_checkpoints,
    run,
)
from air_model.spaces_demo.examples import levels, new_puzzle, pool, usual_level
from air_model.spaces_demo.turns import Busy, Turns

SPACE = ROOT / "spaces_demo"
FOUR = "1..............."
NO_SOLUTION = "12....3........4"
MAZE = "S....#.#......#......G..."  # 5 x 5


def make_engine() -> Engine:
    """A 4x4 Sudoku model, a symmetric one beside it, and a 5x5 maze model; none trained."""
    checkpoints = []
    for key, variant, fields in (
        ("four", "Lx_H", {}),
        ("four-symmetric", "Lx_Hx", {}),
        ("maze", "Lx_H", {"task": "maze", "grid_height": 5}),
    ):
        config = tiny_config(variant, **fields)
        torch.manual_seed(0)
        checkpoints.append(Checkpoint(key, "memory", config, model=AirModel(config).eval()))
    return Engine(checkpoints)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def server(engine):
    demo = app.build(engine)
    app.TURNS = Turns()
    _, url, _ = app.launch(demo, prevent_thread_lock=True, server_name="127.0.0.1")
    yield url.rstrip("/")
    demo.close()


def events(engine: Engine, job) -> list[dict]:
    return [event for batch in run(engine, job) for event in batch]


# ---- turns --------------------------------------------------------------------


def serve(orders: list[str]) -> list[str]:
    """Line up jobs of visitors while the model is busy; return whose turn came, in order."""

    async def scene() -> list[str]:
        turns, served = Turns(), []

        async def job(visitor: str) -> None:
            async for _ in turns.wait(visitor, every=0.01):
                pass
            served.append(visitor)
            await asyncio.sleep(0)
            turns.release()

        async for _ in turns.wait("first"):
            pass
        jobs = [asyncio.create_task(job(v)) for v in orders]
        await asyncio.sleep(0.02)
        turns.release()
        await asyncio.gather(*jobs)
        return served

    return asyncio.run(scene())


def test_a_visitor_with_many_jobs_does_not_hold_up_the_others():
    assert serve(["a", "a", "a", "b", "c"]) == ["a", "b", "c", "a", "a"]


def test_a_visitor_who_leaves_the_line_gives_the_turn_on():
    async def scene() -> str:
        turns = Turns()

        async def job(visitor: str) -> str:
            async for _ in turns.wait(visitor, every=0.01):
                pass
            return visitor

        async for _ in turns.wait("first"):
            pass
        leaver, stayer = asyncio.create_task(job("leaver")), asyncio.create_task(job("stayer"))
        await asyncio.sleep(0.03)
        leaver.cancel()
        await asyncio.sleep(0.03)
        turns.release()
        return await asyncio.wait_for(stayer, 5)

    assert asyncio.run(scene()) == "stayer"


def test_one_who_steps_aside_comes_after_those_who_wait_and_keeps_a_free_model():
    async def scene() -> list[str]:
        turns, served, all_wait = Turns(), [], asyncio.Event()

        async def search(visitor: str) -> None:
            async for _ in turns.wait(visitor, every=0.01):
                pass
            for _ in range(3):
                served.append(visitor)
                await all_wait.wait()
                async for _ in turns.step_aside(visitor):
                    pass
            turns.release()

        async def job(visitor: str) -> None:
            async for _ in turns.wait(visitor, every=0.01):
                pass
            served.append(visitor)
            turns.release()

        first = asyncio.create_task(search("search"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(job(visitor)) for visitor in "abc"]
        while len(turns.waiting()) < 3:
            await asyncio.sleep(0)
        all_wait.set()
        await asyncio.gather(first, *others)
        assert not turns.lines and not turns.busy
        return served

    assert asyncio.run(scene()) == ["search", "a", "b", "c", "search", "search"]


def test_one_who_leaves_after_stepping_aside_takes_no_turn_along():
    async def scene() -> None:
        turns = Turns()
        async for _ in turns.wait("search"):
            pass
        other = turns.wait("other", every=0.01)
        assert await anext(other) == 1
        aside = turns.step_aside("search")
        assert await anext(aside) == 1
        async for _ in other:
            pass
        await aside.aclose()
        assert not turns.lines and turns.busy
        turns.release()
        await asyncio.sleep(0)
        assert not turns.busy

    asyncio.run(scene())


def test_a_full_line_is_said_in_a_sentence():
    async def scene() -> None:
        turns = Turns(max_waiting=1)
        async for _ in turns.wait("first"):
            pass
        waiting = turns.wait("second")
        assert await anext(waiting) == 1
        with pytest.raises(Busy, match="1 puzzles are waiting"):
            await anext(turns.wait("third"))
        await waiting.aclose()
        assert not turns.lines

    asyncio.run(scene())


# ---- checkpoints and settings --------------------------------------------------------------------


def test_the_model_that_fits_the_text_is_chosen(engine):
    assert engine.read(FOUR)[0].key == "four"
    assert engine.read(FOUR, "four-symmetric")[0].key == "four-symmetric"
    assert engine.read(MAZE)[0].key == "maze"


def test_a_link_to_a_checkpoint_that_is_gone_keeps_its_puzzle_and_settings(engine, monkeypatch):
    monkeypatch.setattr(app, "ENGINE", engine, raising=False)
    settings = {"checkpoint": "five", "halt": "max"}
    found = app.puzzle_for({"action": "link", "text": FOUR, "settings": settings})
    assert (found["puzzle"], found["checkpoint"], found["halt"]) == (FOUR, "four", "max")
    assert "no checkpoint 'five'" in found["note"] and "four took its puzzle" in found["note"]


def test_of_two_models_of_a_size_the_better_one_answers_and_comes_first(monkeypatch, tmp_path):
    for name, exact in (("air-a", 0.2), ("air-b", 0.6)):
        folder = tmp_path / "checkpoints" / name
        save_release(tiny_model(), folder)
        (folder / "eval.json").write_text(json.dumps({"n": 10, "exact_accuracy": exact, "settings": {"halt": "max"}}))
    save_release(AirModel(tiny_config("Lx_H", task="maze", grid_height=5)), tmp_path / "checkpoints" / "air-maze")
    monkeypatch.setattr("air_model.spaces_demo.engine.air_model.__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr("air_model.spaces_demo.engine.__file__", str(tmp_path / "space" / "engine.py"))
    shipped = Engine(find_checkpoints(None))
    assert list(shipped.checkpoints) == ["air-b", "air-a", "air-maze"] and not shipped.vacant
    assert shipped.job(FOUR).checkpoint == "air-b" and shipped.job(MAZE).checkpoint == "air-maze"


def test_a_maze_without_a_maze_model_is_read_but_not_solved():
    config = tiny_config("Lx_H")
    one = Engine([Checkpoint("four", "memory", config, model=AirModel(config).eval())])
    maze = "S" + "." * 142 + "G"
    with pytest.raises(ValueError, match="No maze model is installed here"):
        one.job(maze)
    place, _, note = one.read_loosely(maze)
    assert place.vacant and note == place.missing
    assert [c["key"] for c in one.catalog()["vacant"]] == ["no-maze-model"]


def test_a_rule_trained_in_its_own_way_keeps_the_name_of_its_variant():
    config = tiny_config("Lx_Hx", q_continue=False)
    assert config.variant is None
    assert Engine([Checkpoint("own", "memory", config)]).catalog()["checkpoints"][0]["variant"] == "Lx_Hx"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("11..............", "row 1, column 1 and row 1, column 2 both hold 1 in the same row"),
        ("1" * 17, "17 cells"),
        ("", "empty text"),
        ("<script>alert(1)</script>", "this page solves"),
        ("S####" + "#" * 19 + "G", "No path leads from S"),
        ("S" + "." * 24, "exactly one G"),
        ("1" * 20_001, "20,001 characters"),
        (None, "A puzzle is text"),
    ],
)
def test_bad_puzzles_are_refused_in_a_sentence(engine, text, sentence):
    with pytest.raises(ValueError, match=re.compile(re.escape(sentence), re.I)):
        engine.job(text)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 65}, {"steps": "many"}, {"attempts": 0}, {"freeze": "z_x"}, {"halt": "never"}, {"checkpoint": "gone"},
     {"unknown": 1}, {"nodes": 257}, {"nodes": 8, "attempts": 2}, {"nodes": 8, "freeze": "z_h"},
     {"from": -1}, {"attempts": 1.5}, {"steps": float("inf")}],
)  # fmt: skip
def test_bad_settings_are_refused(engine, settings):
    with pytest.raises(ValueError):
        engine.job(FOUR, settings)


def test_a_file_with_a_puzzle_per_line_gives_its_first_puzzle(engine):
    text = f"source,question,answer\nhere,{FOUR},{FOUR}\n"
    checkpoint, tokens, note = engine.read_loosely(text)
    assert checkpoint.key == "four" and checkpoint.task.decode(tokens) == FOUR
    assert note.startswith("This is puzzle 1 of the text")


def test_checkpoints_come_from_folders_and_faults_are_named(tmp_path):
    save_release(tiny_model(), tmp_path / "one" / "model")
    save_release(tiny_model(seed=1), tmp_path / "two" / "model")
    (tmp_path / "two" / "model" / "results").mkdir()
    evaluations = (("max-16", 1, "max", 20, 0.5), ("easy", 1, "q", 10, 0.8), ("attempts-8", 8, "q", 20, 0.9))
    for name, attempts, halt, n, exact in evaluations:  # the single pass on the most puzzles counts, as in the tables
        content = {"n": n, "exact_accuracy": exact, "settings": {"attempts": attempts, "halt": halt}}
        (tmp_path / "two" / "model" / "results" / f"{name}.json").write_text(json.dumps(content))
    found = find_checkpoints(f"{tmp_path}/one/model, {tmp_path}/two/model")
    assert [(c.key, c.accuracy) for c in found] == [("one", None), ("two", 0.5)]
    loaded = Engine(found).model("two")
    assert loaded.lm_head.weight.dtype == torch.float32
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        find_checkpoints(str(tmp_path / "nowhere" / "at" / "all"))
    with pytest.raises(FileNotFoundError, match="config.json"):
        find_checkpoints(str(tmp_path))


def test_without_checkpoints_the_page_says_that_its_model_is_untrained(monkeypatch, tmp_path):
    monkeypatch.setattr("air_model.spaces_demo.engine.air_model.__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr("air_model.spaces_demo.engine.__file__", str(tmp_path / "engine.py"))
    (only,) = find_checkpoints(None)
    assert not only.trained


# ---- the stream --------------------------------------------------------------------


def test_the_stream_holds_every_update_of_the_rollout(engine):
    model, task = engine.model("four"), engine.checkpoint("four").task
    found = events(engine, engine.job(FOUR, {"halt": "max"}))
    frames = [e for e in found if e["t"] == "f"]
    rollout = model.solve(torch.from_numpy(task.encode(FOUR).astype(np.int64))[None], return_rollout=True).rollout
    assert [e["lv"] for e in frames] == rollout.updates
    for key, states in (("h", rollout.z_h[0]), ("l", rollout.z_l[0])):
        shown = keep_givens(task, task.encode(FOUR), states.numpy())
        assert [e[key] for e in frames] == [task.decode(t) for t in shown]
    assert [e["step"] for e in found if e["t"] == "q"] == [1, 2, 3, 4]
    assert found[-1]["t"] == "end" and found[-1]["solution"] == frames[-1]["h"]


def test_attempts_stream_one_after_another_in_the_puzzles_own_orientation(engine):
    found = events(engine, engine.job(FOUR, {"halt": "max", "attempts": 3}))
    assert [e["view"] for e in found if e["t"] == "attempt"] == [0, 1, 2]
    per_view = len([e for e in found if e["t"] == "f"]) // 3
    last = [e for e in found if e["t"] == "f"][per_view * (found[-1]["view"] + 1) - 1]
    assert found[-1]["solution"] == last["h"] and found[-1]["attempts"] == 3


@pytest.mark.parametrize(("state", "key"), [("z_h", "h"), ("z_l", "l")])
def test_a_frozen_state_stands_still_from_its_step_on(engine, state, key):
    found = events(engine, engine.job(FOUR, {"halt": "max", "freeze": state, "from": 2}))
    frames = [e[key] for e in found if e["t"] == "f"]
    assert len(set(frames[11:])) == 1
    free = [e[key] for e in events(engine, engine.job(FOUR, {"halt": "max"})) if e["t"] == "f"]
    assert frames[:12] == free[:12]


def test_thinking_on_streams_every_node_of_the_search_and_its_pins(engine):
    model, task = engine.model("four"), engine.checkpoint("four").task
    found = events(engine, engine.job(FOUR, {"nodes": 12}))
    search = solve_puzzles(model, task, [FOUR], attempts=12, retry="pins", halt="rules", return_rollout=True)
    tree, nodes, end = search.trees[0], found[:-1], found[-1]
    assert {e["t"] for e in nodes} == {"node"} and [e["n"] for e in nodes] == list(range(1, len(tree) + 1))
    assert [e["answer"] for e in nodes] == [task.decode(node.answer) for node in tree]
    assert [e["pins"][-1:] for e in nodes] == [
        [] if node.parent < 0 else [[node.cell, task.alphabet[node.token]]] for node in tree
    ], "a root, as the search begins anew, has none"
    assert all((e["wrong"] == 0) == node.accepted for e, node in zip(nodes, tree))
    assert end["attempts"] == len(tree) and end["act_steps"] == nodes[-1]["act_steps"] == search.act_steps[0]
    assert end["pins"] == [
        {"row": cell // 4 + 1, "column": cell % 4 + 1, "digit": task.alphabet[token]} for cell, token in search.pins[0]
    ]


def test_thinking_on_walls_up_cells_of_a_maze(engine):
    found = events(engine, engine.job(MAZE, {"nodes": 9}))
    nodes, end = found[:-1], found[-1]
    assert [e["n"] for e in nodes] == list(range(1, end["attempts"] + 1)) and not end["solved"]
    assert all(e["wrong"] > 0 for e in nodes), "refused, also where no cell of the path is at fault"
    assert {letter for e in nodes for _, letter in e["pins"]} <= {"#"}


def test_a_search_that_takes_too_long_ends_with_its_best_answer(engine, monkeypatch):
    monkeypatch.setattr("air_model.spaces_demo.engine.THINK_SECONDS", -1)
    end = events(engine, engine.job(FOUR, {"nodes": 200}))[-1]
    assert end["t"] == "end" and end["attempts"] < 200 and not end["solved"]
    assert "The search ended after" in end["message"] and len(end["solution"]) == 16


def test_a_search_waits_for_leave_between_updates_and_can_be_stopped_there(engine, monkeypatch):
    monkeypatch.setattr("air_model.spaces_demo.engine.SLICE", 0.0)
    stream = run(engine, engine.job(FOUR, {"nodes": 200}), pauses=True)
    seen: list[dict] = []
    for leaves in range(1, 4):
        while sum(e["t"] == "pause" for e in seen) < leaves:
            seen += next(stream)
        assert seen[-1]["t"] == "pause"
    stream.close()
    assert "end" not in [e["t"] for e in seen] and "air-solve" not in [t.name for t in threading.enumerate()]


@pytest.mark.parametrize(
    ("puzzle", "solutions", "words"),
    [(FOUR, "several", "several solutions"), (NO_SOLUTION, 0, "no solution")],
)
def test_a_puzzle_without_one_solution_says_so_after_a_search_too(engine, puzzle, solutions, words):
    for settings in ({}, {"nodes": 4}):
        end = events(engine, engine.job(puzzle, settings))[-1]
        assert end["solutions"] == solutions and words in end["message"]


def test_the_odds_are_those_of_the_puzzles_own_difficulty():
    checkpoint = Checkpoint("nine", "memory", tiny_config("Lx_H", grid_height=9), 0.25)
    rows = [
        {"rating": name, "n": n, "exact_accuracy": share}
        for name, n, share in (("0", 8, 1.0), ("1-9", 4, 0.5), ("10+", 9, 0.0))
    ]
    checkpoint.by_rating = {"single": rows}
    engine, puzzle = Engine([checkpoint]), np.ones(81, np.uint8)
    assert engine.odds(checkpoint, puzzle) == (
        "Over all difficulties, this model solves 25 % of its evaluation puzzles in a single pass."
    )
    engine.rate = lambda tokens: 57
    assert engine.odds(checkpoint, puzzle) == (
        "A solver needs 57 guesses for this puzzle. Of the puzzles that take 10+ guesses, this model solved 0 of 9 in "
        "a single pass."
    )
    engine.rate = lambda tokens: 0
    assert (
        "needs no guess for this puzzle. Of the puzzles that take no guess, this model solved 8 of 8"
        in engine.odds(checkpoint, puzzle)
    )


def test_a_difficulty_that_was_not_evaluated_has_the_odds_of_all():
    checkpoint = Checkpoint("nine", "memory", tiny_config("Lx_H", grid_height=9), 0.25)
    checkpoint.by_rating = {"single": [{"rating": name, "n": 8, "exact_accuracy": 1.0} for name in ("0", "unrated")]}
    engine = Engine([checkpoint])
    engine.rate = lambda tokens: 5
    assert engine.odds(checkpoint, np.ones(81, np.uint8)).startswith("Over all difficulties, this model solves 25 %")


def test_faults_of_a_refused_answer_are_the_cells_that_break_a_rule():
    sudoku, maze = make_task("sudoku", 4), make_task("maze", 4)
    assert faults(sudoku, sudoku.encode("1.1." + "." * 12)) == [0, 2]
    good, broken = "Soo...o...oG....", "So.o..o...oG...."
    assert faults(maze, np.array([maze.alphabet.index(c) for c in good.replace(".", " ")])) == []
    assert faults(maze, np.array([maze.alphabet.index(c) for c in broken.replace(".", " ")])) == [1, 3, 6]


def test_twins_differ_in_the_injection_alone():
    engine = make_engine()
    twins = {key: engine.describe(c)["twin"] for key, c in engine.checkpoints.items()}
    assert twins == {"four": "four-symmetric", "four-symmetric": "four", "maze": None}
    other = Checkpoint("wide", "memory", tiny_config("Lx_Hx", hidden_size=32))
    assert Engine([engine.checkpoint("four"), other]).describe(other)["twin"] is None


def test_a_maze_of_another_size_is_read_and_run_by_the_model_that_takes_it():
    config = tiny_config("Lx_H", task="maze", grid_height=5, position_embedding="rope2d")
    one = Engine([Checkpoint("maze", "memory", config, model=AirModel(config).eval())])
    maze = "S......\n" + ".......\n" * 5 + "......G"
    job = one.job(maze)
    assert job.checkpoint == "maze@7x7" and one.describe(one.checkpoint(job.checkpoint))["base"] == "maze"
    assert len(events(one, job)[-1]["solution"]) == 49
    with pytest.raises(ValueError, match="4 to 100 rows"):
        one.checkpoint("maze@101x70")
    assert "An ACT step takes" in one.describe(one.checkpoint("maze@100x70"))["forecast"]
    with pytest.raises(ValueError, match="and mazes of other sizes to 100×100"):
        one.job(f"S{' ' * 99}\n" + f"{' ' * 100}\n" * 99 + f"{' ' * 99}G")
    drawn = "┌──────┐\n" + "│S  #  │\n" + "│      │\n" * 4 + "│   # G│\n" + "└──────┘"
    assert one.job(drawn).puzzle == "S  #  " + " " * 24 + "   # G"
    assert make_engine().job(",".join("1" + "0" * 15)).puzzle == FOUR


def test_of_two_models_that_take_a_size_the_chosen_one_runs():
    config = tiny_config("Lx_H", task="maze", grid_height=5, position_embedding="rope2d")
    two = Engine([Checkpoint(key, "memory", config) for key in ("one", "two")])
    maze = "S......\n" + ".......\n" * 5 + "......G"
    chosen = {key: two.job(maze, {"checkpoint": key}).checkpoint for key in ("one", "two", "one@7x7", "two@7x7")}
    assert chosen == {"one": "one@7x7", "two": "two@7x7", "one@7x7": "one@7x7", "two@7x7": "two@7x7"}


def test_the_chosen_size_of_a_maze_in_one_line_is_the_one_it_is_read_in(monkeypatch):
    config = tiny_config("Lx_H", task="maze", grid_height=5, position_embedding="rope2d")
    one = Engine([Checkpoint("maze", "memory", config)])
    for key, maze in (("maze@4x9", "S" + "." * 34 + "G"), ("maze@4x5", "S" + "." * 18 + "G")):
        job = one.job(maze, {"checkpoint": key})
        assert job.checkpoint == key and one.job(maze.replace(".", " "), {"checkpoint": key}) == job
        monkeypatch.setattr(app, "ENGINE", one, raising=False)
        link = {"action": "link", "text": maze, "settings": {"checkpoint": key}}
        assert app.puzzle_for(link)["checkpoint"] == key
    assert one.job("S" + "." * 34 + "G").checkpoint == "maze@6x6"
    drawn = "S.....\n" + "......\n" * 4 + ".....G"
    assert one.job(drawn, {"checkpoint": "maze@4x9"}).checkpoint == "maze@6x6"


@pytest.mark.parametrize("key", ["maze@7x7@9x9", "maze@7x7@7x7", "maze" + "@9x9" * 1500, "gone@7x7"])
def test_a_key_names_one_size_of_a_known_model(key):
    config = tiny_config("Lx_H", task="maze", grid_height=5, position_embedding="rope2d")
    with pytest.raises(ValueError, match="There is no checkpoint"):
        Engine([Checkpoint("maze", "memory", config)]).checkpoint(key)


@pytest.mark.parametrize(("key", "kept"), [("maze", ["maze"]), ("maze@6x6", [])])
def test_a_prepared_run_is_kept_of_a_models_own_size_alone(monkeypatch, key, kept):
    config = tiny_config("Lx_H", task="maze", grid_height=5, position_embedding="rope2d")
    one = Engine([Checkpoint("maze", "memory", config, model=AirModel(config).eval())])
    makers: list[threading.Thread] = []

    def make(*args):
        makers.append(threading.current_thread())
        return new_puzzle(*args)

    for name, value in (("ENGINE", one), ("LESSONS", {}), ("TURNS", Turns()), ("new_puzzle", make)):
        monkeypatch.setattr(app, name, value, raising=False)

    async def ask() -> list[dict]:
        return [event async for events in app.on_learn({"checkpoint": key}, "visitor") for event in events]

    told = asyncio.run(ask())
    assert told[0]["t"] == "lesson" and told[-1]["t"] == "end" and list(app.LESSONS) == kept
    assert makers and threading.main_thread() not in makers, "the page lives on while a puzzle is made"


def test_one_who_waits_is_told_when_the_turn_may_come(monkeypatch):
    monkeypatch.setattr(app, "SLICES", deque([1.0, 3.0]))
    assert app.waiting(2) == {"t": "wait", "place": 2, "seconds": 4.0}


def test_two_jobs_of_one_visitor_go_on_in_turns(monkeypatch):
    monkeypatch.setattr("air_model.spaces_demo.engine.SLICE", 0.0)
    monkeypatch.setattr(app, "ENGINE", make_engine(), raising=False)
    monkeypatch.setattr(app, "TURNS", Turns())
    seen: list[str] = []

    async def follow(key: str) -> None:
        job = app.ENGINE.job(FOUR, {"checkpoint": key, "halt": "max"})
        async for events in app.events_of(job, "visitor"):
            seen.extend(key for event in events if event["t"] == "f")

    async def both() -> None:
        await asyncio.gather(follow("four"), follow("four-symmetric"))

    asyncio.run(both())
    assert seen.count("four") == seen.count("four-symmetric") == 24
    assert seen.index("four-symmetric") < 4, "its boards do not wait for the end of the first"


def test_closing_the_stream_ends_the_model_at_the_next_update():
    fresh = make_engine()
    stream = run(fresh, fresh.job(FOUR, {"halt": "max", "steps": 64}))
    next(stream)
    stream.close()
    assert len(fresh.carries.kept) < 64, "not all ACT steps were run"
    assert "air-solve" not in [thread.name for thread in threading.enumerate()]


def test_kept_states_stay_within_their_bytes():
    carries = Carries(limit=40_000)
    for step in range(100):
        carries.put(("a",), step, torch.zeros(1, 10, 100), torch.zeros(1, 10, 100))
    assert carries.bytes <= 40_000 and len(carries.kept) == 5
    assert carries.get(("a",), 99) is not None and carries.get(("a",), 0) is None


@pytest.mark.parametrize("step", [0, 3])
def test_attention_of_a_cell_is_that_of_the_analyses(step):
    fresh = make_engine()
    job = fresh.job(FOUR, {"halt": "max"})
    cold = attention(fresh, job, step, 5)
    events(fresh, job)
    warm = attention(fresh, job, step, 5)  # now from the kept states
    assert cold == warm
    task = fresh.checkpoint("four").task
    study = Study(fresh.model("four"), *[torch.from_numpy(task.encode(FOUR).astype(np.int64))[None]] * 2)
    maps = attention_maps(study, row=0, layer=0, head=1, steps=[step])
    assert np.allclose(np.array(cold["l"][0][1]) / 1000, maps.l[0][5], atol=1e-4)
    assert np.allclose(np.array(cold["h"][0][1]) / 1000, maps.h[0][5], atol=1e-4)
    assert cold["neighbours"]["units"] == np.flatnonzero(task.neighbours["units"][5]).tolist()


def test_a_look_at_one_cell_of_a_large_maze_leaves_no_table_of_all_pairs():
    fields = {"grid_height": 17, "grid_width": 16, "head_relations": ["adjacent", "all"]}
    config = tiny_config("Lx_H", task="maze", position_embedding="rope2d", **fields)
    one = Engine([Checkpoint("maze", "memory", config, model=AirModel(config).eval())])
    model, task = one.model("maze"), one.checkpoint("maze").task
    job = one.job("S" + "." * 270 + "G")
    found = attention(one, job, 1, 40)
    assert list(dict(model.relations.named_buffers())) == ["edges"]
    study = Study(model, *[torch.from_numpy(task.encode(job.puzzle).astype(np.int64))[None]] * 2)
    for head in range(2):
        maps = attention_maps(study, row=0, layer=0, head=head, steps=[1])
        assert np.allclose(np.array(found["l"][0][head]) / 1000, maps.l[0][40], atol=1e-4)
    assert found["neighbours"] == {k: np.flatnonzero(mask[40]).tolist() for k, mask in task.neighbours.items()}


def test_a_model_without_attention_says_so():
    config = tiny_config("TRM_mlp")
    one = Engine([Checkpoint("mlp", "memory", config, model=AirModel(config).eval())])
    with pytest.raises(ValueError, match="MLP instead of attention"):
        attention(one, one.job(FOUR), 0, 0)


# ---- examples --------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [("sudoku", 4), ("sudoku", 6), ("sudoku", 9), ("sudoku", 16), ("maze", 5), ("maze", 30)]
)
def test_every_difficulty_gives_a_wellformed_puzzle(shape):
    task, rng = make_task(*shape), np.random.default_rng(0)
    for level in levels(task):
        task.check_solvable(new_puzzle(task, level, rng))


def test_harder_examples_have_fewer_clues_and_longer_paths():
    sudokus = pool()["sudoku 9x9 boxes 3x3"]
    blanks = [np.mean([p.count(".") for p in sudokus[level]]) for level in ("easy", "medium", "hard")]
    assert blanks == sorted(blanks)
    task, rng = make_task("maze", 15), np.random.default_rng(0)
    moves = []
    for level in levels(task):
        mazes = np.stack([new_puzzle(task, level, rng) for _ in range(8)])
        moves.append((task.label(mazes) == task.PATH).sum() / 8)
    assert moves == sorted(moves)


@pytest.mark.slow
@pytest.mark.parametrize("task", [make_task("sudoku", 9), make_task("sudoku", 25), make_task("maze", 12)], ids=str)
def test_what_a_task_is_shown_with_first_is_a_level_that_it_offers(task):
    assert usual_level(task) in levels(task)


def test_shipped_sudokus_have_one_solution_and_the_rating_of_their_level():
    from air_model.datasets_builders.sudoku_solver import solve

    for shape, content in pool().items():
        if not shape.startswith("sudoku"):
            continue
        _, size, _, box = shape.split()
        task = make_task("sudoku", int(size.split("x")[0]), None, *map(int, box.split("x")))
        for level, puzzles in content.items():
            counts, ratings, _ = solve(np.stack([task.encode(p) for p in puzzles]), task)
            assert (counts == 1).all(), (shape, level)
            if level == "extreme":
                assert ratings.min() >= 20


# ---- the server --------------------------------------------------------------------


def client_of(url: str):
    from gradio_client import Client

    return Client(url, verbose=False, httpx_kwargs={"timeout": 120})  # its own: five seconds, too few where busy


def test_solve_takes_text_and_returns_json(server):
    answer = client_of(server).predict(FOUR, api_name="/solve")
    assert {"solution", "solved", "complete", "consistent", "valid", "message", "confidence", "act_steps"} <= set(
        answer
    )
    assert len(answer["solution"]) == 16 and answer["checkpoint"] == "four" and answer["solved"] is answer["valid"]
    assert "z_h" not in answer


def test_rollout_and_what_if_return_both_states(server):
    client = client_of(server)
    rollout = client.predict(MAZE, api_name="/rollout")
    assert len(rollout["z_h"]) == len(rollout["z_l"]) == len(rollout["updates"]) == 24
    assert len(rollout["halt_probability"]) == 4 and rollout["z_h"][-1] == rollout["solution"]
    settings = {"checkpoint": "four-symmetric", "freeze": "z_l", "steps": 2}
    other = client.predict(FOUR, settings, api_name="/what_if")
    assert other["checkpoint"] == "four-symmetric" and len(other["z_h"]) == 12 and len(set(other["z_l"])) == 1


@pytest.mark.parametrize("puzzle", [FOUR, MAZE])
def test_think_searches_and_names_its_guesses(server, puzzle):
    answer = client_of(server).predict(puzzle, 6, api_name="/think")
    assert 1 <= answer["attempts"] <= 6 and {"pins", "solved", "act_steps", "solution"} <= set(answer)


def test_visitors_are_served_while_another_ones_search_goes_on(server):
    task, rng = make_task("sudoku", 4), np.random.default_rng(3)
    puzzles = [task.decode(new_puzzle(task, "medium", rng)) for _ in range(10)]
    with concurrent.futures.ThreadPoolExecutor(11) as pool:
        search = client_of(server).submit(NO_SOLUTION, api_name="/think")
        answers = list(pool.map(lambda p: client_of(server).predict(p, api_name="/solve"), puzzles))
    assert [a["puzzle"] for a in answers] == puzzles
    assert search.result()["attempts"] > 1 and app.TURNS.lines == {}


def test_api_errors_are_sentences(server):
    with pytest.raises(Exception, match="Contradicting clues: row 1, column 1"):
        client_of(server).predict("11" + "." * 14, api_name="/solve")
    with pytest.raises(Exception, match="steps must be a whole number"):
        client_of(server).predict(FOUR, {"steps": 1000}, api_name="/what_if")


def test_a_search_is_refused_where_its_roll_out_is_asked_for(server):
    with pytest.raises(Exception, match="A search of 3 nodes has no roll-out"):
        client_of(server).predict(FOUR, {"nodes": 3}, api_name="/what_if")


def test_only_the_documented_endpoints_are_public(server):
    named = client_of(server).view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/solve", "/think", "/rollout", "/what_if"}
    assert all(endpoint["description"] for endpoint in named.values())


def readme_examples() -> dict[str, str]:
    return dict(re.findall(r"```(python|bash)\n(.*?)```", (SPACE / "README.md").read_text(), re.S))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_readmes_curl_example_works(server):
    script = readme_examples()["bash"].replace("http://127.0.0.1:7860", server).replace("PUZZLE", FOUR)
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "event: complete" in out
    (answer,) = json.loads(out.rsplit("data: ", 1)[1])
    assert answer["task"] == "Sudoku 4×4"


def test_the_readmes_python_example_works(server, capsys):
    exec(readme_examples()["python"].replace("http://127.0.0.1:7860", server).replace("PUZZLE", FOUR), {})
    out = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert out[0] in ("True", "False") and len(out[1]) == 16


def test_ten_visitors_at_once_each_get_their_own_puzzle(server):
    task, rng = make_task("sudoku", 4), np.random.default_rng(3)
    puzzles = [task.decode(new_puzzle(task, "medium", rng)) for _ in range(10)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda p: client_of(server).predict(p, api_name="/rollout"), puzzles))
    assert [a["puzzle"] for a in answers] == puzzles
    alone = client_of(server).predict(puzzles[4], api_name="/rollout")
    assert alone["z_l"] == answers[4]["z_l"]


@pytest.mark.parametrize(
    "path",
    ["gradio_api/file=/etc/passwd", f"gradio_api/file={SPACE / 'app.py'}", "file=spaces_demo/app.py",
     f"gradio_api/file={ROOT / 'Makefile'}", "gradio_api/file=../../../../etc/passwd", "static/../../../etc/passwd"],
)  # fmt: skip
def test_files_outside_the_page_are_not_served(server, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{server}/{path}", timeout=20).read()
    assert error.value.code in (400, 403, 404)


def test_large_uploads_are_refused(server):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n' + b"1" * 300_000
    request = urllib.request.Request(
        f"{server}/gradio_api/upload",
        data=body + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=20)
    assert error.value.code == 413


def test_page_and_settings_keep_to_this_machine(server):
    page = urllib.request.urlopen(server, timeout=20).read().decode()
    config = json.loads(urllib.request.urlopen(f"{server}/config", timeout=20).read())
    assert server.startswith("http://127.0.0.1:")
    assert config["analytics_enabled"] is False
    ours = "".join(
        (SPACE / "static" / name).read_text() for name in ("style.css", "board.css", "board.js", "stage.js", "page.js")
    )
    assert not re.search(r"(src|url|import)\s*[=(]\s*[\"']?https?://", ours)
    assert "AIR: watch two states think" in page


@pytest.mark.parametrize("handler", [app.on_run, app.on_attention, app.on_learn])
def test_a_text_is_read_beside_the_event_loop(monkeypatch, handler):
    class Reader(Engine):
        def job(self, text, settings=None):
            readers.append(threading.current_thread())
            raise ValueError("read")

    readers: list[threading.Thread] = []
    monkeypatch.setattr(app, "ENGINE", Reader([*make_engine().checkpoints.values()]), raising=False)
    monkeypatch.setattr(app, "LESSONS", {})

    async def ask() -> None:
        async for _ in handler({"puzzle": FOUR, "checkpoint": "four"}, "visitor"):
            pass

    with pytest.raises(ValueError, match="read"):
        asyncio.run(ask())
    assert readers and threading.main_thread() not in readers


def test_faults_of_ours_are_logged_and_not_shown(capsys):
    assert "Something broke here" in app.sentence(RuntimeError("secret"))
    assert "secret" in capsys.readouterr().err


# ---- the folder --------------------------------------------------------------------


def test_the_readme_has_front_matter_that_spaces_accept():
    import yaml

    front = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and (SPACE / front["app_file"]).exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", front["sdk_version"]) and len(front["short_description"]) <= 60


def test_requirements_agree_with_the_package():
    wanted = {line for line in (SPACE / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    known = (ROOT / "pyproject.toml").read_text()
    assert wanted and all(f'"{line}"' in known for line in wanted)


def test_the_app_finds_its_files_where_it_lies_beside_the_package_as_in_a_space(tmp_path):
    copied = runpy.run_path(str(shutil.copy(app.__file__, tmp_path)))
    assert copied["static"]("board.css") == app.static("board.css")


@pytest.mark.parametrize("word, status", [("--help", 0), ("--modle", 2)])
def test_the_app_explains_itself_instead_of_starting(word, status):
    done = subprocess.run([sys.executable, app.__file__, word], capture_output=True, text=True, timeout=60)
    assert done.returncode == status and "GRADIO_SERVER_PORT=8000 python spaces_demo/app.py" in done.stdout


def test_importing_the_page_leaves_no_files_behind():
    assert not list(Path(app.__file__).parent.glob("*.pyi"))


def test_a_real_sized_puzzle_that_is_mostly_solved_comes_before_small_ones():
    from air_model.configuration_air import AirConfig
    from air_model.spaces_demo.engine import Checkpoint, _first_met

    maze = Checkpoint("maze", None, AirConfig(task="maze", grid_height=12, vocab_size=6), 0.96)
    poor = Checkpoint("poor", None, AirConfig(task="sudoku", grid_height=9), 0.2)
    good = Checkpoint("good", None, AirConfig(task="sudoku", grid_height=9), 0.6)
    assert sorted([poor, maze], key=_first_met) == [maze, poor]
    assert sorted([poor, maze, good], key=_first_met) == [good, maze, poor]
