"""AirModel: properties of the update rules, over every row of VARIANTS where they can differ."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from conftest import tiny_batch, tiny_config, tiny_model
from transformers import AutoModel

from air_model import VARIANTS, AirConfig, AirModel
from air_model.blocks_air import by_groups

ATTENTION_VARIANTS = [name for name in VARIANTS if name != "TRM_mlp"]
SYMMETRIC = ["Lx_Hx", "L2x_H2x"]


def randomise(model: AirModel, seed: int = 1) -> AirModel:
    """Give the parts that start at zero (tokens, puzzle embedding, q head) something to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "token" in name or "puzzle" in name or "q_head" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_only_the_last_updates_carry_gradient(name):
    seen = []

    def watch(update, z_h, z_l):
        seen.append((z_l if update.level == "l" else z_h).requires_grad)

    config = tiny_config(name)
    AirModel(config)(tiny_batch()[0], hook=watch)
    expected = 7 if name.startswith("TRM") else 2
    assert seen == [False] * (len(config.schedule) - expected) + [True] * expected


def test_gradient_scope_all_goes_through_every_update():
    seen = []

    def watch(update, z_h, z_l):
        seen.append((z_l if update.level == "l" else z_h).requires_grad)

    tiny_model(gradient_scope="all")(tiny_batch()[0], hook=watch)
    assert all(seen) and len(seen) == 6


@pytest.mark.parametrize("name", VARIANTS)
def test_the_puzzle_reaches_exactly_the_updates_that_inject_it(name):
    model = tiny_model(name)
    config = model.config
    inputs, _ = tiny_batch()
    x = model.encode(inputs, None, torch.float32)
    other = model.encode(inputs.flip(0), None, torch.float32)
    carry = model.initial_carry(3)
    for level, n in (("l", config.l_injection), ("h", config.h_injection)):
        with torch.no_grad():
            a, b = (model.update(level, carry.z_h, carry.z_l, e) for e in (x, other))
        assert torch.equal(a, b) == (n == 0)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_variants_treat_both_states_alike(name):
    model = tiny_model(name)
    x = model.encode(tiny_batch()[0], None, torch.float32)
    p, q = torch.randn(2, 3, model.config.num_state_positions, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.update("l", p, q, x), model.update("h", q, p, x))


@pytest.mark.parametrize(("n", "level"), [(0.5, "l"), (1.5, "l"), (0.3, "h"), (-1.0, "l")])
def test_injections_are_real_numbers(n, level):
    model = tiny_model(**{f"{level}_injection": n})
    x = model.encode(tiny_batch()[0], None, torch.float32)
    carry = model.initial_carry(3)
    with torch.no_grad():
        ours = model.update(level, carry.z_h, carry.z_l, x)
        plain = model.stack(carry.z_h + carry.z_l + n * x, model.rotary.cos, model.rotary.sin)
    torch.testing.assert_close(ours, plain)


