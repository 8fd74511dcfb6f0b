"""The Space in a real browser: typing, painting, watching, exploring, sharing, bad input, screens, keyboard.

Screens are compared by content, never by pixels. Set AIR_SCREENSHOTS=FOLDER to keep a picture of every screen of the
slow walk.
"""

import io
import json
import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
import torch

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")

from conftest import tiny_config
from playwright.sync_api import sync_playwright

from air_model import AirModel
from air_model.spaces_demo import app
from air_model.spaces_demo.engine import Checkpoint, Engine
from air_model.spaces_demo.turns import Turns

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="Debian's Chromium is not installed")
FOUR = "1..............."
MODELS = {
    "four": ("Lx_H", {}),
    "four-symmetric": ("Lx_Hx", {}),
    "six": ("Lx_H", {"grid_height": 6}),
    "nine": ("Lx_H", {"grid_height": 9}),
    "maze": ("Lx_H", {"task": "maze", "grid_height": 8}),
}


@pytest.fixture(scope="module")
def url():
    checkpoints = []
    for key, (variant, fields) in MODELS.items():
        torch.manual_seed(0)
        config = tiny_config(variant, **fields)
        checkpoints.append(Checkpoint(key, "memory", config, model=AirModel(config).eval()))
    demo = app.build(Engine(checkpoints))
    app.TURNS = Turns()
    _, url, _ = app.launch(demo, prevent_thread_lock=True, server_name="127.0.0.1")
    yield url
    demo.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Page:
    """A visitor's page; collects script errors and requests that would leave the machine."""

    def __init__(self, browser, url: str, query: str = "", **context):
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("request", self._watch)
        self.page.goto(url + query, wait_until="domcontentloaded")
        self.page.wait_for_selector("html[data-air=ready]")
        self.page.wait_for_function("AIR.S.boards.editor.text.trim().replaceAll('.', '') !== ''")

    def _watch(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.faults.append(f"request: {request.url}")

    def __enter__(self):
        return self.page

    def __exit__(self, *error) -> None:
        self.context.close()
        if error == (None, None, None):
            assert self.faults == []


@pytest.fixture
def visit(browser, url):
    return lambda query="", **context: Page(browser, url, query, **context)


def text_of(page, board: str) -> str:
    return page.evaluate(f"AIR.S.boards['{board}'].text")


def choose(page, key: str) -> None:
    page.get_by_role("button", name="Maze" if key == "maze" else "Sudoku", exact=True).click()
    page.select_option("#air-model", key)
    page.wait_for_function("AIR.S.boards.editor.text.trim().replaceAll('.', '') !== ''")


def solve(page) -> None:
    page.click("#air-solve")
    page.wait_for_selector("[data-view=verdict] .verdict")
    page.wait_for_function("AIR.S.run && AIR.S.liveShown === AIR.S.run.frames.h.length")


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def use_text(page, text: str) -> None:
    if not page.locator("#air-text").is_visible():
        page.click(".paste summary")
    page.fill("#air-text", text)
    page.click("#air-use")


def wait_for_message(page, words: str) -> None:
    page.wait_for_function("words => document.querySelector('#air-message').textContent.includes(words)", arg=words)


def test_a_click_on_solve_streams_both_states_to_a_verdict(visit):
    with visit() as page:
        page.uncheck("#air-halt")
        solve(page)
        assert page.evaluate("AIR.S.run.frames.h.length") == 24
        page.wait_for_function("AIR.S.boards['live-h'].text === AIR.S.run.end.solution")  # played to its end
        assert page.locator("#board-live-h [role=gridcell]").count() == 16
        words = page.inner_text("[data-view=verdict]")
        assert "Confidence" in words and "ACT steps" in words and ("Solved" in words or "Not solved" in words)


def test_solve_pressed_before_the_first_puzzle_is_there_solves_that_puzzle(visit):
    with visit() as page:
        page.evaluate(
            """() => {
                AIR.S.boards.editor.setText(AIR.S.task.blank.repeat(AIR.S.boards.editor.text.length));
                document.querySelector('#air-new').click();
                document.querySelector('#air-solve').click();
            }"""
        )
        page.wait_for_selector("[data-view=verdict] .verdict")
        puzzle = page.evaluate("AIR.S.run.puzzle")
        assert set(puzzle) - {"."} and puzzle == text_of(page, "editor")


def test_a_sudoku_is_typed_with_the_keyboard_and_conflicts_show_at_once(visit):
    with visit() as page:
        page.click("#air-clear")
        page.locator("#board-editor .ab-cell").nth(0).click()
        page.keyboard.press("3")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("4")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("3")
        assert text_of(page, "editor") == "34...3.........."
        assert "Box 1 holds two 3s." in page.inner_text("#air-message")
        assert page.locator("#board-editor [aria-invalid=true]").count() == 2
        page.keyboard.press("Backspace")
        assert text_of(page, "editor") == "34.............." and page.locator("[aria-invalid=true]").count() == 0
        page.keyboard.press("9")  # no digit of a 4x4
        page.keyboard.press("x")
        assert text_of(page, "editor") == "34.............."
        label = page.locator("#board-editor .ab-cell").nth(0).get_attribute("aria-label")
        assert label == "Row 1, column 1, clue 3"


def test_a_contradicting_grid_is_not_sent_to_the_model(visit):
    with visit() as page:
        page.click("#air-clear")
        cells = page.locator("#board-editor .ab-cell")
        for i in (0, 3):
            cells.nth(i).click()
            page.keyboard.press("2")
        page.click("#air-solve")
        assert "Row 1 holds two 2s. Mend that first" in page.inner_text("#air-message")
        assert page.evaluate("AIR.S.run") is None


def test_explore_says_why_a_puzzle_does_not_run(visit):
    with visit() as page:
        page.click("#air-clear")
        for i in (0, 3):
            page.locator("#board-editor .ab-cell").nth(i).click()
            page.keyboard.press("2")
        open_tab(page, "Explore")
        page.click("#ex-run")
        assert "Row 1 holds two 2s." in page.inner_text("#ex-message")


def test_a_maze_is_painted_with_the_mouse(visit):
    with visit() as page:
        choose(page, "maze")
        page.click("#air-clear")
        assert "Place the start S and the goal G." in page.inner_text("#air-message")
        cells = page.locator("#board-editor .ab-cell")
        page.get_by_role("button", name="Start").click()
        cells.nth(0).click()
        page.get_by_role("button", name="Goal").click()
        cells.nth(5).click()
        page.get_by_role("button", name="Wall").click()
        cells.nth(16).hover()
        page.mouse.down()
        cells.nth(19).hover()
        page.mouse.up()
        assert text_of(page, "editor").replace(" ", ".") == "S....G.." + "." * 8 + "####" + "." * 44
        solve(page)
        page.wait_for_function("AIR.S.boards['live-l'].text === AIR.S.run.frames.l.at(-1)")  # played to its end


BAD_TEXTS = {
    "12": "2 cells",
    "11" + "." * 14: "Contradicting clues: row 1, column 1",
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>": "Foreign letter '<'",
    "1" * 30_000: "30,000 characters",
    "S" + "#" * 62 + "G": "No path leads from S",
    "": "empty text",
}


def test_bad_text_gets_a_friendly_sentence_and_the_page_lives_on(visit):
    with visit() as page:
        for text, words in BAD_TEXTS.items():
            use_text(page, text)
            wait_for_message(page, words)
            assert page.evaluate("window.hacked") is None
        use_text(page, FOUR)
        page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=FOUR)
        solve(page)


