/* The stage: the loop, the boards of the current run (and of one to compare with), its player, legend, attention,
 * curves, and the tree of a search. page.js says which run is current; everything here draws that one. */
window.AIRStage = window.AIRStage || (() => {
  "use strict";

  let S, api, h, state, plural, percent;
  const $ = (id) => document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  function build(shared, tools) {
    S = shared;
    api = tools;
    ({ h, state, plural, percent } = api);
    buildPlayer();
    for (const level of "hl") S.boards[`a-${level}`].on("select", lookAt);
    buildLook();
  }

  const figure = (board) => board.root.closest(".fig");
  const sizeOf = (ck) => ck.task.height * ck.task.width;
  const total = () => Math.max(S.run.frames.h.length, S.other ? S.other.frames.h.length : 0);
  const over = () => !!S.run.end && (!S.other || !!S.other.end || !!S.other.error);

  // ---- the loop: x, z_L, the block f and z_H around the boards ------------------------------------------------------

  const INPUTS = { identity: "x", negate: "−x", linear: "W x", tanh_linear: "tanh(W x)", hadamard: "x" };
  const copies = (ck, level) => ck[`${level}_injection`];
  const sees = (ck) => (ck.l_injection && ck.h_injection ? "both updates see the puzzle" : `only the ${ck.l_injection ? "L" : "H"}-update sees the puzzle`);

  /* "z_L ← f(z_L + z_H + x)"; an x that does not enter is struck out. */
  function rule(ck, level) {
    const other = level === "l" ? "h" : "l", n = copies(ck, level), x = (n > 1 ? n : "") + INPUTS[ck.input_operator];
    const f = ck.shared_block ? "f" : `f${level.toUpperCase()}`, times = ck.input_operator === "hadamard" && n;
    const enters = h("span", { class: n ? "x" : "x gone", title: n ? null : "the puzzle does not enter this update" }, n ? x : "x");
    return [state(level), ` ← ${f}(`, times ? "(" : "", state(level), " + ", state(other), times ? ") ⊙ " : " + ", enters, ")"];
  }

  function tagline(ck) {
    const block = ck.shared_block ? "One block" : "Two blocks";
    if (ck.l_injection && ck.h_injection) {
      return [`${block}; both updates see the puzzle, so only their order tells the scratchpad `, state("l"), " from the proposal ", state("h"), "."];
    }
    return [`${block}, two roles: `, state("l"), " is the scratchpad, ", state("h"), ` the proposal, and ${sees(ck)}.`];
  }

  function loop(ck) {
    const wire = (name, levels) => h("i", { class: `w w-${name}`, "data-for": levels });
    const node = (name, title, small) => h("span", { class: `node n-${name}` }, title, h("small", {}, small));
    const fed = ["l", "h"].filter((level) => copies(ck, level)).join("");
    return h("div", { class: "loop", role: "img", "aria-label": `The loop: ${sees(ck)}. One ACT step is ${ck.schedule.toUpperCase().split("").join(" ")}.` },
      wire("x", fed), wire("h-in", "lh"), wire("h-out", "h"), wire("l-in", "lh"), wire("l-out", "l"),
      node("x", "x", "puzzle"), node("f", ck.shared_block ? "f" : "f, f", ck.shared_block ? "one block" : "two blocks"),
      node("h", state("h"), "proposal"), node("l", state("l"), "scratchpad"));
  }

  const schedule = (ck) => h("p", { class: "sched", "aria-label": "Updates of one ACT step" },
    [...ck.schedule].map((level) => h("b", { class: `z-${level}` }, level.toUpperCase())));

  /* Light the wires of one update, and its letter in the schedule; no level: all rest. */
  function light(root, ck, level, index) {
    const drawn = root.querySelector(".loop");
    drawn.dataset.lv = level || "";
    drawn.querySelectorAll(".w").forEach((w) => w.classList.toggle("lit", !!level && w.dataset.for.includes(level)));
    drawn.querySelector(".w-x").classList.toggle("cut", !!level && !copies(ck, level));
    root.querySelectorAll(".sched b").forEach((b, i) => b.classList.toggle("lit", i === index));
    root.querySelector(".rule").replaceChildren(...(level ? [`${level.toUpperCase()}-update: `, ...rule(ck, level)] : ["Each update: ", ...rule(ck, "l"), h("span", { class: "or" }, " or "), ...rule(ck, "h")]));
  }

  function drawLoop(ck) {
    S.views.loop.replaceChildren(loop(ck),
      h("div", { class: "row" }, h("p", { class: "rule" }), schedule(ck)),
      h("p", { class: "tell", id: "stage-tell" }));
    light(S.views.loop, ck, "", -1);
  }

  // ---- what an update did, in numbers of the run itself -------------------------------------------------------------

  /* Cells that a run had to fill in: blanks of a Sudoku, the path of a maze's final answer. */
  function open(run) {
    if (!run.open && run.end) {
      const { blank } = run.ck.task, goal = run.end.solution, maze = run.ck.task.kind === "maze";
      run.open = [...goal].flatMap((letter, i) => (maze ? letter === "o" : run.puzzle[i] === blank) ? [i] : []);
    }
    return run.open || [];
  }

  const agreeing = (run, text) => open(run).filter((i) => text[i] === run.end.solution[i]).length;

  /* The letter that nearly all cells to fill in read as, where they do: then a state holds no draft yet. */
  function monotone(run, text) {
    const cells = run.ck.task.kind === "sudoku" ? [...text].filter((_, i) => run.puzzle[i] === run.ck.task.blank) : [...text];
    const count = {};
    for (const letter of cells) count[letter] = (count[letter] || 0) + 1;
    const [letter, n] = Object.entries(count).sort((a, b) => b[1] - a[1])[0] || ["", 0];
    const plain = run.ck.task.kind === "maze" && letter === run.ck.task.blank;
    return n >= 0.9 * cells.length && cells.length > 3 && !plain && !run.ck.task.held.includes(letter) ? letter : "";
  }

  function tell(run, k) {
    const f = run.frames, level = f.levels[k], text = f[level][k], what = run.ck.task.kind === "maze" ? "path" : "answer";
    const c = run.curves(level), held = Math.round(c.held[k] * sizeOf(run.ck));
    const same = monotone(run, text);
    if (same) return [state(level), ` reads as ${letterName(run, same)} nearly everywhere: no draft yet.`];
    if (!run.end || !open(run).length) return [state(level), ` changed ${plural(c.changed[k], "cell")}`, held ? ` and marks ${plural(held, "cell")} open.` : "."];
    const share = percent(agreeing(run, text) / open(run).length), last = k === f.h.length - 1;
    if (last && level === "h") return [state("h"), ` holds the ${run.end.solved ? "solution" : "final answer"}.`];
    const verb = level === "l" ? " drafts " : c.changed[k] ? " takes over " : " keeps ";
    return [state(level), `${verb}${share} of the final ${what}`, held ? ` and marks ${plural(held, "cell")} open.` : "."];
  }

  const letterName = (run, letter) => (run.ck.task.kind === "maze" ? { "#": "wall", " ": "free", o: "path", S: "start (S)", G: "goal (G)" }[letter] || letter : `“${letter}”`);

  function boardNote(run, level, k) {
    const c = run.curves(level), held = Math.round(c.held[k] * sizeOf(run.ck)), text = run.frames[level][k], same = monotone(run, text);
    const frozen = run.wanted.freeze === `z_${level}` && k >= (run.wanted.from || 0) * run.ck.schedule.length;
    return [
      frozen ? (run.wanted.from ? `frozen since ACT step ${run.wanted.from}` : "frozen at its start state") : "",
      same ? `reads as ${letterName(run, same)} everywhere: a start state, read out as if it were a draft` : "",
      run.end && open(run).length ? `${agreeing(run, text)} of ${open(run).length} as in the final answer` : "",
      held ? `${held} held back` : "nothing held back",
      `${c.changed[k]} changed`,
    ];
  }

  function describeUpdate(run, k) {
    const f = run.frames, n = run.ck.schedule.length, level = f.levels[k];
    const steps = run.end ? Math.ceil(f.h.length / n) : run.wanted.steps || run.ck.halt_max_steps;
    return `ACT step ${Math.floor(k / n) + 1} of ${steps} · update ${k + 1}: ${level.toUpperCase()}`;
  }

  // ---- boards --------------------------------------------------------------------------------------------------------

  function caption(board, ...parts) {
    figure(board).querySelector(".fig-note").replaceChildren(...parts.filter(Boolean).map((part) => h("span", {}, part)));
  }

  /* Boards that show a puzzle, before anything has been written. */
  function empty(prefix, ck, text) {
    for (const level of "hl") {
      const board = S.boards[`${prefix}-${level}`];
      board.setTask(ck.task);
      board.setPuzzle(text);
      board.setText(text);
      figure(board).classList.add("idle");
      figure(board).classList.remove("moving");
      caption(board);
    }
  }

  function clear(ck, text) {
    pause();
    closeLook();
    drawLoop(ck);
    S.mini(ck.task, text);
    document.querySelectorAll(".pair-b").forEach((e) => e.classList.add("off"));
    for (const view of ["title-a", "title-b"]) S.views[view].replaceChildren();
    empty("a", ck, text);
    drawPlayer();
    drawCharts();
  }

  function show(run, prefix) {
    const f = run.frames, k = Math.min(S.at, f.h.length - 1), rests = resting();
    if (k < 0) return;
    for (const level of "hl") {
      const board = S.boards[`${prefix}-${level}`];
      board.setTask(run.ck.task);
      board.setPuzzle(run.puzzle);
      board.setText(f[level][k], rests || !k || k < S.at ? null : f[level][k - 1]);
      if (rests && level === "h" && run.end && !run.end.solved) board.mark(run.end.faults);
      figure(board).classList.remove("idle");
      figure(board).classList.toggle("moving", !rests && f.levels[k] === level);
      caption(board, ...boardNote(run, level, k));
    }
  }

  const resting = () => S.told && over() && S.at >= total() - 1;

  function compare(run) {
    const on = !!run && !run.error;
    if (on && !run.frames.h.length) empty("b", run.ck, run.puzzle);
    document.querySelectorAll(".pair-b").forEach((e) => e.classList.toggle("off", !on));
    document.querySelectorAll(".air-pairs").forEach((e) => e.classList.toggle("both", on));
  }

  // ---- the player: updates are kept, and played so that they can be followed ---------------------------------------------

  /* Milliseconds that update k is shown: the first two ACT steps about 200 each, the rest faster; 2 to 5 s in all. */
  function pace(k) {
    const run = S.run, n = run.ck.schedule.length;
    const all = over() ? total() : Math.max(total(), n * (run.wanted.steps || run.ck.halt_max_steps));
    const slow = Math.min(2 * n, all), each = Math.min(Math.max(200, 2000 / all), 3000 / slow);
    return k < slow ? each : Math.min(each, 2000 / (all - slow));
  }

  /* A first playing lasts two seconds at least, also where its end came sooner than its first update let expect. */
  function stay(k) {
    const last = !S.told && over() && k === total() - 1 ? 2000 - (performance.now() - S.begun) : 0;
    return Math.max(S.told && S.tab === "Explore" ? 220 : pace(k), last) / S.speed;
  }

  /* Play from where the run stands, to its end or for as long as there are updates. */
  function play() {
    pause();
    if (!S.run) return;
    if (S.told && S.at >= total() - 1) S.at = -1;
    S.playing = true;
    S.due = 0;
    closeLook();
    tick();
  }

  function tick() {
    S.waiting = false;
    if (!S.playing) return;
    if (S.at + 1 >= total() || (still.matches && !S.told)) {
      if (over()) rest();
      else S.waiting = true; // `arrived` goes on
      return;
    }
    const now = performance.now();
    let k = S.at + 1;
    if (!k) S.begun = now;
    S.due = Math.max(S.due || now, now - 50) + stay(k);
    // Updates that pass faster than frames are drawn are left out, never one of the first two ACT steps.
    while (S.due < now && k + 1 < total() && k > 2 * S.run.ck.schedule.length) S.due += stay(++k);
    seek(k);
    S.timer = setTimeout(tick, Math.max(0, S.due - performance.now()));
  }

  function arrived() {
    if (S.waiting) tick();
    else if (S.run && total() > 0) drawPlayer();
  }

  function pause() {
    clearTimeout(S.timer);
    S.playing = S.waiting = false;
    drawPlayer();
  }

  /* The end of playing: the last update, at rest, and then the verdict. */
  function rest() {
    const first = !S.told;
    pause();
    S.told = true;
    seek(total() - 1);
    drawCharts();
    if (first) api.finished();
  }

  function seek(k) {
    const run = S.run;
    if (!run || !run.frames.h.length) return;
    const n = run.ck.schedule.length, before = Math.floor(S.at / n);
    S.at = Math.max(0, Math.min(k, total() - 1));
    show(run, "a");
    if (S.other && S.other.frames.h.length) show(S.other, "b");
    const mine = Math.min(S.at, run.frames.h.length - 1), rests = resting();
    light(S.views.loop, run.ck, rests ? "" : run.frames.levels[mine], rests ? -1 : mine % n);
    $("stage-tell").replaceChildren(run.lesson ? h("span", { class: "tag" }, "Prepared run") : "", ...tell(run, mine));
    drawPlayer();
    moveCursor();
    if (S.looked !== null && Math.floor(S.at / n) !== before) askAttention();
  }

  function buildPlayer() {
    const step = (d) => () => { pause(); seek(S.at + d); };
    S.views.player.replaceChildren(
      h("div", { class: "empty", id: "ex-empty" },
        h("p", { class: "note" }, "Press Solve to watch both boards being rewritten."),
        h("button", { type: "button", class: "primary in-explore", id: "ex-run", onclick: () => api.solve() }, "Run the puzzle of the Solve tab"),
        h("p", { class: "note", id: "ex-message", role: "status", "aria-live": "polite" })),
      h("div", { class: "player", id: "ex-player", hidden: true },
        h("div", { class: "transport" },
          h("button", { type: "button", "aria-label": "One update back", onclick: step(-1) }, "‹"),
          h("button", { type: "button", id: "ex-play", onclick: () => (S.playing ? pause() : play()) }, "Replay"),
          h("button", { type: "button", "aria-label": "One update on", onclick: step(1) }, "›"),
          h("label", {}, h("span", { class: "sr" }, "Speed"), h("select", { id: "ex-speed", onchange: (e) => { S.speed = Number(e.target.value); } },
            [["0.25", "¼×"], ["0.5", "½×"], ["1", "1×"], ["2", "2×"], ["4", "4×"]].map(([v, t]) => h("option", { value: v }, t)))),
          h("label", { id: "ex-tries-label", hidden: true }, h("span", { class: "sr" }, "Attempt"), h("select", { id: "ex-tries", onchange: (e) => { S.run.view = Number(e.target.value); seek(S.run.frames.h.length - 1); drawCharts(); } })),
          h("p", { class: "count", id: "ex-count" })),
        h("div", { class: "scrub strip", id: "ex-strip" }, h("i", {}),
          h("input", { type: "range", id: "ex-at", min: 0, max: 1, value: 0, "aria-label": "Update", oninput: (e) => { const k = Number(e.target.value); pause(); seek(k); } }))),
      h("p", { class: "note", id: "air-stale", hidden: true }, h("span", {}), h("button", { type: "button", class: "quiet", id: "air-back", onclick: () => api.bringBack() }, "Bring it back")),
      h("div", { id: "stage-legend" }));
    $("ex-speed").value = "1";
  }

  function drawPlayer() {
    const run = S.run, has = !!run && run.frames.h.length > 0 && S.at >= 0;
    if (!$("ex-player")) return;
    $("ex-empty").hidden = has;
    $("ex-player").hidden = !has;
    if (!has) return;
    const mine = Math.min(S.at, run.frames.h.length - 1), all = over() ? total() : Math.max(total(), run.ck.schedule.length * (run.wanted.steps || run.ck.halt_max_steps));
    $("ex-play").textContent = S.playing ? "Pause" : S.at >= total() - 1 && S.told ? "Replay" : "Play";
    $("ex-at").max = total() - 1;
    $("ex-at").value = S.at;
    $("ex-at").setAttribute("aria-valuetext", describeUpdate(run, mine));
    $("ex-count").textContent = describeUpdate(run, mine);
    const n = run.ck.schedule.length, stops = [];
    [...run.ck.schedule].forEach((level, i) => stops.push(`var(--z${level}) ${(100 * i) / n}% ${(100 * (i + 0.86)) / n}%`, `transparent ${(100 * (i + 0.86)) / n}% ${(100 * (i + 1)) / n}%`));
    const strip = $("ex-strip").style;
    strip.setProperty("--strip", `linear-gradient(90deg, ${stops.join(", ")})`);
    strip.setProperty("--strip-size", `${(100 * n) / all}%`);
    strip.setProperty("--done", `${(100 * (S.at + 1)) / all}%`);
    const tries = $("ex-tries");
    $("ex-tries-label").hidden = run.tries.length < 2;
    if (tries.length !== run.tries.length) tries.replaceChildren(...run.tries.map((_, k) => h("option", { value: k }, k ? `Attempt ${k + 1} (symmetric view)` : "Attempt 1")));
    tries.value = String(run.view);
  }

  // ---- legend -----------------------------------------------------------------------------------------------------------------

  /* Each sign as a cell of a real board, so that the legend cannot say anything else than the boards do. */
  function drawLegend(ck) {
    const sudoku = ck.task.kind === "sudoku";
    const sign = (looks, text, letter = "", level = "l") => h("li", {},
      h("span", { class: `ab ab-state ab-z${level} ab-${sudoku ? "sudoku" : "maze"}`, style: "--ab-w:1;--ab-h:1", "aria-hidden": "true" }, h("span", { class: `ab-cell ${looks}` }, letter)), text);
    $("stage-legend").replaceChildren(h("ul", { class: "legend", "aria-label": "Legend" }, sudoku
      ? [sign("is-clue", "clue", "5"), sign("is-answer", "answer", "5"), sign("is-held", "held back"), sign("is-answer is-changed", "changed just now", "5"), sign("is-answer is-conflict", "breaks a rule", "5"), sign("is-answer is-guess", "pinned guess", "5", "h")]
      : [sign("is-wall is-clue", "wall"), sign("is-path is-answer", "path"), sign("is-held", "held back"), sign("is-wall is-answer", "reads as wall here"), sign("is-path is-answer is-changed", "changed just now"), sign("is-path is-conflict", "path breaks off")]));
  }

  // ---- where a cell looks: a panel beside the boards, below them on a phone ---------------------------------------------------

  const LOOK = { layer: "Layer", head: "Head", near: "Outline" };
  const maps = {}; // level: draws a puzzle on its small board, and gives the board
  const pairs = () => document.querySelector(".air-pairs");

  function buildLook() {
    S.views.look.replaceChildren(h("section", { class: "look", id: "look", "aria-label": "Attention of a cell" },
      h("div", { class: "row" }, h("h3", { id: "look-cell" }), h("button", { type: "button", class: "quiet", id: "look-close", onclick: closeLook }, "Close")),
      h("p", { class: "note", id: "look-note", role: "status", "aria-live": "polite" }),
      h("div", { class: "air-pair" }, [..."hl"].map((level) => h("figure", { class: "fig" },
        h("figcaption", {}, h("b", { class: `z-${level}` }, `${level.toUpperCase()}-update`)), h("div", { id: `look-${level}` }), h("p", { class: "fig-note", id: `look-in-${level}` })))),
      h("div", { class: "fields" }, Object.entries(LOOK).map(([id, name]) => h("label", { class: "grow" }, h("span", {}, name), h("select", { id: `look-${id}`, onchange: drawLook }))))));
    for (const level of "hl") maps[level] = api.miniature($(`look-${level}`), `Attention in the ${level.toUpperCase()}-update`, { mode: "show", state: level });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") closeLook(); });
  }

  function closeLook() {
    if (S.looked === null) return;
    S.look = S.looked = null;
    pairs().classList.remove("looking");
    for (const level of "hl") S.boards[`a-${level}`].outline([], -1);
  }

  function lookAt(i) {
    const { run } = S;
    if (!run || !run.frames.h.length) return;
    if (S.looked === i) { closeLook(); return; }
    pause();
    const opens = S.looked === null, { width } = run.ck.task;
    S.looked = i;
    $("look-cell").textContent = `Row ${Math.floor(i / width) + 1}, column ${(i % width) + 1} looks at`;
    for (const level of "hl") {
      S.boards[`a-${level}`].outline([], i);
      maps[level](run.ck.task, run.puzzle).outline([], i);
    }
    if (opens) {
      for (const level of "hl") maps[level](run.ck.task, run.puzzle).heat(null);
      pairs().classList.add("looking");
      api.note("look-note", "Reading the attention…");
      $("look").scrollIntoView({ block: "nearest" });
    }
    askAttention();
  }

  let asking = 0;

  function askAttention() {
    clearTimeout(asking);
    const run = S.run;
    asking = setTimeout(() => {
      if (S.run !== run || S.looked === null) return;
      api.note("look-note", "Reading the attention…");
      const step = Math.floor(Math.min(S.at, run.frames.h.length - 1) / run.ck.schedule.length);
      S.wires.attention.send({ puzzle: run.puzzle, settings: run.wanted, step, cell: S.looked }, (lines) => {
        if (S.run !== run || S.looked === null) return;
        for (const line of lines) {
          if (line.t === "error") api.note("look-note", line.message, true);
          if (line.t !== "attention") continue;
          const first = !S.look;
          S.look = line;
          fillLook();
          drawLook();
          if (first) $("look").scrollIntoView({ block: "nearest" }); // with its words it has grown
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
    const numbered = (what, list) => [["mean", "mean of all"], ...list.map((_, i) => [String(i), `${what} ${i + 1}`])];
    fill("look-layer", numbered("layer", S.look.l));
    fill("look-head", numbered("head", S.look.l[0]));
    const words = { units: "row, column, box", nbr4: "4 neighbours", nbr8: "8 neighbours", window5: "5×5 window" };
    fill("look-near", Object.keys(S.look.neighbours).map((n) => [n, words[n] || n]));
  }

  /* One row of thousandths out of [layer][head][cell]; "mean" averages. */
  function row(attention) {
    const pick = (list, id) => ($(id).value === "mean" ? list : [list[Number($(id).value)] || list[0]]);
    const rows = pick(attention, "look-layer").flatMap((heads) => pick(heads, "look-head"));
    return rows[0].map((_, i) => rows.reduce((sum, r) => sum + r[i], 0) / rows.length);
  }

  function drawLook() {
    const look = S.look, run = S.run;
    if (!look || !run) return;
    const near = look.neighbours[$("look-near").value] || [], inside = new Set(near);
    for (const level of "hl") {
      const board = maps[level](run.ck.task, run.puzzle), values = row(look[level]);
      board.heat(values);
      board.outline(near, look.cell);
      $(`look-in-${level}`).textContent = `${percent(values.reduce((sum, v, i) => sum + (inside.has(i) ? v : 0), 0) / 1000)} in the outline`;
    }
    api.note("look-note", `ACT step ${look.step + 1}. Darker is more.`);
  }

  // ---- the tree of a search by pins ---------------------------------------------------------------------------------------------

  /* run.nodes in the order of judging; the last is the newest. `pick` shows a node's answer. */
  function drawTree(place, run, pick) {
    const { nodes } = run, kids = [[]], at = [];
    nodes.forEach((node) => { kids.push([]); kids[node.parent].push(node.n); });
    let leaves = 0, depth = 0;
    const walk = (n, d) => { // places children first: a parent stands above their middle
      const xs = kids[n].map((kid) => walk(kid, d + 1));
      depth = Math.max(depth, d);
      const x = xs.length ? (xs[0] + xs.at(-1)) / 2 : leaves++;
      at[n] = [x, d];
      return x;
    };
    kids[0].forEach((root) => walk(root, 0));
    const room = place.clientWidth || 320, across = Math.max(14, Math.min(64, (room - 24) / Math.max(leaves, 1))), down = Math.max(22, Math.min(40, 240 / (depth + 1)));
    const [width, height] = [Math.max(room, leaves * across + 16), depth * down + 40];
    const xy = (n) => [8 + (at[n][0] + 0.5) * across, 18 + at[n][1] * down];
    const newest = nodes.at(-1), answer = nodes.find((node) => node.wrong === 0), focus = answer || newest, path = new Set();
    for (let n = focus.n; n; n = nodes[n - 1].parent) path.add(n);
    const line = (kind, a, b) => { const [x1, y1] = xy(a), [x2, y2] = xy(b); return h("line", { class: kind, x1, y1, x2, y2 }); };
    const svg = h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Search tree of ${plural(nodes.length, "node")}, ${answer ? `answer at node ${answer.n}` : "no answer yet"}` });
    for (const node of nodes) if (node.parent) svg.append(line(path.has(node.n) ? "edge on" : "edge", node.parent, node.n));
    // The way back: from the node judged before to the one that the newest guess hangs on.
    if (!run.end && newest.n > 1 && newest.parent && newest.parent !== newest.n - 1) svg.append(line("back", newest.n - 1, newest.parent));
    for (const node of nodes) {
      const [x, y] = xy(node.n), pin = node.pins.at(-1), { width: w } = run.ck.task;
      const guess = pin ? `${pin[1] === "#" ? "a wall" : pin[1]} in row ${Math.floor(pin[0] / w) + 1}, column ${(pin[0] % w) + 1}` : "no guess";
      const kind = `${node.wrong === 0 ? "answer" : node === newest && !run.end ? "newest" : "refused"}${node === run.shown ? " shown" : ""}`;
      const mark = h("g", { class: `node ${kind}`, onclick: () => pick(node) }, h("circle", { cx: x, cy: y, r: across > 20 ? 9 : 5 }),
        across > 20 ? h("text", { x, y: y + 4, "text-anchor": "middle" }, node.wrong === 0 ? "✓" : pin ? pin[1] : "·") : null,
        h("title", {}, `Node ${node.n}: ${guess}; ${node.wrong === 0 ? "the rules accept it" : run.ck.task.kind === "maze" ? "refused" : `refused, ${plural(node.wrong, "cell")} wrong or empty`}`));
      svg.append(mark);
    }
    place.replaceChildren(svg);
    const [x] = xy(focus.n);
    place.scrollLeft = x - room / 2;
  }

  // ---- curves --------------------------------------------------------------------------------------------------------------------

  const charts = [];

  function drawCharts() {
    const root = S.views.charts, run = S.run;
    charts.length = 0;
    if (!run || !run.end || !run.frames.h.length || S.tab !== "Explore") { root.replaceChildren(); return; }
    const n = run.ck.schedule.length, u = run.frames.h.length;
    const q = run.frames.q.map((p, s) => [(s + 1) * n - 1, p]);
    const word = run.ck.task.kind === "sudoku" ? "blank" : "undecided";
    const two = (what) => "hl".split("").map((level) => ({ level, points: run.curves(level)[what].map((v, k) => [k, v]) }));
    root.replaceChildren(
      chart("Wish to halt", "after each ACT step", [{ level: "", points: q, dots: true }], u, 1, (v) => percent(v)),
      chart("Held back", `${word} cells`, two("held"), u, null, (v) => percent(v), 0.05),
      chart("Changes", `of ${sizeOf(run.ck)} cells`, two("changed"), u, null, (v) => String(Math.round(v)), 4));
    moveCursor();
  }

  function chart(name, unit, series, updates, top, format, floor = 0) {
    const width = Math.max(S.views.charts.clientWidth || 320, 240), height = 84, left = 6, right = 44, below = 14, above = 8;
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

  return { build, tagline, sees, loop, schedule, light, clear, compare, caption, play, pause, rest, seek, pace, arrived, describeUpdate, drawLegend, closeLook, drawCharts, drawTree, resting };
})();