def test_minus_x_is_an_injection_of_minus_one():
    a, b = tiny_model("minus_x"), tiny_model(l_injection=-1.0)
    inputs, _ = tiny_batch()
    with torch.no_grad():
        torch.testing.assert_close(a(inputs).logits, b(inputs).logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_answer_does_not_depend_on_its_batch_neighbours(name):
    model = randomise(tiny_model(name))
    inputs, _ = tiny_batch(4)
    with torch.no_grad():
        together = model.solve(inputs).logits
        alone = torch.cat([model.solve(inputs[i : i + 1]).logits for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_give_equal_outputs(name, tmp_path):
    model = randomise(tiny_model(name))
    model.save_pretrained(tmp_path)
    loaded = AirModel.from_pretrained(tmp_path).eval()
    inputs, _ = tiny_batch()
    with torch.no_grad():
        assert torch.equal(model(inputs).logits, loaded(inputs).logits)


def test_weights_saved_as_a_variant_of_files_load_as_such(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, variant="fp16")
    loaded = AutoModel.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight) and loaded.config.variant == "Lx_H"


def test_the_one_stack_is_shared_and_hrm_has_two():
    air = sum(p.numel() for p in AirModel(tiny_config("Lx_H")).stack.parameters())
    hrm = AirModel(tiny_config("HRM", l_layers=1, h_layers=3))
    assert sum(p.numel() for p in hrm.l_stack.parameters()) == air
    assert sum(p.numel() for p in hrm.h_stack.parameters()) == 3 * air


def test_the_published_model_has_13_6_million_parameters_and_hrm_twice_as_many():
    from air_model import AirConfig

    with torch.device("meta"):
        air, hrm = (AirModel(AirConfig.from_variant(v)) for v in ("Lx_H", "HRM"))
    count = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (air, hrm)]
    assert count == pytest.approx([13.6, 27.3], abs=0.1)


def test_initial_weights_have_the_stated_spread():
    torch.manual_seed(0)
    model = AirModel(tiny_config(hidden_size=64, intermediate_size=256))
    assert float(model.stack.layers[0].mlp.down_proj.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.03)
    assert float(model.embed_tokens.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.12)
    assert model.q_head.weight.abs().max() == 0 and (model.q_head.bias == -5).all()
    assert model.puzzle_embedding.weight.abs().max() == 0
    sigma = 256**-0.5 / 0.8796
    assert model.stack.layers[0].mlp.down_proj.weight.abs().max() <= 2 * sigma * 1.001


def test_the_carry_leaves_detached_and_counts_steps():
    model = tiny_model()
    inputs, _ = tiny_batch()
    out = model(inputs, carry=model(inputs).carry)
    assert out.carry.steps.tolist() == [2, 2, 2] and not out.carry.z_h.requires_grad


def test_loss_is_the_sum_of_its_parts_with_halves():
    model = tiny_model().train()
    inputs, labels = tiny_batch()
    out = model(inputs, labels=labels)
    torch.testing.assert_close(out.loss, out.lm_loss + 0.5 * (out.q_halt_loss + out.q_continue_loss))


def test_the_last_step_bootstraps_from_q_halt_alone():
    model = randomise(tiny_model()).train()
    inputs, labels = tiny_batch()
    carry = model.initial_carry(3)
    carry.steps = torch.tensor([0, 3, 0], dtype=torch.int32)  # the second puzzle is at its last step of 4
    out = model(inputs, labels=labels, carry=carry)
    model.eval()
    with torch.no_grad():
        after = model(inputs, carry=out.carry)
    best = torch.maximum(after.q_halt_logits, after.q_continue_logits)
    best[1] = after.q_halt_logits[1]
    torch.testing.assert_close(out.target_q_continue, best.sigmoid())


@pytest.mark.parametrize("ignored", [-100, 0])
def test_ignored_and_padded_labels_do_not_count(ignored):
    model = tiny_model()
    inputs, labels = tiny_batch()
    masked = labels.clone()
    masked[:, 3:] = ignored
    with torch.no_grad():
        full, part = model(inputs, labels=labels), model(inputs, labels=masked)
        log_probs = torch.stack([model(inputs, labels=masked).lm_loss])
    assert torch.isfinite(log_probs).all() and part.lm_loss != full.lm_loss


def test_softmax_loss_is_plain_cross_entropy():
    model = tiny_model(loss_type="softmax_cross_entropy")
    inputs, labels = tiny_batch()
    with torch.no_grad():
        out = model(inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.lm_loss, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_activation_checkpointing_changes_no_gradient(name):
    inputs, labels = tiny_batch()
    grads = []
    for checkpointing in (False, True):
        model = tiny_model(name).train()
        if checkpointing:
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        model(inputs, labels=labels).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name])


@pytest.mark.parametrize(
    "implementation",
    ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)],  # flex compiles: 30 s
)
def test_attention_implementations_agree(implementation):
    inputs, _ = tiny_batch()
    reference = tiny_model(hidden_size=32)
    other = copy.deepcopy(reference)
    other.set_attn_implementation(implementation)
    with torch.no_grad():
        torch.testing.assert_close(reference(inputs).logits, other(inputs).logits, rtol=1e-4, atol=1e-5)