def test_pasted_text_of_another_size_chooses_the_model_that_fits(visit):
    with visit() as page:
        use_text(page, "12" + "." * 34)
        page.wait_for_function("AIR.S.ck.key === 'six'")
        assert page.locator("#board-editor .ab-cell").count() == 36


def test_a_link_brings_puzzle_and_settings_back(visit):
    query = f"?puzzle={FOUR}&checkpoint=four-symmetric&halt=max&freeze=z_l&from=2&steps=3&attempts=2"
    with visit(query) as page:
        page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=FOUR)
        wait_for_message(page, "from the link")
        assert page.input_value("#air-model") == "four-symmetric" and not page.is_checked("#air-halt")
        values = [page.input_value(f"#if-{name}") for name in ("freeze", "from", "steps", "attempts")]
        assert values == ["z_l", "2", "3", "2"]
        open_tab(page, "Share")
        link = parse_qs(urlparse(page.input_value("#sh-link")).query)
        assert link["puzzle"] == [FOUR] and link["checkpoint"] == ["four-symmetric"] and link["halt"] == ["max"]


def test_exploring_scrubs_reads_attention_and_compares(visit):
    with visit() as page:
        page.uncheck("#air-halt")
        solve(page)
        page.click("#air-explore")
        assert page.get_by_role("tab", name="Explore").get_attribute("aria-selected") == "true"
        scrubber = page.get_by_role("slider", name="Update")
        scrubber.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert text_of(page, "a-l") == page.evaluate("AIR.S.run.frames.l[1]")
        assert "ACT step 1 of 4 · update 2: L" in page.inner_text("#ex-count")
        assert page.locator("[data-view=charts] svg").count() == 3
        page.locator("#board-a-h .ab-cell").nth(6).click()
        page.wait_for_selector("#board-look-l .is-query")
        heat = page.evaluate("AIR.S.boards['look-l'].cells.map(c => Number(c.dataset.heat))")
        assert abs(sum(heat) - 1000) < 5
        assert page.locator("#board-look-h .is-near").count() == 8
        page.select_option("#if-model", "four-symmetric")
        page.select_option("#if-freeze", "z_l")
        page.click("#if-run")
        page.wait_for_selector("[data-view=compare] .verdict")
        assert "four-symmetric · zL frozen from the start" in page.inner_text("[data-view=compare]")
        assert page.evaluate("new Set(AIR.S.other.frames.l).size") == 1


