"""AirConfig: every variant is a row, and what cannot work says what to change."""

import pytest

from air_model import VARIANTS, AirConfig


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_knows_its_own_name(name):
    assert AirConfig.from_variant(name).variant == name


def test_an_injection_is_told_whatever_else_the_rule_has():
    config = AirConfig(h_injection=1, q_continue=False)
    assert (config.variant, config.injection) == (None, "Lx_Hx")
    assert AirConfig.from_variant("TRM").injection == "Lx_H" and AirConfig(l_injection=0.5).injection is None


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_config_loads_equal(name, tmp_path):
    config = AirConfig.from_variant(name, task="maze", grid_height=5, grid_width=7)
    config.save_pretrained(tmp_path)
    assert AirConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_there_are_fifteen_air_rules_and_three_relatives():
    assert len(VARIANTS) == 18 and {"HRM", "TRM", "TRM_mlp"} < set(VARIANTS)


def test_published_sizes_are_the_defaults():
    sudoku, maze = AirConfig(task="sudoku"), AirConfig(task="maze")
    assert (sudoku.seq_len, sudoku.vocab_size, sudoku.intermediate_size) == (81, 11, 1536)
    assert (maze.seq_len, maze.vocab_size, maze.num_state_positions) == (900, 6, 901)


@pytest.mark.parametrize(("side", "box"), [(4, (2, 2)), (6, (2, 3)), (9, (3, 3)), (16, (4, 4)), (12, (3, 4))])
def test_sudoku_boxes_default_to_the_most_square_ones(side, box):
    config = AirConfig(grid_height=side)
    assert (config.box_height, config.box_width, config.vocab_size) == (*box, side + 2)


def test_the_prefix_holds_the_puzzle_embedding():
    assert AirConfig(hidden_size=64, puzzle_embedding_size=65).prefix_length == 2
    assert AirConfig(puzzle_embedding_size=0).prefix_length == 0
    assert AirConfig.from_variant("TRM").prefix_length == 16


def test_trm_carries_gradient_through_its_whole_last_cycle():
    config = AirConfig.from_variant("TRM")
    assert len(config.schedule) == 21 and config.first_gradient_update == 14


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_siz": 3}, "Did you mean 'hidden_size'"),
        ({"l_injection": 0}, "the puzzle never reaches the model"),
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"task": "grid"}, "Set both"),
        ({"task": "maze", "box_height": 3}, "no boxes"),
        ({"grid_height": 6, "grid_width": 9}, "square"),
        ({"box_height": 2, "box_width": 3}, "do not tile"),
        ({"vocab_size": 12}, "11 tokens"),
        ({"input_operator": "hadamard", "h_injection": 1}, "l_injection=1, h_injection=0 only"),
        ({"l_layers": 2}, "shared_block=False"),
        ({"token_mixer": "mlp"}, "no attention to rotate"),
        ({"position_embedding": "rope2d", "hidden_size": 48, "num_attention_heads": 8}, "multiple of 4"),
        ({"prefix_length": 0}, "does not fit"),
        ({"h_cycles": 0}, "must be 1 or more"),
        ({"hidden_size": "512"}, "hidden_size"),
        ({"l_injection": float("nan")}, "finite"),
        ({"rope_theta": 0}, "rope_theta=0 must be above 0"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps=inf must be above 0, and finite"),
    ],
)
def test_what_cannot_work_says_what_to_change(fields, message):
    with pytest.raises(ValueError, match=message):
        AirConfig(**fields)


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'L2x_Hx'"):
        AirConfig.from_variant("L2xHx")


def test_fields_of_a_newer_release_are_named_and_ignored(tmp_path, caplog):
    import json

    AirConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "field_of_tomorrow": 1, "code_version": "9.0"}))
    from transformers.utils import logging

    logging.get_logger("air_model.configuration_air").addHandler(caplog.handler)
    assert not hasattr(AirConfig.from_pretrained(tmp_path), "field_of_tomorrow")
    assert "field_of_tomorrow" in caplog.text
