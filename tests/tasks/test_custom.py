import pytest

from dualform.errors import LabelWordError, TaskError
from dualform.tasks.custom import read_custom
from dualform.tasks.options import TaskOptions


def write(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    return path


def test_every_key_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text("")
    custom = read_custom(
        write(
            tmp_path,
            'name: tickets\ndata: rows.csv\ntext: body\nlabel: kind\nprompt: "{text}:"\n'
            'label_words: {0: "no", "1": "yes"}\nseparator: "\\n"\nchoices: [one, two]\n',
        )
    )
    assert (custom.name, custom.data) == ("tickets", str(tmp_path / "rows.csv"))
    assert custom.options == TaskOptions("body", "kind", "{text}:", {"0": "no", "1": "yes"}, "\n", "one,two")


def test_only_the_data_are_required(tmp_path):
    custom = read_custom(write(tmp_path, "data: sst2"))
    assert (custom.name, custom.data, custom.options) == ("mine", "sst2", TaskOptions())


def test_an_empty_separator_key_is_the_end_of_sequence_token(tmp_path):
    assert read_custom(write(tmp_path, "data: sst2\nseparator: null")).options.separator == "eos"


def test_a_missing_table_is_looked_for_beside_the_file(tmp_path):
    assert read_custom(write(tmp_path, "data: gone.csv")).data == str(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [", "mine.yaml cannot be read as a task file"),
        ("- data", "must contain keys and values .* not list"),
        ("", "not NoneType"),
        ("data: sst2\nlabel_word: [a, b]", "unknown key 'label_word'. Did you mean 'label_words'"),
        ("data: sst2\nzzz: 1", "unknown key 'zzz'. The keys are name, data"),
        ("name: mine", "names no data"),
        ("data: other.yml", "'other.yml', another task file"),
        ("data: sst2\nseparator: 3", "separator must be a text, not 3"),
        ("data: sst2\nchoices: 3", "choices must name a column"),
        ("data: !!python/object/apply:os.getcwd []", "cannot be read as a task file"),
        ("data: sst2\ndata: mr", "the key 'data' stands twice, on lines 1 and 2"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(tmp_path, content, message):
    with pytest.raises(TaskError, match=message):
        read_custom(write(tmp_path, content))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[yes, no]", "label word True is not text. Put it in quotes"),
        ("{a: 1, b: x}", "label word 1 is not text"),
        ("{yes: a, no: b}", "label value True of label_words is not text"),
        ("abc", "must be a list or a mapping .* not abc"),
    ],
)
def test_unquoted_words_that_yaml_reads_otherwise_are_explained(tmp_path, words, message):
    with pytest.raises(LabelWordError, match=message):
        read_custom(write(tmp_path, f"data: sst2\nlabel_words: {words}"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"gone.yaml does not exist"):
        read_custom(tmp_path / "gone.yaml")