def test_downloads_hold_the_run(visit):
    from PIL import Image

    with visit() as page:
        solve(page)
        open_tab(page, "Share")

        def download(button: str) -> bytes:
            with page.expect_download() as waiting:
                page.click(button)
            return Path(waiting.value.path()).read_bytes()

        content = json.loads(download("#sh-json"))
        assert content["z_h"] == page.evaluate("AIR.S.run.frames.h") and content["puzzle"] == content["puzzle"]
        picture = Image.open(io.BytesIO(download("#sh-png")))
        assert picture.format == "PNG" and picture.width > picture.height > 200
        movie = Image.open(io.BytesIO(download("#sh-gif")))
        assert movie.format == "GIF" and movie.n_frames == len(content["z_h"]) and movie.size == picture.size
        movie.seek(movie.n_frames - 1)
        apart = [abs(a - b) for a, b in zip(movie.convert("RGB").resize((90, 50)).tobytes(),
                                            picture.convert("RGB").resize((90, 50)).tobytes())]  # fmt: skip
        assert sum(apart) / len(apart) < 3  # the last frame is the picture


def test_the_keyboard_alone_goes_from_tab_to_tab_and_solves(visit):
    with visit() as page:
        page.get_by_role("tab", name="Solve").focus()
        for name in ("Explore", "Learn", "Share", "Solve"):
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.textContent") == name
            assert page.locator(f"#panel-{name.lower()}").is_visible()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "air-solve":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-view=verdict] .verdict")


UNNAMED = """() => [...document.querySelectorAll("button, select, input, textarea, [role=grid], svg[role=img]")]
    .filter((e) => !e.closest(".air-wire") && e.type !== "hidden")
    .filter((e) => ![e.getAttribute("aria-label"), e.labels && e.labels[0] && e.labels[0].textContent, e.textContent]
        .some((name) => (name || "").trim()))
    .map((e) => e.outerHTML.slice(0, 120))"""


def test_every_control_has_a_name_for_screen_readers(visit):
    with visit() as page:
        solve(page)
        assert page.evaluate(UNNAMED) == []
        assert page.locator("#board-editor [role=grid]").get_attribute("aria-label") == "Puzzle"


