// The task stream: a row per slot, a block per task or for several. Only the rows in view are drawn.
const STRIP = 9; // pixels above the rows, in which failures of all rows are marked
const AXIS = 22;
const SENT = 5; // pixels above the rows of a node, in which it is shown what was sent there
const LIVE_SPAN = 120_000;

// Draws the blocks of one row.
const drawRow = (pen, row, y, height, x, from, to, only) => {
  const end = row.size;
  const edge = x(from);
  let drawn = -Infinity;
  for (let at = row.from(from); at < end && row.starts[at] <= to; at++) {
    const left = x(row.starts[at]);
    const right = Math.max(left + 1, x(row.starts[at] + row.lengths[at]) - (height > 5 ? 0.6 : 0));
    const failed = row.failed[at];
    if (right <= edge) continue; // the first one may end before
    if (right - drawn < 0.7 && !failed) continue; // within a pixel that has been drawn
    const label = row.labels[at] % look.palette.length;
    const start = Math.max(left, edge);
    if (only !== null && row.labels[at] !== only) pen.fillStyle = look.dimmed[label];
    else pen.fillStyle = look.shaded[label][Math.min(SHADES - 1, Math.floor((row.shares[at] / 96) * SHADES))];
    pen.fillRect(start, y, right - start, height);
    drawn = right;
    if (failed) drawFailure(pen, start, right, y, height, failed === row.counts[at]);
  }
};

const drawFailure = (pen, left, right, y, height, all) => {
  const width = all ? Math.max(3, right - left) : 3;
  pen.fillStyle = look.bad;
  pen.fillRect(right - width, y, width, height);
  if (height < 5 || width < 5) return;
  pen.fillStyle = look.panel; // a slit, for those who don't see the colour
  pen.fillRect(right - width + 1.5, y + height / 2 - 0.75, width - 3, 1.5);
};

