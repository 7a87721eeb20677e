"""A model split by a device map gives the same numbers as the whole one, and reports where its weights are."""

import gc
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from dualform.errors import ConfigError, ModelError, StorageError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.finetuned import FINETUNING
from dualform.learners.lora import LORA
from dualform.models.editing.adapters import LoraTraining
from dualform.models.editing.edit import KeyValueTraining, applied
from dualform.models.export.checkpoint import require_plain_weights, write_checkpoint
from dualform.models.loading.doctor import examine
from dualform.models.loading.load import load_model
from dualform.models.loading.offloading import (
    frozen,
    hook_of,
    input_device,
    is_offloaded,
    named_weights,
    patched,
    reload_in_backward,
    replace_hooks_,
    runs_on,
    weight_of,
)
from dualform.models.loading.placement import Placement, placement
from dualform.models.reading.forward import forward_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.anatomy import is_linear
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.models.structure.untrained import untrained
from dualform.studies.experiment import weights_digest
from tests.learners.setting import assert_same_readings, readings, setting_of
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

# Separate and fused projections, tied and free heads, in and outside the attention registry.
FAMILIES = ("llama", "gpt2", "gpt_neox", "xglm")
DISK = {"": "disk"}
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "xglm": "model.layers"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def divided(folder, family):
    """The last block on disk, the rest in memory."""
    body, _, stack = BLOCKS[family].partition(".")
    beside = [name for name, _ in tiny_model(family).get_submodule(body).named_children() if name != stack]
    device_map = {f"{body}.{name}": "cpu" for name in beside} | {"lm_head": "cpu"}
    return load_model(
        str(folder), device_map=device_map | {f"{BLOCKS[family]}.0": "cpu", f"{BLOCKS[family]}.1": "disk"}
    )


def state(model):
    return {name: weight_of(model, name).clone() for name, _ in named_weights(model)}


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


