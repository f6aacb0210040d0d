"""The page of ``psd-gs rank`` in a real browser, by keys and by touch; see chromium.py for what it needs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from chromium import chromium
from ranked import Client, make_runs

from psd_gs.export.formats import load
from psd_gs.export.pictures import turntable_film
from psd_gs.ranking.answers import read_answers
from psd_gs.ranking.server import Session

pytestmark = pytest.mark.browser


def eventually(test: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not test():
        assert time.monotonic() < deadline, test
        time.sleep(0.1)


def test_pairs_are_answered_by_keys_and_touch(tmp_path):
    outputs = make_runs(tmp_path / "outputs", ["a cube"], each=3)
    for run in outputs.iterdir():
        turntable_film(load(run / "splat.ply"), run / "turntable.mp4", frames=8, size=64)
    session = Session([outputs], tmp_path / "pairs.jsonl", "ada", repeats=1)
    with Client(session) as client, chromium(tmp_path, "--window-size=390,700") as driver:
        driver.get(client.server.url)
        body = driver.find_element("tag name", "body")
        eventually(lambda: driver.find_element("id", "prompt").text == "a cube")
        playing = "return [...document.querySelectorAll('video')].every(v => v.videoWidth > 0 && !v.paused)"
        eventually(lambda: driver.execute_script(playing))
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        for button in driver.find_elements("tag name", "button"):
            assert button.size["height"] >= 40, button.text
            assert button.location["y"] + button.size["height"] <= 700, "below the edge of a phone"
        driver.save_screenshot(str(tmp_path / "page.png"))
        body.send_keys("7")
        body.send_keys("5")
        eventually(lambda: len(read_answers(session.path)) == 1 if session.path.exists() else False)
        eventually(lambda: driver.find_element("id", "progress").get_attribute("value") == "1")
        driver.find_element("css selector", "[data-verdict='2']").click()
        eventually(lambda: driver.find_element("id", "progress").get_attribute("value") == "2")
        body.send_keys("s")
        eventually(lambda: driver.find_element("id", "progress").get_attribute("value") == "3")
        body.send_keys("1")
        eventually(lambda: "Thank you" in driver.find_element("id", "prompt").text)
        assert "same winner 1 of 1" in driver.find_element("id", "facts").text
        complaints = [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]]
        assert complaints == []
    assert [answer.verdict for answer in read_answers(session.path)] == [2, -1, None, -2]
