from dualform.studies.stability.page import render
from dualform.studies.stability.result import Stability
from dualform.studies.stability.table import fairness_table
from dualform.studies.stability.words import stability_answers
from tests.report.example_stability import SMALL, example_model, example_stability, one_model


def without_fairness():
    model = example_model(SMALL, 134_515_008).model_copy(update={"fairness": []})
    return example_stability(stability=Stability(models={SMALL: model}, contrasts=[]))


def test_choosing_for_one_learner_is_told_as_points_of_its_lead():
    (sentence,) = stability_answers(one_model())["fair"]
    assert "Over all 4 sets in-context learning's lead over finetuning is -4.0 points." in sentence
    assert "it is +6.0 on that half and +2.0 (95 % interval -3.0 to +7.0) on the other" in sentence
    assert "flatters in-context learning by 4.0 points" in sentence
    assert "With the set chosen for both alike it is +1.0 (95 % interval -4.0 to +6.0) elsewhere." in sentence


def test_several_models_are_told_by_name():
    said = stability_answers(example_stability())["fair"]
    assert len(said) == 2
    assert said[0].startswith(f"{SMALL}: ")


def test_nothing_is_said_or_drawn_where_nothing_was_chosen():
    result = without_fairness()
    assert stability_answers(result)["fair"] == []
    assert fairness_table(result).row_count == 0
    assert 'id="fair"' not in render(result)


def test_the_page_and_the_table_hold_every_way_of_choosing():
    table = fairness_table(one_model())
    assert table.row_count == 4
    page = render(one_model())
    assert 'id="fair"' in page
    for words in ("nobody: all sets", "both, mean", "-9.0 to +1.0"):
        assert words in page
