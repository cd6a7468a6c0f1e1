"""The page in a real browser: draw, edit with a painted mask, stop, vote from two browsers."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import small

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), "")
LACKING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
LACKING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.slow,  # tests/test_studio.py and tests/test_study.py have what is behind the page
    pytest.mark.skipif(bool(LACKING), reason=f"no page to open: {', '.join(LACKING)} missing"),
]
PROMPTS = ["a cat", "a dog", "a red circle"]
MANY_STEPS = 4000  # a few seconds of drawing: a hundred are over before Stop is pressed
PATIENCE = 300_000  # milliseconds; the first drawing is compiled, perhaps on a busy machine


@contextmanager
def served(folder: Path, *flags: str):
    """The command, and the address of its page; it is ended as by `kill`."""
    command = [sys.executable, "-m", "paella_jax.serve", "--port", "0", *flags]
    environment = os.environ | small.COMPILE_CHEAPLY | {"PYTHONPATH": str(small.ROOT)}
    log = (folder / "serve.log").open("a")
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=log,
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.search(r"serving at (http\S+)", line):
                break
        else:
            raise AssertionError((folder / "serve.log").read_text())
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()
        log.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs that draw noise, of six and of forty steps, and a file of prompts."""
    folder = tmp_path_factory.mktemp("page")
    small.untrained(folder / "first", small.small_paella(sampler__num_steps=6))
    small.untrained(folder / "second", small.small_paella(sampler__num_steps=8))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


# The tests run as root in containers, where chromium has no sandbox of its own.
CHROMIUM_OPTIONS = {
    "executable_path": CHROMIUM,
    "args": ["--no-sandbox", "--disable-dev-shm-usage"],
}


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(**CHROMIUM_OPTIONS)
    yield browser
    browser.close()


@contextmanager
def visit(browser, address: str):
    """A page of a browser of its own; it must ask nobody else for anything."""
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    context.set_default_timeout(PATIENCE)
    hosts: set[str] = set()
    page = context.new_page()
    page.on(
        "request", lambda request: hosts.add(re.sub(r"^(\w+:(//[^/]+)?).*", r"\1", request.url))
    )
    page.goto(address)
    page.locator("#prompt textarea").wait_for()
    yield page
    context.close()
    assert {host for host in hosts if host.startswith("http")} == {address}


def expect(page, field: str, text: str) -> None:
    """Waits until a field says something."""
    from playwright.sync_api import expect as wait_for

    wait_for(page.locator(f"{field} textarea")).to_have_value(re.compile(text), timeout=PATIENCE)


def draw(page, ends: str = "first: done\nsecond: done") -> None:
    page.click("#draw")
    expect(page, "#status", ends)


def images(page, number: int, count: int = 2) -> list[str]:
    """Where the images of a run's gallery are, once there are so many."""
    from playwright.sync_api import expect as wait_for

    found = page.locator(f"#images-{number} button img")
    wait_for(found).to_have_count(count, timeout=PATIENCE)
    return [found.nth(place).get_attribute("src") for place in range(count)]


def vote_on_all(page, *votes) -> None:
    """Votes as given on the pairs that come one after another."""
    page.get_by_role("tab", name="Blind study").click()
    page.click("#study-begin")
    for number, vote in enumerate(votes):
        expect(page, "#study-note", f"{number} of 3")
        vote(page)
    expect(page, "#study-note", "Thank you")


def by_key(key):
    return lambda page: page.keyboard.press(key)


def by_click(what):
    return lambda page: page.click(what)


def test_the_page(folder, browser, playwright, tmp_path):
    runs = ("--checkpoint", "first", "--checkpoint", "second", "--prompts", "prompts.txt",
            "--most_steps", str(MANY_STEPS))  # fmt: skip
    with served(folder, *runs) as address, visit(browser, address) as page:
        draws_edits_and_stops(page)
        with visit(browser, address) as gone:
            draws_long(gone)
        is_killed_after_a_vote(playwright, address, tmp_path / "profile")
        vote_on_all(page, by_key("ArrowLeft"), by_click("#study-right img"),
                    by_click("#vote-same"))  # fmt: skip
        with visit(browser, address) as other:  # while the first one is still there
            vote_on_all(other, *[by_key("ArrowRight")] * 3)
        page.reload()
        vote_on_all(page)  # a browser is known again: there is nothing left to vote on
    with served(folder, *runs) as address, visit(browser, address) as page:
        page.get_by_role("tab", name="Results").click()
        page.locator("#results", has_text="6 votes").wait_for()
        with page.expect_download() as download:
            page.click("#votes-csv")
        download.value.save_as(tmp_path / "votes.csv")
        rows = list(csv.DictReader((tmp_path / "votes.csv").open()))
        of_killed, *rows = rows
        assert of_killed["choice"] == "right", "what was told as stored stays"
        assert sorted(row["prompt"] for row in rows) == sorted(PROMPTS * 2)
        assert [row["choice"] for row in rows[:3]] == ["left", "right", "same"]
        assert {row["choice"] for row in rows[3:]} == {"right"}
        assert {row["left_run"] for row in rows} <= {"first", "second"}
    assert "Traceback" not in (folder / "serve.log").read_text()


def is_killed_after_a_vote(playwright, address, profile):
    """A browser that dies while it draws: others need not wait for what it asked for."""
    visitor = playwright.chromium.launch_persistent_context(profile, **CHROMIUM_OPTIONS)
    page = visitor.new_page()
    page.goto(address)
    page.get_by_role("tab", name="Blind study").click()
    page.click("#study-begin")
    expect(page, "#study-note", "0 of 3")
    page.keyboard.press("ArrowRight")
    expect(page, "#study-note", "1 of 3")
    page.get_by_role("tab", name="Draw").click()
    draws_long(page)
    subprocess.run(["pkill", "-KILL", "-f", f"user-data-dir={profile}"], check=True)


def draws_long(page):
    """Begins what takes much longer than anybody waits for."""
    page.fill("#prompt textarea", "a large red circle")
    page.fill("#count input", "2")
    page.fill("#steps textarea", str(MANY_STEPS))
    page.click("#draw")
    expect(page, "#status", "first: step")


def draws_edits_and_stops(page):
    """One visitor's way through the first tab."""
    page.fill("#prompt textarea", "a large red circle")
    page.fill("#count input", "2")
    draw(page)
    before = images(page, 0)
    assert not {*before} & {*images(page, 1)}
    page.locator(".take").first.click()
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)  # the editor shows its image without telling anybody
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=8)
    page.mouse.up()
    draw(page)
    assert images(page, 0) != before
    page.get_by_label("text to image").check()
    draws_long(page)
    page.click("#stop")
    expect(page, "#status", "first: stopped at step .*\nsecond: stopped")


def test_a_second_server_on_the_port_is_told(folder):
    with served(folder, "--checkpoint", "first") as address:
        port = address.rpartition(":")[2]
        command = [sys.executable, "-m", "paella_jax.serve", "--checkpoint", "first"]
        environment = os.environ | {"PYTHONPATH": str(small.ROOT)}
        ended = subprocess.run([*command, "--port", port], cwd=folder, env=environment, text=True,
                               capture_output=True, check=False)  # fmt: skip
        assert ended.returncode == 2 and f"error: port {port} is taken" in ended.stderr
