"""How items become prompts, and what the runner makes of the answers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from asking import Exactly, Likeliest, Noise, Scripted, hold, items, plain_records, sees, shows, task

from sensorium.errors import UserError
from sensorium.evaluate.answerer import Said
from sensorium.evaluate.asked import Asked, Prompt, letter
from sensorium.evaluate.item import BadItem, TaskItem
from sensorium.evaluate.records import AnswerCache, Record, RecordFile, read_records
from sensorium.evaluate.runner import run_asked, words_of


class Ending(Exactly):
    def prompt(self, item):
        return "One word."


def kinds(sample):
    return [one.data if one.kind == "text" else one.data.seed for one in sample.segments]


# ---- prompts


def test_a_prompt_is_picture_question_options_and_what_the_metric_asks():
    item = items(1)[0]
    sample = Prompt().sample(item, metric=Ending())
    assert kinds(sample) == [0, "What is picture 0?\nA. a\nB. bb\nC. thing 0\nD. dd\nOne word."]
    assert {one.role for one in sample.segments} == {"user"}
    assert kinds(Prompt().sample(item, metric=Likeliest())) == [0, "What is picture 0?"]


@pytest.mark.parametrize(("changes", "expected"), [
    ({"ending": ""}, [0, "What is picture 0?\nA. a\nB. bb\nC. thing 0\nD. dd"]),
    ({"media_first": False, "options": "", "ending": ""}, ["What is picture 0?", 0]),
    ({"wording": "{options}\nQ: {question}", "options": "({number}) {option}", "ending": "!"},
     [0, "(1) a\n(2) bb\n(3) thing 0\n(4) dd\nQ: What is picture 0?\n!"]),
    ({"system": "Be short.", "options": ""}, ["Be short.", 0, "What is picture 0?\nOne word."]),
    ({"wording": "{{{hint}}} {question}", "options": "", "ending": ""}, [0, "{small} What is picture 0?"]),
])  # fmt: skip
def test_wordings(changes, expected):
    item = items(1, info={"hint": "small"})[0]
    assert kinds(Prompt(**changes).sample(item, metric=Ending())) == expected


def test_what_an_item_says_is_never_read_as_a_wording():
    item = TaskItem(id="x", question="Is {options} in {hint}?", answers=("yes",))
    assert kinds(Prompt().sample(item)) == ["Is {options} in {hint}?"]


@pytest.mark.parametrize("wording", ["{question.__class__}", "{question!r}", "{question:>9}", "{0[a]}", "{"])
def test_only_plain_names_stand_in_braces(wording):
    with pytest.raises(ValueError):
        Prompt(wording=wording)


def test_media_stand_at_their_places():
    item = TaskItem(id="x", question="<image> or <image>, beside this?", media=shows(1, 2, 3))
    assert kinds(Prompt().sample(item)) == [3, 1, " or ", 2, ", beside this?"]
    assert kinds(Prompt().sample(TaskItem(id="x", question="say <image>"))) == ["say <image>"]
    with pytest.raises(UserError, match="3 places"):
        Prompt().sample(TaskItem(id="x", question="<image><image><image>", media=shows(1)))


def test_shots_are_answered_questions_about_something_else_whatever_the_order_of_the_pool():
    pool = items(6, group="")
    one = task(hold("shots", pool), shots=2, prompt=Prompt(options="", ending=""))
    sample = one.sample(pool[0], pool)
    said = kinds(sample)
    assert len(said) == 8
    assert said[-2:] == [0, "What is picture 0?"]
    assert 0 not in said[:-2]
    assert said[1:3] == [f"What is picture {said[0]}?", f"thing {said[0]}"]
    assert [one.role for one in sample.segments[:3]] == ["user", "user", "assistant"]
    assert kinds(one.sample(pool[0], pool[::-1])) == said
    assert len({str(kinds(one.replace(seed=seed).sample(pool[0], pool))) for seed in range(4)}) > 1
    with pytest.raises(UserError, match="3 examples are asked for, there are 2"):
        one.replace(shots=3).sample(pool[0], pool[:3])
    alike = [TaskItem(id=f"s{n}", question="?", media=shows(0), answers=("x",)) for n in range(4)]
    with pytest.raises(UserError, match="there are 0"):  # all about the same picture
        one.sample(pool[0], alike)


def test_a_shot_is_answered_as_the_model_is_to_answer():
    item = items(1)[0]
    assert Prompt().demonstrated(item, Exactly()) == "C"
    assert Prompt(options="").demonstrated(item, Exactly()) == "thing 0"
    assert Prompt().demonstrated(item, Likeliest()) == "thing 0"
    assert Prompt().demonstrated(TaskItem(id="v", answers=("two", "2", "2"))) == "2"
    assert Prompt().demonstrated(TaskItem(id="v", boxes=((0, 0, 0.5, 1),))) == "[0.00, 0.00, 0.50, 1.00]"
    assert Prompt().demonstrated(TaskItem(id="v")) is None
    assert [letter(0), letter(25), letter(26)] == ["A", "Z", "27"]


# ---- scores


def test_who_sees_is_right_and_blind_is_not():
    result = run_asked(task(hold("ten", items(10))), Scripted(sees))
    [one] = result.evaluations
    assert (one.score, one.blind, one.margin, one.n) == (1.0, 0.0, 1.0, 10)
    assert one.low < 1.0 == one.high
    assert [record.id for record in result.records] == [f"q{n}" for n in range(10)]
    first = result.records[0]
    assert (first.said, first.parsed, first.score, first.blind_score) == ("thing 0", "thing 0", 1.0, 0.0)
    assert first.prompt == "<image>What is picture 0?\nA. a\nB. bb\nC. thing 0\nD. dd"
    assert first.expected == "thing 0"
    parts = result.tables[0]
    assert [row[:3] for row in parts.rows] == [("even", "5", "100.0%"), ("odd", "5", "100.0%")]


def test_no_item_is_shown_its_own_picture_blind_nor_one_of_its_group():
    """Six questions about each of three pictures, as in POPE."""
    six = [
        TaskItem(id=f"p{n}", question=f"{n}?", media=shows(n // 6), answers=("x",), group=str(n // 6))
        for n in range(18)
    ]
    answerer = Scripted(sees)
    run_asked(task(hold("pope", six)), answerer)
    own, blind = answerer.asked[:18], answerer.asked[18:]
    assert len(blind) == 18
    for (text, (shown,)), (same, (other,)) in zip(own, blind):
        assert text == same
        assert shown != other


def test_items_without_media_have_no_control_and_widen_no_margin():
    mixed = [*items(4), TaskItem(id="t", question="Say nothing.", answers=("nothing",))]
    result = run_asked(task(hold("mixed", mixed)), Scripted(sees))
    [one] = result.evaluations
    assert one.score == 1.0
    assert one.blind == pytest.approx(0.2)
    assert result.records[-1].blind_said is None
    alone = run_asked(task(hold("alone", mixed[-1:])), Scripted(sees))
    assert alone.evaluations[0].blind is None
    assert run_asked(task(hold("ten", items(10)), blind=False), Scripted(sees)).evaluations[0].blind is None


def test_several_pictures_are_exchanged_for_others_in_their_places():
    pairs = [
        TaskItem(id=f"n{n}", question="<image> left, <image> right", media=shows(2 * n, 2 * n + 1)) for n in range(3)
    ]
    single = TaskItem(id="one", question="one", media=shows(9))
    answerer = Scripted(sees)
    run_asked(task(hold("pairs", [*pairs, single])), answerer)
    own, blind = answerer.asked[:4], answerer.asked[4:]
    for (text, mine), (same, other) in zip(own, blind):
        assert text == same
        assert len(mine) == len(other)
        assert not set(mine) & set(other)


@pytest.mark.parametrize("metric", [Exactly(), Likeliest()])
def test_records_do_not_depend_on_the_order_of_items_or_of_answers(metric):
    def say(text, pictures):
        return sees(text, pictures) if pictures[0] % 3 else "hm?"

    expected = {
        one.id: vars(one) for one in run_asked(task(hold("a", items(20)), metric=metric), Scripted(say)).records
    }
    turned = items(20)[7:] + items(20)[:7]
    for order in (1, 2):
        found = run_asked(task(hold("b", turned[::-1]), metric=metric), Scripted(say, order=order))
        assert {one.id: vars(one) for one in found.records} == expected


def test_fewer_items_are_drawn_alike_whatever_the_order_of_the_file():
    few = run_asked(task(hold("all", items(20)), n=5), Scripted(sees)).records
    turned = run_asked(task(hold("turned", items(20)[::-1]), n=5), Scripted(sees)).records
    assert [one.id for one in few] == [one.id for one in turned][::-1]
    assert len(few) == 5
    assert [one.id for one in few] != [f"q{n}" for n in range(5)]


# ---- what goes wrong is counted


def test_everything_that_goes_wrong_is_counted_and_never_right():
    wrong = [
        TaskItem(id="missing", question="?", media=shows(Noise(1, "missing")), answers=("",)),
        TaskItem(id="places", question="<image><image>", media=shows(2), answers=("",)),
        TaskItem(id="silent", question="silent", media=shows(3), answers=("",)),
        TaskItem(id="unreadable", question="mumble", media=shows(4), answers=("hm?",)),
        TaskItem(id="q0", question="twice the same id", answers=("thing 0",)),
    ]

    def say(text, pictures):
        if text == "silent":
            return Said("", "endpoint: no answer within 1 s")
        return "hm?" if text == "mumble" else sees(text, pictures)

    source = hold("wrong", [*items(4), *wrong], [BadItem("file line 3", "a box has four numbers, found three")])
    result = run_asked(task(source, prompt=Prompt(options="")), Scripted(say))
    [one] = result.evaluations
    assert one.n == 8
    assert one.score == 0.5
    counts = {row[0].partition(" (")[0]: row[1:] for row in result.tables[-1].rows}
    assert counts["rows of the source that hold no question"] == (
        "2",
        "file line 3: a box has four numbers, found three",
    )
    assert counts["items that could not be asked"][0] == "2"
    assert "picture 1: no such file" in counts["items that could not be asked"][1]
    assert counts["errors of the endpoint"][0] == "1"
    assert counts["answers that could not be read"] == ("1", "unreadable: 'hm?'")
    assert counts["items whose blind control failed"][0] == "1"
    by_id = {record.id: record for record in result.records}
    assert by_id["missing"].error == "picture 1: no such file"
    assert by_id["silent"].score == 0.0
    assert by_id["unreadable"].said == "hm?"
    assert by_id["file line 3"].error.startswith("bad item: a box")
    assert by_id["item q0"].score is None
    for record in ("missing", "places", "silent", "unreadable"):
        assert by_id[record].parsed is None


def test_an_item_that_cannot_be_asked_lends_its_picture_to_nobody():
    broken = TaskItem(id="z", question="?", media=shows(Noise(99, "missing")), answers=("x",))
    answerer = Scripted(sees)
    run_asked(task(hold("lend", [*items(3), broken])), answerer)
    assert {shown for _, (shown,) in answerer.asked} == {0, 1, 2}


def test_a_task_without_one_item_says_so():
    with pytest.raises(UserError, match=r"not one item .* line 1: no question"):
        run_asked(task(hold("none", [], [BadItem("line 1", "no question")])), Scripted(sees))


def test_options_are_needed_where_likelihoods_are():
    one = TaskItem(id="open", question="what?", answers=("x",))
    result = run_asked(task(hold("open", [*items(3), one]), metric=Likeliest(), blind=False), Scripted(sees))
    assert "no options" in result.records[-1].error
    assert result.records[-1].score == 0.0


# ---- records, resuming, cache


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jsonl"}


@pytest.mark.parametrize("metric", [Exactly(), Likeliest()])
def test_an_evaluation_that_was_stopped_goes_on_where_it_was(tmp_path, metric):
    one = task(hold("twelve", items(12)), metric=metric)
    whole = run_asked(one, Scripted(sees), tmp_path / "whole")
    if metric.needs == "words":
        with pytest.raises(KeyboardInterrupt):
            run_asked(one, Scripted(sees, stop_after=7), tmp_path / "cut")
        with open(tmp_path / "cut" / "made.jsonl", "ab") as file:
            file.write(b'{"id": "q9", "said": "half a li')  # as a kill leaves it
    again = Scripted(sees)
    cut = run_asked(one, again, tmp_path / "cut")
    assert len(again.asked) == (24 - 7 if metric.needs == "words" else 24)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert cut.evaluations == whole.evaluations
    assert cut.tables == whole.tables
    third = Scripted(sees)
    assert run_asked(one, third, tmp_path / "cut").records == whole.records
    assert third.asked == []


PROGRAM = """
import os, signal, sys
from pathlib import Path
from asking import Scripted, hold, items, sees, task
from sensorium.evaluate.records import AnswerCache
from sensorium.evaluate.runner import run_asked
count, kill = 0, int(sys.argv[2])
def say(text, pictures):
    global count
    count += 1
    if count == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return sees(text, pictures)
