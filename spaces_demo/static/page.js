/* The page: keeps runs, draws them, and talks to Python over wires.
 *
 * A wire is a hidden component: send(payload) calls its Python handler, whose answer comes back as lines of JSON that
 * grow while it works. A run, once streamed, lives in this browser: scrubbing, charts, pictures and downloads ask
 * nothing of the server, and nobody else can see it.
 */
window.AIR = window.AIR || (() => {
  "use strict";

  // ---- small tools ---------------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";

  /* h("button", {class: "x", onclick: f}, "text", child): text is always text, never markup. */
  function h(tag, attributes = {}, ...children) {
    const svg = ["svg", "path", "line", "rect", "circle", "text", "g", "title", "polyline"].includes(tag);
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "value") element.value = value;
      else element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat()) {
      if (child === null || child === undefined) continue;
      element.append(child instanceof Node ? child : document.createTextNode(child));
    }
    return element;
  }

  const $ = (id) => document.getElementById(id);
  const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;
  const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
  const percent = (p) => (p >= 0.995 && p < 1 ? "> 99 %" : p > 0 && p < 0.005 ? "< 1 %" : `${Math.round(100 * p)} %`);
  const state = (level) => h("span", { class: `z z-${level}` }, "z", h("sub", {}, level.toUpperCase()));

  const S = { catalog: null, boards: {}, wires: {}, views: {}, run: null, other: null, at: 0, playing: null, speed: 1 };
  const WIRES = ["solve", "whatif", "puzzle", "attention", "learn"];
  const VIEWS = ["header", "setup", "tools", "live", "verdict", "player", "charts", "whatif", "compare", "look", "lookside", "share", "figure"];
  const TABS = ["Solve", "Explore", "Learn", "Share"];
  const BOARDS = ["editor", "live-h", "live-l", "a-h", "a-l", "b-h", "b-l", "look-l", "look-h"];

  // ---- registration: components mount in any order, the page starts when all are there ----------------------------

  let started = false;

  function addBoard(board) { S.boards[board.name] = board; start(); }

  function addView(element) {
    const root = element.querySelector("[data-view]");
    S.views[root.dataset.view] = root;
    start();
  }

  function addWire(name, props, trigger, watch) {
    if (name === "catalog") {
      S.catalog = JSON.parse(props.value);
      start();
      return;
    }
    const wire = { name, id: "", seen: 0, onlines: null };
    wire.send = (payload, onlines) => {
      const id = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
      Object.assign(wire, { id, seen: 0, onlines });
      // Every answer begins at once with its id. Gradio loses a question that crosses the end of the answer before on
      // its way, so a question without a beginning is asked again.
      const ask = (again) => {
        if (wire.id !== id || wire.seen) return;
        if (again > 3) {
          wire.id = "";
          onlines([{ t: "error", message: "The server does not answer. Please try again." }]);
          return;
        }
        trigger("submit", { ...payload, id });
        setTimeout(() => ask(again + 1), again ? 15000 : 5000);
      };
      ask(0);
    };
    wire.stop = () => { wire.id = ""; trigger("stop", {}); };
    watch("value", () => {
      const text = props.value || "";
      const first = text.slice(0, text.indexOf("\n"));
      if (!wire.id || !first.includes(wire.id)) return; // an answer that nobody waits for any more
      const whole = text.lastIndexOf("\n") + 1;
      if (whole <= wire.seen) return;
      const lines = text.slice(wire.seen, whole).split("\n").filter(Boolean).map((line) => JSON.parse(line));
      wire.seen = whole;
      if (lines.some((line) => ["end", "error", "puzzle", "attention"].includes(line.t))) wire.id = "";
      wire.onlines(lines);
    });
    S.wires[name] = wire;
    start();
  }

  function start() {
    const ready = S.catalog && WIRES.every((n) => S.wires[n]) && VIEWS.every((n) => S.views[n]) && BOARDS.every((n) => S.boards[n]);
    if (started || !ready) return;
    started = true;
    buildHeader();
    buildSetup();
    buildTools();
    buildLive();
    buildPlayer();
    buildWhatIf();
    buildLook();
    window.AIRShare.build(S, api);
    for (const level of "hl") {
      S.boards[`live-${level}`].on("select", (i) => lookAt(i, true));
      S.boards[`a-${level}`].on("select", (i) => lookAt(i, false));
    }
    S.boards.editor.on("change", edited);
    document.addEventListener("paste", pasted);
    window.addEventListener("resize", () => drawCharts());
    openTab("Solve");
    const link = new URLSearchParams(location.search);
    const wanted = S.catalog.checkpoints.find((c) => c.key === link.get("checkpoint"));
    choose((wanted || S.catalog.checkpoints.find((c) => c.key === S.catalog.default)).key);
    if (link.get("puzzle")) fromLink(link);
    else newPuzzle();
    document.documentElement.dataset.air = "ready";
  }

  // ---- checkpoints and tasks ---------------------------------------------------------------------------------------

  const places = () => [...S.catalog.checkpoints, ...S.catalog.vacant];
  const checkpointOf = (key) => places().find((c) => c.key === key);

  function choose(key, keep = false) {
    if (running()) stop();
    const before = S.ck;
    S.ck = checkpointOf(key);
    S.task = S.ck.task;
    const kind = S.task.kind;
    for (const button of $("air-kinds").children) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    $("air-model").replaceChildren(...modelOptions((ck) => ck.task.kind === kind));
    if (S.ck.vacant) $("air-model").append(h("option", { value: key }, "none installed"));
    $("air-model").value = key;
    $("air-model").disabled = S.ck.vacant;
    S.boards.editor.setTask(S.task);
    const sameTask = before && JSON.stringify(before.task) === JSON.stringify(S.task);
    if (!sameTask) {
      S.run = S.other = null;
      for (const name of ["live-h", "live-l", "a-h", "a-l", "b-h", "b-l", "look-l", "look-h"]) S.boards[name].setTask(S.task);
      buildLevels();
      buildPad();
      clearLive();
      showVerdict(null);
      refreshExplore();
      if (before && !keep) newPuzzle();
    }
    buildCompareChoices();
    note("model-note", modelNote(S.ck), S.ck.vacant);
    $("air-solve").disabled = S.ck.vacant;
    S.views.setup.dataset.kind = S.task.kind;
    window.AIRShare.refresh();
    if (S.tab === "Learn") learn();
  }

  /* The best model of a kind: the catalog lists the best first. */
  function chooseKind(kind) {
    if (S.task.kind !== kind) choose(places().find((ck) => ck.task.kind === kind).key);
  }

  function modelNote(ck) {
    if (ck.vacant) return ck.missing;
    if (!ck.trained) return "An untrained stand-in: no checkpoint is installed, so its answers are guesses.";
    const rule = { l: ck.l_injection, h: ck.h_injection };
    const where = rule.l && rule.h ? "both updates see the puzzle" : rule.l ? "only the L-update sees the puzzle" : "only the H-update sees the puzzle";
    const exact = ck.accuracy === null ? "" : ` · ${percent(ck.accuracy)} exact when evaluated`;
    return `${ck.variant}: ${where}${exact}`;
  }

  function modelOptions(fits = () => true) {
    const groups = {};
    for (const ck of S.catalog.checkpoints) if (fits(ck)) (groups[ck.title] = groups[ck.title] || []).push(ck);
    return Object.entries(groups).map(([title, list]) =>
      h("optgroup", { label: title }, list.map((ck) => h("option", { value: ck.key }, `${title} · ${ck.key}`))));
  }

  // ---- header --------------------------------------------------------------------------------------------------------

  function buildHeader() {
    const toggle = h("button", { class: "quiet", id: "air-theme", type: "button", onclick: () => {
      const dark = !document.body.classList.contains("dark");
      document.body.classList.toggle("dark", dark);
      try { localStorage.setItem("air-theme", dark ? "dark" : "light"); } catch { /* private windows */ }
      label();
      drawCharts();
    } });
    const label = () => {
      const dark = document.body.classList.contains("dark");
      toggle.textContent = dark ? "Light" : "Dark";
      toggle.setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
    };
    try {
      const kept = localStorage.getItem("air-theme");
      if (kept && !location.search.includes("__theme")) document.body.classList.toggle("dark", kept === "dark");
    } catch { /* private windows */ }
    label();
    S.views.header.replaceChildren(h("header", { class: "head" },
      h("div", {},
        h("h1", {}, "AIR ", h("span", {}, "Watch two states think")),
        h("p", {}, "A small network solves a puzzle by rewriting two boards in turn: ", state("h"), " proposes an answer, ", state("l"), " keeps doubts on scratch paper.")),
      toggle), buildTabs());
  }

  // ---- solve: setup and tools ------------------------------------------------------------------------------------------

  function buildSetup() {
    const kinds = new Map(places().map((ck) => [ck.task.kind, ck.task.name]));
    S.views.setup.replaceChildren(
      h("div", { class: "kinds", id: "air-kinds", role: "group", "aria-label": "Kind of puzzle" }, [...kinds].map(([kind, name]) =>
        h("button", { type: "button", "data-kind": kind, "aria-pressed": "false", onclick: () => chooseKind(kind) }, name))),
      h("label", {}, h("span", {}, "Model"), h("select", { id: "air-model", onchange: (e) => choose(e.target.value) })),
      h("p", { class: "note", id: "model-note" }),
      h("div", { class: "fields" },
        h("label", { class: "grow" }, h("span", {}, "Difficulty"), h("select", { id: "air-level" })),
        h("button", { type: "button", id: "air-new", onclick: () => newPuzzle() }, "New puzzle")));
  }

  function buildLevels() {
    $("air-level").replaceChildren(...S.task.levels.map((name) => h("option", { value: name }, name[0].toUpperCase() + name.slice(1))));
    $("air-level").value = S.task.level;
  }

  function buildTools() {
    const { text } = S.catalog.limits;
    S.views.tools.replaceChildren(
      h("div", { class: "pad", id: "air-pad", role: "toolbar" }),
      h("p", { class: "note", id: "air-message", role: "status", "aria-live": "polite" }),
      h("div", { class: "actions" },
        h("button", { type: "button", class: "primary", id: "air-solve", onclick: solve }, "Solve"),
        h("button", { type: "button", id: "air-stop", hidden: true, onclick: stop }, "Stop"),
        h("button", { type: "button", id: "air-clear", onclick: () => S.boards.editor.clear() }, "Clear"),
        h("label", { class: "check" }, h("input", { type: "checkbox", id: "air-halt", checked: true }), "Stop when the model is sure")),
      h("details", { class: "paste" },
        h("summary", {}, "Paste or upload a puzzle"),
        h("label", { class: "grow" }, h("span", {}, `One letter per cell, row by row, up to ${text.toLocaleString("en")} characters`),
          h("textarea", { id: "air-text", rows: 4, spellcheck: "false", placeholder: "53..7....6..195…   or   a maze of # . S G" })),
        h("div", { class: "actions" },
          h("button", { type: "button", id: "air-use", onclick: () => readText($("air-text").value) }, "Use this text"),
          h("label", { class: "file" }, "Choose a text file", h("input", { type: "file", id: "air-file", accept: ".txt,.csv,.tsv,.json,.jsonl,.sdk,.sdm,.ss,text/plain,text/csv,application/json", onchange: readFile })))));
  }

  function buildPad() {
    const pad = $("air-pad"), editor = S.boards.editor;
    if (S.task.kind === "sudoku") {
      pad.setAttribute("aria-label", "Digits");
      pad.className = "pad";
      const keys = S.task.alphabet.length - 1, rows = Math.ceil(keys / 10);
      pad.style.setProperty("--wide", Math.ceil(keys / rows));
      pad.style.setProperty("--narrow", Math.ceil(keys / Math.ceil(keys / 7)));
      const put = (letter) => { editor.put(editor.cursor, letter); editor.cells[editor.cursor].focus({ preventScroll: true }); };
      pad.replaceChildren(
        ...[...S.task.alphabet.slice(2)].map((d) => h("button", { type: "button", "aria-label": `Enter ${d}`, onclick: () => put(d) }, d)),
        h("button", { type: "button", "aria-label": "Erase the cell", onclick: () => put(S.task.blank) }, "⌫"));
      return;
    }
    pad.setAttribute("aria-label", "Brush");
    pad.className = "pad brushes";
    const brushes = [["#", "Wall"], [S.task.blank, "Free"], ["S", "Start"], ["G", "Goal"]];
    pad.replaceChildren(...brushes.map(([letter, name]) =>
      h("button", { type: "button", class: "brush", "aria-pressed": String(editor.brush === letter), onclick: (e) => {
        editor.brush = letter;
        pad.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === e.currentTarget)));
      } }, h("i", { class: `sw sw-${name.toLowerCase()}`, "aria-hidden": "true" }, letter === "S" || letter === "G" ? letter : ""), name)));
  }

  function note(id, text, bad = false) {
    const element = $(id);
    element.textContent = text;
    element.classList.toggle("bad", bad);
  }

  /* Why a puzzle does not run: said beside the button of either tab. */
  function complain(text) {
    note("air-message", text, true);
    note("ex-message", text, true);
  }

  function edited() {
    const editor = S.boards.editor;
    let problem = editor.conflict;
    if (S.task.kind !== "sudoku") {
      const missing = ["S", "G"].filter((letter) => !editor.text.includes(letter));
      if (missing.length) problem = `Place ${missing.map((m) => (m === "S" ? "the start S" : "the goal G")).join(" and ")}.`;
    }
    note("air-message", problem || "", !!problem);
    window.AIRShare.refresh();
  }

  function setPuzzle(text, message = "") {
    if (running()) stop();
    S.boards.editor.setText(text);
    edited();
    if (message && !$("air-message").textContent) note("air-message", message);
    for (const level of "hl") {
      S.boards[`live-${level}`].setPuzzle(text);
    }
    clearLive();
    showVerdict(null);
    window.AIRShare.refresh();
  }

  function puzzleAnswer(lines) {
    for (const line of lines) {
      if (line.t === "error") note("air-message", line.message, true);
      if (line.t === "puzzle") {
        if (line.checkpoint !== S.ck.key) choose(line.checkpoint, true);
        setPuzzle(line.puzzle, line.note || "");
        if (line.settings) useSettings(line.settings);
      }
    }
    if (!S.solveNext || !lines.some((line) => ["puzzle", "error"].includes(line.t))) return;
    S.solveNext = false;
    if (lines.some((line) => line.t === "puzzle")) solve();
  }

  function newPuzzle() {
    note("air-message", "");
    S.wires.puzzle.send({ action: "new", checkpoint: S.ck.key, level: $("air-level").value }, puzzleAnswer);
  }

  function readText(text) {
    const limit = S.catalog.limits.text;
    if (text.length > limit) {
      note("air-message", `That is ${text.length.toLocaleString("en")} characters; this page reads puzzles of up to ${limit.toLocaleString("en")}.`, true);
      return;
    }
    S.wires.puzzle.send({ action: "read", text, checkpoint: S.ck.key }, puzzleAnswer);
  }

  function readFile(event) {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    // A character takes up to 4 bytes; anything larger is over the limit without reading it.
    if (file.size > 4 * S.catalog.limits.text) {
      note("air-message", `${file.name} has ${file.size.toLocaleString("en")} bytes; this page reads puzzles of up to ${S.catalog.limits.text.toLocaleString("en")} characters.`, true);
      return;
    }
    file.text().then((text) => readText(text), () => note("air-message", `${file.name} could not be read.`, true));
  }

  function pasted(event) {
    const target = event.target;
    if (target && /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
    if (!S.boards.editor.root.contains(document.activeElement)) return;
    const text = event.clipboardData ? event.clipboardData.getData("text/plain") : "";
    if (text.trim().length < 2) return;
    event.preventDefault();
    readText(text);
  }

  const settings = () => ({ checkpoint: S.ck.key, halt: $("air-halt").checked ? "q" : "max" });

  function fromLink(link) {
    const wanted = {};
    for (const key of ["checkpoint", "halt", "steps", "freeze", "from", "attempts"]) if (link.get(key)) wanted[key] = link.get(key);
    S.wires.puzzle.send({ action: "link", text: link.get("puzzle"), settings: wanted, checkpoint: S.ck.key }, puzzleAnswer);
  }

  function useSettings(wanted) {
    $("air-halt").checked = wanted.halt !== "max";
    $("if-freeze").value = wanted.freeze;
    $("if-from").value = wanted.freeze_from;
    $("if-attempts").value = wanted.attempts;
    if (wanted.max_act_steps) $("if-steps").value = wanted.max_act_steps;
  }

  // ---- runs ---------------------------------------------------------------------------------------------------------------

  class Run {
    constructor(ck, puzzle, wanted) {
      Object.assign(this, { ck, puzzle, wanted, tries: [], view: 0, end: null, error: "", place: 0, started: performance.now() });
    }

    get frames() { return this.tries[this.view] || { h: [], l: [], levels: [], q: [] }; }

    add(line) {
      if (line.t === "wait") this.place = line.place;
      if (line.t === "node") {
        this.node = line;
        this.place = 0;
        if (!this.best || line.wrong < this.best.wrong) this.best = line;
      }
      if (line.t === "attempt") {
        this.tries.push({ h: [], l: [], levels: [], q: [] });
        this.view = this.tries.length - 1;
      }
      if (line.t === "f") {
        const f = this.frames;
        f.h.push(line.h);
        f.l.push(line.l);
        f.levels.push(line.lv);
      }
      if (line.t === "q") this.frames.q.push(line.p);
      if (line.t === "error") this.error = line.message;
      if (line.t === "end") {
        this.end = line;
        if (line.view < this.tries.length) this.view = line.view;
      }
    }

    /* Held-back share and changed cells of one state, after every update. */
    curves(level) {
      const f = this.frames, texts = f[level], held = this.ck.task.held;
      f.curves = f.curves || { h: { held: [], changed: [] }, l: { held: [], changed: [] } };
      const curves = f.curves[level];
      for (let k = curves.held.length; k < texts.length; k++) {
        let n = 0;
        for (const c of texts[k]) if (held.includes(c)) n += 1;
        curves.held.push(n / texts[k].length);
        curves.changed.push(k ? changedCells(texts[k - 1], texts[k]) : 0);
      }
      return curves;
    }
  }

  function changedCells(a, b) {
    let n = 0;
    for (let i = 0; i < b.length; i++) if (a[i] !== b[i]) n += 1;
    return n;
  }

  const running = () => S.live && !S.live.end && !S.live.error;

  function busy(on) {
    $("air-solve").disabled = on || S.ck.vacant;
    $("air-stop").hidden = !on;
  }

  function solve() {
    if (running()) return;
    if (S.ck.vacant) { complain(S.ck.missing); return; }
    if (S.boards.editor.conflict) {
      complain(`${S.boards.editor.conflict} Mend that first: such a puzzle has no solution.`);
      return;
    }
    if (S.wires.puzzle.id && [...S.boards.editor.text].every((letter) => letter === S.task.blank)) {
      S.solveNext = true; // pressed before the first puzzle was there: that one is meant
      return;
    }
    note("air-message", "");
    note("ex-message", "Thinking…");
    S.wires.puzzle.id = ""; // a new puzzle that is still on its way comes too late
    const run = new Run(S.ck, S.boards.editor.text, settings());
    S.live = run;
    S.liveShown = 0;
    for (const level of "hl") {
      S.boards[`live-${level}`].setPuzzle(run.puzzle);
      S.boards[`live-${level}`].root.closest(".fig").classList.remove("idle");
    }
    busy(true);
    showVerdict(null, "Thinking…");
    if (S.tab === "Solve" && window.innerWidth <= 980) S.views.live.closest(".air-card").scrollIntoView({ block: "start" });
    S.wires.solve.send({ puzzle: run.puzzle, settings: run.wanted }, (lines) => {
      lines.forEach((line) => run.add(line));
      if (S.live !== run) return;
      if (run.error) {
        busy(false);
        showVerdict(null);
        complain(run.error);
        return;
      }
      if (run.place && !run.tries.length) showVerdict(null, `${plural(run.place, "puzzle")} before yours…`);
      if (run.end) {
        busy(false);
        S.run = run;
        showVerdict(run);
        S.at = run.frames.h.length - 1;
        refreshExplore();
        window.AIRShare.refresh();
      }
      paintLive();
    });
  }

  function stop() {
    const run = S.live;
    S.wires.solve.stop();
    S.live = null;
    busy(false);
    note("ex-message", "");
    if (run && run.best) keepBest(run);
    else showVerdict(null, "Stopped.");
  }

  // ---- solve: thinking on, a search by pins ---------------------------------------------------------------------------------

  /* How often a model's answer is right, by the evaluation files that lie beside it. */
  function odds(ck) {
    if (ck.accuracy === null) return "How often this model is right was not measured.";
    const searched = ck.searched === null ? "" : `, and ${percent(ck.searched)} when it thinks on`;
    return `In a single pass this model solves ${percent(ck.accuracy)} of the puzzles that it was evaluated on${searched}.`;
  }

  const canThinkOn = (run) => !run.end.solved && !run.wanted.nodes && run.ck.task.kind === "sudoku" && run.end.solutions !== 0;

  function thinkOn(before) {
    if (running()) return;
    const nodes = S.catalog.limits.nodes, run = new Run(before.ck, before.puzzle, { checkpoint: before.ck.key, nodes });
    S.live = run;
    busy(true);
    document.querySelectorAll(".fig.moving").forEach((fig) => fig.classList.remove("moving"));
    S.boards["live-l"].root.closest(".fig").classList.add("idle");
    caption(S.boards["live-l"], "as the single pass left it");
    $("live-count").textContent = "Thinking on";
    strip($("live-strip"), run.ck, 1, 0);
    S.views.verdict.replaceChildren(h("div", {},
      h("p", { class: "note", role: "status", "aria-live": "polite" }, "Thinking on: the model guesses a digit where it doubts most and solves again, the likeliest guesses first. The rules judge every answer."),
      h("p", { class: "note", id: "air-nodes" }),
      h("div", { class: "actions" }, h("button", { type: "button", id: "air-enough", onclick: stop }, "Stop and keep the best"))));
    $("air-enough").focus({ preventScroll: true });
    S.wires.solve.send({ puzzle: run.puzzle, settings: run.wanted }, (lines) => {
      lines.forEach((line) => run.add(line));
      if (S.live !== run) return;
      if (run.node) showNode(run, run.node, nodes);
      if (run.place) note("air-nodes", `${plural(run.place, "puzzle")} before the next guess…`);
      if (run.error) {
        busy(false);
        showVerdict(null);
        complain(run.error);
      }
      if (run.end) finishThinking(run);
    });
  }

  /* An answer of a search on the board: its guesses ringed, what breaks a rule marked. */
  function showAnswer(run, text, guesses) {
    const board = S.boards["live-h"], wrong = board.faults(text).bad.size;
    if (board.puzzle !== run.puzzle) board.setPuzzle(run.puzzle);
    board.setText(text);
    board.mark(true, guesses);
    caption(board, plural(guesses.length, "guess", "guesses"), wrong ? `${plural(wrong, "cell")} break a rule` : "no rule broken");
  }

  const spent = (nodes, steps) => `${plural(nodes, "node")} · ${plural(steps, "ACT step")}`;

  function showNode(run, node, most) {
    showAnswer(run, node.answer, node.pins.map(([cell]) => cell));
    $("live-count").textContent = `Thinking on · ${spent(node.n, node.act_steps)}`;
    note("air-nodes", `${plural(node.n, "node")} of up to ${most}, ${plural(node.act_steps, "ACT step")}`);
    strip($("live-strip"), run.ck, 1, node.n / most);
  }

  function finishThinking(run) {
    busy(false);
    const { end } = run, width = run.ck.task.width;
    showAnswer(run, end.solution, end.pins.map((pin) => (pin.row - 1) * width + pin.column - 1));
    $("live-count").textContent = spent(end.attempts, end.act_steps);
    showVerdict(run);
  }

  /* After a stop: the best answer so far, as the end of a search that found none. */
  function keepBest(run) {
    const { best, node } = run, width = run.ck.task.width;
    const pins = best.pins.map(([cell, digit]) => ({ row: Math.floor(cell / width) + 1, column: (cell % width) + 1, digit }));
    const message = "Stopped: this is the best answer so far.";
    const seconds = (performance.now() - run.started) / 1000;
    run.end = { solved: best.wrong === 0, solution: best.answer, message, pins, attempts: node.n, act_steps: node.act_steps, seconds };
    finishThinking(run);
  }

  // ---- solve: the live boards -------------------------------------------------------------------------------------------------

  function buildLive() {
    S.views.live.replaceChildren(
      h("div", { class: "row" },
        h("h2", {}, "Roll-out"),
        h("p", { class: "count", id: "live-count", "aria-live": "off" }, "Press Solve to watch")),
      h("div", { class: "strip", id: "live-strip", role: "img", "aria-label": "Updates so far" }, h("i", {})));
  }

  function clearLive() {
    S.live = null;
    S.liveShown = 0;
    for (const level of "hl") {
      const board = S.boards[`live-${level}`];
      board.setPuzzle(S.boards.editor.text);
      board.setText(S.boards.editor.text);
      board.root.closest(".fig").classList.add("idle");
      caption(board, "");
    }
    $("live-count").textContent = "Press Solve to watch";
    strip($("live-strip"), S.ck, S.ck.act_steps, 0);
  }

  function caption(board, ...parts) {
    const element = board.root.closest(".fig").querySelector(".fig-note");
    element.replaceChildren(...parts.filter(Boolean).map((part) => h("span", {}, part)));
  }

  /* Colours of the updates, L and H, as the background of a strip; width is the share done. */
  function strip(element, ck, steps, done) {
    const n = ck.schedule.length, stops = [];
    [...ck.schedule].forEach((level, i) => stops.push(`var(--z${level}) ${(100 * i) / n}% ${(100 * (i + 0.86)) / n}%`, `transparent ${(100 * (i + 0.86)) / n}% ${(100 * (i + 1)) / n}%`));
    element.style.setProperty("--strip", `linear-gradient(90deg, ${stops.join(", ")})`);
    element.style.setProperty("--strip-size", `${100 / Math.max(steps, 1)}%`);
    element.style.setProperty("--done", `${100 * done}%`);
  }

  function describeUpdate(run, k) {
    const f = run.frames, n = run.ck.schedule.length, level = f.levels[k];
    const steps = run.end ? Math.ceil(f.h.length / n) : run.wanted.steps || run.ck.act_steps;
    return `ACT step ${Math.floor(k / n) + 1} of ${steps} · update ${k + 1}: ${level.toUpperCase()}`;
  }

  function boardNote(run, level, k) {
    const c = run.curves(level), size = run.ck.task.height * run.ck.task.width;
    const held = Math.round(c.held[k] * size);
    return [held ? `${held} held back` : "nothing held back", `${c.changed[k]} changed`];
  }

  function show(run, prefix, k, flash) {
    const f = run.frames;
    if (k < 0 || k >= f.h.length) return;
    for (const level of "hl") {
      const board = S.boards[`${prefix}-${level}`];
      if (board.task !== run.ck.task) board.setTask(run.ck.task);
      if (board.puzzle !== run.puzzle) board.setPuzzle(run.puzzle);
      board.setText(f[level][k], flash);
      board.root.closest(".fig").classList.toggle("moving", flash && f.levels[k] === level);
      caption(board, ...boardNote(run, level, k));
    }
  }

  let painting = false, last = 0;
  const drawn = new MessageChannel();

  /* The next frame, after a rest of eight times what this one took: on a machine that draws slowly the model needs the
     same cores. The message arrives when the frame has been laid out and painted. */
  function afterRest(tick, began) {
    drawn.port1.onmessage = () => {
      const rest = 8 * (performance.now() - began);
      if (rest < 12 || !S.live || S.live.end) requestAnimationFrame(tick);
      else setTimeout(() => requestAnimationFrame(tick), rest);
    };
    drawn.port2.postMessage(0);
  }

  function paintLive() {
    if (painting) return;
    painting = true;
    const tick = (began) => {
      const run = S.live;
      if (!run) { painting = false; return; }
      const total = run.frames.h.length, left = total - S.liveShown;
      if (S.liveView !== run.view) { S.liveView = run.view; if (!run.end) S.liveShown = 0; }
      if (left <= 0) {
        if (run.end) {
          S.liveShown = total;
          show(run, "live", total - 1, false);
          if (!run.end.solved) S.boards["live-h"].mark(true);
          document.querySelectorAll(".fig.moving").forEach((fig) => fig.classList.remove("moving"));
        }
        painting = false;
        return;
      }
      // One update per frame; when the model is faster than the frames are drawn, catch up within half a second.
      const frame = Math.max(16, Math.min(250, began - last));
      last = began;
      S.liveShown += Math.max(1, Math.ceil(left * frame / 400));
      const k = Math.min(S.liveShown, total) - 1;
      show(run, "live", k, true);
      const steps = run.end ? Math.ceil(total / run.ck.schedule.length) : run.wanted.steps || run.ck.act_steps;
      $("live-count").textContent = describeUpdate(run, k) + (run.tries.length > 1 ? ` · attempt ${run.view + 1}` : "");
      strip($("live-strip"), run.ck, steps, (k + 1) / (steps * run.ck.schedule.length));
      afterRest(tick, began);
    };
    requestAnimationFrame(tick);
  }

  function verdictOf(run) {
    const end = run.end, ok = end.solved, { pins } = end;
    const wrong = ok || run.ck.task.kind !== "sudoku" ? 0 : S.boards["live-h"].faults(end.solution).bad.size;
    const said = ok ? "The rules accept this answer." : capital(end.message) + (wrong ? ` ${plural(wrong, "cell")} break a rule.` : "");
    const several = ok && end.solutions === "several" ? " It is one of several solutions." : "";
    const seconds = end.seconds < 0.1 ? "< 0.1 s" : `${end.seconds.toFixed(1)} s`;
    return h("div", { class: `verdict ${ok ? "ok" : "no"}`, role: "status", "aria-live": "polite" },
      h("span", { class: "mark", "aria-hidden": "true" }, ok ? "✓" : "✕"),
      h("div", {},
        h("strong", {}, ok ? "Solved" : "Not solved"),
        h("p", {}, said + several),
        pins ? h("p", {}, pins.length ? `Guesses: ${pins.map((pin) => `${pin.digit} in row ${pin.row}, column ${pin.column}`).join("; ")}.` : "No guess led to it.") : null),
      h("dl", {},
        pins ? null : h("div", {}, h("dt", {}, "Confidence"), h("dd", {}, percent(end.confidence)),
          h("meter", { min: 0, max: 1, value: end.confidence, "aria-label": `Confidence ${percent(end.confidence)}` })),
        h("div", {}, h("dt", {}, "ACT steps"), h("dd", {}, String(end.act_steps))),
        end.attempts > 1 || pins ? h("div", {}, h("dt", {}, pins ? "Nodes" : "Attempts"), h("dd", {}, String(end.attempts))) : null,
        h("div", {}, h("dt", {}, "Time"), h("dd", {}, seconds))));
  }

  function showVerdict(run, text = "") {
    S.views.verdict.replaceChildren(run
      ? h("div", {}, verdictOf(run),
        run.end.solved || !run.ck.trained ? null : h("p", { class: "note" }, odds(run.ck)),
        h("div", { class: "actions" },
          canThinkOn(run) ? h("button", { type: "button", class: "primary", id: "air-think", onclick: () => thinkOn(run) }, "Think on") : null,
          run.wanted.nodes ? null : h("button", { type: "button", id: "air-explore", onclick: () => openTab("Explore") }, "Explore this run")))
      : h("p", { class: "note", role: "status", "aria-live": "polite" }, text));
  }

  function openTab(name, focus = false) {
    S.tab = name;
    for (const other of TABS) {
      const tab = $(`tab-${other.toLowerCase()}`), panel = $(`panel-${other.toLowerCase()}`), on = other === name;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panel.classList.toggle("air-hidden", !on);
      if (on && focus) tab.focus();
    }
    drawCharts();
    if (name === "Share") window.AIRShare.refresh();
    if (name === "Learn") learn();
    if (!focus) window.scrollTo({ top: 0 });
  }

  function buildTabs() {
    const onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], at = TABS.indexOf(S.tab);
      const to = step ? (at + step + TABS.length) % TABS.length : { Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      openTab(TABS[to], true);
    };
    for (const name of TABS) {
      const panel = $(`panel-${name.toLowerCase()}`);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", `tab-${name.toLowerCase()}`);
    }
    return h("div", { class: "tabs", role: "tablist", "aria-label": "Parts of the page", onkeydown }, TABS.map((name) =>
      h("button", { type: "button", role: "tab", id: `tab-${name.toLowerCase()}`, "aria-controls": `panel-${name.toLowerCase()}`, onclick: () => openTab(name) }, name)));
  }

  // ---- explore: player ------------------------------------------------------------------------------------------------------------

  function buildPlayer() {
    const step = (d) => () => { pause(); seek(S.at + d); };
    S.views.player.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "Roll-out"), h("p", { class: "count", id: "ex-count" })),
      h("div", { class: "empty", id: "ex-empty" },
        h("p", {}, "Nothing has run yet."),
        h("button", { type: "button", class: "primary", id: "ex-run", onclick: () => { solve(); } }, "Run the puzzle of the Solve tab"),
        h("p", { class: "note", id: "ex-message", role: "status", "aria-live": "polite" })),
      h("div", { class: "player", id: "ex-player", hidden: true },
        h("div", { class: "transport" },
          h("button", { type: "button", "aria-label": "One update back", onclick: step(-1) }, "‹"),
          h("button", { type: "button", class: "primary", id: "ex-play", onclick: () => (S.playing ? pause() : play()) }, "Play"),
          h("button", { type: "button", "aria-label": "One update on", onclick: step(1) }, "›"),
          h("label", {}, h("span", { class: "sr" }, "Speed"), h("select", { id: "ex-speed", onchange: (e) => { S.speed = Number(e.target.value); if (S.playing) { pause(); play(); } } },
            [["0.25", "¼×"], ["0.5", "½×"], ["1", "1×"], ["2", "2×"], ["4", "4×"]].map(([v, t]) => h("option", { value: v }, t)))),
          h("label", { id: "ex-tries-label", hidden: true }, h("span", { class: "sr" }, "Attempt"), h("select", { id: "ex-tries", onchange: (e) => { S.run.view = Number(e.target.value); seek(S.run.frames.h.length - 1); drawCharts(); } }))),
        h("div", { class: "scrub strip", id: "ex-strip" }, h("i", {}),
          h("input", { type: "range", id: "ex-at", min: 0, max: 1, value: 0, "aria-label": "Update", oninput: (e) => { pause(); seek(Number(e.target.value)); } }))));
    $("ex-speed").value = "1";
  }

  function refreshExplore() {
    const run = S.run, has = !!run && run.frames.h.length > 0;
    $("ex-empty").hidden = has;
    note("ex-message", "");
    $("ex-player").hidden = !has;
    document.querySelectorAll(".needs-run").forEach((e) => e.classList.toggle("off", !has));
    pause();
    S.looked = null;
    if (!has) {
      $("ex-count").textContent = "";
      S.views.compare.replaceChildren();
      drawCharts();
      return;
    }
    $("ex-at").max = run.frames.h.length - 1;
    $("ex-tries-label").hidden = run.tries.length < 2;
    $("ex-tries").replaceChildren(...run.tries.map((_, k) => h("option", { value: k }, k ? `Attempt ${k + 1} (symmetric view)` : "Attempt 1")));
    $("ex-tries").value = String(run.view);
    S.other = null;
    showCompare();
    seek(run.frames.h.length - 1);
    clearLook();
    drawCharts();
  }

  function seek(k, flash = false) {
    const run = S.run;
    if (!run) return;
    const total = Math.max(run.frames.h.length, S.other && S.other.end ? S.other.frames.h.length : 0);
    const stepBefore = Math.floor(S.at / run.ck.schedule.length);
    S.at = Math.max(0, Math.min(k, total - 1));
    $("ex-at").max = total - 1;
    $("ex-at").value = S.at;
    const mine = Math.min(S.at, run.frames.h.length - 1);
    show(run, "a", mine, flash);
    $("ex-at").setAttribute("aria-valuetext", describeUpdate(run, mine));
    $("ex-count").textContent = describeUpdate(run, mine);
    strip($("ex-strip"), run.ck, total / run.ck.schedule.length, (S.at + 1) / total);
    if (S.other && S.other.end) show(S.other, "b", Math.min(S.at, S.other.frames.h.length - 1), flash);
    moveCursor();
    if (S.looked !== null && S.looked !== undefined && Math.floor(S.at / run.ck.schedule.length) !== stepBefore) askAttention();
  }

  function play() {
    if (!S.run) return;
    const total = Number($("ex-at").max) + 1;
    if (S.at >= total - 1) seek(0);
    $("ex-play").textContent = "Pause";
    S.playing = setInterval(() => {
      if (S.at >= total - 1) { pause(); return; }
      seek(S.at + 1, true);
    }, 220 / S.speed);
  }

  function pause() {
    clearInterval(S.playing);
    S.playing = null;
    if ($("ex-play")) $("ex-play").textContent = "Play";
  }

  // ---- explore: charts --------------------------------------------------------------------------------------------------------------

  const charts = [];

  function drawCharts() {
    const root = S.views.charts, run = S.run;
    charts.length = 0;
    if (!run || !run.frames.h.length) { root.replaceChildren(); return; }
    const n = run.ck.schedule.length, u = run.frames.h.length;
    const q = run.frames.q.map((p, s) => [(s + 1) * n - 1, p]);
    const size = run.ck.task.height * run.ck.task.width;
    const word = run.ck.task.kind === "sudoku" ? "blank" : "undecided";
    const two = (what) => "hl".split("").map((level) => ({ level, points: run.curves(level)[what].map((v, k) => [k, v]) }));
    root.replaceChildren(
      chart("Wish to halt", "after each ACT step", [{ level: "", points: q, dots: true }], u, 1, (v) => percent(v)),
      chart("Held back", `${word} cells`, two("held"), u, null, (v) => percent(v), 0.05),
      chart("Changes", `of ${size} cells`, two("changed"), u, null, (v) => String(Math.round(v)), 4));
    moveCursor();
  }

  function chart(name, unit, series, updates, top, format, floor = 0) {
    const width = Math.max(S.views.charts.clientWidth || 320, 240), height = 96, left = 6, right = 44, below = 14, above = 8;
    const max = top || Math.max(floor, ...series.flatMap((s) => s.points.map((p) => p[1]))) || 1;
    const x = (k) => left + ((width - left - right) * k) / Math.max(updates - 1, 1);
    const y = (v) => above + (height - above - below) * (1 - v / max);
    const svg = h("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${name}, ${unit}. ` + series.map((s) => `${s.level ? "z_" + s.level.toUpperCase() + " " : ""}ends at ${format(s.points.length ? s.points.at(-1)[1] : 0)}`).join("; ") });
    for (const v of [0, max]) svg.append(h("line", { class: "axis", x1: left, x2: width - right, y1: y(v), y2: y(v) }));
    svg.append(h("text", { class: "tick", x: width - right + 5, y: y(max) + 4 }, format(max)), h("text", { class: "tick", x: width - right + 5, y: y(0) + 3 }, format(0)));
    for (const s of series) {
      const points = s.points.map(([k, v]) => `${x(k).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
      svg.append(h("polyline", { class: `curve ${s.level ? "c-" + s.level : "c-q"}`, points, "stroke-dasharray": s.level === "l" ? "5 3" : null }));
      if (s.dots) for (const [k, v] of s.points) svg.append(h("circle", { class: "dot", cx: x(k), cy: y(v), r: 2.2 }));
    }
    const cursor = h("line", { class: "cursor", y1: above - 4, y2: height - below, x1: x(0), x2: x(0) });
    svg.append(cursor);
    svg.addEventListener("pointerdown", (event) => {
      const box = svg.getBoundingClientRect();
      const k = Math.round((((event.clientX - box.left) * width) / box.width - left) / ((width - left - right) / Math.max(updates - 1, 1)));
      pause();
      seek(k);
    });
    const value = h("span", { class: "now" });
    charts.push({ cursor, x, value, series, format });
    return h("figure", { class: "chart" },
      h("figcaption", {}, h("strong", {}, name), h("span", {}, unit), value), svg);
  }

  function moveCursor() {
    for (const c of charts) {
      const k = Math.min(S.at, S.run.frames.h.length - 1);
      c.cursor.setAttribute("x1", c.x(k));
      c.cursor.setAttribute("x2", c.x(k));
      c.value.replaceChildren(...c.series.flatMap((s) => {
        const last = s.points.filter((p) => p[0] <= k).at(-1);
        return last ? [h("b", { class: s.level ? `t-${s.level}` : "" }, c.format(last[1]))] : [h("b", {}, "–")];
      }));
    }
  }

  // ---- explore: what if, and two checkpoints on one puzzle -----------------------------------------------------------------------------

  function buildWhatIf() {
    const { steps, attempts } = S.catalog.limits;
    S.views.whatif.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "What if…")),
      h("p", { class: "note" }, "Run the same puzzle again with something changed, beside your run. Choose another model to compare two checkpoints, for instance an asymmetric one with a symmetric one."),
      h("div", { class: "fields", id: "if-fields" },
        h("label", { class: "grow" }, h("span", {}, "Model"), h("select", { id: "if-model" })),
        h("label", {}, h("span", {}, "Freeze"), h("select", { id: "if-freeze" },
          h("option", { value: "none" }, "nothing"), h("option", { value: "z_h" }, "z_H"), h("option", { value: "z_l" }, "z_L"))),
        h("label", {}, h("span", {}, "after ACT step"), h("input", { type: "number", id: "if-from", min: 0, max: steps, value: 0 })),
        h("label", {}, h("span", {}, "ACT steps"), h("input", { type: "number", id: "if-steps", min: 1, max: steps, value: 16 })),
        h("label", {}, h("span", {}, "Attempts"), h("input", { type: "number", id: "if-attempts", min: 1, max: attempts, value: 1 })),
        h("button", { type: "button", class: "primary", id: "if-run", onclick: whatIf }, "Run what-if")),
      h("p", { class: "note", id: "if-message", role: "status", "aria-live": "polite" }));
  }

  function buildCompareChoices() {
    const same = (ck) => JSON.stringify(ck.task) === JSON.stringify(S.task);
    $("if-model").replaceChildren(...modelOptions(same));
    const others = S.catalog.checkpoints.filter((ck) => same(ck) && ck.key !== S.ck.key);
    $("if-model").value = S.ck.key;
    $("if-steps").value = S.ck.act_steps;
    if (!others.length) note("if-message", "This page has one checkpoint of this task, so there is no second one to compare with.");
    else note("if-message", "");
  }

  const whatIfSettings = () => ({
    checkpoint: $("if-model").value, halt: "max", steps: Number($("if-steps").value), freeze: $("if-freeze").value,
    from: Number($("if-from").value), attempts: Number($("if-attempts").value),
  });

  function whatIf() {
    if (S.other && !S.other.end && !S.other.error) return;
    const base = S.run;
    if (!base) { note("if-message", "Solve a puzzle first: then there is a run to compare with.", true); return; }
    const wanted = whatIfSettings();
    const run = new Run(checkpointOf(wanted.checkpoint), base.puzzle, wanted);
    S.other = run;
    note("if-message", "Running…");
    $("if-run").disabled = true;
    S.wires.whatif.send({ puzzle: run.puzzle, settings: wanted }, (lines) => {
      lines.forEach((line) => run.add(line));
      if (run.error || run.end) $("if-run").disabled = false;
      if (S.other !== run) return;
      if (run.place && !run.tries.length) note("if-message", `${plural(run.place, "puzzle")} before yours…`);
      if (run.error) { note("if-message", run.error, true); return; }
      if (run.frames.h.length) {
        showCompare();
        show(run, "b", run.frames.h.length - 1, true);
      }
      if (run.end) {
        note("if-message", "");
        showCompare();
        seek(Math.max(base.frames.h.length, run.frames.h.length) - 1);
        window.AIRShare.refresh();
      }
    });
  }

  function showCompare() {
    const run = S.other;
    document.querySelectorAll(".needs-other").forEach((e) => e.classList.toggle("off", !run || !run.frames.h.length));
    if (!run || !run.end) { S.views.compare.replaceChildren(); return; }
    const mine = S.run.end.solution, theirs = run.end.solution, apart = changedCells(mine, theirs);
    const what = [];
    if (run.ck.key !== S.run.ck.key) what.push(run.ck.key);
    if (run.wanted.freeze !== "none") what.push([state(run.wanted.freeze.at(-1)), ` frozen ${run.wanted.from ? `after ACT step ${run.wanted.from}` : "from the start"}`]);
    what.push(plural(run.end.act_steps, "ACT step"));
    if (run.end.attempts > 1) what.push(plural(run.end.attempts, "attempt"));
    S.views.compare.replaceChildren(
      h("h3", {}, what.flatMap((part, i) => (i ? [" · ", part] : [part])).flat()),
      h("p", { class: "note" }, apart ? `Differs from your run in ${plural(apart, "cell")}.` : "The same answer as your run."),
      verdictOf(run));
  }

  // ---- explore: attention ------------------------------------------------------------------------------------------------------------------

  function buildLook() {
    S.views.look.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "Where does a cell look?"), h("p", { class: "count", id: "look-count" })),
      h("p", { class: "note", id: "look-note", role: "status", "aria-live": "polite" }, "Click a cell of the roll-out, or press Enter on it."));
    S.views.lookside.replaceChildren(
      h("div", { class: "fields column", id: "look-fields" },
        h("label", {}, h("span", {}, "Layer"), h("select", { id: "look-layer", onchange: drawLook })),
        h("label", {}, h("span", {}, "Head"), h("select", { id: "look-head", onchange: drawLook })),
        h("label", {}, h("span", {}, "Outline"), h("select", { id: "look-near", onchange: drawLook }))),
      h("p", { class: "note", id: "look-mass" }),
      h("p", { class: "note" }, "Darker cells get more of the attention of the ringed cell, in the first update of each kind of this ACT step."));
  }

  function clearLook() {
    S.look = null;
    S.looked = null;
    $("look-count").textContent = "";
    note("look-note", "Click a cell of the roll-out, or press Enter on it.");
    document.querySelectorAll(".needs-look").forEach((e) => e.classList.add("off"));
    for (const level of "hl") S.boards[`a-${level}`].outline([], -1);
  }

  function lookAt(i, open) {
    if (!S.run || open) return;
    S.looked = i;
    for (const level of "hl") S.boards[`a-${level}`].outline([], i);
    askAttention();
  }

  let asking = 0;

  function askAttention() {
    clearTimeout(asking);
    const run = S.run;
    asking = setTimeout(() => {
      if (S.run !== run || S.looked === null) return;
      note("look-note", "Reading the attention…");
      const step = Math.floor(Math.min(S.at, run.frames.h.length - 1) / run.ck.schedule.length);
      S.wires.attention.send({ puzzle: run.puzzle, settings: run.wanted, step, cell: S.looked }, (lines) => {
        for (const line of lines) {
          if (line.t === "error") note("look-note", line.message, true);
          if (line.t === "attention") { S.look = line; fillLook(); drawLook(); }
        }
      });
    }, 120);
  }

  function fillLook() {
    const fill = (id, names) => {
      const kept = $(id).value;
      $(id).replaceChildren(...names.map(([v, t]) => h("option", { value: v }, t)));
      if (names.some(([v]) => v === kept)) $(id).value = kept;
    };
    const mean = ["mean", "mean of all"];
    fill("look-layer", [mean, ...S.look.l.map((_, i) => [String(i), `layer ${i + 1}`])]);
    fill("look-head", [mean, ...S.look.l[0].map((_, i) => [String(i), `head ${i + 1}`])]);
    const words = { units: "row, column, box", nbr4: "4 neighbours", nbr8: "8 neighbours", window5: "5×5 window" };
    fill("look-near", Object.keys(S.look.neighbours).map((n) => [n, words[n] || n]));
    document.querySelectorAll(".needs-look").forEach((e) => e.classList.remove("off"));
  }

  /* One row of thousandths out of [layer][head][cell]; "mean" averages. */
  function row(maps) {
    const layer = $("look-layer").value, head = $("look-head").value;
    const layers = layer === "mean" ? maps : [maps[Number(layer)] || maps[0]];
    const rows = layers.flatMap((heads) => (head === "mean" ? heads : [heads[Number(head)]]));
    return rows[0].map((_, i) => rows.reduce((sum, r) => sum + r[i], 0) / rows.length);
  }

  function drawLook() {
    const look = S.look, run = S.run;
    if (!look || !run) return;
    const near = look.neighbours[$("look-near").value] || [], inside = new Set(near);
    const width = run.ck.task.width;
    const mass = {};
    for (const level of "lh") {
      const board = S.boards[`look-${level}`];
      board.setTask(run.ck.task);
      const values = row(look[level]);
      board.heat(values, run.puzzle);
      board.outline(near, look.cell);
      mass[level] = values.reduce((sum, v, i) => sum + (inside.has(i) ? v : 0), 0) / 1000;
      caption(board, `${percent(mass[level])} inside the outline`);
    }
    note("look-note", "");
    $("look-count").textContent = `row ${Math.floor(look.cell / width) + 1}, column ${(look.cell % width) + 1} · ACT step ${look.step + 1}`;
    const gap = Math.round(100 * (mass.l - mass.h));
    note("look-mass", gap === 0 ? "Both updates look at the outline alike." : `The ${gap > 0 ? "L" : "H"}-update looks ${Math.abs(gap)} points more at the outline.`);
  }

  // ---- learn ------------------------------------------------------------------------------------------------------------------------------------

  function learn() {
    const root = S.views.figure, ck = S.ck;
    if (S.learned === ck.key) return;
    S.learned = ck.key;
    if (ck.vacant) {
      root.replaceChildren(h("p", { class: "note" }, ck.missing));
      return;
    }
    root.replaceChildren(h("p", { class: "note" }, "Drawing an example with the model of this page…"));
    S.wires.learn.send({ checkpoint: ck.key }, (lines) => {
      S.lesson = S.lesson || null;
      for (const line of lines) {
        if (line.t === "start") S.lesson = new Run(checkpointOf(ck.key), "", {});
        else if (line.t === "error") root.replaceChildren(h("p", { class: "note bad" }, line.message));
        else S.lesson.add(line);
        if (line.t === "end") {
          S.lesson.puzzle = line.puzzle;
          drawLesson(root, S.lesson);
        }
      }
    });
  }

  /* A film strip: both states after some updates, and what the numbers of this run say. */
  function drawLesson(root, run) {
    const f = run.frames, total = f.h.length, n = run.ck.schedule.length;
    const wanted = [0, 1, n - 1, 2 * n - 1, Math.floor(total / 2), total - 1];
    const picks = [...new Set(wanted.filter((k) => k >= 0 && k < total))].sort((a, b) => a - b);
    const film = h("div", { class: "film", style: `--n:${picks.length}` });
    const boards = [];
    for (const k of picks) {
      const pair = "hl".split("").map((level) => {
        const cell = h("div", {});
        const board = new window.AirBoard.Board(cell, { name: "", mode: "state", state: level, label: `z_${level.toUpperCase()} after update ${k + 1}` });
        boards.push([board, f[level][k]]);
        return cell;
      });
      film.append(h("figure", {}, h("figcaption", {}, `update ${k + 1}`), pair));
    }
    const mean = (list) => list.reduce((a, b) => a + b, 0) / Math.max(list.length, 1);
    const hold = { h: mean(run.curves("h").held), l: mean(run.curves("l").held) };
    root.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "This model, one puzzle"), h("p", { class: "count" }, `${run.ck.key} · ${run.end.solved ? "solved" : "not solved"} in ${plural(run.end.act_steps, "ACT step")}`)),
      h("div", { class: "film-rows" }, h("div", { class: "film-names" }, h("p", {}, state("h")), h("p", {}, state("l"))), film),
      h("p", { class: "note" }, `In this run, ${percent(hold.h)} of the cells of `, state("h"), ` and ${percent(hold.l)} of those of `, state("l"), " were held back on average over the updates. Striped cells are held back."));
    showCard(run.ck);
    for (const [board, text] of boards) {
      board.setTask(run.ck.task);
      board.setPuzzle(run.puzzle);
      board.setText(text);
      board.cells.forEach((cell) => { cell.tabIndex = -1; });
    }
  }

  /* The model's card: its page on the Hub, or the text that lies beside a local checkpoint. */
  function showCard(ck) {
    const place = $("learn-cards");
    place.hidden = !ck.hub && !ck.card;
    place.replaceChildren(...(ck.hub
      ? ["Model card: ", h("a", { href: `https://huggingface.co/${ck.hub}`, rel: "noopener noreferrer", target: "_blank" }, ck.hub)]
      : ["Model card: ", h("a", { href: "#learn-card", onclick: (event) => {
        event.preventDefault();
        $("learn-card").open = true;
        $("learn-card").scrollIntoView({ block: "start" });
        $("learn-card").querySelector("summary").focus({ preventScroll: true });
      } }, ck.key)]));
    if (ck.card && !ck.hub) S.views.figure.append(h("details", { class: "paste codes-one", id: "learn-card" }, h("summary", {}, `Card of ${ck.key}`), h("pre", { tabindex: 0 }, ck.card)));
  }

  const api = { h, state, plural, percent, settings, whatIfSettings, note, Run, changedCells, describeUpdate };
  return { addBoard, addView, addWire, S, api };
})();