def test_autocast_keeps_states_in_bfloat16_and_every_weight_gets_its_gradient():
    model = tiny_model().train()
    inputs, labels = tiny_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(inputs, labels=labels)
    out.loss.backward()
    assert out.carry.z_h.dtype == torch.bfloat16 and out.q_halt_logits.dtype == torch.float32
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_the_config_can_fix_the_activation_dtype():
    model = tiny_model(activation_dtype="bfloat16")
    assert model(tiny_batch()[0]).carry.z_h.dtype == torch.bfloat16 and model.lm_head.weight.dtype == torch.float32


def test_pure_bfloat16_loading_keeps_positions_in_float32(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AirModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    reference = tiny_model()
    assert model.dtype == torch.bfloat16 and torch.equal(model.rotary.cos, reference.rotary.cos)
    assert torch.equal(copy.deepcopy(reference).to(torch.bfloat16).rotary.cos, reference.rotary.cos)


def test_solve_on_cpu_computes_in_float32_whatever_the_checkpoint(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    before = model.stack.layers[0].mlp.down_proj.weight
    solution = model.solve(tiny_batch()[0])
    assert solution.logits.dtype == torch.float32
    assert model.stack.layers[0].mlp.down_proj.weight is before and before.dtype == torch.bfloat16


def test_memory_kept_for_the_backward_pass_does_not_grow_with_cycles():
    inputs, labels = tiny_batch()
    kept = {1: 0, 6: 0}
    for cycles in kept:

        def keep(tensor, cycles=cycles):
            kept[cycles] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tiny_model(l_cycles=cycles, h_cycles=cycles)(inputs, labels=labels)
    assert kept[1] == kept[6] > 0


@pytest.mark.parametrize("name", ATTENTION_VARIANTS)
def test_two_dimensional_positions_see_rows_and_columns(name):
    model = tiny_model(name, position_embedding="rope2d", cell_embedding=True, hidden_size=32)
    table = model.rotary.cos[-16:].view(4, 4, -1)  # cells by row and column
    half = table.shape[-1] // 2
    row, column = table[..., : half // 2], table[..., half // 2 : half]
    assert torch.equal(row[:, 0], row[:, 3]) and torch.equal(column[0], column[3])
    assert not torch.equal(row[0], row[1]) and not torch.equal(column[:, 0], column[:, 1])


def related(name, a, b):
    """Whether cell a sees cell b of a 4 x 4 Sudoku, by definition."""
    (r, c), (s, d) = divmod(a, 4), divmod(b, 4)
    return {
        "row": r == s,
        "column": c == d,
        "box": (r // 2, c // 2) == (s // 2, d // 2),
        "adjacent": abs(r - s) + abs(c - d) <= 1,
        "all": True,
    }[name]


def cells_that_change(model, cell, prefix=0):
    """Cells whose output of one layer depends on the state of `cell`."""
    h = torch.randn(1, 16 + prefix, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    changed = h.clone()
    changed[0, cell + prefix] += 1
    cos, sin = model.rotary.cos, model.rotary.sin
    with torch.no_grad():
        before, after = (model.stack.layers[0](x, cos, sin, model.relations.bias) for x in (h, changed))
    return set((before != after).any(-1)[0].nonzero().flatten().sub(prefix).tolist())


def test_large_grids_hold_no_table_of_pairs_until_one_is_asked_for():
    model = tiny_model(
        task="maze", grid_height=17, grid_width=16, head_relations=["adjacent"], position_embedding="rope2d"
    )
    table = dict(model.relations.named_buffers())
    assert list(table) == ["edges"] and table["edges"].shape == (272, 5)
    some = model.seen_from(torch.tensor([40, 0]))
    assert list(dict(model.relations.named_buffers())) == ["edges"]
    extra = model.config.num_stack_positions - 272
    assert torch.equal(some, model.seen_by_heads[:, :, [40 + extra, extra]])
    seen = model.seen_by_heads[0, 0, -272:, -272:]
    assert seen[0].nonzero().flatten().tolist() == [0, 1, 16] and seen.sum() == 5 * 272 - 2 * (17 + 16)
    model.to_empty(device="cpu")
    assert torch.equal(model.seen_by_heads[0, 0, -272:, -272:], seen)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["row", "column", "box", "adjacent", "all"])
def test_a_head_sees_the_cells_of_its_relation_and_no_others(name, implementation):
    model = tiny_model(head_relations=[name], puzzle_embedding_size=0, prefix_length=0, hidden_size=32)
    model.set_attn_implementation(implementation)
    for cell in (0, 6, 13):
        assert cells_that_change(model, cell) == {other for other in range(16) if related(name, other, cell)}


def test_relations_take_turns_over_the_heads():
    model = tiny_model(head_relations=["row", "column", "box"], num_attention_heads=4, puzzle_embedding_size=0)
    seen = model.seen_by_heads[0]
    for head, name in enumerate(["row", "column", "box", "row"]):
        assert seen[head].tolist() == [[related(name, a, b) for b in range(16)] for a in range(16)]


def test_positions_that_are_no_cells_see_and_are_seen_by_every_head():
    model = tiny_model(head_relations=["row"], prefix_length=2, hidden_size=32)
    assert cells_that_change(model, -1, prefix=2) == set(range(-2, 16))
    assert {-2, -1} <= cells_that_change(model, 6, prefix=2)


@pytest.mark.parametrize("name", ATTENTION_VARIANTS)
def test_every_variant_takes_head_relations(name):
    model = tiny_model(name, position_embedding="rope2d", head_relations=["row", "all"], hidden_size=32)
    free = tiny_model(name, position_embedding="rope2d", hidden_size=32)
    inputs, labels = tiny_batch()
    assert model.state_dict().keys() == free.state_dict().keys()
    assert model(inputs, labels=labels).loss.isfinite()
    assert not torch.equal(model(inputs).logits, free(inputs).logits)


def test_a_saved_model_has_its_head_relations_again(tmp_path):
    model = tiny_model(head_relations=["row", "all"])
    model.save_pretrained(tmp_path)
    loaded = AirModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.seen_by_heads, model.seen_by_heads)
    assert torch.equal(loaded.bfloat16().seen_by_heads, model.seen_by_heads)


@pytest.mark.parametrize("prefix", [0, 2])
def test_heads_by_groups_compute_what_masked_heads_do(prefix):
    sizes = {"grid_height": 18, "box_height": 3, "box_width": 6, "hidden_size": 48, "num_attention_heads": 6}
    names = ["adjacent", "adjacent", "row", "column", "all", "box"]
    model = tiny_model(head_relations=names, puzzle_embedding_size=0, prefix_length=prefix, **sizes)
    inputs = torch.randint(1, 20, (2, 18 * 18), generator=torch.Generator().manual_seed(0))
    gradients = {}
    for implementation, groups in (("sdpa", True), ("eager", False)):
        model.set_attn_implementation(implementation)
        assert by_groups(model.config) == groups
        model.zero_grad()
        output = model(inputs, labels=inputs)
        output.loss.backward()
        gradients[implementation] = [output.logits] + [p.grad for p in model.stack.parameters()]
    for grouped, masked in zip(*gradients.values()):
        torch.testing.assert_close(grouped, masked, atol=1e-5, rtol=1e-5)


def test_a_small_grid_trains_in_bfloat16_by_plain_products():
    model, inputs = tiny_model(gradient_scope="all"), tiny_batch()[0]
    gradients = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(inputs, labels=inputs, dtype=torch.bfloat16).loss.backward()
        gradients.append([p.grad for p in model.stack.parameters()])
    assert all(torch.equal(fused, plain) for fused, plain in zip(*gradients))


def test_an_attention_that_cannot_hide_cells_is_refused():
    model = tiny_model(head_relations=["row"], hidden_size=32)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention' cannot hide cells .* Use 'sdpa' or 'eager'"):
        model(tiny_batch()[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_relations": ["rwo"]}, "names 'rwo'. Did you mean 'row'.* Known for task='sudoku': all, row,"),
        ({"head_relations": ["box"], "task": "maze"}, "names 'box'.* Known for task='maze'"),
        ({"head_relations": []}, "must name 1 to num_attention_heads=8"),
        ({"head_relations": ["row"] * 9}, "must name 1 to num_attention_heads=8"),
        ({"head_relations": "row"}, "head_relations"),
        ({"head_relations": ["row"], "token_mixer": "mlp", "position_embedding": "none"}, "has no heads"),
    ],
)
def test_relations_that_no_head_can_have_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AirConfig(**fields)


def test_normalised_queries_and_keys_have_the_size_of_their_gains_and_the_states_dtype():
    model, seen = tiny_model(qk_norm=True, num_attention_heads=2), []
    with torch.no_grad():
        for block in model.stack.layers:
            block.self_attn.q_norm.weight.fill_(3.0)
    with model.observe_attention(lambda layer, query, key, scaling: seen.append((query, key))):
        model(tiny_batch()[0], dtype=torch.bfloat16)
    for query, key in seen:
        assert query.dtype == key.dtype == torch.bfloat16 and query.shape[-1] == 8
        for part, size in ((query, 3.0), (key, 1.0)):  # turning changes no length
            length = part.float().square().mean(-1).sqrt()
            torch.testing.assert_close(length, torch.full_like(length, size), rtol=0.02, atol=0)


def test_a_saved_model_has_its_gains_again(tmp_path):
    model = tiny_model(qk_norm=True)
    with torch.no_grad():
        model.stack.layers[0].self_attn.k_norm.weight.mul_(2)
    model.save_pretrained(tmp_path)
    loaded = AirModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(tiny_batch()[0]).logits, model(tiny_batch()[0]).logits)


def test_a_mixer_without_queries_refuses_to_normalise_them():
    with pytest.raises(ValueError, match="leave qk_norm out"):
        AirConfig.from_variant("TRM_mlp", qk_norm=True)


def queries(model):
    seen = []
    with model.observe_attention(lambda layer, query, key, scaling: seen.append(query)):
        model(torch.arange(2, model.config.vocab_size).repeat(model.config.seq_len)[None, : model.config.seq_len])
    return seen[0]  # of the first layer: no score has gone into it yet


def test_scores_of_heads_that_see_all_grow_with_the_logarithm_of_the_positions():
    fields = {"task": "maze", "grid_height": 6, "head_relations": ["adjacent", "all"], "num_attention_heads": 2}
    plain, scaled = (tiny_model(**fields, prefix_length=1, log_scale_positions=n) for n in (None, 10))
    scaled.load_state_dict(plain.state_dict())
    factors = torch.tensor([1.0, math.log(37) / math.log(10)])[:, None, None]
    torch.testing.assert_close(queries(scaled), queries(plain) * factors)


def test_at_its_own_positions_a_model_with_scaled_scores_computes_what_it_did(tmp_path):
    plain, scaled = (tiny_model(log_scale_positions=n) for n in (None, 17))
    scaled.load_state_dict(plain.state_dict())
    assert torch.equal(scaled(tiny_batch()[0]).logits, plain(tiny_batch()[0]).logits)
    scaled.save_pretrained(tmp_path)
    assert AirModel.from_pretrained(tmp_path, dtype=torch.bfloat16).config.log_scale_positions == 17


@pytest.mark.parametrize("fields", [{"variant": "TRM_mlp", "log_scale_positions": 9}, {"log_scale_positions": 1}])
def test_scores_that_cannot_be_scaled_are_refused(fields):
    with pytest.raises(ValueError, match="log_scale_positions"):
        AirConfig.from_variant(fields.pop("variant", "Lx_H"), **fields)


@pytest.fixture
def empty_is_nan():
    torch.use_deterministic_algorithms(True)  # then torch fills what it leaves empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "fields",
    [
        {"position_embedding": "rope2d", "head_relations": ["row", "all"], "hidden_size": 32},
        {"level_token": "prepend_keep", "qk_norm": True, "log_scale_positions": 9},
        {"position_embedding": "learned", "cell_embedding": True},
    ],
)
@pytest.mark.parametrize("way", ["built on meta", "moved to meta", "emptied"])
def test_an_emptied_model_computes_the_same_with_the_same_state(fields, way, empty_is_nan):
    model, (inputs, _) = tiny_model(**fields), tiny_batch()
    with torch.no_grad():
        expected, state = model(inputs).logits, copy.deepcopy(model.state_dict())
        if way == "built on meta":
            with torch.device("meta"):
                model = AirModel(model.config).eval()
        elif way == "moved to meta":
            model.to("meta")
        model.to_empty(device="cpu")
        model.load_state_dict(state, strict=True)
        assert torch.equal(model(inputs).logits, expected)


@pytest.mark.parametrize(
    "overrides",
    [
        {"grid_height": 6},
        {"grid_height": 16},
        {"task": "maze", "grid_height": 3, "grid_width": 5},
        {"task": "grid", "grid_height": 2, "grid_width": 7, "vocab_size": 5},
        {"puzzle_embedding_size": 0},
        {"puzzle_embedding_size": 40, "num_puzzle_identifiers": 3},
        {"position_embedding": "learned"},
        {"position_embedding": "none", "cell_embedding": True},
    ],
)
def test_other_grids_and_positions_run(overrides):
    model = tiny_model(**overrides)
    inputs = torch.ones(2, model.config.seq_len, dtype=torch.long)
    out = model(inputs, labels=inputs)
    assert out.logits.shape == (2, model.config.seq_len, model.config.vocab_size) and out.loss.isfinite()


def test_observed_attention_rows_sum_to_one_and_cover_every_layer():
    model = tiny_model(num_hidden_layers=2)
    seen = []

    def watch(layer, q, k, scaling):
        seen.append((layer, torch.softmax(q @ k.mT * scaling, -1).sum(-1)))

    with torch.no_grad(), model.observe_attention(watch):
        model(tiny_batch()[0])
        inside = len(seen)
    model(tiny_batch()[0])
    assert [layer for layer, _ in seen] == [0, 1] * 6 and len(seen) == inside
    torch.testing.assert_close(seen[0][1], torch.ones_like(seen[0][1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.ones(2, 15, dtype=torch.long)}, r"must be \(batch, 16\)"),
        ({"input_ids": torch.ones(16, dtype=torch.long)}, r"must be \(batch, 16\)"),
        ({"input_ids": torch.full((2, 16), 6)}, r"lie in 0..5, got 6..6"),
        ({"input_ids": torch.full((2, 16), -1)}, "lie in"),
        ({"input_ids": torch.ones(2, 16)}, "integer tokens"),
        ({"labels": torch.ones(2, 15, dtype=torch.long)}, "labels must have the shape"),
        ({"labels": torch.full((2, 16), 9)}, "labels must lie in"),
        ({"puzzle_ids": torch.zeros(3, dtype=torch.long)}, "puzzle_ids must be"),
        ({"puzzle_ids": torch.ones(2, dtype=torch.long)}, "puzzle_ids must lie in"),
        ({"carry": tiny_model().initial_carry(3)}, "carry's states must be"),
    ],
)
def test_wrong_input_ends_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**{"input_ids": torch.ones(2, 16, dtype=torch.long), **arguments})


