"""Haystacks: as long as they say, the needle as deep as it says, and one right answer."""

import re

import pytest
from asking import Scripted, task

from sensorium.data.emoji import concept
from sensorium.evaluate.needle import PictureNeedle, TextNeedle
from sensorium.evaluate.runner import run_asked


def test_a_text_has_its_fact_once_at_its_depth():
    source = TextNeedle(lengths=(100, 400), depths=(0.0, 0.5, 1.0), each=3, others=4)
    items = source.load().items
    assert items == source.load().items
    assert len({item.id for item in items}) == 2 * 3 * 3
    assert items != source.replace(seed=1).load().items
    for item in items:
        text, question = item.question.split("\n\n")
        place = re.search(r"number of (\w+)\?", question)[1]
        fact = f"The number of {place} is {item.answers[0]}."
        assert text.count(fact) == text.count(item.answers[0]) == text.count(f"number of {place} ") == 1
        assert text.count("The number of ") == 5
        assert len(text.split()) == item.info["length"]
        before = len(text[: text.index(fact)].split())
        assert before / (item.info["length"] - 6) == pytest.approx(item.info["depth"], abs=0.05)


def test_one_picture_of_a_row_answers():
    source = PictureNeedle(lengths=(1, 5), depths=(0.0, 1.0), each=4)
    items = source.load().items
    assert [item.id for item in items] == [item.id for item in source.load().items]
    for item in items:
        length, depth = item.info["length"], item.info["depth"]
        assert len(item.media) == length == item.question.count("<image>")
        assert len(set(item.options)) == 4
        assert item.options[item.answer] == item.answers[0]
        at = round(depth * (length - 1))
        shown = [concept(segment.data.concept) for segment in item.media]
        assert [one.category == "Animals & Nature" for one in shown] == [place == at for place in range(length)]
        assert shown[at].captions["en"] == item.answers[0]


def test_who_reads_finds_the_number():
    def reads(text, pictures):
        place = re.search(r"What is the number of (\w+)\?", text)[1]
        return re.search(rf"The number of {place} is (\d+)\.", text)[1]

    result = run_asked(task(TextNeedle(lengths=(64, 128), each=1)), Scripted(reads))
    assert result.evaluations[0].score == 1.0
    assert result.evaluations[0].blind is None
    assert {record.part for record in result.records} == {"64 words", "128 words"}
