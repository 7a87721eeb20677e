import dataclasses

import pytest
import yaml
from markdown_it import MarkdownIt

from dualform._version import __version__
from dualform.errors import ConfigError
from dualform.models.export.card import CardFacts, MeasuredAccuracy, model_card
from dualform.models.export.licence import GEMMA_NOTICE, Licence

FACTS = CardFacts(
    base="smollm2-135m",
    task="reviews",
    n_demonstrations=32,
    seed=3,
    rows=(17, 4, 99),
    method="ridge",
    settings={"penalty": 0.1, "texts": 128},
    changed=tuple(f"model.layers.{i}.self_attn.o_proj.{kind}" for i in (0, 1, 2, 5) for kind in ("weight", "bias")),
    label_words=(" positive", " negative"),
    measured=(
        MeasuredAccuracy("base, zero-shot", 0.57, (0.52, 0.62), 400),
        MeasuredAccuracy("base, prompted", 0.72, (0.68, 0.76), 400),
        MeasuredAccuracy("folded, zero-shot", 0.725, None, 400),
    ),
    agreement=0.8125,
    perplexity=(18.5, 19.04),
)
BARE = dataclasses.replace(FACTS, label_words=(), measured=(), agreement=None, perplexity=None)


def front_matter(card):
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def tokens(markdown):
    """All tokens of the body, those inside lines too."""
    results = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        results += [token, *(token.children or [])]
    return results


def test_the_header_is_what_hubs_read():
    header, _ = front_matter(model_card(dataclasses.replace(FACTS, base="gpt2")))
    assert header["library_name"] == "transformers"
    assert header["base_model"] == "gpt2"
    assert "dualform" in header["tags"]
    adapter, _ = front_matter(model_card(dataclasses.replace(FACTS, form="adapter", base="org/name")))
    assert (adapter["library_name"], adapter["base_model"]) == ("peft", "org/name")


def test_a_folder_as_base_stays_out_of_the_header_where_hubs_would_refuse_it():
    header, body = front_matter(model_card(dataclasses.replace(FACTS, base="/data/models/mine")))
    assert "base_model" not in header
    assert "`/data/models/mine`" in body