cache = AnswerCache(Path(sys.argv[1]) / "answers.sqlite") if len(sys.argv) > 3 else None
run_asked(task(hold("x", items(6))), Scripted(say), Path(sys.argv[1]) / "records", cache)
"""


def test_killed_at_any_moment_the_report_is_the_same(tmp_path):
    where = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    whole = run_asked(task(hold("x", items(6))), Scripted(sees), tmp_path / "whole")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), "8", "cache"],
                          env={**os.environ, "PYTHONPATH": where})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    again = Scripted(sees)
    result = run_asked(task(hold("x", items(6))), again, tmp_path / "records", AnswerCache(tmp_path / "answers.sqlite"))
    assert len(again.asked) == 12 - 7
    assert result.records == whole.records
    assert result.evaluations == whole.evaluations
    assert files(tmp_path / "records") == files(tmp_path / "whole")


def test_errors_are_asked_again(tmp_path):
    one = task(hold("four", items(4)), blind=False)
    down = run_asked(one, Scripted(lambda *_: Said("", "endpoint: HTTP 500")), tmp_path, AnswerCache(tmp_path / "c"))
    assert down.evaluations[0].score == 0.0
    up = Scripted(sees)
    assert run_asked(one, up, tmp_path, AnswerCache(tmp_path / "c")).evaluations[0].score == 1.0
    assert len(up.asked) == 4


def test_the_cache_holds_over_folders_and_knows_who_was_asked_what(tmp_path):
    cache = AnswerCache(tmp_path / "deep" / "answers.sqlite")
    one = task(hold("cached", items(5)))
    first = run_asked(one, Scripted(sees), tmp_path / "a", cache)
    again = Scripted(sees)
    assert run_asked(one, again, tmp_path / "b", AnswerCache(cache.path)).records == first.records
    assert again.asked == []
    longer = one.replace(sampling=one.sampling.replace(max_tokens=9))
    worded = one.replace(prompt=Prompt(wording="Tell me: {question}"))
    for other, who in ((one, "another"), (longer, "scripted"), (worded, "scripted")):
        asked = Scripted(sees, fingerprint=who)
        run_asked(other, asked, None, cache)
        assert len(asked.asked) == 10


def test_a_cache_that_is_no_cache_says_so(tmp_path):
    (tmp_path / "answers").write_bytes(b"not a database, at all" * 100)
    with pytest.raises(UserError, match=r"cache of answers .* Delete it"):
        AnswerCache(tmp_path / "answers")


def test_two_processes_do_not_write_the_same_records(tmp_path):
    first = RecordFile(tmp_path, "made")
    with pytest.raises(UserError, match="another process is writing"):
        RecordFile(tmp_path, "made")
    first.close()
    RecordFile(tmp_path, "made").close()


def test_records_hold_any_text_and_no_path_leads_out(tmp_path):
    file = RecordFile(tmp_path, "../a b/日本")
    assert file.path.parent == tmp_path
    file.finish([Record(id="x", said="half \ud83d of a pair, \u2028 and 日本")])
    file.close()
    [record] = read_records(file.path)
    assert record.said == "half \ud83d of a pair, \u2028 and 日本"
    json.loads(file.path.read_bytes())


def test_likelihoods_come_back_to_the_last_bit(tmp_path):
    one = task(hold("exact", items(6)), metric=Likeliest())
    cache = AnswerCache(tmp_path / "c")
    first, again = (run_asked(one, Scripted(sees), None, cache).records for _ in range(2))
    assert [record.said for record in first] == [record.said for record in again]


def test_a_task_round_trips_through_json():
    from sensorium.config import from_json

    one = task(hold("json", items(2)), shots=2, prompt=Prompt(system="x"), n=3)
    assert from_json(one.to_json(), Asked) == one


def test_words_of_a_conversation():
    one = task(hold("words", items(3)), shots=1, prompt=Prompt(options="", ending=""))
    sample = one.sample(items(3)[0], items(3)[:2])
    assert (
        words_of(sample) == "user: <image>What is picture 1?\n\nassistant: thing 1\n\nuser: <image>What is picture 0?"
    )


def test_progress_counts_what_is_known(tmp_path):
    one = task(hold("progress", items(3)), blind=False)
    seen = []
    run_asked(one, Scripted(sees), tmp_path, progress=lambda *pair: seen.append(pair))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    seen.clear()
    run_asked(one, Scripted(sees), tmp_path, progress=lambda *pair: seen.append(pair))
    assert seen == [(3, 3)]
    assert plain_records(run_asked(one, Scripted(sees), tmp_path))[0]["said"] == "thing 0"
