"""Verdicts of a judge, both orders, and what becomes of those that cannot be read."""

import json

import pytest
from asking import Noise, Scripted, hold, shows

from sensorium.errors import UserError
from sensorium.evaluate.answerer import Said
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.judging import LLaVABench, Rated, run_rated, verdict
from sensorium.evaluate.records import AnswerCache


@pytest.mark.parametrize(("text", "expected"), [
    ("8 7", (8, 7)), ("8, 7\nbecause", (8, 7)), ("\n\n 9.5 10 \nx", (9.5, 10)), ("7/8.", (7, 8)), ("**6 7**", (6, 7)),
    ("(1, 10)", (1, 10)),
    ("", None), ("Answer 1 is better", None), ("8", None), ("8 7 6", None), ("0 7", None), ("8 11", None),
    ("I give 8 and 7", None), ("-8 7", None), ("8 7 points", None), ("87", None),
    ("My reasons come first.\n8 7", None),
])  # fmt: skip
def test_verdicts(text, expected):
    assert verdict(text) == expected


def questions(count=6, **changes):
    return [
        TaskItem(id=f"r{n}", question=f"Describe {n}.", media=shows(n // 3), answers=(f"reference {n}",),
                 group=str(n // 3), part=("conversation", "detail", "complex")[n % 3], **changes)
        for n in range(count)
    ]  # fmt: skip


class Judge(Scripted):
    """Gives the reference 8; the model 6 with its own picture, 2 blind; and whoever stands first one more."""

    title = "judge"

    def __init__(self, odd=None):
        super().__init__(self.rate)
        self.odd = odd or {}

    def rate(self, text, pictures):
        for mark, said in self.odd.items():
            if mark in text:
                return said
        first = "[Answer 1]\nreference" in text
        mine = 6 if "sees" in text else 2
        return f"{8 + 1} {mine}\nwell" if first else f"{mine + 1} 8\nwell"


def says(text, pictures):
    n = int(text.split()[1].strip("."))
    return f"sees {n}" if n // 3 == pictures[0] else f"guesses {n}"


def rated(source, **changes):
    return Rated(**{"name": "open", "source": source, **changes})


def test_the_score_is_the_ratio_of_sums_over_both_orders(tmp_path):
    judge = Judge()
    result = run_rated(rated(hold("open", questions())), Scripted(says), judge, tmp_path)
    relative, rating, reference = result.evaluations
    assert relative.score == pytest.approx(6.5 / 8.5)
    assert relative.blind == pytest.approx(2.5 / 8.5)
    assert (rating.score, reference.score, rating.percent) == (6.5, 8.5, False)
    assert rating.metric == "rating"
    assert len(judge.asked) == 6 * 2 * 2
    assert all(len(pictures) == 1 for _, pictures in judge.asked)
    record = result.records[0]
    assert record.parsed["answer"] == 6.5
    assert [one["order"] for one in record.parsed["verdicts"]] == ["reference_first", "answer_first"]
    assert record.score == pytest.approx(6.5 / 8.5)
    assert [row[0] for row in result.tables[0].rows] == ["conversation", "detail", "complex"]
    one = run_rated(rated(hold("open", questions()), orders=("reference_first",)), Scripted(says), Judge())
    assert one.evaluations[0].score == pytest.approx(6 / 9)


def test_a_verdict_that_cannot_be_read_is_counted_and_scores_nobody():
    odd = {"sees 1\n": "Both are fine.", "sees 2\n": Said("", "endpoint: HTTP 500")}
    result = run_rated(rated(hold("odd", questions()), blind=False), Scripted(says), Judge(odd))
    assert result.evaluations[0].score == pytest.approx(6.5 / 8.5)
    counts = {row[0]: row[1:] for row in result.tables[-1].rows}
    assert counts["verdicts asked for"][0] == "12"
    assert counts["verdicts that could not be read"] == ("2", "r1: 'Both are fine.'")
    assert counts["verdicts that did not come"] == ("2", "r2: endpoint: HTTP 500")
    assert [record.score is None for record in result.records] == [False, True, True, False, False, False]
    assert result.evaluations[0].n == 6


def test_an_answer_that_never_came_is_rated_lowest():
    def fails(text, pictures):
        return Said("", "endpoint: HTTP 500") if "0" in text else says(text, pictures)

    result = run_rated(rated(hold("fails", questions()), blind=False), Scripted(fails), Judge())
    assert result.records[0].parsed == {"answer": 1.0, "reference": 10.0}
    assert result.evaluations[0].score == pytest.approx((5 * 6.5 + 1) / (5 * 8.5 + 10))


def test_a_judge_may_see_captions_alone():
    judge = Judge()
    source = hold("captions", questions(info={"captions": ["a dog", "on a hill"]}))
    run_rated(rated(source, sees="captions", blind=False), Scripted(says), judge)
    text, pictures = judge.asked[0]
    assert pictures == ()
    assert "[What the picture shows]\na dog\non a hill\n" in text
    none = run_rated(rated(hold("open", questions()), sees="captions", blind=False), Scripted(says), Judge())
    assert none.evaluations == []
    assert "no captions" in none.tables[-1].rows[2][2]


def test_what_an_answer_says_cannot_stand_in_for_the_other():
    item = TaskItem(id="x", question="{first}?", media=shows(Noise(1)), answers=("{second}",))
    words = rated(hold("x", [item])).judgement(item, "{first} and {question}", "reference_first").segments[-1].data
    assert "[Question]\n{first}?\n" in words
    assert "[Answer 1]\n{second}\n\n[Answer 2]\n{first} and {question}\n" in words


def test_verdicts_are_kept(tmp_path):
    cache = AnswerCache(tmp_path / "c")
    one = rated(hold("open", questions()))
    first = run_rated(one, Scripted(says), Judge(), tmp_path, cache)
    again, judge = Scripted(says), Judge()
    assert run_rated(one, again, judge, tmp_path / "other", cache).records == first.records
    assert (again.asked, judge.asked) == ([], [])


def test_without_a_judge_nothing_is_asked():
    with pytest.raises(UserError, match="needs a judge"):
        rated(hold("open", questions())).run(None)


def test_the_published_folder(tmp_path):
    def rows(name, *values):
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))

    (tmp_path / "images").mkdir()
    for number in (1, 2):
        Noise(number).load().save(tmp_path / "images" / f"00{number}.jpg")
    rows("questions.jsonl",
         {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "What is the name of the crater?"},
         {"question_id": 1, "image": "001.jpg", "category": "detail", "text": "Describe this photo in detail."},
         {"question_id": 2, "image": "002.jpg", "category": "complex", "text": "Why is it here?"},
         {"question_id": 3, "image": "003.jpg", "category": "conv", "text": "A picture that is missing"},
         {"question_id": 4, "image": "002.jpg", "category": "conv", "text": "No reference"})  # fmt: skip
    rows("answers_gpt4.jsonl", *({"question_id": n, "text": f"answer {n}", "answer_id": "x"} for n in range(4)))
    rows("context.jsonl", {"id": "001", "image": "001.jpg", "caption": "A crater."})
    found = LLaVABench(path=str(tmp_path)).load()
    assert [(item.id, item.part, item.group, item.answers) for item in found.items] == [
        ("0", "conv", "001.jpg", ("answer 0",)), ("1", "detail", "001.jpg", ("answer 1",)),
        ("2", "complex", "002.jpg", ("answer 2",)),
    ]  # fmt: skip
    assert found.items[0].info == {"captions": "A crater."}
    assert len(found.bad) == 2
    with pytest.raises(UserError):
        LLaVABench(path=str(tmp_path / "images")).load()
