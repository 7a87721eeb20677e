from dualform.studies.stability.page import render
from dualform.studies.stability.result import Stability
from dualform.studies.stability.table import fairness_table
from dualform.studies.stability.words import stability_answers
from tests.report.example_stability import SMALL, example_model, example_stability, one_model


def without_fairness():
    model = example_model(SMALL, 134_515_008).model_copy(update={"fairness": []})
    return example_stability(stability=Stability(models={SMALL: model}, contrasts=[]))


def test_the_effect_of_choosing_for_one_learner_is_reported_in_points():
    (sentence,) = stability_answers(one_model())["fair"]
    assert "In-context learning minus finetuning is -4.0 points over all 4 sets." in sentence
    assert "it is +6.0 on that half and +2.0 (95 % interval -3.0 to +7.0) on the other" in sentence
    assert "bias the accuracy of in-context learning upwards by 4.0 points" in sentence
    assert (
        "If the set is chosen by the mean of both, it is +1.0 (95 % interval -4.0 to +6.0) on the other half."
        in sentence
    )


def test_with_several_models_each_finding_names_its_model():
    sentences = stability_answers(example_stability())["fair"]
    assert len(sentences) == 2
    assert sentences[0].startswith(f"{SMALL}: ")


def test_without_a_choice_of_sets_there_is_no_finding_and_no_section():
    result = without_fairness()
    assert stability_answers(result)["fair"] == []
    assert fairness_table(result).row_count == 0
    assert 'id="fair"' not in render(result)


def test_the_page_and_the_table_contain_every_way_of_choosing():
    table = fairness_table(one_model())
    assert table.row_count == 4
    page = render(one_model())
    assert 'id="fair"' in page
    for words in ("no choice: all sets", "mean of both", "-9.0 to +1.0"):
        assert words in page