const stream = {
  mode: "live", // or "all", or "free"
  from: 0,
  to: 1,
  only: null, // the function that is shown alone
  chosen: null, // row and index of the block that was chosen by key
  lanes: [],
  shape: -1,

  start() {
    this.view = find("stream-view");
    this.canvas = find("stream-canvas");
    this.view.addEventListener("scroll", () => page.redraw(), { passive: true });
    this.view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.view.addEventListener("keydown", (event) => this.key(event));
    this.view.addEventListener("pointerdown", (event) => this.grab(event));
    this.view.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) this.view.addEventListener(kind, (event) => this.drop(event));
    this.view.addEventListener("pointerleave", () => tip.hide());
    this.pointers = new Map();
    find("zoom-in").onclick = () => this.zoom(0.5);
    find("zoom-out").onclick = () => this.zoom(2);
    find("zoom-fit").onclick = () => this.show("all");
    find("zoom-live").onclick = () => this.show("live");
  },

  show(mode) {
    this.mode = mode;
    find("zoom-fit").setAttribute("aria-pressed", String(mode === "all"));
    find("zoom-live").setAttribute("aria-pressed", String(mode === "live"));
    page.redraw();
  },

  // Which times are in view.
  frame() {
    const begin = model.begin;
    const end = Math.max(begin + 1000, model.now);
    const span = this.mode === "all" ? end - begin : Math.min(LIVE_SPAN, end - begin);
    if (this.mode !== "free") [this.from, this.to] = [end - span, end + span * 0.01];
  },

  zoom(factor, around) {
    const [from, to] = [this.from, this.to];
    const middle = around ?? (this.mode === "live" || to >= model.now ? to : (from + to) / 2);
    const span = Math.min(Math.max((to - from) * factor, 50), Math.max(2000, (model.now - model.begin) * 1.1));
    this.from = middle - (middle - from) * (span / (to - from));
    this.to = this.from + span;
    this.show("free");
  },

  pan(part) {
    const span = this.to - this.from;
    const from = Math.min(Math.max(this.from + part * span, model.begin - span / 2), model.now - span / 2);
    [this.from, this.to] = [from, from + span];
    this.show("free");
  },

  // Where each slot's row is.
  arrange() {
    const width = this.view.clientWidth;
    this.gutter = width < 520 ? 68 : 84;
    const maxHeight = parseFloat(getComputedStyle(this.view).getPropertyValue("--tall"));
    const room = maxHeight - STRIP - AXIS;
    if (this.shape === model.shape && this.room === room) return;
    const nodes = model.inOrder().filter((node) => node.rows.length);
    const slots = nodes.reduce((sum, node) => sum + node.rows.length, 0);
    const gap = slots > 1500 ? 1 : 3;
    const strip = slots > 1500 ? 2 : SENT;
    const strips = nodes.filter((node) => node.transfers.length).length * strip;
    this.height = Math.min(26, Math.max(3, Math.floor((room - gap * nodes.length - strips) / Math.max(1, slots))));
    this.lanes = [];
    let y = STRIP;
    for (const node of nodes) {
      node.top = y;
      node.strip = node.transfers.length ? strip : 0;
      y += node.strip;
      for (const number of node.rows) {
        if (number === undefined) continue;
        this.lanes.push({ row: model.rows[number], y });
        y += this.height;
      }
      node.bottom = y;
      y += gap;
    }
    this.nodes = nodes;
    this.total = y + AXIS;
    find("stream-space").style.height = `${this.total}px`;
    this.view.style.height = `${Math.min(maxHeight, Math.max(150, this.total))}px`;
    [this.shape, this.room] = [model.shape, room];
  },

  x(time) {
    return this.gutter + ((time - this.from) / (this.to - this.from)) * (this.width - this.gutter);
  },

  time(x) {
    return this.from + ((x - this.gutter) / (this.width - this.gutter)) * (this.to - this.from);
  },

  draw() {
    this.arrange();
    this.frame();
    const { pen, width, height } = look.canvas(this.canvas, this.view.clientHeight);
    [this.width, this.tall] = [width, height];
    const top = this.view.scrollTop;
    const x = (time) => this.x(time);
    const first = this.lane(top + STRIP);
    pen.save();
    pen.beginPath();
    pen.rect(0, STRIP, width, height - AXIS - STRIP);
    pen.clip();
    this.drawNodes(pen, top, height);
    const bar = this.height > 5 ? this.height - 1 : this.height;
    for (let at = Math.max(0, first); at < this.lanes.length && this.lanes[at].y < top + height; at++) {
      const { row, y } = this.lanes[at];
      if (row) drawRow(pen, row, y - top, bar, x, this.from, this.to, this.only);
    }
    this.drawChosen(pen, top, bar);
    pen.restore();
    this.drawMarks(pen);
    this.drawAxis(pen, width, height);
  },

  drawNodes(pen, top, height) {
    const now = Math.min(this.width, this.x(model.now));
    let labelled = -99;
    for (const node of this.nodes) {
      if (node.bottom < top || node.top > top + height) continue;
      const [y, tall] = [node.top - top, node.bottom - node.top];
      const left = Math.max(this.gutter, this.x(node.since ?? 0));
      const right = Math.min(now, node.until == null ? now : this.x(node.until));
      pen.fillStyle = look.raised;
      if (right > left) pen.fillRect(left, y, right - left, tall);
      if (node.until != null && right < now) {
        pen.fillStyle = look.gone;
        pen.fillRect(Math.max(left, right), y, now - Math.max(left, right), tall);
        pen.fillStyle = look.bad;
        if (right > this.gutter && node.state !== "gone") pen.fillRect(right, y, 2, tall);
      }
      this.drawSent(pen, node, y);
      if (node.until == null && node.busy && model.state === "running") this.drawRunning(pen, node, top, now);
      if (y - labelled >= 13 && y > -12) {
        pen.fillStyle = node.state === "lost" ? look.bad : look.muted;
        pen.textBaseline = "top";
        const name = node.state === "lost" ? `× ${node.name}` : node.name;
        pen.fillText(this.shorten(pen, name), 10, Math.max(y + (tall > 13 ? 1 : -1), STRIP));
        labelled = y;
      }
    }
  },

  // What was sent to a node, in a line above its rows; they may have waited for it.
  drawSent(pen, node, y) {
    pen.fillStyle = look.text;
    const height = Math.max(1, node.strip - 2);
    for (const { start, length } of node.transfers) {
      const left = Math.max(this.gutter, this.x(start));
      const right = this.x(start + length);
      if (right >= this.gutter && left <= this.width) pen.fillRect(left, y, Math.max(2, right - left), height);
    }
  },

  // Running tasks are hatched in the colour of their function. In the other rows a task that its node has not reported
  // yet may be running, from the end of the last block on.
  drawRunning(pen, node, top, now) {
    const known = node.rows.filter((number) => model.running.has(number)).length;
    const unknown = Math.min(1, Math.max(0, node.busy - known) / Math.max(1, node.slots - known));
    const tall = this.height - (this.height > 5 ? 1 : 0);
    node.rows.forEach((number, slot) => {
      const row = model.rows[number];
      if (!row) return;
      const run = model.running.get(number);
      const last = row.size - 1;
      const end = last < 0 ? node.since ?? 0 : row.starts[last] + row.lengths[last];
      const left = Math.max(this.gutter, this.x(run ? run.start : end));
      const y = node.top + node.strip - top + slot * this.height;
      if (now - left <= 2) return;
      if (run) {
        const label = run.label % look.palette.length;
        pen.fillStyle = this.only !== null && run.label !== this.only ? look.dimmed[label] : look.palette[label];
        pen.globalAlpha = 0.55;
        pen.fillRect(left, y, now - left, tall);
      }
      pen.globalAlpha = run ? 1 : unknown;
      pen.fillStyle = look.hatch;
      pen.fillRect(left, y, now - left, tall);
    });
    pen.globalAlpha = 1;
  },

  shorten(pen, name) {
    const room = this.gutter - 16;
    if (pen.measureText(name).width <= room) return name;
    while (name.length > 2 && pen.measureText(`${name}…`).width > room) name = name.slice(0, -1);
    return `${name}…`;
  },

  drawChosen(pen, top, bar) {
    if (!this.chosen || !this.chosen.row.size) return;
    const lane = this.lanes.find((each) => each.row === this.chosen.row);
    if (!lane) return;
    const b = this.chosen.row.block(Math.min(this.chosen.at, this.chosen.row.size - 1));
    pen.strokeStyle = look.text;
    pen.lineWidth = 2;
    pen.strokeRect(this.x(b.start) - 1, lane.y - top - 1, Math.max(3, this.x(b.start + b.length) - this.x(b.start)) + 2, bar + 2);
  },

  drawMarks(pen) {
    pen.fillStyle = look.bad;
    let before = -9;
    for (const time of model.marks) {
      const at = this.x(time);
      if (at < this.gutter || at > this.width || Math.abs(at - before) < 2) continue;
      pen.beginPath();
      pen.moveTo(at - 3.5, 2);
      pen.lineTo(at + 3.5, 2);
      pen.lineTo(at, 8);
      pen.fill();
      before = at;
    }
  },

  drawAxis(pen, width, height) {
    const y = height - AXIS;
    pen.fillStyle = look.panel;
    pen.fillRect(0, y, width, AXIS);
    pen.fillStyle = look.line;
    pen.fillRect(0, y, width, 1);
    pen.textBaseline = "middle";
    const fine = this.to - this.from < 4000;
    for (const time of look.ticks(this.from, this.to, width - this.gutter)) {
      const x = this.x(time);
      pen.fillStyle = look.line;
      pen.fillRect(Math.round(x), y, 1, 5);
      pen.fillStyle = look.muted;
      const label = text.clock(time, fine);
      const half = pen.measureText(label).width / 2;
      if (x - half > this.gutter - 12 && x + half < width - 2) pen.fillText(label, x - half, y + 12);
    }
    const now = this.x(model.now);
    if (model.state !== "ended" && now > this.gutter && now < width) {
      pen.fillStyle = look.accent;
      pen.fillRect(Math.round(now), STRIP, 1, y - STRIP);
    }
  },

  // The row at a height, or the one above.
  lane(y) {
    let low = 0;
    let high = this.lanes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.lanes[middle].y <= y) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  },

  at(event) {
    const box = this.view.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (y > this.tall - AXIS) return {};
    const lane = this.lanes[this.lane(y + this.view.scrollTop)];
    const row = lane && y + this.view.scrollTop < lane.y + this.height + 2 ? lane.row : undefined;
    if (!row || x < this.gutter) return { row };
    const slack = ((this.to - this.from) / this.width) * 2;
    const time = this.time(x);
    let best = null;
    for (let at = row.from(time - slack); at < row.size && row.starts[at] <= time + slack; at++) {
      if (row.starts[at] + row.lengths[at] + slack >= time) best = at;
    }
    return { row, index: best, time };
  },

  describe(row, index) {
    const b = row.block(index);
    const where = `${row.node.name}, slot ${row.slot + 1}`;
    const what = model.labels[b.label] || "?";
    const failed = b.failed === b.count ? "failed" : `${text.count(b.failed)} failed`;
    const lines = [what];
    if (b.count === 1) lines.push(`${text.seconds(b.length / 1000)} from ${text.clock(b.start, true)}`);
    else lines.push(`${text.tasks(b.count)} in ${text.seconds(b.length / 1000)} from ${text.clock(b.start, true)}`, `ran ${Math.round(b.share)}% of that time`);
    if (b.failed) lines.push(failed);
    return [...lines, where];
  },

  describeRun(row, run) {
    const what = run.count === 1 ? "running" : `${text.tasks(run.count)}, running`;
    const since = `${what} for ${text.seconds((model.now - run.start) / 1000)}, since ${text.clock(run.start, true)}`;
    return [model.labels[run.label] || "?", since, `${row.node.name}, slot ${row.slot + 1}`];
  },

  // What was sent to a node, at a place in its strip.
  sent(event) {
    const box = this.view.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top + this.view.scrollTop];
    const node = this.nodes.find((each) => y >= each.top - 1 && y < each.top + each.strip);
    if (!node || x < this.gutter) return null;
    const slack = ((this.to - this.from) / this.width) * 2;
    const hit = node.transfers.filter((each) => Math.abs(this.time(x) - each.start - each.length / 2) <= each.length / 2 + slack);
    return hit.length ? { node, hit } : null;
  },

  describeSent({ node, hit }) {
    const size = hit.reduce((sum, each) => sum + each.size, 0);
    const from = [...new Set(hit.map((each) => each.peer || "your program"))].join(", ");
    const start = Math.min(...hit.map((each) => each.start));
    const end = Math.max(...hit.map((each) => each.start + each.length));
    const when = `in ${text.seconds((end - start) / 1000)} from ${text.clock(start, true)}`;
    return [`${text.bytes(size)} sent to ${node.name}`, hit.length > 1 ? `${hit.length} transfers, ${when}` : when, `from ${from}`];
  },

  showTip(event) {
    const sent = this.sent(event);
    if (sent) return tip.show(event.clientX, event.clientY, this.describeSent(sent));
    const { row, index } = this.at(event);
    if (!row) return tip.hide();
    const run = index == null && model.running.get(row.node.rows[row.slot]);
    if (run && this.at(event).time >= run.start) {
      return tip.show(event.clientX, event.clientY, this.describeRun(row, run));
    }
    if (index == null) {
      const node = row.node;
      return tip.show(event.clientX, event.clientY, [node.name, `slot ${row.slot + 1}`, node.detail || node.machine[1] || ""].filter(Boolean));
    }
    return tip.show(event.clientX, event.clientY, this.describe(row, index));
  },

  wheel(event) {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const box = this.view.getBoundingClientRect();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.time(event.clientX - box.left));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      this.pan((event.deltaX || event.deltaY) / this.width);
    }
  },

  grab(event) {
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.dragged = 0;
    if (event.pointerType !== "mouse") this.showTip(event);
  },

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.showTip(event);
    const shift = event.clientX - before.x;
    this.dragged += Math.abs(shift);
    if (this.pointers.size === 2) {
      const [a, b] = [...this.pointers.values()];
      const apart = Math.abs(a.x - b.x);
      before.x = event.clientX;
      const then = Math.abs(a.x - b.x);
      if (apart > 10 && then > 10) this.zoom(apart / then);
    } else if (this.dragged > 3) {
      before.x = event.clientX;
      tip.hide();
      this.pan(-shift / (this.width - this.gutter));
    }
    return undefined;
  },

  drop(event) {
    const pressed = this.pointers.delete(event.pointerId);
    if (!pressed || this.dragged > 3 || event.type === "pointercancel") return;
    const { row, index } = this.at(event);
    if (row && index == null && event.clientX - this.view.getBoundingClientRect().left < this.gutter) nodes.open(row.node);
    else if (row && index != null) this.choose(row, index);
  },

  choose(row, at) {
    this.chosen = { row, at };
    say(find("stream-said"), this.describe(row, at).join(", "));
    page.redraw();
  },

  // The block before or after the chosen one, which is brought into view.
  step(direction) {
    const first = this.lanes[Math.max(0, this.lane(this.view.scrollTop + STRIP))];
    let { row, at } = this.chosen || { row: first && first.row, at: first && first.row ? first.row.from(this.from) - direction : 0 };
    if (!row || !row.size) row = this.lanes.map((lane) => lane.row).find((each) => each && each.size);
    if (!row) return;
    at = Math.min(Math.max(at + direction, 0), row.size - 1);
    this.reveal(row, at);
  },

  row(direction) {
    const index = this.lanes.findIndex((lane) => lane.row === this.chosen.row);
    const middle = this.chosen.row.starts[this.chosen.at] ?? this.to;
    for (let next = index + direction; this.lanes[next]; next += direction) {
      const { row } = this.lanes[next];
      if (row && row.size) return this.reveal(row, row.from(middle + 1));
    }
    return undefined;
  },

  reveal(row, at) {
    const b = row.block(at);
    const span = this.to - this.from;
    if (b.start < this.from || b.start + b.length > this.to) {
      this.from = b.start + b.length / 2 - span / 2;
      this.to = this.from + span;
      this.show("free");
    }
    const lane = this.lanes.find((each) => each.row === row);
    const top = this.view.scrollTop;
    if (lane.y < top + STRIP || lane.y + this.height > top + this.tall - AXIS) this.view.scrollTop = lane.y - this.tall / 2;
    this.choose(row, at);
    const box = this.view.getBoundingClientRect();
    tip.show(box.left + this.x(b.start + b.length), box.top + lane.y - this.view.scrollTop + this.height, this.describe(row, at));
  },

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowLeft: () => this.pan(-0.1),
      ArrowRight: () => this.pan(0.1),
      ArrowUp: () => (this.chosen ? this.row(-1) : this.view.scrollBy(0, -40)),
      ArrowDown: () => (this.chosen ? this.row(1) : this.view.scrollBy(0, 40)),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      0: () => this.show("all"),
      n: () => this.step(1),
      p: () => this.step(-1),
      Enter: () => this.chosen && nodes.open(this.chosen.row.node),
      Escape: () => {
        this.chosen = null;
        tip.hide();
        page.redraw();
      },
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  },
};

const tip = {
  show(x, y, [title, ...lines]) {
    const box = find("tip");
    box.replaceChildren(make("b", "", title), document.createTextNode(lines.join("\n")));
    box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = box;
    box.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 6))}px`;
    box.style.top = `${y + 16 + height > innerHeight ? Math.max(4, y - height - 10) : y + 16}px`;
  },

  hide() {
    find("tip").hidden = true;
  },
};
