"""The web page of ``seq2seq-ext serve``: its files and their fence, and in Chromium what it does.

The tests in the browser need the package selenium and the programs chromium and chromedriver
(Debian: ``apt install chromium chromium-driver``) and are skipped without them.
"""

from __future__ import annotations

import os
import re
import shutil

import pytest
from serving_cases import ATTENDING, new_run, served

from seq2seq_ext.training import save_run

pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FILES = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/attention.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = {"attending": new_run(**ATTENDING), "plain": new_run()}
    for name, run in runs.items():
        save_run(folder / name, run)
    return folder, runs


@pytest.fixture(scope="module")
def url(runs):
    folder, trained = runs
    limits = ("--max-length", "60", "--max-beams", "4")
    with served(*(folder / name for name in trained), options=limits) as process:
        yield process.url


@pytest.mark.parametrize("path", FILES)
def test_files_are_served_behind_a_strict_policy(url, path):
    with httpx.Client(base_url=url, trust_env=False) as client:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].partition(";")[0] == FILES[path]
        policy = dict(
            part.strip().partition(" ")[::2]
            for part in answer.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        # What the policy forbids, and what would write HTML, is not in the files either.
        for forbidden in (
            "innerHTML",
            "insertAdjacentHTML",
            "eval(",
            "style=",
            "onclick",
            "https:",
        ):
            assert forbidden not in answer.text

        assert client.head(path).content == b""
        again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.post(path).status_code == 405


@pytest.fixture(scope="module")
def chromium():
    selenium = pytest.importorskip("selenium", reason="needs the extra [test]")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs the programs chromium and chromedriver")
    from selenium import webdriver

    assert selenium
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Root, as in a container, has no sandbox; shared memory there is small.
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    for argument in ["--headless=new", "--disable-dev-shm-usage", "--no-proxy-server", *sandbox]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(20)
        yield driver


@pytest.fixture
def page(chromium, url):
    """The page, loaded anew, with its models."""
    resize(chromium, 1200, 900)
    chromium.get(url)
    until(chromium, "return document.querySelectorAll('#model option').length === 2")
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def resize(driver, width, height, scheme="light"):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(driver, script, *arguments):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 20).until(lambda _: driver.execute_script(script, *arguments))


def find(driver, selector):
    return driver.find_element("css selector", selector)


def texts(driver, selector):
    return [each.text for each in driver.find_elements("css selector", selector)]


def type_in(driver, text, selector="#text"):
    """By the keyboard, as people do; Enter ends it."""
    field = find(driver, selector)
    field.clear()
    field.send_keys(text)


def converted(driver, text):
    type_in(driver, text + "\n")
    until(driver, "return /words\\/s/.test(document.getElementById('status').textContent)")


def test_a_word_is_converted_with_its_n_best_and_its_speed(page, runs):
    converted(page, "badge")
    own = runs[1]["attending"].n_best(["badge"], 3, num_beams=4)[0]
    assert texts(page, "#results h3") == ["badge"]
    assert texts(page, "#results tbody td:nth-child(2)") == [each.text for each in own]
    scores = [float(text) for text in texts(page, "#results tbody td:nth-child(3)")]
    assert scores == pytest.approx([each.score for each in own], abs=6e-4)
    told = re.fullmatch(
        r"(\d+) word in ([\d.,]+) ms: ([\d.,]+) words/s", find(page, "#status").text
    )
    words, milliseconds, rate = (float(part.replace(",", "")) for part in told.groups())
    assert rate == pytest.approx(1000 * words / milliseconds, rel=0.02)


