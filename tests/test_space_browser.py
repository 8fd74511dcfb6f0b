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
from typing import Any
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
    "maze": ("Lx_H", {"task": "maze", "grid_height": 8, "position_embedding": "rope2d"}),
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
        CONTEXTS.clear()
        yield browser
        browser.close()


CONTEXTS: dict[str, Any] = {}


class Page:
    """A visitor's page; collects script errors and requests that would leave the machine."""

    def __init__(self, browser, url: str, query: str = "", **context):
        key = json.dumps(context, sort_keys=True)
        if key not in CONTEXTS:  # pages of one kind of screen share what the browser keeps of Gradio's files
            CONTEXTS[key] = browser.new_context(accept_downloads=True, **context)
        self.page = CONTEXTS[key].new_page()
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
        self.page.close()
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
    wait_for_verdict(page)


def wait_for_verdict(page) -> None:
    """The end of a run that was asked for, not of the prepared one."""
    page.wait_for_function("AIR.S.told && AIR.S.run && !AIR.S.run.lesson && !!document.querySelector('.verdict')")


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
        assert text_of(page, "a-h") == page.evaluate("AIR.S.run.end.solution")  # played to its end
        assert page.locator("#board-a-h [role=gridcell]").count() == 16
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
        wait_for_verdict(page)
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
        assert text_of(page, "editor") == "34.............."
        assert page.locator("#board-editor [aria-invalid=true]").count() == 0
        page.keyboard.press("9")
        assert "“9” is no digit of a Sudoku 4×4: its digits are 1 to 4." in page.inner_text("#air-message")
        page.keyboard.press("x")
        assert text_of(page, "editor") == "34.............."
        assert page.inner_text("#board-editor figcaption").split() == ["x", "puzzle"]
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
        assert page.evaluate("AIR.S.run.lesson"), "no run but the prepared one"


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
        assert text_of(page, "a-l") == page.evaluate("AIR.S.run.frames.l.at(-1)")  # played to its end


