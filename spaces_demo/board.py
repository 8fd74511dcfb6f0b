"""Board, View and Wire: the page's own components, each a gr.HTML with its template, style and script."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr

STATIC = Path(__file__).parent / "static"
BOARD_SCRIPT = (STATIC / "board.js").read_text()
BOARD_STYLE = (STATIC / "board.css").read_text()
STATES = {"h": ("H", "proposal"), "l": ("L", "scratchpad")}

# Gradio writes a .pyi file beside the source of every component class; a package folder is no place for that.
with mock.patch("gradio.component_meta.create_or_modify_pyi"):

    class Board(gr.HTML):
        """One grid: an editable Sudoku, a maze to paint, or a decoded state.

        Its value is text, one letter per cell, row-major. In mode "edit" it is what the visitor typed or painted
        (`change` fires); a click or Enter on a cell of a state fires `select` with the cell's index.

        Args:
            name: unique on the page. mode: "edit" or "state". state: None, "h" or "l": colour and caption.
            task: the task's description (`engine.describe(...)["task"]`); may be set later by the page.
        """

        def __init__(
            self, name: str, mode: str = "state", state: str | None = None, task: dict | None = None, **kwargs: Any
        ) -> None:
            letter, role = STATES.get(state or "", ("", ""))
            label = f"State z_{letter}, {role}" if state else "Puzzle"
            caption = f'<b class="z z-{state}">z<sub>{letter}</sub></b><span>{role}</span>'
            if not state:
                caption = '<b class="z">x</b><span>puzzle</span>'
            super().__init__(
                html_template=f'<figure class="fig"><figcaption>{caption}</figcaption>'
                '<div class="air-board"></div><p class="fig-note"></p></figure>',
                js_on_load="window.AirBoard.mount(element, props, trigger, watch)",
                head=f"<script>window.AIR_BOARD_STYLE = {json.dumps(BOARD_STYLE)};\n{BOARD_SCRIPT}</script>",
                apply_default_css=False,
                elem_id=f"board-{name}",
                # Props of the script:
                name=name,
                mode=mode,
                state=state,
                task=task,
                title=label,
                **kwargs,
            )

    class View(gr.HTML):
        """A part of the page that page.js draws."""

        def __init__(self, name: str, **kwargs: Any) -> None:
            super().__init__(
                html_template=f'<div class="air-view"><div data-view="{name}"></div></div>',
                js_on_load="window.AIR.addView(element)",
                apply_default_css=False,
                **kwargs,
            )

    class Wire(gr.HTML):
        """A hidden line to Python: the page triggers `submit` with a dictionary, the answer comes as lines of JSON."""

        def __init__(self, name: str, value: str = "", **kwargs: Any) -> None:
            super().__init__(
                value=value,
                html_template="<i></i>",
                js_on_load=f"window.AIR.addWire({json.dumps(name)}, props, trigger, watch)  // 'submit' 'stop'",
                apply_default_css=False,
                elem_classes=["air-wire"],
                elem_id=f"wire-{name}",
                **kwargs,
            )
