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

  /* run: the current one; other: beside it, for comparison; search: what thinking on adds. at: the update shown; told:
     played to its end, so that the verdict has been said. */
  const S = { catalog: null, boards: {}, wires: {}, views: {}, run: null, other: null, search: null, at: -1, told: false, playing: false, waiting: false, speed: 1, looked: null, lessons: {}, sized: [] };
  const WIRES = ["solve", "whatif", "puzzle", "attention", "learn"];
  const VIEWS = ["header", "setup", "tools", "loop", "title-a", "title-b", "player", "look", "verdict", "whatif", "charts", "share", "figure", "measured"];
  const TABS = ["Solve", "Explore", "Learn", "Share"];
  const BOARDS = ["editor", "a-h", "a-l", "b-h", "b-l"];

  // ---- registration: components mount in any order, the page starts when all are there ----------------------------

  const stage = window.AIRStage;
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
    buildWhatIf();
    stage.build(S, api);
    window.AIRShare.build(S, api);
    S.boards.editor.on("change", () => { if (!S.run) S.lessonOf = ""; edited(); }).on("enter", solve).on("refuse", refuse);
    document.addEventListener("paste", pasted);
    window.addEventListener("resize", () => stage.drawCharts());
    openTab("Solve");
    const link = new URLSearchParams(location.search);
    const wanted = S.catalog.checkpoints.find((c) => c.key === link.get("checkpoint"));
    choose((wanted || S.catalog.checkpoints[0]).key);
    if (link.get("puzzle")) fromLink(link);
    else prepared(S.ck.key);
    document.documentElement.dataset.air = "ready";
  }

  // ---- checkpoints and tasks ---------------------------------------------------------------------------------------

  const places = () => [...S.catalog.checkpoints, ...S.catalog.vacant, ...S.sized];
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
    $("air-model").value = S.ck.base || key;
    $("air-size").parentNode.hidden = S.ck.sizes.length < 2;
    $("air-size").replaceChildren(...S.ck.sizes.map((n, i) => h("option", { value: n }, `${n}×${n}${i ? "" : " (its own)"}${n === 30 ? " (benchmark’s)" : ""}`)));
    const { height, width } = S.task, listed = height === width && S.ck.sizes.includes(height);
    if (!listed) $("air-size").append(h("option", { value: "", disabled: true }, `${height}×${width}`));
    $("air-size").value = listed ? height : "";
    $("air-model").disabled = S.ck.vacant;
    S.boards.editor.setTask(S.task);
    const sameTask = before && JSON.stringify(before.task) === JSON.stringify(S.task);
    if (!sameTask) {
      buildLevels();
      buildPad();
      forget();
      if (before && !keep) prepared(key);
    }
    $("air-tagline").replaceChildren(...(S.ck.vacant ? ["A puzzle, and two boards being rewritten in turn."] : stage.tagline(S.ck)));
    stage.drawLegend(S.ck);
    buildTwins();
    buildCompareChoices();
    note("model-note", modelNote(S.ck), S.ck.vacant);
    busy();
    outdated();
    if (S.tab === "Learn") learn();
  }

  /* No run is current: the boards show the puzzle, nothing is said about it. */
  function forget() {
    S.run = S.other = S.search = null;
    S.at = -1;
    S.told = false;
    stage.clear(S.ck, S.boards.editor.text);
    showVerdict(null);
    if (S.tab === "Share") window.AIRShare.refresh();
  }

  /* Where two checkpoints differ in the injection alone: which of the two the puzzle goes to. Both run side by side. */
  function buildTwins() {
    const twin = S.ck.twin && checkpointOf(S.ck.twin), of = (both) => (!!S.ck.h_injection === both ? S.ck : twin);
    $("air-twins").hidden = !twin;
    if (!twin) return;
    $("air-twins").replaceChildren(h("span", { id: "twins-name" }, "The puzzle goes to"), h("div", { class: "kinds", role: "group", "aria-labelledby": "twins-name" },
      [[false, "scratchpad only"], [true, "both"]].map(([both, name]) =>
        h("button", { type: "button", id: both ? "twin-both" : "twin-only", "aria-pressed": String(of(both) === S.ck), onclick: () => {
          if (of(both) !== S.ck) choose(of(both).key);
          $(both ? "twin-both" : "twin-only").focus();
        } }, name))));
  }

  /* The best model of a kind: the catalog lists the best first. */
  function chooseKind(kind) {
    if (S.task.kind !== kind) choose(places().find((ck) => ck.task.kind === kind).key);
  }

  function modelNote(ck) {
    if (ck.vacant) return ck.missing;
    if (!ck.trained) return "An untrained stand-in: no checkpoint is installed, so its answers are guesses.";
    if (ck.base) return `${ck.variant}: ${stage.sees(ck)} · made for ${ck.sizes[0]}×${ck.sizes[0]}: how far it carries is for you to see. ${ck.forecast}`;
    const exact = ck.accuracy === null ? "" : ` · ${percent(ck.accuracy)} exact when evaluated`;
    return `${ck.variant}: ${stage.sees(ck)}${exact}`;
  }

  function modelOptions(fits, all = false) {
    const groups = {};
    for (const ck of [...S.catalog.checkpoints, ...(all ? S.sized : [])]) if (fits(ck)) (groups[ck.task.title] = groups[ck.task.title] || []).push(ck);
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
      stage.drawCharts();
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
        h("p", { id: "air-tagline" })),
      buildTabs(), toggle));
  }

  // ---- solve: setup and tools ------------------------------------------------------------------------------------------

  function buildSetup() {
    const kinds = new Map(places().map((ck) => [ck.task.kind, ck.task.name]));
    S.views.setup.replaceChildren(
      h("div", { class: "kinds", id: "air-kinds", role: "group", "aria-label": "Kind of puzzle" }, [...kinds].map(([kind, name]) =>
        h("button", { type: "button", "data-kind": kind, "aria-pressed": "false", onclick: () => chooseKind(kind) }, name))),
      h("div", { class: "fields" },
        h("label", { class: "grow" }, h("span", {}, "Model"), h("select", { id: "air-model", onchange: (e) => choose(e.target.value) })),
        h("label", {}, h("span", {}, "Difficulty"), h("select", { id: "air-level", onchange: () => newPuzzle() })),
        h("label", { class: "grow" }, h("span", {}, "Size"), h("select", { id: "air-size", onchange: (e) => newPuzzle(sized(Number(e.target.value))) }))),
      h("div", { class: "twins", id: "air-twins", hidden: true }),
      h("div", { class: "actions" },
        h("button", { type: "button", class: "primary", id: "air-solve", onclick: press }, "Solve"),
        h("button", { type: "button", id: "air-new", onclick: () => newPuzzle() }, "New puzzle"),
        h("label", { class: "check" }, h("input", { type: "checkbox", id: "air-halt", checked: true }), "Stop when sure")),
      h("p", { class: "note", id: "air-message", role: "status", "aria-live": "polite" }),
      h("p", { class: "note", id: "model-note" }));
  }

  function buildLevels() {
    $("air-level").replaceChildren(...S.task.levels.map((name) => h("option", { value: name }, capital(name))));
    $("air-level").value = S.task.level;
  }

  function buildTools() {
    const { text } = S.catalog.limits;
    S.views.tools.replaceChildren(
      h("div", { class: "pad", id: "air-pad", role: "toolbar" }),
      h("details", { class: "paste" },
        h("summary", {}, "Paste or upload a puzzle"),
        h("label", { class: "grow" }, h("span", {}, `One letter per cell, row by row, up to ${text.toLocaleString("en")} characters`),
          h("textarea", { id: "air-text", rows: 5, spellcheck: "false", placeholder: "53..7....6..195…   or   a maze of # . S G" })),
        h("div", { class: "actions" },
          h("button", { type: "button", id: "air-use", onclick: () => readText($("air-text").value) }, "Use this text"),
          h("label", { class: "file" }, "Choose a text file", h("input", { type: "file", id: "air-file", accept: ".txt,.csv,.tsv,.json,.jsonl,.sdk,.sdm,.ss,text/plain,text/csv,application/json", onchange: readFile })))));
  }

  function buildPad() {
    const pad = $("air-pad"), editor = S.boards.editor;
    const clear = h("button", { type: "button", id: "air-clear", onclick: () => editor.clear() }, "Clear");
    if (S.task.kind === "sudoku") {
      pad.setAttribute("aria-label", "Digits");
      pad.className = "pad";
      const keys = S.task.alphabet.length, rows = Math.ceil(keys / 10);
      pad.style.setProperty("--wide", Math.ceil(keys / rows));
      pad.style.setProperty("--narrow", Math.ceil(keys / Math.ceil(keys / 7)));
      const put = (letter) => { editor.put(editor.cursor, letter); editor.cells[editor.cursor].focus({ preventScroll: true }); };
      pad.replaceChildren(
        ...[...S.task.alphabet.slice(2)].map((d) => h("button", { type: "button", "aria-label": `Enter ${d}`, onclick: () => put(d) }, d)),
        h("button", { type: "button", "aria-label": "Erase the cell", onclick: () => put(S.task.blank) }, "⌫"), clear);
      return;
    }
    pad.setAttribute("aria-label", "Brush");
    pad.className = "pad brushes";
    const brushes = [["#", "Wall"], [S.task.blank, "Free"], ["S", "Start"], ["G", "Goal"]];
    if (matchMedia("(pointer: coarse)").matches && S.task.width > 14) brushes.push(["", "Move"]);
    pad.replaceChildren(...brushes.map(([letter, name]) =>
      h("button", { type: "button", class: "brush", "aria-pressed": String(editor.brush === letter), onclick: (e) => {
        editor.brush = letter;
        editor.grid.style.touchAction = letter ? "" : "auto";
        pad.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === e.currentTarget)));
      } }, h("i", { class: `sw sw-${name.toLowerCase()}`, "aria-hidden": "true" }, letter === "S" || letter === "G" ? letter : ""), name)), clear);
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
      problem = missing.length ? `Place ${missing.map((m) => (m === "S" ? "the start S" : "the goal G")).join(" and ")}.` : "";
    }
    note("air-message", problem || "", !!problem);
    outdated();
  }

  /* A key that writes nothing in this puzzle. */
  function refuse(key) {
    const { kind, title, alphabet } = S.task;
    note("air-message", kind === "sudoku"
      ? `“${key}” is no digit of a ${title}: its digits are ${alphabet[2]} to ${alphabet.at(-1)}.`
      : `“${key}” is nothing in a maze: # is a wall, . a free cell, S the start, G the goal.`, true);
  }

  /* Whether what was said belongs to another puzzle or model than the one on the page, and a way back. */
  function outdated() {
    const run = S.run, old = !!run && (run.puzzle !== S.boards.editor.text || run.ck !== S.ck);
    S.views.verdict.classList.toggle("stale", old);
    $("air-stale").hidden = !old;
    if (old) $("air-stale").firstChild.textContent = run.ck !== S.ck ? `This run is by ${run.ck.key}. ` : "The puzzle has changed since this run. ";
  }

  function bringBack() {
    const { run } = S;
    if (S.ck !== run.ck) choose(run.ck.key, true);
    S.boards.editor.setText(run.puzzle);
    edited();
  }

  function setPuzzle(text, message = "") {
    if (running()) stop();
    S.boards.editor.setText(text);
    forget();
    edited();
    if (message && !$("air-message").textContent) note("air-message", message);
  }

  function puzzleAnswer(lines) {
    for (const line of lines) {
      if (line.t === "error") {
        note("air-message", line.message, true);
        $("air-message").scrollIntoView({ block: "nearest" });
        if (!S.boards.editor.text.replaceAll(S.task.blank, "")) prepared(S.ck.key, line.message);
      }
      if (line.t === "puzzle") {
        if (!checkpointOf(line.checkpoint)) S.sized.push(line.about);
        if (line.checkpoint !== S.ck.key) choose(line.checkpoint, true);
        setPuzzle(line.puzzle, line.note || "");
        if (line.halt) $("air-halt").checked = line.halt !== "max";
      }
    }
    if (!S.solveNext || !lines.some((line) => ["puzzle", "error"].includes(line.t))) return;
    S.solveNext = false;
    if (lines.some((line) => line.t === "puzzle")) solve();
  }

  /* A run of this model that was made before, on the boards by itself; for as long as nothing else is asked. */
  function prepared(key, message = "") {
    const ck = checkpointOf(key);
    if (ck.vacant || !ck.trained) { newPuzzle(); return; }
    const takes = () => S.lessonOf === key && S.ck.key === key; // else something was asked meanwhile
    S.lessonOf = key;
    fetchLesson(ck, (run, line) => {
      if (line.t === "error" && takes()) newPuzzle();
      if (line.t === "lesson" && takes()) {
        setPuzzle(run.puzzle);
        if (message) note("air-message", message, true);
        begin(run);
      }
      if (S.run === run) stage.arrived();
      if (run && run.end) {
        S.lessonOf = "";
        if (S.tab === "Learn") learn();
      }
    });
  }

  /* The prepared run of a checkpoint, line by line. */
  function fetchLesson(ck, online) {
    let run = null;
    S.wires.learn.send({ checkpoint: ck.key }, (lines) => {
      for (const line of lines) {
        if (line.t === "lesson") {
          run = new Run(ck, line.puzzle, { checkpoint: ck.key, halt: "q" });
          run.lesson = true;
        } else if (run) run.add(line);
        if (line.t === "end") S.lessons[ck.key] = run;
        online(run, line);
      }
    });
  }

  /* The key of this model for mazes of n rows and columns. */
  function sized(n) {
    const base = S.ck.base || S.ck.key;
    return n === S.ck.sizes[0] ? base : `${base}@${n}x${n}`;
  }

  function newPuzzle(key = S.ck.key) {
    note("air-message", "");
    S.lessonOf = "";
    S.wires.puzzle.send({ action: "new", checkpoint: key, level: $("air-level").value }, puzzleAnswer);
  }

  function readText(text) {
    S.lessonOf = "";
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
    for (const key of ["checkpoint", "halt"]) if (link.get(key)) wanted[key] = link.get(key);
    S.wires.puzzle.send({ action: "link", text: link.get("puzzle"), settings: wanted, checkpoint: S.ck.key }, puzzleAnswer);
  }

  // ---- runs ---------------------------------------------------------------------------------------------------------------

  class Run {
    constructor(ck, puzzle, wanted) {
      Object.assign(this, { ck, puzzle, wanted, tries: [], nodes: [], view: 0, end: null, error: "", place: 0, started: performance.now() });
    }

    get frames() { return this.tries[this.view] || { h: [], l: [], levels: [], q: [] }; }

    add(line) {
      if (line.t === "wait") [this.place, this.wait] = [line.place, line.seconds];
      if (line.t === "node") {
        this.nodes.push(line);
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

  const computing = (run) => !!run && !run.end && !run.error;
  const running = () => (computing(S.run) && !S.run.lesson) || computing(S.search) || (computing(S.other) && S.other.twin);

  /* What the one button says: it starts a run, stops it, or skips to its end; it keeps the focus throughout. */
  function busy() {
    $("air-solve").textContent = running() ? "Stop" : S.run && !S.told && !S.run.lesson ? "Skip" : "Solve";
    $("air-solve").setAttribute("aria-disabled", String(!!S.ck.vacant));
  }

  function press() {
    if (running()) stop();
    else if (S.run && !S.told && !S.run.lesson && S.run.end) stage.rest();
    else solve();
  }

  /* A run becomes the current one and is played as its updates come. */
  function begin(run) {
    S.run = run;
    S.other = S.search = null;
    S.at = -1;
    S.told = false;
    stage.clear(run.ck, run.puzzle);
    showVerdict(null);
    outdated();
    stage.play();
  }

  const ahead = (run) => `${plural(run.place, "puzzle")} before yours${run.wait ? `, about ${Math.max(1, Math.round(run.wait))} s` : ""}…`;

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
    S.wires.puzzle.id = S.lessonOf = ""; // a new puzzle that is still on its way comes too late
    const run = new Run(S.ck, S.boards.editor.text, settings());
    begin(run);
    showVerdict(null, "Thinking…");
    S.wires.solve.send({ puzzle: run.puzzle, settings: run.wanted }, (lines) => {
      lines.forEach((line) => run.add(line));
      if (S.run !== run) return;
      if (run.error) {
        forget();
        complain(run.error);
      } else if (run.place && !run.tries.length) showVerdict(null, ahead(run));
      else stage.arrived();
      busy();
    });
    if (S.ck.twin) runBeside(new Run(checkpointOf(S.ck.twin), run.puzzle, { ...run.wanted, checkpoint: S.ck.twin }), true);
    busy();
    if (S.tab === "Solve" && window.innerWidth <= 980) S.views.loop.closest(".air-card").scrollIntoView({ block: "nearest" });
  }

  /* The run has been played to its end: now the verdict. */
  function finished() {
    busy();
    showVerdict(S.run);
    compared();
    buildCompareChoices();
    if (S.tab === "Share") window.AIRShare.refresh();
  }

  function stop() {
    const { search } = S;
    for (const wire of ["solve", "whatif"]) S.wires[wire].stop();
    if (computing(search)) {
      if (search.best) keepBest(search);
      else { S.search = null; showVerdict(S.run); }
    } else if (computing(S.run)) {
      forget();
      showVerdict(null, "Stopped.");
    } else {
      S.other = null;
      stage.compare(null);
      stage.arrived();
    }
    busy();
  }

  // ---- thinking on: a search by pins ------------------------------------------------------------------------------------------

  const guessed = (letter) => (letter === "#" ? "puts a wall" : `guesses ${letter}`);
  const judged = (run, { wrong }) => (!wrong ? "the rules accept it" : run.ck.task.kind === "maze" ? "refused" : `refused, ${plural(wrong, "cell")} wrong or empty`);
  const canThinkOn = (run) => !run.end.solved && ["sudoku", "maze"].includes(run.ck.task.kind) && run.end.solutions !== 0;

  function thinkOn(before) {
    if (running()) return;
    const nodes = S.catalog.limits.nodes, run = new Run(before.ck, before.puzzle, { checkpoint: before.ck.key, nodes });
    S.search = run;
    stage.pause();
    showSearch(run);
    busy();
    $("air-enough").focus({ preventScroll: true });
    S.wires.solve.send({ puzzle: run.puzzle, settings: run.wanted }, (lines) => {
      lines.forEach((line) => run.add(line));
      if (S.search !== run) return;
      if (run.nodes.length) showNode(run, run.nodes.at(-1));
      if (run.place) note("air-nodes", ahead(run));
      if (run.error) {
        S.search = null;
        showVerdict(before);
        complain(run.error);
      }
      if (run.end) endSearch(run);
      busy();
    });
  }

  function showSearch(run) {
    S.views.verdict.replaceChildren(h("div", {},
      run.end ? verdictOf(run) : h("p", { class: "note", role: "status", "aria-live": "polite" }, `Thinking on: ${run.ck.task.kind === "maze" ? "the cell of its path that the model believes least is walled up, and it solves again, each time in another view" : "the model guesses a digit where it doubts most and solves again, the likeliest guesses first"}. The rules judge every answer.`),
      h("p", { class: "note", id: "air-nodes" }),
      h("div", { class: "tree", id: "air-tree", tabindex: 0, role: "group", "aria-label": "Search tree; the arrow keys go from node to node", onkeydown: (event) => {
        const node = run.nodes[(run.shown || run.nodes.at(-1)).n - 1 + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || NaN)];
        if (!node) return;
        event.preventDefault();
        showNode(run, node);
      } }),
      h("ul", { class: "legend tree-legend" }, [["refused", "refused"], ["newest", "newest guess"], ["answer", "answer"], ["back", "way back"]].map(([kind, name]) => h("li", {}, h("i", { class: `lg-${kind}` }), name))),
      run.end ? offers(run, false) : h("div", { class: "actions" }, h("button", { type: "button", id: "air-enough", onclick: stop }, "Stop and keep the best"))));
  }

  /* An answer of a search on the board: its guesses ringed, what breaks a rule marked. */
  function showAnswer(run, text, guesses, refused) {
    const board = S.boards["a-h"], wrong = run.ck.task.kind === "sudoku" ? board.faults(text).bad : new Set();
    board.setPuzzle(run.puzzle);
    board.setText(text);
    board.mark(wrong, guesses);
    stage.caption(board, plural(guesses.length, "guess", "guesses"), wrong.size ? `${plural(wrong.size, "cell")} break a rule` : refused ? "refused" : "no rule broken");
    stage.caption(S.boards["a-l"], "as the single pass left it");
  }

  function showNode(run, node) {
    run.shown = node;
    showAnswer(run, node.answer, node.pins.map(([cell]) => cell), node.wrong > 0);
    note("air-nodes", `${plural(run.nodes.length, "node")} of up to ${run.wanted.nodes}, ${plural(run.nodes.at(-1).act_steps, "ACT step")}${node === run.nodes.at(-1) ? "" : ` · showing node ${node.n}`}`);
    const pin = node.pins.at(-1), { width } = run.ck.task;
    $("stage-tell").replaceChildren(`Node ${node.n}${pin ? ` ${guessed(pin[1])} in row ${Math.floor(pin[0] / width) + 1}, column ${(pin[0] % width) + 1}` : node.n > 1 ? ", the puzzle in another view" : ", the puzzle as given"}: ${judged(run, node)}.`);
    stage.drawTree($("air-tree"), run, (picked) => showNode(run, picked));
  }

  function endSearch(run) {
    const { end } = run, width = run.ck.task.width;
    showSearch(run);
    if (run.nodes.length) showNode(run, run.nodes.at(-1));
    showAnswer(run, end.solution, end.pins.map((pin) => (pin.row - 1) * width + pin.column - 1), !end.solved);
    outdated();
  }

  /* After a stop: the best answer so far, as the end of a search that found none. */
  function keepBest(run) {
    const { best } = run, width = run.ck.task.width, spent = run.nodes.at(-1);
    const pins = best.pins.map(([cell, digit]) => ({ row: Math.floor(cell / width) + 1, column: (cell % width) + 1, digit }));
    const message = "Stopped: this is the best answer so far.";
    const seconds = (performance.now() - run.started) / 1000;
    const faults = [...S.boards["a-h"].faults(best.answer).bad];
    run.end = { solved: best.wrong === 0, solution: best.answer, message, pins, faults, attempts: spent.n, act_steps: spent.act_steps, seconds };
    endSearch(run);
  }

  // ---- the verdict ------------------------------------------------------------------------------------------------------------

  function verdictOf(run) {
    const end = run.end, ok = end.solved, { pins } = end, wrong = end.faults ? end.faults.length : 0;
    const broken = run.ck.task.kind === "sudoku" ? `${plural(wrong, "cell breaks", "cells break")} a rule` : `the path ends or forks at ${plural(wrong, "cell")}`;
    const said = ok ? "The rules accept this answer." : end.message.replace(/(^|\. )[a-z]/g, (start) => start.toUpperCase()) + (wrong ? ` In all ${broken}; they are marked.` : "");
    const several = ok && end.solutions === "several" ? " It is one of several solutions." : "";
    const seconds = end.seconds < 0.1 ? "< 0.1 s" : `${end.seconds.toFixed(1)} s`;
    return h("div", { class: `verdict ${ok ? "ok" : "no"}`, role: "status", "aria-live": "polite" },
      h("span", { class: "mark", "aria-hidden": "true" }, ok ? "✓" : "✕"),
      h("div", {},
        h("strong", {}, ok ? "Solved" : "Not solved"),
        h("p", {}, said + several),
        pins ? h("p", {}, pins.length ? `Guesses: ${pins.map((pin) => `${pin.digit || "a wall"} in row ${pin.row}, column ${pin.column}`).join("; ")}.` : "No guess led to it.") : null),
      h("dl", {},
        pins ? null : h("div", {}, h("dt", {}, "Confidence"), h("dd", {}, percent(end.confidence)),
          h("meter", { min: 0, max: 1, value: end.confidence, "aria-label": `Confidence ${percent(end.confidence)}` })),
        h("div", {}, h("dt", {}, "ACT steps"), h("dd", {}, String(end.act_steps))),
        end.attempts > 1 || pins ? h("div", {}, h("dt", {}, pins ? "Nodes" : "Attempts"), h("dd", {}, String(end.attempts))) : null,
        h("div", {}, h("dt", {}, "Time"), h("dd", {}, seconds))));
  }

  /* What a visitor can do next. */
  function offers(run, fresh) {
    const { levels } = run.ck.task, at = levels.indexOf($("air-level").value);
    const button = (id, text, onclick, looks = null) => h("button", { type: "button", id, class: looks, onclick }, text);
    const failed = !run.end.solved;
    return h("div", { class: "actions" },
      fresh && canThinkOn(run) ? button("air-think", "Think on", () => thinkOn(run), "primary") : null,
      fresh && failed && S.run.ck === S.ck ? button("air-more", "More ACT steps", () => {
        openTab("Explore");
        $("if-steps").value = S.catalog.limits.steps;
        whatIf();
      }) : null,
      failed && at > 0 ? button("air-easier", "Easier puzzle", () => { $("air-level").value = levels[at - 1]; newPuzzle(); }) : null,
      fresh ? button("air-explore", "Explore this run", () => openTab("Explore"), "in-solve") : null);
  }

  function showVerdict(run, text = "") {
    S.views.verdict.replaceChildren(run
      ? h("div", {}, verdictOf(run),
        !run.end.odds ? null : h("p", { class: "note", id: "air-odds" }, run.end.odds),
        offers(run, true))
      : h("p", { class: "note", role: "status", "aria-live": "polite" }, text));
  }

  const panelOf = (name) => $(name === "Learn" || name === "Share" ? `panel-${name.toLowerCase()}` : "panel-run");

  function openTab(name, focus = false) {
    S.tab = name;
    for (const other of TABS) {
      const tab = $(`tab-${other.toLowerCase()}`), on = other === name;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panelOf(other).classList.toggle("air-hidden", panelOf(other) !== panelOf(name));
      if (on && focus) tab.focus();
    }
    panelOf(name).setAttribute("aria-labelledby", `tab-${name.toLowerCase()}`);
    panelOf(name).dataset.tab = name;
    stage.drawCharts();
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
    for (const name of TABS) panelOf(name).setAttribute("role", "tabpanel");
    return h("div", { class: "tabs", role: "tablist", "aria-label": "Parts of the page", onkeydown }, TABS.map((name) =>
      h("button", { type: "button", role: "tab", id: `tab-${name.toLowerCase()}`, "aria-controls": panelOf(name).id, onclick: () => openTab(name) }, name)));
  }

  // ---- explore: what if, and two checkpoints on one puzzle -----------------------------------------------------------------------------

  function buildWhatIf() {
    const { steps, attempts } = S.catalog.limits;
    S.views.whatif.replaceChildren(
      h("div", { class: "shared" }, h("div", { id: "if-puzzle" }), h("div", {}, h("h2", {}, "What if…"),
        h("p", { class: "note" }, "The puzzle of this run; run it again with something changed, beside it."))),
      h("div", { class: "fields", id: "if-fields" },
        h("label", { class: "grow" }, h("span", {}, "Model"), h("select", { id: "if-model" })),
        h("label", {}, h("span", {}, "Freeze"), h("select", { id: "if-freeze" },
          h("option", { value: "none" }, "nothing"), h("option", { value: "z_h" }, "z_H"), h("option", { value: "z_l" }, "z_L"))),
        h("label", {}, h("span", {}, "after ACT step"), h("input", { type: "number", id: "if-from", min: 0, max: steps, value: 0 })),
        h("label", {}, h("span", {}, "ACT steps"), h("input", { type: "number", id: "if-steps", min: 1, max: steps, value: 16 })),
        h("label", {}, h("span", {}, "Attempts"), h("input", { type: "number", id: "if-attempts", min: 1, max: attempts, value: 1 })),
        h("button", { type: "button", class: "primary", id: "if-run", onclick: whatIf }, "Run what-if")),
      h("p", { class: "note", id: "if-message", role: "status", "aria-live": "polite" }));
    S.mini = puzzleOn("if-puzzle");
  }

  /* A board that only shows; the arrow keys pass it by. Gives a function that draws a text on it. */
  function miniature(place, label, options) {
    const board = new window.AirBoard.Board(place, { label, ...options });
    return (task, text, puzzle = text) => {
      board.setTask(task);
      board.setPuzzle(puzzle);
      board.setText(text);
      board.cells.forEach((cell) => { cell.tabIndex = -1; });
      return board;
    };
  }

  const puzzleOn = (id) => miniature($(id), "Puzzle of this run", { mode: "show" });

  function buildCompareChoices() {
    const same = (ck) => JSON.stringify(ck.task) === JSON.stringify(S.task);
    $("if-model").replaceChildren(...modelOptions(same, true));
    const others = S.catalog.checkpoints.filter((ck) => same(ck) && ck.key !== S.ck.key);
    $("if-model").value = S.ck.key;
    $("if-steps").value = S.ck.halt_max_steps;
    if (!others.length) note("if-message", "This page has one checkpoint of this task, so there is no second one to compare with.");
    else note("if-message", "");
  }

  const whatIfSettings = () => ({
    checkpoint: $("if-model").value, halt: "max", steps: Number($("if-steps").value), freeze: $("if-freeze").value,
    from: Number($("if-from").value), attempts: Number($("if-attempts").value),
  });

  function whatIf() {
    if (computing(S.other)) {
      S.wires.whatif.stop();
      S.other = null;
      compared();
      note("if-message", "Stopped.");
      return;
    }
    if (!S.run || !S.run.end) { note("if-message", "Solve a puzzle first: then there is a run to compare with.", true); return; }
    if (!S.told) stage.rest();
    const wanted = whatIfSettings();
    runBeside(new Run(checkpointOf(wanted.checkpoint), S.run.puzzle, wanted), false);
  }

  /* A second run on the same puzzle, beside the current one: a twin plays with it, a what-if is shown when it ends. */
  function runBeside(run, twin) {
    const base = S.run;
    stage.closeLook(); // its panel stands where this run goes
    run.twin = twin;
    S.other = run;
    if (!twin) note("if-message", "Running…");
    compared();
    S.wires.whatif.send({ puzzle: run.puzzle, settings: run.wanted }, (lines) => {
      lines.forEach((line) => run.add(line));
      if (S.other !== run || S.run !== base) return;
      if (!twin) note("if-message", run.error || (run.place && !run.tries.length ? ahead(run) : run.end ? "" : "Running…"), !!run.error);
      if (run.end || run.error) {
        compared();
        if (!twin && run.end) stage.seek(Infinity);
        if (twin) busy();
      }
      if (twin) stage.arrived();
    });
  }

  /* The titles of the two pairs of boards. */
  function compared() {
    const { run, other } = S, goes = (ck) => (ck.h_injection ? (ck.l_injection ? "both" : "proposal only") : "scratchpad only");
    $("if-run").textContent = computing(other) && !other.twin ? "Stop" : "Run what-if";
    stage.compare(other);
    if (!other) { for (const view of ["title-a", "title-b"]) S.views[view].replaceChildren(); return; }
    const title = (one) => {
      const name = one.twin || other.twin ? `The puzzle goes to: ${goes(one.ck)}` : one === run ? `Yours: ${one.ck.key}` : one.ck === run.ck ? "What if" : `What if: ${one.ck.key}`, what = [];
      if (one.wanted.freeze && one.wanted.freeze !== "none") what.push([state(one.wanted.freeze.at(-1)), ` frozen ${one.wanted.from ? `after ACT step ${one.wanted.from}` : "from the start"}`]);
      if (one.end && (S.told || !other.twin)) what.push(plural(one.end.act_steps, "ACT step"), one.end.solved ? "solved" : "not solved");
      if (one.end && one.end.attempts > 1) what.push(plural(one.end.attempts, "attempt"));
      if (one === other && one.end && run.end && !one.twin) what.push(changedCells(run.end.solution, one.end.solution) ? `differs from yours in ${plural(changedCells(run.end.solution, one.end.solution), "cell")}` : "the same answer as yours");
      return [h("h3", {}, name), h("p", { class: "note" }, what.length ? what.flatMap((part, i) => (i ? [" · ", part] : [part])).flat() : "…")];
    };
    S.views["title-a"].replaceChildren(...title(run));
    S.views["title-b"].replaceChildren(...title(other));
  }

  // ---- learn ------------------------------------------------------------------------------------------------------------------------------------

  function learn() {
    const root = S.views.figure, ck = S.ck;
    measured();
    if (S.learned === ck.key) return;
    const place = $("learn-loop"), lesson = S.lessons[ck.key];
    if (ck.vacant) {
      root.replaceChildren(h("p", { class: "note" }, ck.missing));
      return;
    }
    place.replaceChildren(stage.loop(ck), h("p", { class: "rule" }), stage.schedule(ck));
    $("learn-step").textContent = `${ck.key} takes ${ck.schedule.toUpperCase().split("").join(" ")} for one ACT step, up to ${ck.halt_max_steps} of them; ${stage.sees(ck)}.`;
    stage.light(place, ck, "", -1);
    if (lesson) {
      S.learned = ck.key;
      drawLesson(root, lesson);
      return;
    }
    root.replaceChildren(h("p", { class: "note" }, "Drawing an example with the model of this page…"));
    if (S.lessonOf !== ck.key) fetchLesson(ck, (run) => { if (run && run.end && S.tab === "Learn" && S.ck === ck) learn(); });
  }

  /* The prepared run of this model once more in Explore, with something changed. */
  function tryOut(changed) {
    const lesson = S.lessons[S.ck.key];
    if (!S.run && lesson) {
      setPuzzle(lesson.puzzle);
      begin(lesson);
      stage.rest();
    }
    if (computing(S.other)) {
      S.wires.whatif.stop();
      S.other = null;
    }
    openTab("Explore");
    buildCompareChoices();
    $("if-freeze").value = changed.freeze || "none";
    $("if-model").value = changed.checkpoint || S.ck.key;
    whatIf();
  }

  /* What was measured on shipped models (results/studies, results/small_runs*.jsonl), and the same to try on this one. */
  function measured() {
    const { models, ladder } = S.catalog.measured, ck = S.ck;
    const table = (caption, head, rows) => h("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": caption }, h("table", { class: "measured" },
      h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))),
      h("tbody", {}, rows.map(([first, ...rest]) => h("tr", {}, h("th", { scope: "row" }, first), rest.map((cell) => h("td", {}, cell)))))));
    const rowOf = ([name, m]) => [name, m.asymmetric ? "L alone" : "both", `${m.held_back[0]} / ${m.held_back[1]}`, m.solved[0], m.solved[1], m.solved[2], m.nearer === null ? "" : Math.abs(m.nearer) < 5e-4 ? "0" : m.nearer.toFixed(3)];
    S.views.measured.replaceChildren(
      h("h2", {}, "What our models do"),
      h("p", { class: "note" }, "Where only the L-update sees the puzzle, the two states part: the scratchpad keeps cells open, and in mazes neither solves anything without the other. Where both updates see it, the states become the same. In percent, on up to 1,000 puzzles:"),
      table("Models", ["model", "updates that see the puzzle", "cells held back: z_H / z_L", "solved", "with z_H frozen", "with z_L frozen", "L looks nearer by"], Object.entries(models).map(rowOf)),
      h("div", { class: "actions" },
        h("span", { class: "note" }, "Try it on this model:"),
        h("button", { type: "button", id: "try-h", onclick: () => tryOut({ freeze: "z_h" }) }, "Freeze z_H"),
        h("button", { type: "button", id: "try-l", onclick: () => tryOut({ freeze: "z_l" }) }, "Freeze z_L"),
        ck.twin ? h("button", { type: "button", id: "try-twin", onclick: () => tryOut({ checkpoint: ck.twin }) }, "Run its twin") : null),
      h("h2", {}, "Does asymmetry help?"),
      h("p", { class: "note" }, "Under the paper's arithmetic the asymmetric rule Lx_H is ahead on average, here too, though not beyond chance. With heads that look along rows, columns and boxes the symmetric rule learns sooner. 4x4 Sudokus solved early in training, in percent; each line keeps the changes above it:"),
      table("Recipes", ["recipe", "steps", "seeds", "Lx_H", "Lx_Hx"], ladder.map((row) => [row.recipe, row.steps.toLocaleString("en"), row.seeds, row.Lx_H.toFixed(1), row.Lx_Hx.toFixed(1)])));
  }

  /* A film strip: both states after some updates, and what the numbers of this run say. */
  function drawLesson(root, run) {
    const f = run.frames, total = f.h.length, n = run.ck.schedule.length;
    const wanted = [0, 1, n - 1, 2 * n - 1, Math.floor(total / 2), total - 1];
    const picks = [...new Set(wanted.filter((k) => k >= 0 && k < total))].sort((a, b) => a - b);
    const film = h("div", { class: "film", style: `--n:${picks.length}` });
    for (const k of picks) {
      film.append(h("figure", {}, h("figcaption", {}, `update ${k + 1}`), [..."hl"].map((level) => {
        const place = h("div", {});
        miniature(place, `z_${level.toUpperCase()} after update ${k + 1}`, { mode: "state", state: level })(run.ck.task, f[level][k], run.puzzle);
        return place;
      })));
    }
    const mean = (list) => list.reduce((a, b) => a + b, 0) / Math.max(list.length, 1);
    const hold = { h: mean(run.curves("h").held), l: mean(run.curves("l").held) };
    root.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "This model, one puzzle"), h("p", { class: "count" }, `${run.ck.key} · ${run.end.solved ? "solved" : "not solved"} in ${plural(run.end.act_steps, "ACT step")}`)),
      h("div", { class: "film-rows" }, h("div", { class: "film-names" }, h("p", {}, state("h")), h("p", {}, state("l"))), film),
      h("p", { class: "note" }, `In this run, ${percent(hold.h)} of the cells of `, state("h"), ` and ${percent(hold.l)} of those of `, state("l"), " were held back on average over the updates. Striped cells are held back."));
    showCard(run.ck);
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

  const api = { h, state, plural, percent, settings, note, changedCells, solve, finished, bringBack, miniature, puzzleOn };
  return { addBoard, addView, addWire, S, api };
})();
