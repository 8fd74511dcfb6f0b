"""AirModel and AirConfig against the common tests of transformers, for four shapes of the family (see sources.py)."""

import unittest
from typing import Any

import pytest
import sources
from transformers import AutoConfig, AutoModel, set_seed

from air_model import AirConfig, AirModel

try:
    modeling = sources.load("test_modeling_common")
    configuration = sources.load("test_configuration_common")
except sources.Unavailable as error:
    pytest.skip(str(error), allow_module_level=True)

# Some common tests run for registered models only.
AutoConfig.register("air", AirConfig, exist_ok=True)
AutoModel.register(AirConfig, AirModel, exist_ok=True)


class Tester:
    """What the common tests ask for: a tiny config and inputs for it."""

    batch_size, seq_length, is_training = 13, 7, True
    hidden_size, num_attention_heads, vocab_size = 32, 4, 99  # the resize test takes 15 tokens away

    def __init__(self, variant: str, fields: dict[str, Any]) -> None:
        self.variant, self.fields = variant, fields
        config = self.get_config()
        # "Layers" are applications of a block here: one L- and one H-update, each through the stack's single block.
        self.num_hidden_layers = 2
        self.encoder_seq_length = self.key_length = config.num_stack_positions

    def get_config(self) -> AirConfig:
        sizes = {"grid_height": 1, "grid_width": self.seq_length, "vocab_size": self.vocab_size}
        sizes |= {"hidden_size": self.hidden_size, "num_attention_heads": self.num_attention_heads}
        sizes |= {"num_hidden_layers": 1, "intermediate_size": 64, "h_cycles": 1, "l_cycles": 1, "halt_max_steps": 2}
        return AirConfig.from_variant(self.variant, task="grid", **{**sizes, **self.fields})

    def prepare_config_and_inputs_for_common(self) -> tuple[AirConfig, dict[str, Any]]:
        return self.get_config(), {
            "input_ids": modeling.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        }


class Common(modeling.ModelTesterMixin):
    all_model_classes = (AirModel,)
    test_resize_embeddings = True
    variant = "Lx_H"
    fields: dict[str, Any] = {}

    def setUp(self) -> None:
        # The common tests draw weights and inputs unseeded, and now and then a draw misses their fp16 tolerance.
        set_seed(0)
        modeling.global_rng.seed(0)
        self.model_tester = Tester(self.variant, self.fields)

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clamp(min=1)  # PAD does not count in the loss
        return inputs

    @unittest.skip("a block runs once per update, so one layer has several outputs and no number of its own")
    def test_can_capture_specific_layers_hidden_states(self) -> None: ...

    @unittest.skip("not a composite model")
    def test_sdpa_can_dispatch_composite_models(self) -> None: ...


class DefaultTest(Common, unittest.TestCase):
    fields = {"puzzle_embedding_size": 0}

    def test_config(self) -> None:
        configuration.ConfigTester(
            self, config_class=AirConfig, hidden_size=32, num_attention_heads=4
        ).run_common_tests()


class PrefixAndTokensTest(Common, unittest.TestCase):
    variant = "L2x_H2x_prepend"
    fields = {"puzzle_embedding_size": 40, "num_puzzle_identifiers": 3, "position_embedding": "learned"}


class TwoStacksTest(Common, unittest.TestCase):
    variant = "HRM"
    fields = {"position_embedding": "rope2d", "cell_embedding": True}


class MixerTest(Common, unittest.TestCase):
    variant = "TRM_mlp"
    has_attentions = False


del Common