def test_a_packaged_model_has_the_name_that_the_hub_knows_it_by():
    header, body = front_matter(model_card(dataclasses.replace(FACTS, base="smollm2-135m")))
    assert header["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "`smollm2-135m`" in body
    for base in ("smollm2-135m", "folded", "models/mine"):
        # A folder may be called like a model of the hub.
        header, _ = front_matter(model_card(dataclasses.replace(FACTS, base=base, base_is_local=True)))
        assert "base_model" not in header


def test_licence_and_data_set_are_carried_over():
    header, body = front_matter(model_card(dataclasses.replace(FACTS, licence=Licence("mit"), dataset="SetFit/sst5")))
    assert (header["license"], header["datasets"]) == ("mit", ["SetFit/sst5"])
    assert "Gemma" not in body
    own = Licence("other", "own", "https://a.b")
    header, _ = front_matter(model_card(dataclasses.replace(FACTS, licence=own, dataset="no name: of theirs")))
    assert (header["license"], header["license_name"], header["license_link"]) == ("other", "own", "https://a.b")
    assert "datasets" not in header
    header, _ = front_matter(model_card(FACTS))
    assert not {"license", "license_name", "datasets"} & set(header)


def test_a_gemma_card_has_the_notice_that_its_terms_require():
    _, body = front_matter(model_card(dataclasses.replace(FACTS, licence=Licence("gemma"))))
    assert GEMMA_NOTICE in body.replace("\\", "")


def test_everything_that_was_measured_is_in_the_card():
    card = model_card(FACTS)
    for words in (
        "32 demonstrations",
        "seed 3",
        "17, 4, 99",
        "`ridge`",
        "`penalty`: `0.1`",
        "- `model.layers.*.self_attn.o_proj.weight`, layers 0-2, 5",
        "- `model.layers.*.self_attn.o_proj.bias`, layers 0-2, 5",
        "| `base, prompted` | 0.720 | 0.680 to 0.760 | 400 |",
        "| `folded, zero-shot` | 0.725 |  | 400 |",
        "81.2% of the queries",
        "18.50 before, 19.04 after",
        "` positive`",
        f"dualform {__version__}",
    ):
        assert words in card.replace("`  positive `", "` positive`"), words


def test_what_was_not_measured_is_left_out_and_named_as_missing():
    card = model_card(BARE)
    assert "Measured effect" not in card
    assert "Label words:" not in card
    assert "|" not in card
    assert "accuracy was not measured" in card
    assert "plain text was not measured" in card


def test_one_demonstration_is_not_plural_and_a_parameter_without_a_layer_is_named_whole():
    card = model_card(dataclasses.replace(BARE, n_demonstrations=1, changed=("lm_head.weight",), rows=()))
    assert "with 1 demonstration in its prompt." in card
    assert "- `lm_head.weight`\n" in card
    assert "in order: not recorded" in card


@pytest.mark.parametrize(("form", "imported"), [("checkpoint", "transformers"), ("adapter", "peft")])
def test_loading_takes_three_lines_of_python(form, imported):
    card = model_card(dataclasses.replace(FACTS, form=form))
    code = card.split("```python\n")[1].split("\n```")[0]
    assert len(code.splitlines()) == 3
    assert code.startswith(f"from {imported} import")
    compile(code, "card", "exec")


HOSTILE = (
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "**bold** _it_ ~~gone~~",
    "` ``` `` <b>x</b>",
    "```\n# Heading\n<img src=x>",
    "a\n\n---\n\n# Heading",
    "| a | b |\n| - | - |\n| c | d |",
    "\\` <i>x</i>",
    "--- \nlibrary_name: evil",
    "\u202egnp.exe\x00\x1b[31m",
    "&lt;b&gt; &#60;b&#62;",
    "- item\n1. item\n> quote",
    "<http://evil.example>",
    "`",
    "",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_in_names_or_notes_takes_effect(text):
    hostile = CardFacts(
        base=text,
        task=text,
        n_demonstrations=2,
        seed=0,
        rows=(1,),
        method=text,
        settings={text: text},
        changed=(text,),
        label_words=(text, text),
        measured=(MeasuredAccuracy(text, 0.5, None, 10),),
        notes=(text,),
    )
    innocent = CardFacts(
        **{
            **{field.name: getattr(hostile, field.name) for field in dataclasses.fields(hostile)},
            "base": "a",
            "task": "a",
            "method": "a",
            "settings": {"a": "a"},
            "changed": ("a",),
            "notes": ("a",),
            "label_words": ("a", "a"),
            "measured": (MeasuredAccuracy("a", 0.5, None, 10),),
        }
    )
    header, body = front_matter(model_card(hostile))
    expected, plain_body = front_matter(model_card(innocent))
    header.pop("base_model", None), header.pop("base_model_relation", None)
    expected.pop("base_model"), expected.pop("base_model_relation")
    assert header == expected
    # Every block and every span is where it would be with a plain word; only texts differ.
    ignored = ("text", "text_special", "inline")
    types = [token.type for token in tokens(body) if token.type not in ignored]
    if text:
        assert types == [token.type for token in tokens(plain_body) if token.type not in ignored]
    assert not {"html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "s_open"} & set(types)
    # One heading of the first order: the card's own.
    assert sum(token.type == "heading_open" and token.tag == "h1" for token in tokens(body)) == 1
    assert "\u202e" not in body
    assert "\x1b" not in body


def test_without_escaping_the_same_texts_would_take_effect():
    # The claim's counterpart: the renderer does act on most of them.
    active = {"html_inline", "html_block", "link_open", "image", "strong_open", "heading_open", "table_open", "hr"}
    acted = [text for text in HOSTILE if active & {token.type for token in tokens(text)}]
    assert len(acted) >= 8


def test_a_code_span_shows_its_text_as_it_is():
    for text in (" positive", "a`b", "``", "|", "x \\| y"):
        card = model_card(dataclasses.replace(FACTS, label_words=(text,)))
        line = next(line for line in card.splitlines() if line.startswith("- Label words"))
        assert [token.content for token in tokens(line) if token.type == "code_inline"] == [text]


def test_a_note_reads_as_it_was_written():
    note = "Rank 8 keeps 87.5 % of it (see a_b*c), www.example.com & <b>more</b>."
    line = model_card(dataclasses.replace(FACTS, notes=(note,))).splitlines()[-3]
    texts = [token.content for token in tokens(line) if token.type in ("text", "text_special")]
    assert "".join(texts) == note
    assert "www." not in line


def test_a_share_or_perplexity_out_of_range_is_refused():
    wrong = (MeasuredAccuracy("base", 72.0, None, 400),)
    with pytest.raises(ConfigError, match=r"accuracy of base is 72\.0; expected a share from 0 to 1"):
        model_card(dataclasses.replace(FACTS, measured=wrong))
    with pytest.raises(ConfigError, match=r"agreement is -0\.5"):
        model_card(dataclasses.replace(FACTS, agreement=-0.5))
    with pytest.raises(ConfigError, match=r"a perplexity is nan; expected 1 or more"):
        model_card(dataclasses.replace(FACTS, perplexity=(12.0, float("nan"))))
