"""Canaries: each private name of torch, transformers and accelerate that dualform relies on, held to what it does.

A test that fails here names what a release has moved; `models/compat.py` is the file to mend.
"""

import ast
import copy
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator, PartialState, cpu_offload
from accelerate.hooks import AlignDevicesHook
from accelerate.state import AcceleratorState
from torch import nn

from dualform.models import compat
from tests.tiny import tiny_model

SOURCE = Path(compat.__file__).parents[1]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


# Where the name is looked up: the class or object whose attribute it is.
NAMES = [
    ("transformers", "PreTrainedModel", "_can_set_attn_implementation"),
    ("transformers", "PreTrainedModel", "_from_config"),
    ("transformers", "PreTrainedConfig", "_attn_implementation"),
    ("accelerate.state", "PartialState", "_shared_state"),
    ("accelerate.state", "AcceleratorState", "_reset_state"),
]


@pytest.mark.parametrize(("module", "owner", "name"), NAMES)
def test_a_private_name_exists(module, owner, name):
    assert hasattr(getattr(import_module(module), owner), name), f"{module}.{owner}.{name} has moved"


class TestAttentionImplementation:
    @pytest.mark.parametrize(("family", "expected"), [("llama", True), ("gpt2", True), ("xglm", False)])
    def test_families_in_the_registry_are_known(self, family, expected):
        assert compat.can_set_attention(tiny_model(family)) is expected

    def test_the_config_says_what_was_set(self):
        model = tiny_model("llama")
        for name in ("eager", "sdpa"):
            model.set_attn_implementation(name)
            assert compat.attention_implementation(model) == name

    def test_it_can_be_set_and_unset_in_the_config(self):
        config = copy.deepcopy(tiny_model("llama").config)
        compat.set_config_attention(config, "eager")
        assert transformers.AutoModelForCausalLM.from_config(config).config._attn_implementation == "eager"
        compat.set_config_attention(config, None)
        assert config._attn_implementation is None

    def test_parts_of_a_config_follow(self):
        text = transformers.LlamaConfig(num_hidden_layers=1)
        config = transformers.LlavaConfig(text_config=text)
        compat.set_config_attention(config, "eager")
        assert config.text_config._attn_implementation == "eager"


class TestModels:
    def test_a_model_is_built_from_its_config_in_a_dtype(self, llama):
        built = compat.build_from_config(type(llama), copy.deepcopy(llama.config), torch.bfloat16)
        assert type(built) is type(llama)
        assert built.dtype == torch.bfloat16
        shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (built, llama)]
        assert shapes[0] == shapes[1]

    def test_a_saved_config_says_where_it_came_from(self, llama):
        config = copy.deepcopy(llama.config)
        config.name_or_path = "from/here"
        assert config.to_dict()[compat.NAME_OR_PATH] == "from/here"

    def test_no_mark_of_peft_stays(self):
        from peft import LoraConfig, get_peft_model

        model = tiny_model("llama")
        before = set(vars(model))
        wrapped = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"]))
        wrapped.unload()
        compat.forget_adapters(model)
        assert set(vars(model)) == before

    def test_rotary_embeddings_forget_the_longest_row(self):
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
        )
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        short, long = torch.arange(4)[None], torch.arange(30)[None]
        with torch.no_grad():
            expected = model(short).logits
            rotary = model.model.rotary_emb
            before = rotary.inv_freq.clone()
            model(long)
            assert not torch.equal(rotary.inv_freq, before), "a longer row no longer changes inv_freq"
            compat.reset_rotary_frequencies(model)
            assert torch.equal(rotary.inv_freq, before)
            assert torch.equal(model(short).logits, expected)


class TestAccelerate:
    def test_the_hook_that_offloads_is_found_and_can_be_replaced(self):
        model = tiny_model("llama")
        assert all(compat.accelerate_hook(module) is None for module in model.modules())
        cpu_offload(model, execution_device="cpu")
        module = model.lm_head
        hook = compat.accelerate_hook(module)
        assert isinstance(hook, AlignDevicesHook), "accelerate keeps its hook under another name than _hf_hook"
        assert hook.offload
        assert hook.weights_map["weight"].shape == module.weight.shape
        other = AlignDevicesHook()
        compat.set_accelerate_hook(module, other)
        assert compat.accelerate_hook(module) is other

    def test_an_accelerator_is_detected_and_reset(self):
        if compat.accelerate_knows_processes():
            pytest.skip("accelerate was set up in this process before")
        try:
            Accelerator(cpu=True)
            assert compat.accelerate_knows_processes()
        finally:
            compat.forget_accelerator(processes=True)
        assert not compat.accelerate_knows_processes()
        assert not AcceleratorState._shared_state
        assert not PartialState._shared_state