# Every moment in which the page changed: the update that was shown, and whether a verdict stood there.
WATCH = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const at = [AIR.S.run && !AIR.S.run.lesson ? AIR.S.at : -1, !!document.querySelector(".verdict")];
        if (JSON.stringify(at) !== JSON.stringify(window.seen.at(-1))) window.seen.push(at);
    }).observe(document.body, { childList: true, subtree: true });
}"""


def test_every_update_of_the_first_steps_is_shown_and_the_verdict_comes_last(visit):
    with visit() as page:
        page.wait_for_function("AIR.S.told")  # the prepared run
        assert page.inner_text("#stage-tell").startswith("Prepared run") and page.evaluate("AIR.S.run.lesson")
        page.uncheck("#air-halt")
        page.click("#air-new")
        page.wait_for_function("AIR.S.run === null")
        page.evaluate(WATCH)
        solve(page)
        seen = page.evaluate("window.seen")
        shown = list(dict.fromkeys(at for at, _ in seen if at >= 0))
        assert shown[:12] == list(range(12)) and shown[-1] == 23, "two ACT steps, each update"
        assert {at for at, verdict in seen if verdict} == {23}
        total = "n => { const k = [...Array(n).keys()]; return k.reduce((sum, i) => sum + AIRStage.pace(i), 0); }"
        assert 2000 <= page.evaluate(total, 24) <= 5000
        slow = page.evaluate("[0, 1, 11, 12].map((k) => Math.round(AIRStage.pace(k)))")
        assert slow[:3] == [200, 200, 200] and slow[3] < 200


def test_without_motion_the_end_is_shown_at_once(visit):
    with visit(reduced_motion="reduce") as page:
        page.uncheck("#air-halt")
        page.wait_for_function("AIR.S.told")
        page.evaluate(WATCH)
        solve(page)
        assert {at for at, _ in page.evaluate("window.seen") if at >= 0} <= {23}
        assert page.locator(".fig .is-changed").count() == 0, "nothing stays framed"


def test_the_loop_is_that_of_the_loaded_checkpoint_and_lights_what_an_update_uses(visit):
    with visit() as page:
        lit = "[...document.querySelectorAll('[data-view=loop] .lit.w')].map((w) => w.classList[1]).sort()"
        for key, words, wires in (
            ("four", "only the L-update sees the puzzle", ["w-h-in", "w-h-out", "w-l-in"]),
            ("four-symmetric", "both updates see the puzzle", ["w-h-in", "w-h-out", "w-l-in", "w-x"]),
        ):
            page.select_option("#air-model", key)
            assert words in page.inner_text("#air-tagline")
            solve(page)
            scrubber = page.get_by_role("slider", name="Update")
            scrubber.focus()
            page.keyboard.press("Home")
            assert page.evaluate(lit) == ["w-h-in", "w-l-in", "w-l-out", "w-x"], "the L-update"
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowRight")
            assert page.evaluate(lit) == wires, "the H-update"
            assert page.locator(".w-x.cut").count() == (key == "four")
            assert page.inner_text(".sched").split() == list("LLHLLH")


def test_twins_run_side_by_side_and_are_counted(visit):
    with visit() as page:
        assert page.get_by_role("button", name="scratchpad only").get_attribute("aria-pressed") == "true"
        solve(page)
        titles = [page.inner_text(f"[data-view=title-{run}]") for run in "ab"]
        assert [title.splitlines()[0] for title in titles] == [
            "The puzzle goes to: scratchpad only", "The puzzle goes to: both"
        ]  # fmt: skip
        page.wait_for_function("AIR.S.other.end")
        for run in "ab":
            assert re.search(r"\d+ ACT steps? · (not )?solved", page.inner_text(f"[data-view=title-{run}]"))
        assert page.evaluate("AIR.S.run.puzzle === AIR.S.other.puzzle")
        for board in ("a-h", "a-l", "b-h", "b-l"):
            words = page.inner_text(f"#board-{board} .fig-note")
            assert re.search(r"\d+ of \d+ as in the final answer", words) and "held back" in words
        page.get_by_role("button", name="both", exact=True).click()
        assert page.input_value("#air-model") == "four-symmetric"
        assert page.evaluate("document.activeElement.id") == "twin-both"
        page.select_option("#air-model", "six")  # a model without a twin
        assert not page.locator("#air-twins").is_visible()


def test_failure_counts_its_faults_says_the_odds_and_offers_what_comes_next(visit):
    with visit() as page:
        page.select_option("#air-level", "hard")
        page.wait_for_function("AIR.S.run === null")
        solve(page)
        faults = page.evaluate("AIR.S.run.end.faults.length")
        words = page.inner_text("[data-view=verdict]")
        assert "Not solved" in words and (not faults or f"{faults} cell" in words)
        assert page.locator("#board-a-h .is-conflict").count() == faults
        assert "How often this model is right was not measured." in page.inner_text("#air-odds")
        assert page.locator("#air-think, #air-more, #air-easier").count() == 3
        # A run belongs to its puzzle: an edit greys it, and there is a way back.
        puzzle = text_of(page, "editor")
        cell = puzzle.index(".")
        page.locator("#board-editor .ab-cell").nth(cell).click()
        page.get_by_role("button", name="Enter 1", exact=True).click()
        assert page.locator("[data-view=verdict].stale").count() == 1
        assert "The puzzle has changed since this run." in page.inner_text("#air-stale")
        page.click("#air-back")
        assert text_of(page, "editor") == puzzle and page.locator(".stale").count() == 0
        page.click("#air-easier")
        page.wait_for_function("AIR.S.run === null")
        assert page.input_value("#air-level") == "medium"


@pytest.mark.parametrize("size", [(1440, 720), (1440, 900), (390, 844), (320, 700)])
def test_solve_stands_on_the_first_screen_and_nothing_scrolls_sideways(visit, size):
    with visit(viewport={"width": size[0], "height": size[1]}) as page:
        box = page.locator("#air-solve").bounding_box()
        assert box["y"] + box["height"] <= size[1]
        if size[0] > 1000:
            box = page.locator("#board-a-l .ab-grid").bounding_box()
            assert box["y"] + box["height"] <= size[1], "and so do the loop and both boards"
        page.click(".paste summary")
        box = page.locator("#air-text").bounding_box()
        assert box["height"] >= 100
        assert "mono" in page.evaluate("getComputedStyle(document.querySelector('#air-text')).fontFamily")
        places = set()
        for name in ("Solve", "Explore", "Learn", "Share"):
            open_tab(page, name)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
            places.add(page.locator("[role=tablist]").bounding_box()["x"])
        assert len(places) == 1, "the header stays where it is"


def test_a_large_maze_is_chosen_by_size_and_painted_in_one_stroke(visit):
    with visit() as page:
        page.get_by_role("button", name="Maze", exact=True).click()
        assert "30" in page.locator("#air-size option").evaluate_all("o => o.map((e) => e.value)")
        page.select_option("#air-size", "60")
        page.wait_for_function("AIR.S.boards.editor.text.length === 3600 && AIR.S.boards.editor.text.includes('S')")
        assert page.input_value("#air-model") == "maze"
        page.click("#air-clear")
        cells = page.locator("#board-editor .ab-cell")
        cells.nth(30 * 60).hover()
        page.mouse.down()
        cells.nth(30 * 60 + 59).hover()  # a single move of the pointer: the stroke has no holes
        page.mouse.up()
        assert text_of(page, "editor")[1800:1860] == "#" * 60


def test_a_maze_that_is_not_square_names_its_size_and_stays_as_high_as_a_square_one(visit):
    with visit() as page:
        choose(page, "maze")
        square = page.locator("#board-editor .ab-grid").bounding_box()["height"]
        use_text(page, "S....\n" + 18 * ".....\n" + "....G")
        page.wait_for_function("AIR.S.task.height === 20")
        assert page.evaluate("document.querySelector('#air-size').selectedOptions[0].textContent") == "20×5"
        assert abs(page.locator("#board-editor .ab-grid").bounding_box()["height"] - square) < 2


def test_one_who_waits_reads_how_long_and_a_what_if_can_be_stopped(visit):
    with visit() as page:
        solve(page)
        open_tab(page, "Explore")
        # Wires of which we know what they say and when: a what-if that goes on, and a job that waits.
        page.evaluate("AIR.S.wires.whatif.send = () => {}; AIR.S.wires.whatif.stop = () => { window.stopped = true; }")
        page.click("#if-run")
        assert page.inner_text("#if-run") == "Stop"
        page.click("#if-run")
        assert page.inner_text("#if-message") == "Stopped." and page.inner_text("#if-run") == "Run what-if"
        assert page.evaluate("window.stopped")
        open_tab(page, "Solve")
        page.evaluate(
            "() => { AIR.S.wires.solve.send = (_, online) => online([{ t: 'wait', place: 2, seconds: 11.6 }]); }"
        )  # as app.waiting says it
        page.click("#air-solve")
        assert page.inner_text("[data-view=verdict]") == "2 puzzles before yours, about 12 s…"


def test_signs_are_explained_and_so_is_a_state_that_was_never_written(visit):
    with visit() as page:
        assert "held back" in page.inner_text(".legend") and "pinned guess" in page.inner_text(".legend")
        solve(page)
        open_tab(page, "Explore")
        page.select_option("#if-freeze", "z_l")
        page.click("#if-run")
        page.wait_for_function("AIR.S.other && AIR.S.other.end && !AIR.S.other.twin")
        assert "frozen at its start state" in page.inner_text("#board-b-l .fig-note")
        page.get_by_role("tab", name="Solve").click()
        page.get_by_role("button", name="Maze", exact=True).click()
        page.wait_for_function("document.querySelector('.legend').textContent.includes('reads as wall here')")


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


def test_a_link_carries_what_solve_follows_and_brings_it_back(visit):
    query = f"?puzzle={FOUR}&checkpoint=four-symmetric&halt=max&freeze=z_l"
    with visit(query) as page:
        page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=FOUR)
        wait_for_message(page, "from the link")
        assert page.input_value("#air-model") == "four-symmetric" and not page.is_checked("#air-halt")
        solve(page)
        use_text(page, "." * 15 + "2")
        page.click("#air-new")  # the run goes, and with it what is shared
        page.wait_for_function("AIR.S.run === null")
        open_tab(page, "Share")
        link = parse_qs(urlparse(page.input_value("#sh-link")).query)
        assert set(link) == {"puzzle", "checkpoint", "halt"} and link["puzzle"] == [text_of(page, "editor")]
        assert link["checkpoint"] == ["four-symmetric"] and link["halt"] == ["max"]


def test_a_bad_link_says_why_on_the_first_screen(visit):
    with visit("?puzzle=11..............", viewport={"width": 390, "height": 844}) as page:
        wait_for_message(page, "Contradicting clues")
        box = page.locator("#air-message").bounding_box()
        assert box["y"] + box["height"] < 844


def test_what_was_measured_can_be_tried_on_the_run_at_hand(visit):
    with visit() as page:
        solve(page)
        open_tab(page, "Learn")
        models, ladder = (page.locator(".measured").nth(i).locator("tbody tr") for i in (0, 1))
        assert models.filter(has_text="air-maze-small").count() == 1 and ladder.first.inner_text().startswith(
            "published"
        )
        page.click("#try-h")
        page.wait_for_function("AIR.S.other && AIR.S.other.end")
        assert page.get_by_role("tab", name="Explore").get_attribute("aria-selected") == "true"
        assert page.evaluate("AIR.S.other.wanted.freeze") == "z_h"


def test_exploring_scrubs_and_compares(visit):
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
        page.select_option("#if-model", "four-symmetric")
        page.select_option("#if-freeze", "z_l")
        page.click("#if-run")
        page.wait_for_function("AIR.S.other && AIR.S.other.end && !AIR.S.other.twin")
        assert page.locator("#board-b-h").is_visible() and page.locator("#look").is_hidden()
        assert "zL frozen from the start" in page.inner_text("[data-view=title-b]")
        assert page.evaluate("new Set(AIR.S.other.frames.l).size") == 1


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_a_click_on_a_live_cell_opens_its_attention_beside_the_board_and_in_view(visit, size):
    with visit(viewport={"width": size[0], "height": size[1]}) as page:
        solve(page)
        page.locator("#board-a-h .ab-cell").nth(6).click()
        page.wait_for_selector("#look-l.ab-heat")
        assert page.inner_text("#look-cell") == "Row 2, column 3 looks at"
        shares = [cell.get_attribute("aria-description") for cell in page.locator("#look-l .ab-cell").all()]
        assert abs(sum(float(share.split()[0]) for share in shares) - 100) < 0.9
        assert page.locator("#look-h .is-near").count() == 8 and "% in the outline" in page.inner_text("#look-in-h")
        board, panel = page.locator("#board-a-h .ab-grid").bounding_box(), page.locator("#look").bounding_box()
        assert panel["y"] >= -1 and panel["y"] + panel["height"] <= size[1] + 1  # a page scrolls by whole pixels
        if size[0] > 1000:
            assert panel["x"] > board["x"] + board["width"] and panel["y"] < board["y"] + board["height"], "beside"
        else:
            assert board["y"] >= 0 and panel["y"] > board["y"] + board["height"], "below"
        assert page.locator("#board-b-h").is_hidden(), "the panel takes the place of the twin"
        page.keyboard.press("Escape")
        assert page.locator("#look").is_hidden() and page.locator("#board-b-h").is_visible()
        page.locator("#board-a-l .ab-cell").nth(0).focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#look-cell") == "Row 1, column 1 looks at"
        page.click("#look-close")
        assert page.locator("#look").is_hidden()


def test_downloads_hold_the_run(visit):
    from PIL import Image

    with visit() as page:
        solve(page)
        open_tab(page, "Share")

        def download(button: str) -> bytes:
            with page.expect_download() as waiting:
                page.click(button)
            return Path(waiting.value.path()).read_bytes()

        page.evaluate("""() => {
            window.drawn = [];
            const { fillText } = CanvasRenderingContext2D.prototype;
            CanvasRenderingContext2D.prototype.fillText = function (...words) {
                window.drawn.push(words[0]);
                return fillText.apply(this, words);
            };
        }""")
        content = json.loads(download("#sh-json"))
        assert content["z_h"] == page.evaluate("AIR.S.run.frames.h") and content["puzzle"] == content["puzzle"]
        picture = Image.open(io.BytesIO(download("#sh-png")))
        assert picture.format == "PNG" and picture.width > picture.height > 200
        title = page.evaluate("window.drawn[0]")
        assert re.fullmatch(r"Sudoku 4×4, Lx_H, four: (not )?solved in \d ACT steps?\.", title)
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
            panel = page.get_by_role("tab", name=name).get_attribute("aria-controls")
            assert page.locator(f"#{panel}[data-tab={name}]").is_visible()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "air-solve":
                break
        page.keyboard.press("Enter")
        wait_for_verdict(page)
        assert page.evaluate("document.activeElement.id") == "air-solve", "the focus stays"
        page.keyboard.press("Tab")  # Stop, New puzzle, and so on: the grid is near, and Enter in it solves
        page.locator("#board-editor .ab-cell").nth(0).focus()
        page.keyboard.press("Enter")
        page.wait_for_function("!AIR.S.told")
        wait_for_verdict(page)


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
        wait_for_verdict(one)
        assert one.evaluate("AIR.S.run.end.puzzle") == FOUR
        assert two.evaluate("AIR.S.run.end.puzzle") == "." * 15 + "2"


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])  # ten: a minute and a half
def test_many_pages_at_once_are_served_in_turn_and_each_sees_its_own_puzzle(visit, count):
    puzzles = ["." * i + "1" + "." * (15 - i) for i in range(count)]
    with ExitStack() as open_pages:
        pages = [open_pages.enter_context(visit()) for _ in puzzles]
        for page, puzzle in zip(pages, puzzles):
            use_text(page, puzzle)
            page.wait_for_function("text => AIR.S.boards.editor.text === text", arg=puzzle)
            page.uncheck("#air-halt")
        for page in pages:
            page.evaluate("document.querySelector('#air-solve').click()")  # nobody waits for anybody
        for page, puzzle in zip(pages, puzzles):
            wait_for_verdict(page)
            assert page.evaluate("AIR.S.run.end.puzzle") == puzzle
            assert page.evaluate("AIR.S.run.frames.h.length") == 24
            assert text_of(page, "a-h") == page.evaluate("AIR.S.run.frames.h.at(-1)")  # played to its end


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
            assert page.locator("#air-solve").get_attribute("aria-disabled") == "true"
            open_tab(page, "Learn")
            page.wait_for_function(drawn)
            open_tab(page, "Solve")
            page.get_by_role("button", name="Sudoku", exact=True).click()
            assert page.locator("#air-solve").get_attribute("aria-disabled") == "false"
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
        boxes = [page.locator(f"#board-a-{s} .ab-grid").bounding_box() for s in "hl"]
        assert (
            (model == "maze" and width < 500)
            or boxes[0]["y"] == boxes[1]["y"]
            and abs(boxes[0]["width"] - boxes[1]["width"]) < 1
        )  # side by side
        open_tab(page, "Explore")
        page.locator("#board-a-l .ab-cell").nth(3).click()
        page.wait_for_selector("#look-l.ab-heat")
        page.click("#if-run")
        page.wait_for_function("AIR.S.other && AIR.S.other.end")
        check("3-explore")
        open_tab(page, "Learn")
        page.wait_for_selector(".film .ab-grid")
        check("4-learn")
        assert page.locator("#learn-loop .w").count() == 5
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
        page.evaluate("document.querySelector('#air-solve').click()")
        assert page.inner_text("#air-solve") == "Solve"
        solve(page)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["by itself", "by the button", "in a maze"])
def test_a_refused_puzzle_is_thought_on_node_by_node(visit, ending):
    with visit() as page:
        if ending != "by itself":
            choose(page, "maze" if ending == "in a maze" else "nine")
        assert page.locator("#air-think").count() == 0
        solve(page)
        words = page.inner_text("[data-view=verdict]")
        assert "Not solved" in words
        assert ("How often this model is right was not measured." in words) is (ending != "in a maze")
        page.click("#air-think")
        page.wait_for_function("AIR.S.search && AIR.S.search.nodes.length > 0")
        if ending == "by the button":
            page.evaluate("document.querySelector('#air-enough').click()")
        page.wait_for_function("AIR.S.search.end")
        words = page.inner_text("[data-view=verdict]")
        assert "Nodes" in words and "ACT steps" in words
        assert ("this is the best answer so far" in words) is (ending == "by the button")
        assert page.locator("#board-a-h .is-guess").count() == words.count("in row")
        assert page.locator("#air-think").count() == 0 and page.inner_text("#air-solve") == "Solve"
        assert page.evaluate("AIR.S.run.frames.h.length") > 0, "the single pass can still be explored"
        open_tab(page, "Share")
        outcome = page.evaluate("AIR.S.search.end.solved ? 'solved' : 'not solved'")
        assert f"Thinking on, it was {outcome} within " in page.inner_text("#sh-what")


def test_every_cell_of_an_answer_that_breaks_a_rule_is_marked_until_the_next_answer(visit):
    with visit() as page:
        page.wait_for_function("AIR.S.told")  # the prepared run has been played
        show = "text => { const b = AIR.S.boards['a-h']; b.setText(text); b.mark(b.faults(text).bad, [3]); }"
        page.evaluate(show, "12?11...........")
        marked = page.locator("#board-a-h [aria-invalid=true]")
        assert [cell.get_attribute("data-i") for cell in marked.all()] == ["0", "3", "4"]
        assert page.locator("#board-a-h .is-guess").get_attribute("data-i") == "3"
        page.evaluate("AIR.S.boards['a-h'].setText('1234............')")
        assert marked.count() == 0 and page.locator("#board-a-h .is-guess").count() == 0


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
