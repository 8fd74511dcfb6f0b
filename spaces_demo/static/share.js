/* Share: the link, the pictures, the JSON, the API examples. Everything is made in this browser from the run it holds. */
window.AIRShare = window.AIRShare || (() => {
  "use strict";

  let S, api;

  const COLOURS = { paper: "#ffffff", ink: "#1d1c1a", muted: "#6a675f", grid: "#3a3833", thin: "#d3cfc5", clue: "#f1efe9",
    heldA: "#e4e1d9", heldB: "#f3f1ec", h: "#d55e00", l: "#0072b2" };

  function build(state, tools) {
    S = state;
    api = tools;
    const { h } = api;
    S.views.share.replaceChildren(
      h("div", { class: "row" }, h("h2", {}, "Link")),
      h("div", { class: "shared" }, h("div", { id: "sh-board" }), h("div", {},
        h("p", { class: "note", id: "sh-what" }),
        h("div", { class: "fields" },
          h("label", { class: "grow" }, h("span", {}, "Link to this puzzle"), h("input", { type: "text", id: "sh-link", readonly: true, onfocus: (e) => e.target.select() })),
          h("button", { type: "button", id: "sh-copy", onclick: (e) => copy($("sh-link").value, e.currentTarget) }, "Copy")))),
      h("div", { class: "row" }, h("h2", {}, "Download")),
      h("p", { class: "note", id: "sh-note", role: "status", "aria-live": "polite" }),
      h("div", { class: "actions", id: "sh-downloads" },
        h("button", { type: "button", id: "sh-png", onclick: png }, "Picture (PNG)"),
        h("button", { type: "button", id: "sh-gif", onclick: gif }, "Animation (GIF)"),
        h("button", { type: "button", id: "sh-json", onclick: json }, "Roll-out (JSON)")),
      h("div", { class: "row" }, h("h2", {}, "Use it from a program")),
      h("p", { class: "note" }, h("code", {}, "/solve"), " takes a puzzle as text and returns its answer as JSON; ", h("code", {}, "/rollout"), " adds both states after every update; ", h("code", {}, "/think"), " goes on where the answer is refused; ", h("code", {}, "/what_if"), " also takes settings. Each picks the model that fits the text."),
      h("div", { class: "codes", id: "sh-codes" }));
    mini = api.puzzleOn("sh-board");
    refresh();
  }

  let mini;
  const $ = (id) => document.getElementById(id);

  function copy(text, button) {
    const done = () => {
      const before = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = before; }, 1500);
    };
    if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(done, () => {});
    else { $("sh-link").select(); document.execCommand("copy"); done(); }
  }

  /* What is shared: the current run; before there is one, the puzzle on the page. */
  function shared() {
    if (S.run && S.run.end) return { puzzle: S.run.puzzle, ck: S.run.ck, halt: S.run.wanted.halt || "q", run: S.run };
    return { puzzle: S.boards.editor.text, ck: S.ck, halt: api.settings().halt, run: null };
  }

  function link() {
    const { puzzle, ck, halt } = shared(), query = new URLSearchParams({ puzzle: portable(puzzle), halt });
    if (!ck.vacant) query.set("checkpoint", ck.key);
    return `${location.origin}${location.pathname}?${query}`;
  }

  /* Spaces do not survive every shell and chat: a free cell travels as a dot. */
  const portable = (text) => text.replaceAll(" ", ".");

  function refresh() {
    if (!S || !S.ck || !$("sh-link")) return;
    $("sh-link").value = link();
    const { h } = api, { run, ck, puzzle: text } = shared(), has = !!run, puzzle = portable(text);
    mini(ck.task, text);
    $("sh-what").textContent = has ? `The run on the page: ${title(run)}${searched()} The link holds its puzzle, its model and when it stops.` : "The puzzle on the page; it has not been run yet.";
    for (const id of ["sh-png", "sh-gif", "sh-json"]) $(id).disabled = !has;
    api.note("sh-note", has ? `The picture shows ${searched() ? "an update of the single pass" : "the update that the boards show"}; the animation and the roll-out have all of them.` : "Solve a puzzle first.");
    const root = `${location.origin}${location.pathname}`.replace(/\/$/, "");
    $("sh-codes").replaceChildren(...Object.entries(examples(root, puzzle)).map(([name, code]) =>
      h("figure", {}, h("figcaption", {}, name, h("button", { type: "button", class: "quiet", "aria-label": `Copy the ${name} example`, onclick: (e) => copy(code, e.currentTarget) }, "Copy")),
        h("pre", { id: `code-${name.toLowerCase()}`, tabindex: 0 }, code))));
  }

  /* The README shows the same text; the tests run it. */
  function examples(root, puzzle) {
    return {
      Python: `from gradio_client import Client\n\nclient = Client("${root}")\nanswer = client.predict("${puzzle}", api_name="/solve")\nprint(answer["solved"], answer["solution"])`,
      curl: `EVENT=$(curl -s -X POST ${root}/gradio_api/call/solve -H "Content-Type: application/json" \\\n  -d '{"data": ["${puzzle}"]}' | sed 's/.*: *"\\(.*\\)".*/\\1/')\ncurl -sN ${root}/gradio_api/call/solve/$EVENT`,
    };
  }

  const title = ({ ck, end }) => `${ck.task.title}, ${ck.variant}, ${ck.key}: ${end.solved ? "solved" : "not solved"} in ${api.plural(end.act_steps, "ACT step")}.`;

  /* What thinking on added to the run. */
  const searched = () => (S.search && S.search.end ? ` Thinking on, it was ${S.search.end.solved ? "solved" : "not solved"} within ${api.plural(S.search.end.attempts, "node")}.` : "");

  // ---- pictures --------------------------------------------------------------------------------------------------------

  function layout(task) {
    const side = task.kind === "sudoku" ? Math.max(16, Math.floor(320 / task.width)) : Math.max(7, Math.floor(300 / task.width));
    const width = side * task.width, height = side * task.height;
    return { side, width, height, pad: 20, gap: 28, top: 88, total: [2 * width + 28 + 40, height + 88 + 40] };
  }

  /* One moment of a run on a canvas: both states, clues in black, changes ringed. */
  function draw(context, run, k) {
    const { task } = run.ck, f = run.frames, L = layout(task), size = task.width;
    context.fillStyle = COLOURS.paper;
    context.fillRect(0, 0, ...L.total);
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.fillStyle = COLOURS.ink;
    context.font = "600 15px sans-serif";
    context.fillText(title(run), L.pad, 24, L.total[0] - 2 * L.pad);
    ["h", "l"].forEach((level, b) => {
      const left = L.pad + b * (L.width + L.gap), text = f[level][k], before = k ? f[level][k - 1] : text;
      context.textAlign = "left";
      context.fillStyle = COLOURS[level];
      context.font = "600 17px sans-serif";
      context.fillText(level === "h" ? "z" : "z", left, 54);
      context.font = "600 12px sans-serif";
      context.fillText(level.toUpperCase(), left + 10, 59);
      context.fillStyle = COLOURS.muted;
      context.font = "13px sans-serif";
      context.fillText(level === "h" ? "proposal" : "scratchpad", left + 28, 55);
      for (let i = 0; i < text.length; i++) {
        const x = left + (i % size) * L.side, y = L.top - 12 + Math.floor(i / size) * L.side;
        cell(context, task, run.puzzle[i], text[i], x, y, L.side, COLOURS[level]);
        if (before[i] !== text[i]) {
          context.strokeStyle = COLOURS[level];
          context.lineWidth = Math.max(1, L.side / 12);
          context.strokeRect(x + 1.5, y + 1.5, L.side - 3, L.side - 3);
        }
      }
      lines(context, task, left, L.top - 12, L.side);
    });
    context.fillStyle = COLOURS.muted;
    context.font = "13px sans-serif";
    context.textAlign = "left";
    context.fillText(window.AIRStage.describeUpdate(run, k), L.pad, L.total[1] - 20);
  }

  function cell(context, task, given, letter, x, y, side, colour) {
    const sudoku = task.kind === "sudoku";
    context.fillStyle = COLOURS.paper;
    context.fillRect(x, y, side, side);
    if (task.held.includes(letter)) {
      context.fillStyle = COLOURS.heldB;
      context.fillRect(x, y, side, side);
      context.fillStyle = COLOURS.heldA;
      for (let d = 0; d < side; d += 4) context.fillRect(x, y + d, side, 2);
    }
    if (sudoku) {
      const clue = given !== task.blank && given === letter;
      if (clue) { context.fillStyle = COLOURS.clue; context.fillRect(x, y, side, side); }
      if (letter === task.blank) return;
      context.fillStyle = clue ? COLOURS.ink : colour;
      context.font = `${clue ? 700 : 500} ${Math.round(side * 0.58)}px sans-serif`;
      context.textAlign = "center";
      context.fillText(letter, x + side / 2, y + side / 2 + 1);
      return;
    }
    if (letter === "#") { context.fillStyle = COLOURS.grid; context.fillRect(x, y, side, side); }
    if (letter === "o") { context.fillStyle = colour; context.fillRect(x + side * 0.2, y + side * 0.2, side * 0.6, side * 0.6); }
    if (letter === "S" || letter === "G") {
      context.fillStyle = COLOURS.ink;
      context.fillRect(x, y, side, side);
      context.fillStyle = COLOURS.paper;
      context.font = `700 ${Math.round(side * 0.8)}px sans-serif`;
      context.textAlign = "center";
      context.fillText(letter, x + side / 2, y + side / 2 + 1);
    }
  }

  function lines(context, task, left, top, side) {
    const { width, height, box } = task;
    for (let c = 0; c <= width; c++) {
      const thick = c === 0 || c === width || (box && c % box[1] === 0);
      if (!box && !thick) continue;
      context.fillStyle = thick ? COLOURS.grid : COLOURS.thin;
      context.fillRect(left + c * side - (thick ? 1 : 0), top, thick ? 2 : 1, height * side);
    }
    for (let r = 0; r <= height; r++) {
      const thick = r === 0 || r === height || (box && r % box[0] === 0);
      if (!box && !thick) continue;
      context.fillStyle = thick ? COLOURS.grid : COLOURS.thin;
      context.fillRect(left, top + r * side - (thick ? 1 : 0), width * side, thick ? 2 : 1);
    }
  }

  function canvasOf(run) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = layout(run.ck.task).total;
    return canvas;
  }

  function save(blob, name) {
    const url = URL.createObjectURL(blob), a = document.createElement("a");
    a.href = url;
    a.download = name;
    document.body.append(a);
    a.click();
    a.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  function png() {
    const run = S.run, canvas = canvasOf(run), k = Math.max(0, Math.min(S.at, run.frames.h.length - 1));
    draw(canvas.getContext("2d"), run, k);
    canvas.toBlob((blob) => save(blob, "air-rollout.png"), "image/png");
  }

  function json() {
    const run = S.run, f = run.frames;
    const content = { ...run.end, updates: f.levels, z_h: f.h, z_l: f.l, halt_probability: f.q };
    delete content.t;
    save(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), "air-rollout.json");
  }

  async function gif() {
    const run = S.run, canvas = canvasOf(run), context = canvas.getContext("2d", { willReadFrequently: true });
    const button = $("sh-gif"), total = run.frames.h.length;
    button.disabled = true;
    const writer = new Gif(canvas.width, canvas.height);
    for (let k = 0; k < total; k++) {
      draw(context, run, k);
      writer.add(context.getImageData(0, 0, canvas.width, canvas.height).data, k === total - 1 ? 250 : 18);
      if (k % 4 === 0) {
        api.note("sh-note", `Drawing update ${k + 1} of ${total}…`);
        await new Promise((next) => setTimeout(next)); // the page stays responsive
      }
    }
    save(new Blob([writer.bytes()], { type: "image/gif" }), "air-rollout.gif");
    button.disabled = false;
    refresh();
  }

  /* GIF89a with one palette; every frame after the first holds only the rectangle that changed. */
  class Gif {
    constructor(width, height) {
      this.width = width;
      this.height = height;
      this.parts = [];
      this.before = null;
      this.palette = this._palette();
      this.nearest = new Map();
      const head = [..."GIF89a"].map((c) => c.charCodeAt(0));
      head.push(width & 255, width >> 8, height & 255, height >> 8, 0xf6, 0, 0); // 128 colours
      for (const [r, g, b] of this.palette) head.push(r, g, b);
      head.push(0x21, 0xff, 11, ...[..."NETSCAPE2.0"].map((c) => c.charCodeAt(0)), 3, 1, 0, 0, 0);
      this.parts.push(Uint8Array.from(head));
    }

    /* The page's colours, and steps between each of them and the backgrounds for smooth letters. */
    _palette() {
      const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
      const list = [], add = (c) => { if (list.length < 128 && !list.some((o) => o.every((v, i) => v === c[i]))) list.push(c); };
      Object.values(COLOURS).forEach((hex) => add(rgb(hex)));
      for (const front of ["ink", "muted", "h", "l", "grid"]) {
        for (const back of ["paper", "clue", "heldB"]) {
          for (let s = 1; s < 8; s++) add(rgb(COLOURS[front]).map((v, i) => Math.round((v * s + rgb(COLOURS[back])[i] * (8 - s)) / 8)));
        }
      }
      while (list.length < 128) list.push([0, 0, 0]);
      return list;
    }

    _index(r, g, b) {
      const key = (r << 16) | (g << 8) | b;
      let found = this.nearest.get(key);
      if (found === undefined) {
        let least = Infinity;
        this.palette.forEach((c, i) => {
          const d = (c[0] - r) ** 2 + (c[1] - g) ** 2 + (c[2] - b) ** 2;
          if (d < least) { least = d; found = i; }
        });
        this.nearest.set(key, found);
      }
      return found;
    }

    add(rgba, delay) {
      const { width, height } = this, pixels = new Uint8Array(width * height);
      for (let i = 0; i < pixels.length; i++) pixels[i] = this._index(rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]);
      let box = [0, 0, width, height];
      if (this.before) {
        let [x0, y0, x1, y1] = [width, height, 0, 0];
        for (let y = 0; y < height; y++) {
          for (let x = 0; x < width; x++) {
            if (pixels[y * width + x] !== this.before[y * width + x]) {
              if (x < x0) x0 = x;
              if (x >= x1) x1 = x + 1;
              if (y < y0) y0 = y;
              y1 = y + 1;
            }
          }
        }
        box = x1 > x0 ? [x0, y0, x1, y1] : [0, 0, 1, 1];
      }
      this.before = pixels;
      const [x0, y0, x1, y1] = box, w = x1 - x0, hgt = y1 - y0, part = new Uint8Array(w * hgt);
      for (let y = 0; y < hgt; y++) part.set(pixels.subarray((y0 + y) * width + x0, (y0 + y) * width + x1), y * w);
      this.parts.push(Uint8Array.from([0x21, 0xf9, 4, 4, delay & 255, delay >> 8, 0, 0,
        0x2c, x0 & 255, x0 >> 8, y0 & 255, y0 >> 8, w & 255, w >> 8, hgt & 255, hgt >> 8, 0, 7]));
      this.parts.push(this._lzw(part, 7));
    }

    _lzw(pixels, bits) {
      const clear = 1 << bits, end = clear + 1, out = [];
      let codes = new Map(), next = end + 1, size = bits + 1, buffer = 0, held = 0;
      const put = (code) => {
        buffer |= code << held;
        held += size;
        while (held >= 8) { out.push(buffer & 255); buffer >>>= 8; held -= 8; }
      };
      put(clear);
      let prefix = pixels[0];
      for (let i = 1; i < pixels.length; i++) {
        const key = (prefix << 8) | pixels[i], known = codes.get(key);
        if (known !== undefined) { prefix = known; continue; }
        put(prefix);
        if (next === 4096) {
          put(clear);
          codes = new Map();
          next = end + 1;
          size = bits + 1;
        } else {
          if (next === 1 << size) size += 1;
          codes.set(key, next++);
        }
        prefix = pixels[i];
      }
      put(prefix);
      put(end);
      if (held) out.push(buffer & 255);
      const blocks = [];
      for (let i = 0; i < out.length; i += 255) blocks.push(Math.min(255, out.length - i), ...out.slice(i, i + 255));
      blocks.push(0);
      return Uint8Array.from(blocks);
    }

    bytes() {
      const parts = [...this.parts, Uint8Array.of(0x3b)], all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
      let at = 0;
      for (const part of parts) { all.set(part, at); at += part.length; }
      return all;
    }
  }

  return { build, refresh, examples };
})();
