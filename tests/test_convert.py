"""The converter: public checkpoints become model folders, everything else ends in one sentence and writes nothing."""

import subprocess
import sys

import pytest
import torch
import yaml
from conftest import GOLDEN, ROOT
from safetensors.torch import load_file

from air_model import AirModel
from air_model.publishing.convert import convert
from air_model.scripts.convert_checkpoint import main


@pytest.fixture
def public(tmp_path):
    """A public run's folder: step_10 beside all_config.yaml; edit(state, settings) changes both."""

    def write(name="Lx_H", edit=None):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        state = load_file(GOLDEN / name / "step_10.safetensors")
        settings = yaml.safe_load((GOLDEN / name / "all_config.yaml").read_text())
        if edit:
            state = edit(state, settings) or state
        torch.save(state, folder / "step_10")
        (folder / "all_config.yaml").write_text(yaml.safe_dump(settings))
        return folder / "step_10"

    return write


def run(checkpoint, output, *extra, seq_len=16):
    arguments = ["--checkpoint", str(checkpoint), "--seq-len", str(seq_len), "--output-dir", str(output), *extra]
    return main(arguments)


def test_a_converted_folder_loads_with_equal_outputs(public, tmp_path):
    checkpoint = public()
    assert run(checkpoint, tmp_path / "model") == 0
    inputs = torch.randint(1, 6, (2, 16), generator=torch.Generator().manual_seed(0))
    loaded = AirModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(loaded(inputs).logits, convert(checkpoint, 16)(inputs).logits)
    assert (tmp_path / "model" / "modeling_air.py").exists() and (
        tmp_path / "model" / "processor_config.json"
    ).exists()


def test_a_maze_that_is_not_square_is_not_taken_for_one_row(public):
    with pytest.raises(ValueError, match="15 cells are no square maze"):
        convert(public(), 15, task="maze")


def test_compiled_checkpoints_convert_like_plain_ones(public):
    plain = convert(public(), 16).state_dict()
    compiled = convert(public(edit=lambda s, _: {f"_orig_mod.{k}": v for k, v in s.items()}), 16).state_dict()
    assert all(torch.equal(plain[k], compiled[k]) for k in plain)


@pytest.mark.parametrize("name", ["model_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_kept_among_other_things_convert_like_plain_ones(public, name, prefix):
    plain = convert(public(), 16).state_dict()

    def wrap(state, settings):
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}
        return {"epoch": 3, "optimizer_state_dict": optimizer, name: {prefix + k: v for k, v in state.items()}}

    wrapped = convert(public(edit=wrap), 16).state_dict()
    assert all(torch.equal(plain[k], wrapped[k]) for k in plain)


@pytest.mark.parametrize("contents", [{"state_dict": {}}, {"state_dict": 3}, {"epoch": 3}, {}])
def test_a_file_without_weights_is_told_where_they_were_looked_for(public, contents):
    with pytest.raises(ValueError, match="no dictionary of tensors.*nor does it hold one as 'model_state_dict' or"):
        convert(public(edit=lambda s, _: contents or {"nothing": None}), 16)


def test_bfloat16_checkpoints_stay_bfloat16(public):
    model = convert(public(edit=lambda s, _: {k: v.bfloat16() for k, v in s.items()}), 16)
    assert model.dtype == torch.bfloat16


def test_the_public_forward_dtype_becomes_the_activation_dtype(public):
    def edit(state, settings):
        settings["arch"]["forward_dtype"] = "bfloat16"

    assert convert(public(edit=edit), 16).config.activation_dtype == "bfloat16"


def test_the_task_can_be_named_when_sizes_do_not_tell(public):
    assert convert(public(), 16, task="grid").config.task == "grid"


def drop(key):
    return lambda state, settings: {k: v for k, v in state.items() if not k.endswith(key)}


def setting(key, value):
    def edit(state, settings):
        settings["arch"][key] = value

    return edit


def forget(key):
    def edit(state, settings):
        settings["arch"].pop(key)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("lm_head.weight"), "lm_head.weight"),
        (drop("embed_tokens.embedding_weight"), "truncated"),
        (lambda s, _: {**s, "model.inner.extra": torch.zeros(1)}, "Unexpected key"),
        (lambda s, _: {**s, "model.inner.lm_head.weight": torch.zeros(6, 31)}, "size mismatch"),
        (lambda s, _: {**s, "model.inner.lm_head.weight": torch.full((6, 32), float("nan"))}, "NaN"),
        (lambda s, _: {**s, "step": 3}, "no dictionary of tensors"),
        (setting("name", "some.other@Model"), "Unknown architecture"),
        (setting("surprise", 1), "does not know"),
        (setting("pos_encodings", "alibi"), "Unknown pos_encodings"),
        (setting("L_layers", 3), "Missing key"),
        (forget("hidden_size"), "lacks arch.hidden_size"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(public, tmp_path, capsys, edit, message):
    output = tmp_path / "model"
    assert run(public(edit=edit), output) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert not output.exists()


def test_a_truncated_file_is_one_sentence(public, tmp_path, capsys):
    checkpoint = public()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert run(checkpoint, tmp_path / "model") == 1
    assert "cannot be read" in capsys.readouterr().err and not (tmp_path / "model").exists()


def test_a_pickle_that_wants_to_run_code_is_refused(public, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    checkpoint = public()
    torch.save({"x": Evil()}, checkpoint)
    assert run(checkpoint, tmp_path / "model") == 1
    said = capsys.readouterr()
    assert "ran\n" not in said.out and "cannot be read" in said.err


def test_missing_files_and_full_folders_are_named(public, tmp_path, capsys):
    checkpoint = public()
    assert run(tmp_path / "nowhere" / "step_1", tmp_path / "model") == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep.txt").write_text("mine")
    assert run(checkpoint, tmp_path / "full") == 1
    assert "not empty" in capsys.readouterr().err and (tmp_path / "full" / "keep.txt").read_text() == "mine"


def test_the_script_runs_as_a_file_from_any_folder(tmp_path):
    script = ROOT / "scripts" / "convert_checkpoint.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "--seq-len" in done.stdout
