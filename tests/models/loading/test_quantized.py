"""Weights in 8 and 4 bits: read by the same routes as others, and an error where they would be changed or compared."""

import importlib.util
import logging
from dataclasses import replace

import pytest
import torch

from dualform.errors import ConfigError, ModelError
from dualform.learners.finetuned import Finetuned
from dualform.learners.folded import Folded
from dualform.learners.lora import Lora
from dualform.learners.mezo import MezoAtRate
from dualform.models.export.checkpoint import require_plain_weights
from dualform.models.loading.doctor import examine
from dualform.models.loading.load import load_model
from dualform.models.loading.quantized import precision_of, token_by_token
from dualform.studies.comparison.config import comparison_config
from dualform.studies.experiment import weights_digest
from dualform.studies.folding.config import FoldingConfig
from dualform.studies.selection.config import selection_config
from dualform.studies.stability.config import stability_config
from tests.learners.setting import setting_of
from tests.tiny import save_tiny

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="weights are quantized by bitsandbytes"
)
BITS = ("8bit", "4bit")
# Blocks of 64 inputs share a scale, so that fewer than 64 would be refused. Separate, fused and transposed linears.
WIDE = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
    "gpt_neox": {"hidden_size": 64},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    results = {}
    for family, sizes in WIDE.items():
        folder = str(save_tiny(family, tmp_path_factory.mktemp(family), **sizes))
        results[family] = {bits: load_model(folder, quantize=bits, device="cpu") for bits in (*BITS, None)}
    return results


@needs_bitsandbytes
class TestReading:
    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("family", WIDE)
    def test_the_anatomy_is_found_without_a_gradient_of_any_weight(self, family, bits, models):
        quantized, plain = models[family][bits], models[family][None]
        assert quantized.quantized == {"8bit": "8 bit", "4bit": "4 bit"}[bits]
        assert plain.quantized is None
        assert quantized.anatomy.unclear == ()
        for first, second in zip(quantized.anatomy.layers, plain.anatomy.layers, strict=True):
            assert first.W_O == second.W_O
            for letter in ("W_Q", "W_K", "W_V"):
                assert torch.equal(getattr(first, letter).index, getattr(second, letter).index)
                assert getattr(first, letter).module == getattr(second, letter).module

    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("family", WIDE)
    def test_answers_are_near_those_of_the_weights_before_rounding_and_not_the_same(self, family, bits, models):
        tables = {}
        for kind in (bits, None):
            lm = models[family][kind]
            setting = setting_of(lm)
            prefix = lm.encode(setting.demonstrations.prefix)
            tables[kind] = lm.log_probabilities(prefix, setting.queries)
            # Nothing of the reading depends on what was read before.
            assert torch.equal(lm.log_probabilities(prefix, setting.queries), tables[kind])
        difference = (tables[bits] - tables[None]).abs()
        assert difference.max() > 1e-4
        # Nats; answers of random models lie up to 9 nats apart, and 16 levels a weight are few.
        assert difference.mean() < {"8bit": 0.3, "4bit": 2.0}[bits]

    @pytest.mark.parametrize("bits", BITS)
    def test_the_fastest_route_passes_the_self_check(self, bits, models):
        lm = models["llama"][bits]
        assert lm.route.name == "packed"
        report = examine(lm)
        assert all(check.passed for check in report.checks)
        assert report.facts["stored in"] == lm.quantized
        assert any("not confirmed by perturbing them" in note for note in report.unverified)
        assert any("a finetuning step is smaller than the rounding error" in note for note in report.unverified)

    def test_neighbours_show_in_eight_bits_unless_every_token_is_treated_by_itself(self, models):
        lm = models["llama"]["8bit"]
        setting = setting_of(lm)
        prefix = lm.encode(setting.demonstrations.prefix)

        def apart():
            tables = [replace(lm, max_examples=n).log_probabilities(prefix, setting.queries) for n in (1, 32)]
            return float((tables[0] - tables[1]).abs().max())

        with token_by_token(lm.model):
            # An entry may be tipped to the next of 127 levels by the last digit of its input.
            assert apart() < 5e-3
        assert apart() > 0.02

    def test_four_bit_products_use_the_requested_dtype_on_every_machine(self, models):
        # Packed rows against one answer at a time: products in bfloat16 would differ by a hundredth.
        checks = examine(models["gpt_neox"]["4bit"]).checks
        assert all(check.deviation is not None and check.deviation < 1e-5 for check in checks)

    @pytest.mark.parametrize("bits", BITS)
    def test_sizes_are_those_before_rounding(self, bits, models):
        for family in WIDE:
            lm, plain = models[family][bits], models[family][None]
            assert lm.n_parameters == plain.n_parameters
            costs = [item.shape.forward(own=7, prefix=5, scored=2) for item in (lm, plain)]
            assert costs[0] == costs[1]

    @pytest.mark.parametrize("bits", BITS)
    def test_other_weights_have_another_digest(self, bits, models):
        assert weights_digest(models["llama"][bits]) != weights_digest(models["llama"][None])

    def test_bitsandbytes_remarks_on_rounding_are_not_repeated_at_every_product(self, models, caplog):
        with caplog.at_level(logging.DEBUG):
            models["llama"]["8bit"].encode((0, 5, 6))
        assert not [record for record in caplog.records if "cast" in record.getMessage()]