def test_the_picture_shows_the_attention_of_the_chosen_result(page, runs):
    converted(page, "badge")
    asked = {"num_beams": 4, "return_attention": True}
    own = runs[1]["attending"].n_best(["badge"], 3, **asked)[0]
    for rank, hypothesis in enumerate(own):
        page.find_elements("css selector", "#results td button")[rank].click()
        labels = texts(page, "#map svg text")
        assert labels == [*"badge", *hypothesis.tokens]
        pressed = [
            button.get_attribute("aria-pressed")
            for button in page.find_elements("css selector", "#results td button")
        ]
        assert pressed == ["true" if i == rank else "false" for i in range(3)]
        cells = page.execute_script(
            "return [...document.querySelectorAll('#map svg .cell')].map((cell) => "
            "['x', 'y', 'fill-opacity'].map((name) => Number(cell.getAttribute(name))))"
        )
        left, top = page.execute_script(
            "const ground = document.querySelector('#map svg .ground');"
            "return ['x', 'y'].map((name) => Number(ground.getAttribute(name)))"
        )
        seen = {((y - top) // 28, (x - left) // 28): weight for x, y, weight in cells}
        for i, row in enumerate(hypothesis.alignments.tolist()):
            for j, weight in enumerate(row):
                assert seen.get((i, j), 0) == pytest.approx(weight, abs=0.0101)
    label = find(page, "#map svg").get_attribute("aria-label")
    assert label.startswith(f"Attention. {own[-1].tokens[0]} from ")


def test_a_model_without_attention_has_no_picture(page, runs):
    find(page, "#model option[value=plain]").click()
    assert "no attention" in find(page, "#about").text
    converted(page, "badge")
    best = runs[1]["plain"].n_best(["badge"], 3, num_beams=4)[0]
    assert texts(page, "#results tbody td:nth-child(2)") == [each.text for each in best]
    assert not find(page, "#attention").is_displayed()


def test_several_texts_have_a_table_each(page):
    from selenium.webdriver.common.keys import Keys

    line = Keys.SHIFT + Keys.ENTER + Keys.NULL
    converted(page, "ox" + line + "goose" + line + line + "mouse mice")
    assert texts(page, "#results h3") == ["ox", "goose", "mouse mice"]
    assert find(page, "#status").text.startswith("4 words in ")


def test_what_the_service_refuses_is_shown(page):
    converted(page, "ox")
    type_in(page, "x" * 61 + "\n")
    until(page, "return !document.getElementById('error').hidden")
    assert find(page, "#error").text == "text 0 must have at most 60 tokens, got 61"
    assert find(page, "#error").get_attribute("role") == "alert"
    assert texts(page, "#results h3") == []
    assert not find(page, "#attention").is_displayed()
    refused = page.get_log("browser")  # Chromium logs what has a status of 400 and above
    assert all("413" in entry["message"] for entry in refused)
    converted(page, "ox")
    assert not find(page, "#error").is_displayed()


def test_a_hostile_text_stays_text(page):
    converted(page, HOSTILE)
    assert texts(page, "#results h3") == [HOSTILE]
    assert page.title == "Translate · seq2seq_ext"
    assert page.find_elements("css selector", "main img") == []


def test_the_browser_keeps_the_policy(page, url):
    """Were a hole in the page's own code, its policy would still run nothing."""
    attempts = {
        "script": "const s = document.createElement('script'); s.text = 'window.broken = 1';"
        "document.body.append(s)",
        "html": "document.body.innerHTML = '<p>'",
        "handler": "document.body.setAttribute('onclick', 'window.broken = 1');"
        "document.body.click()",
    }
    for script in attempts.values():
        page.execute_script(f"try {{ {script} }} catch (error) {{}}")
    other = page.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "fetch('http://127.0.0.2:9/').then(() => done('sent'), (error) => done(error.name))"
    )
    assert other == "TypeError"
    assert page.execute_script("return window.broken === undefined")
    assert find(page, "#form").is_displayed()
    logged = " ".join(entry["message"] for entry in page.get_log("browser"))
    assert "connect-src 'self'" in logged


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_no_width_needs_scrolling_sideways(page, width):
    resize(page, width, 800)
    converted(page, "abcdefghijklmnopqrstuvwxyz" * 2)
    over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.execute_script(over) <= 0
    for selector in ("#text", "#convert", "#results table", "#map svg"):
        assert find(page, selector).is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_their_ground(page, scheme):
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5."""
    resize(page, 1200, 900, scheme)
    converted(page, "badge")
    pairs = page.execute_script(
        """
        const ground = (node) => {
            for (let at = node; at !== null; at = at.parentElement) {
                const color = getComputedStyle(at).backgroundColor;
                if (color !== "rgba(0, 0, 0, 0)") return color;
            }
        };
        const seen = ["h1", "#about", "#hint", "#text", "#convert", "#status", "h3", "th",
            "td.number", "td.text button", "h2", "figcaption p"];
        return seen.map((selector) => {
            const node = document.querySelector(selector);
            return [selector, getComputedStyle(node).color, ground(node)];
        });
        """
    )

    def luminance(color):
        channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for selector, ink, ground in pairs:
        low, high = sorted((luminance(ink), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    is_dark = luminance(pairs[0][2]) < 0.2
    assert is_dark == (scheme == "dark")


def test_a_service_that_is_gone_is_told(chromium, runs):
    with served(runs[0] / "plain") as process:
        chromium.get(process.url)
        until(chromium, "return document.querySelectorAll('#model option').length === 1")
        process.kill()
        process.wait(timeout=10)
        type_in(chromium, "ox\n")
        until(chromium, "return !document.getElementById('error').hidden")
        assert find(chromium, "#error").text == "The service cannot be reached."
    chromium.get_log("browser")