class TestReading:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("part", ["whole", "last block"])
    def test_from_disk_all_that_is_read_is_the_same_bit_for_bit(self, family, part, folders):
        whole = load_model(str(folders[family]))
        lm = load_model(str(folders[family]), device_map=DISK) if part == "whole" else divided(folders[family], family)
        assert lm.offloaded
        assert not whole.offloaded
        meta = [name for name, weight in lm.model.named_parameters() if weight.is_meta]
        assert meta
        assert part == "whole" or all(name.startswith(f"{BLOCKS[family]}.1.") for name in meta)
        assert lm.route.name == whole.route.name
        assert lm.refused == whole.refused
        expected, actual = setting_of(whole), setting_of(lm)
        opening = expected.encoder.opening
        for prefix in (opening, expected.demonstrations.prefix):
            both = [readings(behind(item.lm, prefix), item) for item in (actual, expected)]
            assert_same_readings(*both)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_probing_finds_the_same_anatomy_and_keeps_no_weights_in_memory(self, family, folders):
        whole, lm = load_model(str(folders[family])), load_model(str(folders[family]), device_map=DISK)
        assert len(lm.anatomy.layers) == len(whole.anatomy.layers)
        for first, second in zip(lm.anatomy.layers, whole.anatomy.layers, strict=True):
            assert first.W_O == second.W_O
            for letter in ("W_Q", "W_K", "W_V"):
                assert torch.equal(getattr(first, letter).index, getattr(second, letter).index)
                assert getattr(first, letter).module == getattr(second, letter).module
        assert_same_state(state(lm.model), state(whole.model))
        assert not any(module._forward_hooks for module in lm.model.modules())
        assert all(weight.is_meta for weight in lm.model.parameters())

    def test_a_budget_of_memory_sends_the_rest_to_disk(self, folders):
        lm = load_model(str(folders["llama"]), max_memory="cpu=100KB")
        assert set(lm.model.hf_device_map.values()) == {"cpu", "disk"}
        size = sum(weight.numel() * 4 for weight in lm.model.parameters() if not weight.is_meta)
        assert 0 < size <= 100_000
        assert not load_model(str(folders["llama"]), max_memory="cpu=1GiB").offloaded

    @pytest.mark.parametrize("device_map", ["auto", "sequential", "balanced", {"": "cpu"}, '{"": "cpu"}'])
    def test_a_model_that_fits_is_not_offloaded(self, device_map, folders):
        lm = load_model(str(folders["llama"]), device_map=device_map)
        assert not lm.offloaded
        assert lm.device == torch.device("cpu")
        assert_same_state(state(lm.model), state(tiny_model("llama")))

    def test_inputs_go_where_the_embeddings_run_not_where_they_lie(self, folders):
        lm = load_model(str(folders["gpt2"]), device_map=DISK)
        assert lm.model.device == torch.device("meta")
        assert lm.device == input_device(lm.model) == torch.device("cpu")
        assert runs_on(lm.model.lm_head) == torch.device("cpu")

    def test_another_precision_is_read_from_disk_as_it_is_loaded(self, folders):
        whole, lm = (load_model(str(folders["llama"]), dtype="bfloat16", device_map=item) for item in (None, DISK))
        assert lm.model.dtype == torch.bfloat16
        assert_same_state(state(lm.model), state(whole.model))
        expected, actual = setting_of(whole), setting_of(lm)
        both = [readings(behind(item.lm, (0,)), item) for item in (actual, expected)]
        assert_same_readings(*both)

    def test_a_model_that_its_owner_has_dispatched_is_offloaded_too(self, folders):
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(folders["gpt2"], device_map=DISK)
        assert not is_offloaded(model)
        lm = LanguageModel.wrap(model, tiny_tokenizer(), "own")
        assert lm.offloaded
        hooks = [hook_of(module) for module in model.modules()]
        replace_hooks_(model)
        assert hooks == [hook_of(module) for module in model.modules()]

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
    def test_no_weight_stays_mapped_after_a_forward(self, tmp_path):
        # A separate folder, because other tests' models may keep theirs mapped.
        folder = save_tiny("llama", tmp_path)

        def mapped():
            gc.collect()
            return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(folder))

        lm = load_model(str(folder), device_map=DISK)
        lm.encode((0, 5, 6))
        assert mapped() == 0
        assert load_model(str(folder)).n_parameters
        with torch.enable_grad(), frozen(lm.model), reload_in_backward(lm.model):
            states = lm.model.get_input_embeddings()(torch.tensor([[4, 5, 6]])).requires_grad_()
            logits = lm.model(inputs_embeds=states, use_cache=False).logits
        assert mapped() == 0
        torch.autograd.grad(logits.sum(), states)
        assert mapped() == 0

    def test_nothing_is_packed(self, folders):
        assert isinstance(load_model(str(folders["llama"]), device_map=DISK).packed_products(), nullcontext)
        assert not isinstance(load_model(str(folders["llama"])).packed_products(), nullcontext)


def behind(lm, prefix):
    return AdaptedModel("some", lm, lm.encode(prefix), AdaptationCost(0.0, 0, 0.0))


class TestTellingModelsApart:
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_a_digest_is_the_same_wherever_weights_lie_and_another_for_other_weights(self, family, folders, tmp_path):
        whole = weights_digest(load_model(str(folders[family])))
        assert weights_digest(load_model(str(folders[family]), device_map=DISK)) == whole
        assert weights_digest(divided(folders[family], family)) == whole
        other = save_tiny(family, tmp_path, seed=1)
        assert weights_digest(load_model(str(other), device_map=DISK)) != whole

    def test_tied_weights_are_counted_once(self, folders):
        lm = load_model(str(folders["gpt2"]), device_map=DISK)
        assert lm.n_parameters == load_model(str(folders["gpt2"])).n_parameters == 54144


