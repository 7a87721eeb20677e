"""Small tokenizers with the chat templates of five families, and the task that they are tried on."""

import string
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken

from dualform.models.reading.language_model import LanguageModel
from tests.models.reference import BY_NAME, wrapped
from tests.tiny import _SENTENCES, VOCABULARY

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}{% for message in turns %}"
    "{% if message['role'] == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% else %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


_LINES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 divides texts: several line breaks can be one token."""


@dataclass(frozen=True)
class Family:
    """A chat template with a tokenizer of its kind."""

    template: str
    bos: str
    eos: str
    others: tuple[str, ...]
    """Further special tokens."""
    pieces: str = "bytes"
    """How texts are divided: into bytes, bytes with a token for several line breaks (lines), or words that begin with a
    mark for the space before them (metaspace, gemma)."""
    strips: bool = False
    """Whether special tokens swallow white space after them."""
    system: bool = True
    """Whether the template accepts a system message in front of all turns."""

    def tokenizer(self) -> transformers.PreTrainedTokenizerFast:
        """The tokenizer with the template."""
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True))
        alphabet = sorted(set(string.printable))
        if self.pieces == "bytes":
            backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = tokenizers.decoders.ByteLevel()
            alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        elif self.pieces == "lines":
            divided = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_LINES), "isolated")
            in_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([divided, in_bytes])
            backend.decoder = tokenizers.decoders.ByteLevel()
            alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        elif self.pieces == "gemma":
            backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
            backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("▁|\n"), "merged_with_next")
            backend.decoder = tokenizers.decoders.Replace("▁", " ")
        else:
            backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
            backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first", split=True)
        names = ["<unk>", self.bos, self.eos, *self.others]
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(dict.fromkeys(names)),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator((*_SENTENCES, *["\n\n\n\n"] * 20), trainer)
        if self.strips:
            backend.add_special_tokens([AddedToken(name, special=True, rstrip=True) for name in self.others])
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", bos_token=self.bos, eos_token=self.eos, pad_token=self.eos
        )
        tokenizer.chat_template = self.template
        return tokenizer

    def lm(self, **changes: Any) -> LanguageModel:
        """A tiny model with this tokenizer; `changes` are fields of the family."""
        tokenizer = replace(self, **changes).tokenizer()
        return replace(wrapped(BY_NAME["llama"]), tokenizer=tokenizer)


CHAT_FAMILIES = {
    "chatml": Family(CHATML, "<|im_start|>", "<|im_end|>", ()),
    "llama3": Family(
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        "lines",
    ),
    "gemma": Family(GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "gemma", system=False),
    "mistral": Family(MISTRAL, "<s>", "</s>", ("[INST]", "[/INST]"), "metaspace", system=False),
    "phi3": Family(
        PHI3, "<s>", "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "metaspace", strips=True
    ),
}