def test_two_visitors_see_only_their_own_puzzles(visit):
    with visit() as one, visit() as two:
        use_text(one, FOUR)
        use_text(two, "." * 15 + "2")
        one.wait_for_function("text => AIR.S.boards.editor.text === text", arg=FOUR)
        two.wait_for_function("AIR.S.boards.editor.text.endsWith('2')")
        one.click("#air-solve")
        solve(two)
        one.wait_for_selector("[data-view=verdict] .verdict")
        assert one.evaluate("AIR.S.run.end.puzzle") == FOUR
        assert two.evaluate("AIR.S.run.end.puzzle") == "." * 15 + "2"


def test_ten_pages_at_once_are_served_in_turn_and_each_sees_its_own_puzzle(visit):
    puzzles = ["." * i + "1" + "." * (15 - i) for i in range(10)]
    with ExitStack() as open_pages:
        pages = [open_pages.enter_context(visit()) for _ in puzzles]
        for page, puzzle in zip(pages, puzzles):
            use_text(page, puzzle)
            page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=puzzle)
            page.uncheck("#air-halt")
        for page in pages:
            page.evaluate("document.querySelector('#air-solve').click()")  # nobody waits for anybody
        for page, puzzle in zip(pages, puzzles):
            page.wait_for_selector("[data-view=verdict] .verdict")
            assert page.evaluate("AIR.S.run.end.puzzle") == puzzle
            assert page.evaluate("AIR.S.run.frames.h.length") == 24
            page.wait_for_function("AIR.S.boards['live-h'].text === AIR.S.run.frames.h.at(-1)")  # played to its end


def test_the_switch_between_sudoku_and_maze_takes_the_best_model_of_each(visit):
    with visit() as page:
        page.get_by_role("button", name="Maze", exact=True).click()
        assert page.input_value("#air-model") == "maze" and page.locator("#board-editor .ab-cell").count() == 64
        page.get_by_role("button", name="Sudoku", exact=True).click()
        assert page.input_value("#air-model") == "four"
        assert page.locator("#air-model option").count() == 4


def test_a_maze_can_be_drawn_where_no_maze_model_is_installed_and_the_page_says_so(browser):
    drawn = "document.querySelector('[data-view=figure]').textContent.includes('No maze model')"
    config = tiny_config("Lx_H")
    demo = app.build(Engine([Checkpoint("four", "memory", config, model=AirModel(config).eval())]))
    _, url, _ = app.launch(demo, prevent_thread_lock=True, server_name="127.0.0.1")
    try:
        with Page(browser, url) as page:
            page.get_by_role("button", name="Maze", exact=True).click()
            page.wait_for_function("AIR.S.boards.editor.text.includes('S')")
            assert "No maze model is installed here" in page.inner_text("#model-note")
            assert page.locator("#air-solve").is_disabled()
            open_tab(page, "Learn")
            page.wait_for_function(drawn)
            open_tab(page, "Solve")
            page.get_by_role("button", name="Sudoku", exact=True).click()
            assert page.locator("#air-solve").is_enabled()
    finally:
        demo.close()


