"""Whether queries follow the instruction: measured, and taken away."""

import pytest
import torch
from torch import nn

from sensorium.data.emoji import EmojiPicture
from sensorium.errors import UserError
from sensorium.evaluate.instruction import Instructed, deafened
from sensorium.recipes.catalog import find
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import Tokenizer
from sensorium.train.ask import subject_of


def subject(name):
    recipe = find(name, "tiny")
    torch.manual_seed(0)
    model = recipe.model.build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    return subject_of(recipe, model.eval(), Tokenizer.bytes())


@pytest.fixture(scope="module")
def instructed():
    return subject("instructblip")


def test_tokens_move_with_the_instruction_and_the_table_says_how_far(instructed):
    result = Instructed(split="dev_artist", n=8, holdout_dev=True).run(instructed)
    assert result.evaluations == []
    [table] = result.tables
    told, seen = (float(row[1]) for row in table.rows[:2])
    assert 0.01 < told < 2
    assert 0.01 < seen < 2
    assert all("blind" in row[1] for row in table.rows[2:])


def test_without_reading_the_words_the_tokens_are_the_same_for_every_instruction(instructed):
    picture = Segment("image", EmojiPicture("1F600", "google"), "user")
    made = []
    for renderer in (instructed.renderer, deafened(instructed.renderer)):
        for question in ("What is this?", "How many are there?"):
            sequence = renderer.render(Sample((picture, Segment("text", question, "user"))), generate=True)
            with torch.no_grad():
                [ready] = instructed.engine.prepare([sequence])
                made.append(instructed.model.connect("image", ready, torch.float32))
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    assert torch.equal(made[2], made[3])


def test_a_model_that_reads_no_instruction_cannot_be_asked():
    with pytest.raises(UserError, match="no connector of this model reads the instruction"):
        Instructed(split="dev_artist", n=8).run(subject("blip-2"))
