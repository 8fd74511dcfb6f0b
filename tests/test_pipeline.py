"""pipeline("puzzle-solving"): what goes in, what comes out, and both ways of loading it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_model

from air_model import AirConfig, AirModel, AirProcessor, PuzzleSolvingPipeline, load_model, pipeline_air, save_release
from air_model.configuration_air import TRAVELLING_FILES
from air_model.pipeline_air import OtherSizeError, in_size, readings, sort_by_size, takes_size
from air_model.processing_air import MazeTask, SudokuTask
from air_model.scripts import solve as solve_script

PUZZLE = "1...2...3...4..."
OTHER = ".2.............."
KEYS = {"solution", "solved", "valid", "complete", "consistent", "message", "confidence", "solutions"}
KEYS |= {"act_steps", "attempts"}


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    """Untrained models use up every node that they may."""
    monkeypatch.setattr("air_model.attempts_air.NODES", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "air-tiny"
    save_release(tiny_model(), path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return transformers.pipeline("puzzle-solving", model=str(folder), device="cpu", attempts=1)


def test_the_installed_package_needs_no_remote_code(pipe):
    assert type(pipe) is PuzzleSolvingPipeline and type(pipe.model) is AirModel
    assert type(pipe.processor) is AirProcessor


def test_a_release_folder_holds_all_that_travels(folder):
    names = {path.name for path in folder.iterdir()}
    code = set(TRAVELLING_FILES)
    assert names == code | {"config.json", "model.safetensors", "processor_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_air.AirConfig", "AutoModel": "modeling_air.AirModel"}
    assert config["custom_pipelines"]["puzzle-solving"]["impl"] == "pipeline_air.PuzzleSolvingPipeline"


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_saved_model_is_read_by_whoever_reads_its_folder(tmp_path):
    tmp_path.chmod(0o750)
    save_release(tiny_model(), tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_puzzle_gives_a_checked_answer(pipe):
    found = pipe(PUZZLE)
    assert set(found) == KEYS and len(found["solution"]) == 16
    assert found["solved"] is found["valid"] and 0 <= found["confidence"] <= 1 and found["act_steps"] >= 1


def test_lists_batches_generators_and_data_sets_give_the_same_answers(pipe):
    puzzles = [PUZZLE, OTHER] * 3
    wanted = [pipe(puzzle) for puzzle in puzzles]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(puzzles)

        def __getitem__(self, i):
            return {"question": puzzles[i], "answer": "?"}

    tokens = AirProcessor.from_config(pipe.model.config)(puzzles)["input_ids"]
    ways = {
        "list": pipe(puzzles),
        "batch": pipe(puzzles, batch_size=2),
        "tuple": pipe(tuple(puzzles)),
        "generator": list(pipe(puzzle for puzzle in puzzles)),
        "data set": list(pipe(Rows(), batch_size=4)),
        "rows of dicts": pipe([{"puzzle": puzzle} for puzzle in puzzles]),
        "tensor": pipe(tokens),
        "array": pipe(tokens.numpy()),
    }
    for way, found in ways.items():
        assert [f["solution"] for f in found] == [w["solution"] for w in wanted], way
    assert pipe(tokens[0])["solution"] == wanted[0]["solution"]
    assert pipe([]) == []


def test_a_hugging_face_data_set_is_read_row_by_row(pipe):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"question": [PUZZLE, OTHER], "answer": ["", ""]})
    assert [f["solution"] for f in pipe(rows)] == [pipe(PUZZLE)["solution"], pipe(OTHER)["solution"]]


def test_a_data_set_is_read_as_it_goes_and_with_its_transform(pipe):
    datasets = pytest.importorskip("datasets")

    def endless():
        while True:
            yield {"puzzle": PUZZLE}

    stream = pipe(datasets.IterableDataset.from_generator(endless), attempts=1, batch_size=1)
    assert next(iter(stream))["solution"] == pipe(PUZZLE, attempts=1)["solution"]
    rows = datasets.Dataset.from_dict({"raw": [0, 1]}).with_transform(lambda batch: {"puzzle": [OTHER] * 2})
    assert next(iter(pipe(rows)))["solution"] == pipe(OTHER)["solution"]


def test_a_generator_is_not_read_to_its_end_at_once(pipe):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield PUZZLE

    stream = pipe(endless(), batch_size=2)
    next(stream)
    assert len(drawn) <= 8


def test_a_long_stream_is_read_in_growing_parts(pipe, monkeypatch):
    parts = []
    solve = pipe.run_single
    monkeypatch.setattr(pipe, "run_single", lambda puzzles, *rest: parts.append(len(puzzles)) or solve(puzzles, *rest))
    assert len(list(pipe((PUZZLE for _ in range(200)), batch_size=1))) == 200
    assert parts == [4, 16, 64, 100, 16]


def test_a_grid_of_numbers_in_another_size_is_one_puzzle():
    model = tiny_model(task="maze", grid_height=3, position_embedding="rope2d")
    pipe = PuzzleSolvingPipeline(model=model, processor=AirProcessor.from_config(model.config))
    grid = np.full((3, 5), 2)
    grid[0, 0], grid[2, 4] = 3, 4
    assert len(pipe(grid)["solution"]) == 15
    assert pipe(np.array("S #  ## G"))["solution"] == pipe("S #  ## G")["solution"]


def test_options_may_be_given_once_or_per_call(folder):
    pipe = transformers.pipeline("puzzle-solving", model=str(folder), device="cpu", attempts=2, max_act_steps=3)
    assert pipe(PUZZLE, halt="max")["act_steps"] == 6
    assert pipe(PUZZLE, halt="max", attempts=1)["act_steps"] == 3
    with pytest.raises(ValueError, match=r"no option \['steps'\]"):
        pipe(PUZZLE, steps=4)


def test_the_rollout_comes_on_request(pipe):
    found = pipe(PUZZLE, return_rollout=True, halt="max", max_act_steps=2)
    assert found["rollout"]["updates"] == list("llhllh" * 2)
    assert found["rollout"]["z_h"][-1] == found["solution"] and len(found["rollout"]["z_l"]) == 12
    json.dumps(found)


def test_broken_puzzles_are_refused_with_the_cell(pipe):
    with pytest.raises(ValueError, match="row 1, column 1 and row 1, column 3 both hold 1"):
        pipe("1.1.............")
    with pytest.raises(ValueError, match="Puzzle 2: .*15 cells, 16 expected"):
        pipe([PUZZLE, PUZZLE[1:]])
    with pytest.raises(ValueError, match="Puzzle 6: .*15 cells"):  # in the second part of a stream
        list(pipe(iter([*[PUZZLE] * 5, PUZZLE[1:]]), batch_size=1))
    with pytest.raises(ValueError, match="a list of them, a generator or a data set; got int"):
        pipe(7)
    with pytest.raises(ValueError, match="has no puzzle; expected one of question"):
        pipe([{"answer": PUZZLE}])


NINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def test_a_puzzle_of_another_size_is_named_and_the_others_are_solved(pipe):
    found = pipe([PUZZLE, NINE, OTHER])
    assert [found[0], found[2]] == pipe([PUZZLE, OTHER])
    wanted = "Puzzle 2: This sudoku is 9x9; the model was made for 4x4 and takes no other size."
    assert found[1]["error"] == found[1]["message"] == wanted
    assert found[1]["valid"] is False and found[1]["solution"] is None and set(found[1]) == KEYS | {"error"}
    assert [answer.get("error") for answer in pipe(iter([NINE, PUZZLE]))] == [wanted.replace("2:", "1:"), None]


def test_puzzles_that_are_all_of_another_size_mean_the_wrong_model(pipe):
    for inputs in (NINE, [NINE], [NINE, NINE]):
        with pytest.raises(ValueError, match="This sudoku is 9x9; the model was made for 4x4"):
            pipe(inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S  #\n#  X\n#   \n  #G", "'X'"),
        ("S  #\n#  #\n#  \n  #G", "Line 3 of the maze text has 3 cells, 4 expected"),
        ("S #\n  X\n# G", "'X'"),  # of the model's own size
        ("S #\n  \n# G", "Line 2 of the maze text has 2 cells, 3 expected"),
    ],
)
def test_a_fault_in_a_maze_of_another_size_is_named_as_it_is_drawn(text, message):
    pipe = PuzzleSolvingPipeline(tiny_model(task="maze", grid_height=3, position_embedding="rope2d"), device="cpu")
    with pytest.raises(ValueError, match=message):
        pipe(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("123.\n....\n....", "The sudoku text has 12 cells, 16 expected"),  # a row was forgotten
        ("1 2 3 5\n" + 3 * "....\n", "Foreign letter '5' at row 1, column 4: this sudoku uses the digits 1-4"),
        ("5 3 . . 7 . . . .", "The sudoku text has 9 cells, 81 expected"),  # 5 and 7 are no digits of a 4x4
        ("a foolish sentence of so many letters", "Foreign letter 'a' at row 1, column 1: this sudoku"),
        ("S......G", "The maze text has 8 cells"),  # free cells as the page writes them
    ],
)
def test_a_text_that_no_model_reads_is_refused_as_the_kind_of_puzzle_that_it_is(text, message):
    with pytest.raises(ValueError, match=message):
        readings([SudokuTask(9), SudokuTask(4), MazeTask(3)], text)


def test_an_answer_does_not_depend_on_the_sizes_beside_it():
    model = tiny_model(task="maze", grid_height=3, position_embedding="rope2d")
    mixed = PuzzleSolvingPipeline(model, device="cpu")
    square, wide, large = "S # ##  G", "S #  \n  # G\n     ", "S  #\n#  #\n#   \n  #G"
    found = mixed([square, wide, large, square], attempts=3)
    for maze, answer in zip((square, wide, large, square), found):
        alone = mixed(maze, attempts=3)
        assert answer == {**alone, "confidence": pytest.approx(alone["confidence"], abs=1e-4)}
    assert [len(answer["solution"]) for answer in found] == [9, 15, 16, 9]


@pytest.mark.parametrize("relations", [None, ["adjacent", "all"]])
def test_a_model_in_another_size_shares_its_weights_and_computes_what_that_config_does(relations):
    fields = {"task": "maze", "position_embedding": "rope2d", "head_relations": relations}
    model = tiny_model(grid_height=3, **fields)
    other, plain = in_size(model, MazeTask(2, 5)), tiny_model(grid_height=2, grid_width=5, **fields)
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(1, 6, (3, 10), generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.solve(ids).logits, plain.solve(ids).logits)
    assert other.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()


@pytest.mark.parametrize(
    ("fields", "height", "width", "takes"),
    [
        ({"position_embedding": "rope2d"}, 5, 4, True),
        ({"position_embedding": "rope2d", "cell_embedding": True}, 5, 4, False),
        ({"position_embedding": "rope"}, 5, 3, True),
        ({"position_embedding": "rope"}, 3, 5, False),
        ({"position_embedding": "learned"}, 5, 3, False),
        ({"position_embedding": "none", "token_mixer": "mlp"}, 5, 3, False),
    ],
)
def test_a_maze_model_takes_other_sizes_only_where_no_weight_belongs_to_a_cell(fields, height, width, takes):
    config = tiny_model(task="maze", grid_height=3, **fields).config
    assert takes_size(config, MazeTask(height, width)) is takes and takes_size(config, MazeTask(3))


def test_a_maze_of_another_size_is_announced_with_what_it_will_cost(monkeypatch):
    said = []
    monkeypatch.setattr("air_model.pipeline_air.logger.warning_once", said.append)
    in_size(tiny_model(task="maze", grid_height=3, position_embedding="rope2d"), MazeTask(100, 90))
    assert "of 100x90" in said[0] and re.search(r"An ACT step takes about [\d.]+ s on .* and \d+ MB", said[0])


@pytest.mark.parametrize(("position", "limit"), [("rope2d", "no side above 100"), ("learned", "no other size")])
def test_a_maze_with_a_side_above_a_hundred_is_refused_with_what_the_model_takes(position, limit):
    model = tiny_model(task="maze", grid_height=3, position_embedding=position)
    maze = "\n".join(["S" + " " * 99 + "G"] * 2)
    refused = sort_by_size([model], [maze])[1]
    assert isinstance(refused[0], OtherSizeError)
    assert str(refused[0]).endswith(f"the model was made for 3x{model.config.grid_width} and takes {limit}.")


def test_an_unsolvable_puzzle_is_never_called_solved(pipe):
    # 1, 2 and 3 in the first row leave 4 for its last cell, which sees a 4 in its column.
    found = pipe("123....4........", attempts=8)
    assert found["valid"] is False and found["solved"] is False and found["message"] != "Solved."
    assert found["solutions"] == found["confidence"] == 0


def test_nobody_calls_a_generic_grid_solved():
    found = PuzzleSolvingPipeline(tiny_model(task="grid", grid_height=2, vocab_size=4), device="cpu")("1231")
    assert found["solved"] is None and found["valid"] is None and "Not solved" not in solve_script.verdict(found)


def test_a_maze_without_a_path_is_answered_as_not_valid_beside_the_others():
    pipe = PuzzleSolvingPipeline(tiny_model(task="maze", grid_height=3), device="cpu")
    found = pipe(["S     G  ", "S###   G "], attempts=2)
    assert found[1]["valid"] is False and found[1]["solved"] is False
    assert MazeTask(3).verdict("S###   G ", "S###   G ").message == (
        "No path leads from S (row 1, column 1) to G (row 3, column 2)."
    )


def test_a_bfloat16_checkpoint_is_computed_in_float32_on_a_cpu(tmp_path):
    save_release(tiny_model().bfloat16(), tmp_path / "half")
    pipe = transformers.pipeline("puzzle-solving", model=str(tmp_path / "half"), device="cpu")
    assert pipe.model.dtype == torch.float32 and load_model(tmp_path / "half", "cpu").dtype == torch.float32


def test_saving_a_pipeline_writes_a_folder_that_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    again = transformers.pipeline("puzzle-solving", model=str(tmp_path / "copy"), device="cpu")
    assert again(PUZZLE, attempts=1) == pipe(PUZZLE)


def test_a_config_keeps_its_pipeline_through_a_round_trip(tmp_path):
    AirConfig().save_pretrained(tmp_path)
    AirConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert "puzzle-solving" in json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]


REMOTE = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "air_model":
            raise ImportError("not installed here")

sys.meta_path.insert(0, NoPackage())
import torch, transformers

folder, puzzle, saved = sys.argv[1:]
model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
logits = model.solve(processor(puzzle)["input_ids"]).logits
found = transformers.pipeline("puzzle-solving", model=folder, trust_remote_code=True, device="cpu")(puzzle, attempts=2)
guessed = transformers.pipeline(model=folder, trust_remote_code=True, device="cpu")
model.save_pretrained(saved)
transformers.AutoProcessor.from_pretrained(saved, trust_remote_code=True)
again = transformers.pipeline("puzzle-solving", model=saved, trust_remote_code=True, device="cpu")(puzzle, attempts=2)
same = again == transformers.pipeline("puzzle-solving", model=model, device="cpu")(puzzle, attempts=2) == found
print(json.dumps([logits.tolist(), found, type(guessed).__module__, same]))
"""