class TestModules:
    def test_a_plain_tensor_can_replace_a_parameter(self):
        linear = nn.Linear(2, 2, bias=False)
        original = linear.weight
        compat.own_parameters(linear)["weight"] = torch.zeros(2, 2)
        assert not linear(torch.ones(1, 2)).any()
        compat.own_parameters(linear)["weight"] = original
        assert linear.weight is original
        assert compat.own_parameters(linear)["bias"] is None

    def test_hooks_are_listed_by_kind(self):
        linear = nn.Linear(2, 2)
        before = linear.register_forward_pre_hook(print)
        assert [list(hooks.values()) for hooks in compat.forward_hooks(linear)] == [[print], []]
        before.remove()
        after = linear.register_forward_hook(print)
        assert [list(hooks.values()) for hooks in compat.forward_hooks(linear)] == [[], [print]]
        after.remove()


class TestKernels:
    @pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
    def test_a_packed_product_is_the_plain_one(self):
        assert compat.has_packed_products(), "torch.ops.mkldnn._linear_pointwise has moved"
        generator = torch.Generator().manual_seed(0)
        weight, x, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 7), (3, 7), (5,)))
        packed = compat.pack_weight(weight)
        torch.testing.assert_close(compat.packed_product(x, packed, bias), F.linear(x, weight, bias))
        torch.testing.assert_close(compat.packed_product(x, packed, None), F.linear(x, weight))

    def test_fused_attention_gives_output_and_log_sum_exp(self):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 2, n, 4, generator=generator) for n in (3, 5, 5))
        mask = torch.zeros(3, 5).masked_fill(torch.ones(3, 5).triu(2).bool(), -torch.inf)
        out, lse = compat.attention_with_lse_on_cpu(query, key, value, mask, 0.5)
        scores = query @ key.mT * 0.5 + mask
        torch.testing.assert_close(out, scores.softmax(-1) @ value)
        torch.testing.assert_close(lse, scores.logsumexp(-1))


# Names that begin with an underscore but are not ours, outside of compat.py, and why.
ALLOWED = {
    ("cli/interrupts.py", "_exit"): "Python's os",
    ("runs/engines/local_worker.py", "_exit"): "Python's os",
}
RAY = "runs/engines/ray_engine.py"


def private_names(source: str, own: set[str], borrowed: set[str]) -> set[str]:
    """Attributes, imports and looked-up names in a file that begin with one underscore and belong to others.

    Args:
        source: The file's text.
        own: Names that dualform defines somewhere.
        borrowed: Names that torch's, transformers' and accelerate's objects have, which count on anything but `self`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr not in own or (node.attr in borrowed and not on_self):
                names.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            parts = [*module.split("."), *(part for alias in node.names for part in alias.name.split("."))]
            if not module.startswith("dualform"):
                names |= {part for part in parts if is_private(part)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _LOOKUPS:
            texts = [x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)]
            names |= {text for text in texts if is_private(text)}
    return names


_LOOKUPS = {"getattr", "setattr", "hasattr", "delattr", "get", "pop"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def defined_names(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            on_self = isinstance(node, ast.Name) or (isinstance(node.value, ast.Name) and node.value.id == "self")
            if on_self:
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def test_no_other_file_uses_a_private_name(llama):
    sources = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    own = set().union(*map(defined_names, sources.values()))
    borrowed = {name for owner in (llama, llama.config, Accelerator, torch.zeros(1)) for name in dir(owner)}
    names = {
        (path, name)
        for path, source in sources.items()
        if path not in ("models/compat.py", RAY)
        for name in private_names(source, own, borrowed)
    }
    assert names == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model.config._attn_implementation", "_attn_implementation"),
        ("module._parameters['weight']", "_parameters"),
        ("getattr(module, '_hf_hook', None)", "_hf_hook"),
        ("from torch._dynamo import disable", "_dynamo"),
        ("import torch._C", "_C"),
        ("from transformers.utils import _LazyModule", "_LazyModule"),
    ],
)
def test_a_private_name_is_noticed_in_each_form(source, name):
    assert private_names(source, {"_parameters"}, {"_parameters"}) == {name}