@needs_bitsandbytes
class TestWhatIsRefused:
    @pytest.mark.parametrize("bits", BITS)
    def test_what_changes_weights_says_why_not_and_what_can_be_done(self, bits, models):
        setting = setting_of(models["llama"][bits])
        opening = setting.encoder.opening
        before = weights_digest(setting.lm)
        for learner in (
            Finetuned(opening, 1e-2),
            Lora(opening, 1e-2),
            Folded(opening, setting.queries * 2),
            MezoAtRate(opening, 1e-2),
        ):
            with pytest.raises(ModelError, match=rf"stored in {bits[0]} bit, so .*--learners zsl,icl.*--quantize"):
                learner.adapt(setting.lm, setting.demonstrations)
        with pytest.raises(ModelError, match=rf"is quantized \({bits[0]} bit\)"):
            require_plain_weights(setting.lm)
        assert weights_digest(setting.lm) == before

    def test_plain_weights_are_no_reason_to_refuse(self, models):
        assert precision_of(models["llama"][None].model) is None
        require_plain_weights(models["llama"][None])


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"quantize": "2bit"}, "quantize '2bit' is unknown: choose one of 8bit, 4bit"),
            ({"quantize": "8bit", "dtype": "float64"}, "dtype float64 is for exact comparisons"),
            ({"quantize": "4bit", "device_map": {"": "disk"}}, "cannot be combined with weights on disk"),
        ],
    )
    def test_a_mistake_is_named_before_anything_is_loaded(self, settings, words):
        with pytest.raises(ConfigError, match=words):
            load_model("nowhere/at/all", **settings)

    def test_without_bitsandbytes_the_extra_is_named(self, tmp_path, monkeypatch):
        folder = save_tiny("llama", tmp_path)
        original = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else original(name)
        )
        with pytest.raises(ConfigError, match=r"quantize 8bit needs bitsandbytes.*pip install 'dualform\[quantized\]'"):
            load_model(str(folder), quantize="8bit")

    def test_a_gguf_file_is_not_rounded_a_second_time(self, tmp_path):
        (tmp_path / "small.gguf").write_bytes(b"GGUF")
        with pytest.raises(
            ConfigError, match="is a GGUF file, which is unpacked on loading and cannot be quantized again"
        ):
            load_model(str(tmp_path / "small.gguf"), quantize="8bit")

    def test_studies_that_change_weights_refuse_and_a_comparison_of_prompts_does_not(self):
        for build, words in (
            (
                lambda: selection_config("m", "t", quantize="8bit"),
                "quantize 8bit cannot be used in a study that changes weights: leave out quantize",
            ),
            (lambda: stability_config(("m",), "t", quantize="8bit"), "leave ft out with --ft-seeds 0"),
            (
                lambda: comparison_config("m", "t", quantize="4bit", learners=("ft", "lora")),
                "add zsl, icl or probe",
            ),
            (lambda: comparison_config("m", "t", quantize="4bit", select="ft"), "with select ft, which chooses by FT"),
            (lambda: comparison_config("m", "t", quantize="4bit", dtype="float64"), "dtype float64"),
        ):
            with pytest.raises(ConfigError, match=words):
                build()
        with pytest.raises(
            ValueError, match="quantize 8bit cannot be used in a study that changes weights: leave out quantize"
        ):
            FoldingConfig(model="m", task="t", quantize="8bit")
        assert comparison_config("m", "t", quantize="8bit").quantize == "8bit"
        assert stability_config(("m",), "t", quantize="8bit", ft_seeds=0).quantize == "8bit"