# Visible text whose contrast with its background is below 4.5 (WCAG AA).
LOW_CONTRAST = """() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const over = (css, below) => {
        context.fillStyle = `rgb(${below})`;
        context.fillRect(0, 0, 1, 1);
        context.fillStyle = css;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const linear = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const background = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
        return layers.reduce((below, css) => over(css, below), [255, 255, 255]);
    };
    const found = [];
    for (const e of document.querySelectorAll(".air-view *, .fig *")) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.getClientRects().length) continue;
        if (e.closest("button:disabled, .idle, .ab-heat, svg, .sr")) continue;
        const back = background(e), front = over(getComputedStyle(e).color, back);
        const [a, b] = [light(front), light(back)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push(`${e.className} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
    }
    return [...new Set(found)].slice(0, 8);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("model", ["nine", "maze"])
def test_every_tab_holds_together_on_every_screen(visit, theme, width, model):
    folder = os.environ.get("AIR_SCREENSHOTS")
    with visit(color_scheme=theme, viewport={"width": width, "height": 900}, has_touch=width < 500) as page:

        def check(name: str) -> None:
            page.wait_for_timeout(900)  # flashes end
            if folder:
                page.screenshot(path=f"{folder}/{model}-{theme}-{width}-{name}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{name} overflows"
            assert page.evaluate(LOW_CONTRAST) == [], name

        assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
        choose(page, model)
        check("1-puzzle")
        page.uncheck("#air-halt")
        solve(page)
        check("2-solved")
        boxes = [page.locator(f"#board-live-{s} .ab-grid").bounding_box() for s in "hl"]
        assert boxes[0]["y"] == boxes[1]["y"] and abs(boxes[0]["width"] - boxes[1]["width"]) < 1  # side by side
        open_tab(page, "Explore")
        page.locator("#board-a-l .ab-cell").nth(3).click()
        page.wait_for_selector("#board-look-l .is-query")
        page.click("#if-run")
        page.wait_for_selector("[data-view=compare] .verdict")
        check("3-explore")
        open_tab(page, "Learn")
        page.wait_for_selector(".film .ab-grid")
        check("4-learn")
        assert page.locator(".learn svg text").count() > 10
        open_tab(page, "Share")
        check("5-share")


@pytest.mark.slow
def test_the_shared_python_and_curl_examples_run_as_shown(visit, url):
    import subprocess

    with visit() as page:
        use_text(page, FOUR)
        page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=FOUR)
        open_tab(page, "Share")
        python, curl = page.inner_text("#code-python"), page.inner_text("#code-curl")
    assert FOUR in python and re.search(r"127\.0\.0\.1:\d+", curl)
    exec(python, {})
    out = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "event: complete" in out


@pytest.mark.slow
def test_stopping_frees_the_model_for_the_next(visit):
    with visit() as page:
        choose(page, "nine")
        page.uncheck("#air-halt")
        page.click("#air-solve")
        page.evaluate("document.querySelector('#air-stop').click()")
        assert page.locator("#air-solve").is_enabled()
        solve(page)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["by itself", "by the button"])
def test_a_refused_sudoku_is_thought_on_node_by_node(visit, ending):
    with visit() as page:
        if ending == "by the button":
            choose(page, "nine")
        assert page.locator("#air-think").count() == 0
        solve(page)
        words = page.inner_text("[data-view=verdict]")
        assert "Not solved" in words and "How often this model is right was not measured." in words
        page.click("#air-think")
        page.wait_for_function("AIR.S.live && AIR.S.live.node && AIR.S.live.node.n > 0")
        if ending == "by the button":
            page.evaluate("document.querySelector('#air-enough').click()")
        page.wait_for_selector("[data-view=verdict] .verdict")
        words = page.inner_text("[data-view=verdict]")
        assert "Nodes" in words and "ACT steps" in words
        assert ("this is the best answer so far" in words) is (ending == "by the button")
        assert page.locator("#board-live-h .is-guess").count() == words.count("in row")
        assert page.locator("#air-think").count() == 0 and page.locator("#air-solve").is_enabled()
        assert page.evaluate("AIR.S.run.frames.h.length") > 0, "the single pass can still be explored"


def test_every_cell_of_an_answer_that_breaks_a_rule_is_marked_until_the_next_answer(visit):
    with visit() as page:
        show = "text => { const b = AIR.S.boards['live-h']; b.setText(text); b.mark(true, [3]); }"
        page.evaluate(show, "12?11...........")
        marked = page.locator("#board-live-h [aria-invalid=true]")
        assert [cell.get_attribute("data-i") for cell in marked.all()] == ["0", "3", "4"]
        assert page.locator("#board-live-h .is-guess").get_attribute("data-i") == "3"
        page.evaluate("AIR.S.boards['live-h'].setText('1234............')")
        assert marked.count() == 0 and page.locator("#board-live-h .is-guess").count() == 0


@pytest.mark.slow
def test_a_file_is_read_in_the_browser_and_large_ones_are_refused(visit):
    with visit() as page:
        page.click(".paste summary")
        page.set_input_files(
            "#air-file", {"name": "a.csv", "mimeType": "text/csv", "buffer": f"question\n{FOUR}\n".encode()}
        )
        page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=FOUR)
        page.set_input_files("#air-file", {"name": "big.txt", "mimeType": "text/plain", "buffer": b"1" * 200_000})
        wait_for_message(page, "200,000 bytes")