def test_without_the_package_the_folder_brings_its_own_code_and_hands_it_on(folder, pipe, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), PUZZLE, str(tmp_path / "saved")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    logits, found, module, same = json.loads(run.stdout.splitlines()[-1])
    ids = pipe.processor(PUZZLE)["input_ids"]
    assert np.allclose(np.array(logits, np.float32), pipe.model.solve(ids).logits.numpy(), atol=1e-4)
    here = pipe(PUZZLE, attempts=2)
    assert found == {**here, "confidence": pytest.approx(here["confidence"], abs=1e-4)}
    assert module.startswith("transformers_modules.") and same


# ---- load_model and scripts/solve.py


def test_a_run_given_for_its_model_is_told_where_that_lies(folder, tmp_path):
    (tmp_path / "model").symlink_to(folder)
    with pytest.raises(FileNotFoundError, match=re.escape(f"the model of this run, {tmp_path / 'model'}")):
        load_model(tmp_path)


def test_a_missing_or_damaged_folder_is_named_in_one_sentence(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        load_model(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be loaded as an AIR model"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded as an AIR model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="of a 'bert' model, not of AIR"):
        load_model(tmp_path)


def test_a_folder_that_lacks_weights_is_refused_rather_than_filled_with_noise(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="its weights lack lm_head.weight"):
        load_model(tmp_path)


def test_the_script_reads_text_files_csv_and_standard_input(folder, tmp_path, capsys, monkeypatch):
    import io

    (tmp_path / "drawn.txt").write_text("1 . | . .\n2 . | . .\n----+----\n3 . | . .\n4 . | . .\n")
    (tmp_path / "lines.txt").write_text(f"{PUZZLE}\n{OTHER}\n")
    (tmp_path / "table.csv").write_text(f"source,question,answer\nx,{PUZZLE},\n")
    (tmp_path / "column.csv").write_text(f"puzzle\n{OTHER}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PUZZLE}\n".encode("utf-16"))))
    files = ("drawn.txt", "lines.txt", "table.csv", "column.csv")
    words = [OTHER, *(str(tmp_path / name) for name in files), "-"]
    assert solve_script.main(["--model", str(folder), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f["puzzle"] for f in found] == [OTHER, PUZZLE, PUZZLE, OTHER, PUZZLE, OTHER, PUZZLE]
    assert set(found[0]) == KEYS | {"puzzle", "pins"}


def test_the_script_reads_packed_csvs_with_a_byte_order_mark_and_quoted_names(folder, tmp_path, capsys):
    import gzip

    text = f'\ufeff"source","question"\nx,{PUZZLE}\nshort\n'
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert solve_script.main(["--model", str(folder), "--json", str(tmp_path / "p.csv.gz")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found[0]["puzzle"] == PUZZLE and "0 cells" in found[1]["error"]


def test_the_script_takes_a_file_that_is_not_there_and_a_second_hub_id_for_what_they_are(folder, tmp_path, capsys):
    assert solve_script.main(["--model", str(folder), str(tmp_path / "none.txt")]) == 1
    assert "none.txt is no file here" in capsys.readouterr().err
    assert solve_script.main(["--model", str(folder), "puzzles"]) == 1
    assert "'puzzles' is no file here, and no puzzle" in capsys.readouterr().err
    assert solve_script.parse_args(["--model", "a", "user/air-nine", PUZZLE]).model == ["a", "user/air-nine"]
    both = solve_script.parse_args(["--model", "a", PUZZLE, "--model", "nowhere", OTHER])
    assert (both.model, both.puzzles) == (["a", "nowhere"], [PUZZLE, OTHER])


def test_a_device_that_is_not_here_ends_in_one_sentence(folder, capsys):
    assert solve_script.main(["--model", str(folder), "--device", "bogus", PUZZLE]) == 1
    assert "solve: There is no device 'bogus' here" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [{"question": [PUZZLE, OTHER]}, "processor", "table"])
def test_a_batch_of_a_data_set_is_several_puzzles(pipe, batch):
    if batch == "processor":
        batch = pipe.processor([PUZZLE, OTHER])
    elif batch == "table":
        batch = pytest.importorskip("pandas").DataFrame({"question": [PUZZLE, OTHER]})
    assert [answer["solution"] for answer in pipe(batch)] == [a["solution"] for a in pipe([PUZZLE, OTHER])]


def test_the_script_tells_clues_and_answers_apart(folder, capsys):
    assert solve_script.main(["--model", str(folder), PUZZLE, "--color", "always", "--attempts", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(" 1 . | . .") and "\x1b[" in out and "ACT steps, 1 attempt." in out
    assert solve_script.main(["--model", str(folder), PUZZLE]) == 0
    assert "\x1b[" not in capsys.readouterr().out


def test_the_script_refuses_one_puzzle_and_solves_the_others(folder, capsys):
    assert solve_script.main(["--model", str(folder), "11..............", PUZZLE]) == 1
    captured = capsys.readouterr()
    assert "puzzle 1: Contradicting clues: row 1, column 1" in captured.err and "Confidence" in captured.out


def test_the_script_gives_each_size_to_the_model_made_for_it(folder, tmp_path, capsys):
    save_release(tiny_model(grid_height=6), tmp_path / "six")
    six = ".1...42.......4........6..63.....2.."
    (tmp_path / "mixed.txt").write_text(f"{six}\n{PUZZLE}\n{six}\n")
    capsys.readouterr()
    assert (
        solve_script.main(["--model", str(folder), str(tmp_path / "six"), "--json", str(tmp_path / "mixed.txt")]) == 0
    )
    assert [len(f["solution"]) for f in json.loads(capsys.readouterr().out)] == [36, 16, 36]
    assert solve_script.main(["--model", str(folder), "--json", str(tmp_path / "mixed.txt")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "This sudoku is 6x6; the model was made for 4x4" in found[0]["error"] and len(found[1]["solution"]) == 16


def broken_off(monkeypatch, module) -> list[int | None]:
    """Every call of a module's solve_puzzles ends as Ctrl-C would end it; returns the attempts asked for."""
    asked, solve = [], module.solve_puzzles

    def stopped(*puzzles, attempts, **options):
        asked.append(attempts)
        answers = solve(*puzzles, attempts=1, **options)
        answers.stats["interrupted"] = True
        return answers

    monkeypatch.setattr(module, "solve_puzzles", stopped)
    return asked


def test_ctrl_c_in_one_size_leaves_a_single_pass_for_the_others(folder, tmp_path, monkeypatch):
    save_release(tiny_model(grid_height=6), tmp_path / "six")
    asked = broken_off(monkeypatch, solve_script)
    assert solve_script.main(["--model", str(folder), str(tmp_path / "six"), PUZZLE, "." * 36]) == 0
    assert asked == [None, 1]


def test_ctrl_c_leaves_a_single_pass_for_the_other_sizes_read_and_ends_a_stream(monkeypatch):
    pipe = transformers.pipeline(
        "puzzle-solving", model=tiny_model(task="maze", position_embedding="rope2d"), device="cpu"
    )
    asked, answers = broken_off(monkeypatch, pipeline_air), []
    with pytest.raises(KeyboardInterrupt):
        answers.extend(pipe(iter(["S  G" + " " * 12, "S   G" + " " * 20] * 4), batch_size=1))
    assert asked == [None, 1] and [len(answer["solution"]) for answer in answers] == [16, 25] * 2


def test_each_puzzle_of_a_stream_has_its_own_puzzle_id():
    model = tiny_model(num_puzzle_identifiers=3)
    torch.nn.init.normal_(model.puzzle_embedding.weight, std=30.0, generator=torch.Generator().manual_seed(0))
    pipe = transformers.pipeline("puzzle-solving", model=model, device="cpu", attempts=1)
    found = [answer["solution"] for answer in pipe(iter([PUZZLE] * 6), batch_size=1, puzzle_ids=[0, 1, 2] * 2)]
    assert found[:3] == found[3:] == [pipe(PUZZLE, puzzle_ids=i)["solution"] for i in range(3)]
    assert len({*found}) == 3


def test_the_script_takes_mazes_drawn_over_lines(tmp_path, capsys):
    save_release(tiny_model(task="maze", grid_height=3), tmp_path / "maze")
    (tmp_path / "maze.txt").write_text("S #\n  #\n# G\n")
    assert solve_script.main(["--model", str(tmp_path / "maze"), str(tmp_path / "maze.txt"), "--halt", "max"]) == 0
    assert "│S #│" in capsys.readouterr().out


def test_the_script_takes_mazes_of_another_size_one_a_line(tmp_path):
    (tmp_path / "mazes.txt").write_text("S  # #  G  #### \nS  # # G   #### \n")
    assert len(solve_script.read_puzzles(str(tmp_path / "mazes.txt"), [MazeTask(3)])) == 2


def test_a_fault_in_the_first_line_of_a_file_costs_that_line_alone(tmp_path):
    (tmp_path / "list.txt").write_text("x1..............\n1...............\n")
    assert len(solve_script.read_puzzles(str(tmp_path / "list.txt"), [SudokuTask(4)])) == 2
