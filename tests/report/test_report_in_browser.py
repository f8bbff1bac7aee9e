"""The pages of a report in a real browser: filters, search, links to a view, keys, sorting."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from made_reports import NAMES, compared, evaluated, record
from read_page import HOSTILE

from sensorium.report.data import ReportData, TaskRecords
from sensorium.report.write import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def browser(folder):
    from serve.browsing import chromium

    with chromium(folder / "profile") as made:
        yield made
        assert [entry for entry in made.get_log("browser") if entry["level"] == "SEVERE"] == []
        asked = [json.loads(entry["message"])["message"] for entry in made.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
        assert {url.split(":")[0] for url in urls} <= {"file", "data", "chrome"}  # nothing was fetched


@pytest.fixture(scope="module")
def evaluation(folder):
    (folder / "pictures").mkdir()
    return write_report(folder / "evaluation", evaluated(100, folder / "pictures")).as_uri()


@pytest.fixture(scope="module")
def comparison(folder):
    return write_report(folder / "comparison", compared(60)).as_uri()


class View:
    """What the sample browser shows."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get("about:blank")
        browser.get(url)

    def all(self, css):
        return self.browser.find_elements("css selector", css)

    def ids(self):
        return [one.text.split(" · ")[0] for one in self.all(".example .foot")]

    def marks(self):
        return {one.text for one in self.all(".example .head .mark")}

    def said(self):
        return self.all(".pages output")[0].text

    def show(self, value):
        self.browser.execute_script("arguments[0].click()", self.all(f"[name=show][value={value}]")[0])

    def press(self, key):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(key).perform()


def expected(*outcomes, count=100):
    made = [record(index) for index in range(count)]
    kinds = [
        "error" if one.error else "unread" if one.parsed is None else "right" if one.score else "wrong" for one in made
    ]
    return [one.id for one, kind in zip(made, kinds) if kind in outcomes]


def test_filters_pages_and_their_address(browser, evaluation):
    view = View(browser, evaluation)
    assert view.said() == "1 to 24 of 100"
    view.show("unread")
    assert (view.ids(), view.marks()) == (expected("unread"), {"? unreadable"})
    view.show("wrong")
    wrong = expected("wrong")
    assert view.ids() == wrong[:24]
    assert view.said() == f"1 to {min(24, len(wrong))} of {len(wrong)}"
    assert browser.current_url.endswith("#view:show=wrong")
    view.show("all")
    view.press("n")
    assert view.said() == "25 to 48 of 100"
    assert view.ids()[0] == "made-0024"
    browser.back()
    assert view.said() == "1 to 24 of 100"


def test_a_view_can_be_linked(browser, evaluation):
    task = quote("blocks\ntest")
    view = View(browser, f"{evaluation}#view:show=wrong&task={task}&part=place&sort=low")
    assert view.marks() == {"✗ wrong"}
    made = [record(index) for index in range(100)]
    assert view.ids() == [one.id for one in made if one.id in expected("wrong") and one.part == "place"]
    part = view.all("[name=part]")[0]
    assert part.get_attribute("value") == "place"
    assert len(view.all(".box.expected")) == len(view.ids())
    view = View(browser, f"{evaluation}#view:item=41")
    assert (view.ids(), view.said()) == (["made-0041"], "one item of 100")
    view.all(".pages .whole")[0].click()
    assert view.said() == "1 to 24 of 100"
    view = View(browser, f"{evaluation}#view:show=nonsense&page=-3&item=9999&other=1")
    assert view.said() == "1 to 24 of 100"
    breakdown = View(browser, evaluation).all("#evaluation a[href^='#view:show=wrong']")[0]
    count = int(breakdown.text)
    browser.execute_script("arguments[0].click()", breakdown)
    from serve.browsing import until

    until(lambda: view.said().endswith(f" of {count}"), "the link leads to the answers")


def test_search_and_keys(browser, evaluation):
    from serve.browsing import until

    view = View(browser, evaluation)
    view.press("/")
    view.press("timed out")
    until(lambda: view.ids() == expected("error"), "errors are found by their words")
    assert browser.current_url.endswith("#view:q=timed+out")
    view.press("\ue00c")  # Escape leaves the field
    view.press("j")
    assert browser.switch_to.active_element.get_attribute("class").startswith("example")
    View(browser, evaluation)
    view.press("/")
    view.press("made-0042")
    until(lambda: view.ids() == ["made-0042"], "an item is found by its id")


def test_without_script_the_first_items_stand_there(folder, evaluation):
    from serve.browsing import chromium

    with chromium(folder / "without") as browser:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        browser.get(evaluation)
        assert len(browser.find_elements("css selector", "article.example img")) == 24
        assert not browser.find_element("css selector", ".filter").is_displayed()
        assert "The first 24 of 100 items" in browser.find_element("css selector", "#examples").text


def test_columns_sort(browser, comparison):
    view = View(browser, comparison)

    def names():
        return [one.text.split("\n")[0] for one in view.all(".compare tbody th")]

    assert names() == [*NAMES, "emu3"]
    head = view.all(".compare thead th")[1]
    head.find_element("css selector", "button").click()
    best = names()
    assert best[-1] == "emu3"  # without a score, last either way
    scores = [float(one.get_attribute("data-value") or -1) for one in view.all(".compare tbody td:nth-child(2)")]
    assert scores == sorted(scores, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.find_element("css selector", "button").click()
    assert names() == [*best[-2::-1], "emu3"]
    assert head.get_attribute("aria-sort") == "ascending"


def test_where_designs_differ(browser, comparison):
    view = View(browser, f"{comparison}#view:show=differ")
    marks = [one.text for one in view.all(".example:first-child .given .mark")]
    assert len(marks) == len(NAMES)
    assert "✓ right" in marks
    assert len(set(marks)) > 1


def test_hostile_words_stay_words(browser, folder):
    records = [record(index, word=HOSTILE) for index in range(30)]
    data = ReportData(title=HOSTILE, records=[TaskRecords(task=HOSTILE, split=HOSTILE, records=records)])
    view = View(browser, write_report(folder / "hostile", data).as_uri())
    assert HOSTILE in view.all(".example .question")[0].text
    assert view.all(".example img, .example b, .example script") == []
    assert len(view.all(".example")) == 24


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser, evaluation, comparison, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    for url in (evaluation, comparison):
        View(browser, url)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