@pytest.mark.parametrize("name", ["Lx_H", "HRM", "TRM_mlp"])
def test_a_forward_compiles_into_one_graph(name):
    model = tiny_model(name)
    inputs, _ = tiny_batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs).logits, model(inputs).logits)


def test_the_gradient_of_a_token_is_no_sum_in_bfloat16():
    model = tiny_model().train()
    inputs, labels = tiny_batch(64)
    model(inputs, labels=labels, dtype=torch.bfloat16).loss.backward()
    grad = model.embed_tokens.weight.grad
    assert not torch.equal(grad, grad.bfloat16().float())  # a float32 sum has bits that bfloat16 has not


def test_compiled_blocks_keep_their_weights_while_they_solve():
    inputs, _ = tiny_batch()
    held = {}
    for compiled in (False, True):
        model = tiny_model()
        if compiled:
            model.stack.compile(backend="eager")
        linear = model.stack.layers[0].mlp.down_proj

        def look(*_, linear=linear, compiled=compiled):
            held[compiled] = list(linear.held)
            assert linear.weight.dtype == torch.float32

        model.solve(inputs, max_act_steps=1, dtype=torch.bfloat16, hook=look)
    assert held == {False: [torch.bfloat16], True: []}


def test_building_and_running_need_no_installed_package(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import importlib.util
from pathlib import Path
root = Path({str(__import__("conftest").ROOT)!r})
spec = importlib.util.spec_from_file_location("_checkout", root / "scripts" / "_checkout.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import air_model
assert Path(air_model.__file__).parent == root
print(air_model.AirConfig().variant)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "Lx_H", done.stderr