class TestPatching:
    NAME = "model.layers.1.self_attn.v_proj.weight"

    def test_a_weight_that_is_not_there_can_be_another_for_a_block(self, folders):
        whole, lm = load_model(str(folders["llama"])), load_model(str(folders["llama"]), device_map=DISK)
        expected = _logits(whole)
        assert torch.equal(_logits(lm), expected)
        double, more = (lambda weight: 2 * weight), (lambda weight: weight + 1)
        with patched(lm.model, self.NAME, double), patched(lm.model, self.NAME, more):
            changed = _logits(lm)
        with patched(whole.model, self.NAME, lambda weight: 2 * weight + 1):
            assert torch.equal(_logits(whole), changed)
        assert not torch.equal(changed, expected)
        assert torch.equal(_logits(lm), expected)

    def test_a_forward_that_raises_restores_the_weights(self, folders):
        lm = load_model(str(folders["llama"]), device_map=DISK)
        expected = _logits(lm)
        owner = lm.model.get_submodule(self.NAME.rpartition(".")[0])

        def fail(weight):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), patched(lm.model, self.NAME, fail):
            _logits(lm)
        handle = owner.register_forward_pre_hook(lambda *_: (torch.zeros(3, 3),))
        with pytest.raises(RuntimeError), patched(lm.model, self.NAME, lambda weight: 2 * weight):
            _logits(lm)
        handle.remove()
        assert isinstance(owner._parameters["weight"], torch.nn.Parameter)
        assert torch.equal(_logits(lm), expected)


def _logits(lm):
    ids = torch.arange(4, 14)[None]
    return forward_rows(lm.model, torch.arange(10), input_ids=ids, use_cache=False)[0]


def _noted(value, read):
    """`OffloadedWeights.value` that also writes down what is read."""

    def note(module, name):
        read.append(name)
        return value(module, name)

    return note


class TestGradients:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_backward_reads_weights_again_instead_of_keeping_them(self, family, folders, monkeypatch):
        gradients = []
        for device_map in (None, DISK):
            lm = load_model(str(folders[family]), device_map=device_map)
            read: list[str] = []
            for module in lm.model.modules():
                if hook := hook_of(module):
                    monkeypatch.setattr(hook, "value", _noted(hook.value, read))
            with torch.enable_grad(), frozen(lm.model), reload_in_backward(lm.model):
                states = lm.model.get_input_embeddings()(torch.arange(4, 14)[None]).requires_grad_()
                loss = lm.model(inputs_embeds=states, use_cache=False).logits.square().sum()
            read.clear()
            gradients.append(torch.autograd.grad(loss, states)[0])
            n_linears = sum(is_linear(module) for module in lm.model.modules())
            assert len(read) >= n_linears if device_map else not read
            assert all(weight.requires_grad for weight in lm.model.parameters())
        assert gradients[0].any()
        assert torch.equal(*gradients)


class TestWhatCannotBeDone:
    @pytest.mark.parametrize("whole", [True, False])
    def test_weights_are_trained_in_memory_only_and_the_message_says_what_to_do(self, whole, folders):
        folder = folders["llama"]
        lm = load_model(str(folder), device_map=DISK) if whole else divided(folder, "llama")
        message = (
            r"offloaded to disk or CPU and cannot be trained there\. Make it fit: .*--dtype.*--learners zsl,icl,fold"
        )
        with pytest.raises(ModelError, match=message):
            KeyValueTraining(lm.model, lm.anatomy)
        with pytest.raises(ModelError, match=message):
            LoraTraining(lm.model, lm.anatomy, 2, 0)
        for learner in (FINETUNING, LORA):
            with pytest.raises(ModelError, match=message):
                learner.check(lm, None)

    def test_a_checkpoint_is_written_from_memory_only(self, folders, tmp_path):
        lm = divided(folders["llama"], "llama")
        with pytest.raises(ModelError, match="is offloaded, but a checkpoint is written from memory"):
            require_plain_weights(lm)
        with pytest.raises(ModelError, match="without --device-map"):
            write_checkpoint(lm, (), tmp_path / "out", "card")
        assert not (tmp_path / "out").exists()

    def test_no_untrained_copy_is_built_of_a_model_that_does_not_fit(self, folders):
        with pytest.raises(
            ModelError, match=r"divided over devices by a device map.* Leave out the controls untrained and embeddings"
        ):
            untrained(divided(folders["llama"], "llama"), seed=0)


