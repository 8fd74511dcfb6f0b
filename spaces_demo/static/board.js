/* Board: one grid for everything the page shows.
 *
 *   mode "edit"  a Sudoku one types in, or a maze one paints
 *   mode "state" a decoded state of a roll-out (state "h" or "l")
 *   mode "show"  a puzzle to look at
 *
 * It knows no rules: shape, letters and units come with the task that Python describes. Text is one letter per cell,
 * row-major. Every cell is a gridcell that the arrow keys reach and that says what it holds.
 */
window.AirBoard = window.AirBoard || (() => {
  "use strict";

  const NAMES = { "#": "wall", " ": "free", S: "start", G: "goal", o: "path", "?": "undecided" };

  class Board {
    constructor(root, options) {
      this.root = root;
      this.name = options.name;
      this.mode = options.mode || "state";
      this.state = options.state || "";
      this.label = options.label || "Board";
      this.brush = "#";
      this.text = "";
      this.puzzle = "";
      this.cells = [];
      this.cursor = 0;
      this.listeners = { change: [], select: [], enter: [], refuse: [] };
      root.classList.add("ab", `ab-${this.mode}`);
      if (this.state) root.classList.add(`ab-z${this.state}`);
    }

    on(event, listener) { this.listeners[event].push(listener); return this; }

    emit(event, detail) { for (const listener of this.listeners[event]) listener(detail); }

    /* Build the cells of a task; keeps nothing of the grid before. */
    setTask(task) {
      if (this.task === task || this.task && JSON.stringify(this.task) === JSON.stringify(task)) return;
      this.task = task;
      const { height, width } = task;
      this.size = height * width;
      this.sudoku = task.kind === "sudoku";
      this.unitsOf = null;
      if (task.units) {
        this.unitsOf = Array.from({ length: this.size }, () => []);
        task.units.forEach((unit, u) => unit.forEach((cell) => this.unitsOf[cell].push(u)));
      }
      this.root.classList.toggle("ab-sudoku", this.sudoku);
      this.root.classList.toggle("ab-maze", !this.sudoku);
      this.root.style.setProperty("--ab-w", width);
      this.root.style.setProperty("--ab-h", height);
      const grid = document.createElement("div");
      grid.className = "ab-grid";
      grid.setAttribute("role", "grid");
      grid.setAttribute("aria-label", this.label);
      grid.setAttribute("aria-rowcount", height);
      grid.setAttribute("aria-colcount", width);
      if (this.mode !== "edit") grid.setAttribute("aria-readonly", "true");
      this.cells = [];
      for (let r = 0; r < height; r++) {
        const row = document.createElement("div");
        row.className = "ab-row";
        row.setAttribute("role", "row");
        for (let c = 0; c < width; c++) {
          const cell = document.createElement("div");
          cell.className = "ab-cell";
          if (task.box) {
            if ((c + 1) % task.box[1] === 0 && c + 1 < width) cell.classList.add("ab-right");
            if ((r + 1) % task.box[0] === 0 && r + 1 < height) cell.classList.add("ab-below");
          }
          cell.setAttribute("role", "gridcell");
          cell.setAttribute("aria-colindex", c + 1);
          cell.setAttribute("aria-rowindex", r + 1);
          cell.dataset.i = r * width + c;
          cell.tabIndex = -1;
          this.cells.push(cell);
          row.appendChild(cell);
        }
        grid.appendChild(row);
      }
      this.root.replaceChildren(grid);
      this.grid = grid;
      this.cursor = 0;
      this.cells[0].tabIndex = 0;
      this.text = "";
      this.puzzle = "";
      this._listen(grid);
      if (this.mode === "edit") this.setText(task.blank.repeat(this.size));
    }

    /* The puzzle behind a state: its clues are drawn as given. */
    setPuzzle(puzzle) {
      if (this.puzzle === puzzle) return;
      this.puzzle = puzzle;
      this.text = "";
    }

    /* Show a grid; the cells that differ from the text `before` are ringed. */
    setText(text, before = null) {
      if (this.marked) this.mark(null);
      const old = this.text, drawn = [];
      for (let i = 0; i < this.size; i++) {
        const ring = !!before && before[i] !== text[i];
        if (old && old[i] === text[i] && ring === this.cells[i].ring) continue;
        this._draw(i, text[i], ring);
        drawn.push(i);
      }
      this.text = text;
      if (this.mode === "edit") this._conflicts();
      this._name(drawn, !!before);
    }

    _draw(i, letter, ring) {
      const cell = this.cells[i], task = this.task;
      const given = this.mode === "edit" ? letter : this.puzzle[i];
      const clue = this.sudoku ? given !== undefined && given !== task.blank : given === "#" || given === "S" || given === "G";
      const held = task.held.includes(letter) && this.mode === "state";
      const looks = [];
      if (clue && given === letter) looks.push("is-clue");
      if (this.mode !== "edit" && !held && letter !== given) looks.push("is-answer");
      if (this.mode !== "edit" && clue && given !== letter && !held) looks.push("is-off");
      if (held) looks.push("is-held");
      if (!this.sudoku && NAMES[letter]) looks.push(`is-${NAMES[letter]}`);
      cell.ring = ring;
      if (ring) looks.push("is-changed");
      const all = looks.join(" ");
      if (cell.looks !== all) {
        if (cell.looks) cell.classList.remove(...cell.looks.split(" "));
        if (all) cell.classList.add(...looks);
        cell.looks = all;
      }
      const shown = this.sudoku ? (letter === task.blank ? "" : letter) : letter === "S" || letter === "G" ? letter : "";
      if (cell.shown !== shown) cell.textContent = cell.shown = shown;
      cell.dataset.v = letter;
      cell.spoken = [letter, clue, held];
    }

    /* Names for screen readers; while a board plays, only once it rests. */
    _name(changed, playing) {
      const write = (i) => this.cells[i].setAttribute("aria-label", this._spoken(i, ...this.cells[i].spoken));
      if (this.mode === "edit" || (this.size <= 100 && !playing)) {
        changed.forEach(write);
        return;
      }
      this.unnamed = this.unnamed || new Set();
      changed.forEach((i) => this.unnamed.add(i));
      clearTimeout(this.naming);
      this.naming = setTimeout(() => {
        for (const i of this.unnamed) if (this.cells[i] && this.cells[i].spoken) write(i);
        this.unnamed.clear();
      }, 300);
    }

    _spoken(i, letter, clue, held) {
      const where = `Row ${Math.floor(i / this.task.width) + 1}, column ${(i % this.task.width) + 1}, `;
      if (!this.sudoku) return where + (NAMES[letter] || letter);
      if (letter === this.task.blank) return where + (this.mode === "state" ? "held back" : "empty");
      if (held) return where + "undecided";
      return where + (clue ? `clue ${letter}` : this.mode === "edit" ? letter : `answer ${letter}`);
    }

    /* ---- editing ---------------------------------------------------------------------------------------------- */

    put(i, letter) {
      if (this.mode !== "edit" || this.text[i] === letter) return;
      const write = (k, v) => {
        this.text = this.text.slice(0, k) + v + this.text.slice(k + 1);
        this._draw(k, v, false);
        this._name([k], false);
      };
      const before = this.sudoku || !"SG".includes(letter) ? -1 : this.text.indexOf(letter); // one start, one goal
      if (before >= 0) write(before, this.task.blank);
      write(i, letter);
      this._conflicts();
      this.emit("change", this.text);
    }

    clear() {
      this.setText(this.task.blank.repeat(this.size));
      this.emit("change", this.text);
    }

    /* The cells of a Sudoku whose digit stands twice in a unit, and a sentence about the first. */
    faults(text) {
      const bad = new Set(), { units, held, height } = this.task;
      let first = "";
      for (const [u, unit] of this.unitsOf ? units.entries() : []) {
        const seen = {};
        for (const i of unit) {
          const v = text[i];
          if (held.includes(v)) continue;
          if (v in seen) {
            bad.add(i).add(seen[v]);
            first = first || `${["Row", "Column", "Box"][Math.floor(u / height)]} ${(u % height) + 1} holds two ${v}s.`;
          } else seen[v] = i;
        }
      }
      return { bad, first };
    }

    /* Two equal digits in one unit, shown while typing. */
    _conflicts() {
      if (!this.unitsOf) return;
      const { bad, first } = this.faults(this.text);
      this.conflict = first;
      this._invalid(bad);
    }

    /* Of an answer: mark the cells that break a rule, and ring the guesses (cell numbers); gone with the next text. */
    mark(wrong, guesses = []) {
      this.marked = !!wrong;
      this._invalid(new Set(wrong || []));
      this.cells.forEach((cell, i) => cell.classList.toggle("is-guess", guesses.includes(i)));
    }

    _invalid(bad) {
      this.cells.forEach((cell, i) => {
        const wrong = bad.has(i);
        cell.classList.toggle("is-conflict", wrong);
        if (wrong) cell.setAttribute("aria-invalid", "true");
        else cell.removeAttribute("aria-invalid");
      });
    }

    _listen(grid) {
      const cellOf = (event) => {
        const cell = event.target.closest && event.target.closest(".ab-cell");
        return cell && grid.contains(cell) ? Number(cell.dataset.i) : -1;
      };
      grid.addEventListener("keydown", (event) => this._key(event));
      grid.addEventListener("focusin", (event) => {
        const i = cellOf(event);
        if (i >= 0) this._move(i, false);
      });
      if (this.mode === "edit" && !this.sudoku) {
        let paint = null, last = 0, box = null;
        grid.addEventListener("pointerdown", (event) => {
          const i = cellOf(event);
          if (i < 0 || event.button > 0 || !this.brush) return;
          event.preventDefault();
          this._move(i, true);
          // A wall on a wall takes it away, and the rest of the stroke does the same.
          paint = this.brush === "#" && this.text[i] === "#" ? this.task.blank : this.brush;
          this.put(i, paint);
          last = i;
          box = grid.getBoundingClientRect();
          if (grid.setPointerCapture) grid.setPointerCapture(event.pointerId);
        });
        grid.addEventListener("pointermove", (event) => {
          if (paint === null) return;
          const { width, height } = this.task;
          const r = Math.floor(((event.clientY - box.top) / box.height) * height), c = Math.floor(((event.clientX - box.left) / box.width) * width);
          if (r < 0 || c < 0 || r >= height || c >= width) return;
          const i = r * width + c;
          // A quick stroke skips cells: draw the straight line from the last one.
          const [r0, c0, r1, c1] = [Math.floor(last / width), last % width, Math.floor(i / width), i % width];
          const steps = Math.max(Math.abs(r1 - r0), Math.abs(c1 - c0), 1);
          for (let s = 1; s <= steps; s++) {
            const at = Math.round(r0 + ((r1 - r0) * s) / steps) * width + Math.round(c0 + ((c1 - c0) * s) / steps);
            if ("SG".includes(paint) ? s === steps : !"SG".includes(this.text[at])) this.put(at, paint);
          }
          last = i;
        });
        for (const end of ["pointerup", "pointercancel"]) grid.addEventListener(end, () => { paint = null; });
        return;
      }
      grid.addEventListener("click", (event) => {
        const i = cellOf(event);
        if (i < 0) return;
        this._move(i, true);
        this.emit("select", i);
      });
    }

    _move(i, focus) {
      this.cells[this.cursor].tabIndex = -1;
      this.cells[this.cursor].classList.remove("is-cursor");
      this.cursor = i;
      this.cells[i].tabIndex = 0;
      this.cells[i].classList.add("is-cursor");
      if (focus) this.cells[i].focus({ preventScroll: true });
    }

    _key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const { width, height } = this.task, i = this.cursor, key = event.key;
      const row = Math.floor(i / width), column = i % width;
      const moves = {
        ArrowUp: row > 0 ? i - width : i,
        ArrowDown: row < height - 1 ? i + width : i,
        ArrowLeft: column > 0 ? i - 1 : i,
        ArrowRight: column < width - 1 ? i + 1 : i,
        Home: row * width,
        End: row * width + width - 1,
      };
      if (key in moves) {
        event.preventDefault();
        this._move(moves[key], true);
        return;
      }
      if (this.mode !== "edit") {
        if (key === "Enter" || key === " ") {
          event.preventDefault();
          this.emit("select", i);
        }
        return;
      }
      if (key === "Enter") {
        event.preventDefault();
        this.emit("enter");
        return;
      }
      const letter = this._letter(key);
      if (letter === null) {
        if (key.length === 1) this.emit("refuse", key);
        return;
      }
      event.preventDefault();
      this.put(i, letter);
      // Typing along a row is how people copy a puzzle from paper; Backspace goes the other way.
      if (key === "Backspace" && column > 0) this._move(i - 1, true);
    }

    /* What a key writes: a letter of the task, its blank, or null for nothing. */
    _letter(key) {
      const { alphabet, blank } = this.task;
      if (key === "Backspace" || key === "Delete") return blank;
      if (key.length !== 1) return null;
      if (this.sudoku) {
        if (".0 ".includes(key)) return blank;
        const letter = key.toUpperCase();
        return alphabet.slice(2).includes(letter) ? letter : null;
      }
      if (key === "#" || key === "w" || key === "W") return "#";
      if (key === " " || key === ".") return blank;
      const letter = key.toUpperCase();
      return letter === "S" || letter === "G" ? letter : null;
    }

    /* ---- marks and heat ------------------------------------------------------------------------------------------ */

    /* Outline a set of cells, and ring one. */
    outline(cells, query = -1) {
      const inside = new Set(cells), { width } = this.task;
      this.cells.forEach((cell, i) => {
        const on = inside.has(i);
        cell.classList.toggle("is-near", on);
        cell.classList.toggle("near-t", on && !inside.has(i - width));
        cell.classList.toggle("near-b", on && !inside.has(i + width));
        cell.classList.toggle("near-l", on && !(i % width > 0 && inside.has(i - 1)));
        cell.classList.toggle("near-r", on && !((i + 1) % width > 0 && inside.has(i + 1)));
        cell.classList.toggle("is-query", i === query);
      });
    }

    /* Shade the cells by values (any scale), under their letters; null takes the shade away. */
    heat(values) {
      this.root.classList.toggle("ab-heat", !!values);
      const top = values ? Math.max(...values, 1e-9) : 1;
      this.cells.forEach((cell, i) => {
        const share = values ? (values[i] / top) ** 1.5 : 0; // a bent scale: even attention stays pale
        cell.style.setProperty("--heat", share.toFixed(3));
        cell.classList.toggle("is-hot", share > 0.55);
        if (values) cell.setAttribute("aria-description", `${(values[i] / 10).toFixed(1)} % of the attention`);
        else cell.removeAttribute("aria-description");
      });
    }
  }

  /* Called by the component's js_on_load: value is the text, task its description. */
  function mount(element, props, trigger, watch) {
    if (!document.getElementById("air-board-style")) {
      const style = document.createElement("style");
      style.id = "air-board-style";
      style.textContent = window.AIR_BOARD_STYLE;
      document.head.append(style);
    }
    const { name, mode, state, title } = props;
    const board = new Board(element.querySelector(".air-board"), { name, mode, state, label: title });
    if (props.task) board.setTask(props.task);
    if (props.value) board.setText(props.value);
    board.on("change", (text) => { props.value = text; });
    board.on("select", (i) => trigger("select", { index: i, value: board.text[i] }));
    watch(["value", "task"], () => {
      if (props.task) board.setTask(props.task);
      if (props.value && board.task && props.value.length === board.size) board.setText(props.value);
    });
    if (window.AIR) window.AIR.addBoard(board);
    return board;
  }

  return { Board, mount };
})();