class TestSaying:
    def test_the_doctor_says_where_weights_lie_and_what_was_used(self, folders):
        report = examine(divided(folders["llama"], "llama"))
        assert report.facts["weights"] == "0 MiB on cpu, 0 MiB on disk, loaded when needed"
        assert report.facts["stored in"] == "32 bits, not quantized"
        assert int(report.facts["peak memory"].split(" ")[0].replace(",", "")) > 50
        assert all(check.passed for check in report.checks)
        assert examine(load_model(str(folders["llama"]))).facts["weights"] == "0 MiB on cpu"

    def test_offloading_is_no_news_on_the_log(self, folders, caplog):
        with caplog.at_level(logging.WARNING):
            load_model(str(folders["llama"]), device_map=DISK)
        assert not caplog.records


class TestSettings:
    def test_sizes_and_devices_are_read(self):
        assert placement(max_memory="cpu=1.5GiB, 0=500MB") == Placement("auto", {"cpu": 3 << 29, 0: 500_000_000})
        assert placement(max_memory={"cpu": 1000}, device_map="sequential") == Placement("sequential", {"cpu": 1000})
        assert placement(device_map='{"a": "disk", "b": "cpu"}').device_map == {"a": "disk", "b": "cpu"}
        assert placement() == Placement()

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"device_map": "fast"}, "unknown device map 'fast': choose one of auto, balanced, sequential"),
            ({"device_map": "{no"}, r"device map '\{no' is not valid JSON"),
            ({"device_map": {}}, "names no module"),
            ({"device_map": {"": "tape"}}, "'the whole model' goes to 'tape', which cannot be used here"),
            ({"device_map": {"": "cpu", "lm_head": "disk"}}, "'lm_head' is part of the whole model"),
            (
                {"device_map": {"a.b": "cpu", "a.bc": "cpu", "a.b.c": "disk"}},
                r"'a\.b\.c' is part of 'a\.b', which is named too",
            ),
            ({"device_map": {"lm_head": 2.5}}, "'lm_head' goes to 2.5"),
            ({"max_memory": "cpu"}, "max_memory 'cpu' should look like cpu=2GiB,0=10GiB"),
            ({"max_memory": "cpu=much"}, "'much' is not a size: write it like 500MB"),
            ({"max_memory": "tape=2GiB"}, "'tape' should be cpu, mps or the number of a GPU"),
            ({"max_memory": {}}, "max_memory names no device"),
            ({"max_memory": "cpu=1GiB", "device_map": DISK}, "leave out one of them"),
            ({"device": "cpu", "device_map": "auto"}, "device 'cpu' and device_map 'auto' were both given"),
            ({"device": "cpu", "max_memory": "cpu=1GiB"}, "device 'cpu' and device_map 'auto' were both given"),
        ],
    )
    def test_a_mistake_is_named_with_its_remedy(self, settings, words):
        with pytest.raises(ConfigError, match=words):
            placement(**settings)

    def test_a_folder_that_cannot_be_written_is_named_before_weights_are_read(self, folders, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            StorageError, match=r"cannot write .*file.*: .* Choose another folder with --offload-folder"
        ):
            load_model(str(folders["llama"]), device_map="auto", offload_folder=tmp_path / "file")
        lm = load_model(str(folders["llama"]), max_memory="cpu=100KB", offload_folder=tmp_path / "made" / "here")
        assert (tmp_path / "made" / "here").is_dir()
        assert lm.offloaded


def test_a_change_may_give_an_offloaded_linear_the_bias_it_lacks(folders):
    from dualform.models.editing.edit import WeightDelta

    whole, lm = load_model(str(folders["llama"])), load_model(str(folders["llama"]), device_map=DISK)
    W_O = lm.anatomy.layers[0].W_O
    delta = torch.linspace(-1, 1, 32)
    changes = (
        WeightDelta(f"{W_O}.weight", 0, torch.tensor([3, 5]), torch.ones(2, 32)),
        WeightDelta(f"{W_O}.bias", 0, None, delta),
    )
    before = _logits(lm)
    with applied(whole.model, changes), applied(lm.model, changes):
        changed = _logits(lm)
        assert torch.equal(changed, _logits(whole))
    assert not torch.equal(changed, before)
    assert torch.equal(_logits(lm), before)
    assert lm.model.get_submodule(W_O).bias is None
    assert find_anatomy(lm.model).layers[0].W_O == W_O
