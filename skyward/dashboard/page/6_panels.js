// Figures, functions, throughput, failures and output.
const figures = {
  update() {
    const s = model.status;
    if (!s) return;
    const [waiting, running, done, failed, cancelled] = s.tasks;
    const total = waiting + running + done + failed + cancelled;
    const part = total ? (done + failed + cancelled) / total : 0;
    this.progress(total, part, s.tasks);
    this.left(total, s);
    const [ordered, booting, ending] = s.machines;
    const ready = [...model.nodes.values()].filter(runs).length;
    const coming = [[ordered, "ordered"], [booting, "booting"], [ending, "releasing"], [s.lost, "lost"]];
    const nodesNote = coming.filter(([n]) => n).map(([n, what]) => `${text.count(n)} ${what}`).join(", ");
    const money = s.price || s.cost ? `${text.money(s.price)} per hour` : "";
    const past = model.state === "ended";
    facts(find("tiles"), [
      past ? ["Tasks per second", text.rate(s.seconds ? done / s.seconds : 0), "whole run"] : ["Tasks per second", text.rate(s.rate), "last 10 s"],
      past
        ? ["Slots", text.count(model.rows.filter(Boolean).length), "in total"]
        : ["Slots busy", `${text.count(s.busy)} / ${text.count(s.slots)}`, s.slots ? text.percent(s.busy / s.slots) : ""],
      past ? ["Nodes", text.count(model.nodes.size), nodesNote] : ["Nodes ready", `${text.count(ready)} / ${text.count(s.wanted || ready)}`, nodesNote],
      ["Cost so far", s.cost || s.price ? text.money(s.cost) : "$0", money || (s.unpriced ? `${s.unpriced} without a price` : "nothing rented")],
      ["Sent", text.bytes(s.bytes[0]), "to nodes"],
      ["Received", text.bytes(s.bytes[1]), "from nodes"],
    ]);
    say(find("provider"), s.provider);
    say(find("pool-name"), model.pool.name);
    say(find("elapsed"), text.seconds(Math.max(0, s.seconds)));
    document.title = total && model.state !== "ended" ? `${text.percent(part)} · skyward` : `skyward ${s.provider}`;
  },

  progress(total, part, [waiting, running, done, failed, cancelled]) {
    const bold = make("b", "", total ? text.percent(part) : "No tasks yet");
    const line = find("progress-text");
    const parts = [total ? `${text.count(done)} of ${text.tasks(total)} done` : ""];
    if (running) parts.push(`${text.count(running)} running`);
    if (waiting) parts.push(`${text.count(waiting)} waiting`);
    if (cancelled) parts.push(`${text.count(cancelled)} cancelled`);
    line.replaceChildren(bold, document.createTextNode(parts.join(", ")));
    if (failed) line.append(", ", make("em", "", `${text.count(failed)} failed`));
    const bar = find("progress-bar");
    bar.setAttribute("aria-valuenow", String(Math.floor(100 * part)));
    bars(bar, total, [done, failed, running]);
  },

  left(total, s) {
    const line = find("progress-left");
    const unfinished = s.tasks[0] + s.tasks[1];
    if (model.state === "ended") line.replaceChildren(`ran ${text.seconds(s.seconds)}, began at ${text.day(model.pool.began)}`);
    else if (!total || !unfinished) line.replaceChildren(total ? "all submitted tasks have ended" : "");
    else if (s.left == null) line.replaceChildren("time left not known yet");
    else {
      const end = model.pool.began + model.now + s.left * 1000;
      const more = s.price ? `, ${text.money((s.price * s.left) / 3600)} more` : "";
      line.replaceChildren(make("b", "", `${text.seconds(s.left)} left`), `, until about ${text.day(end)}${more}`);
    }
  },
};

const bars = (bar, total, counts) => {
  counts.forEach((count, at) => {
    const part = total ? (100 * count) / total : 0;
    bar.children[at].style.width = `${count && part < 0.4 ? 0.4 : part}%`;
  });
};

const functions = {
  items: new Map(),

  update() {
    const list = find("functions");
    find("functions-empty").hidden = model.functions.length > 0;
    const slots = model.status ? model.status.slots : 0;
    for (const [label, unfinished, done, failed, cancelled, mean] of model.functions) {
      if (!this.items.has(label)) list.append(this.item(label));
      const { bar, counts, sub, took, name } = this.items.get(label);
      const total = unfinished + done + failed + cancelled;
      const colour = model.labels.indexOf(label);
      name.style.background = bar.children[0].style.background = colour >= 0 ? look.colour(colour) : look.stripe;
      say(counts, `${text.count(done)} / ${text.count(total)}`);
      bars(bar, total, [done, failed, 0]);
      const left = unfinished && mean != null && slots ? Math.max(mean / 2, (unfinished * mean) / slots) : null;
      say(took, mean == null ? "none finished yet" : `${text.seconds(mean)} each${failed ? `, ${text.count(failed)} failed` : ""}`);
      const alone = model.functions.filter((each) => each[1]).length === 1;
      const time = alone && model.status.left != null ? model.status.left : left;
      say(sub, !unfinished ? "finished" : time == null ? "" : `${alone ? "" : "about "}${text.seconds(time)} left`);
    }
    this.legend();
  },

  item(label) {
    const root = make("li");
    const name = make("span", "name");
    const swatch = make("span", "swatch");
    name.append(swatch, make("b", "", label || "(no name)"));
    name.title = label;
    const bar = make("div", "bar");
    bar.append(make("span", "done"), make("span", "failed"), make("span"));
    const below = make("div", "sub");
    const entry = { bar, counts: make("span", "number"), took: make("span", "number"), sub: make("span", "number"), name: swatch };
    below.append(entry.took, entry.sub);
    root.append(name, entry.counts, bar, below);
    this.items.set(label, entry);
    return root;
  },

  // What the colours of the stream mean. Selecting a function shows it alone.
  legend() {
    const list = find("legend");
    const sent = [...model.nodes.values()].some((node) => node.transfers.length);
    const key = `${sent} ${model.labels.length} ${document.documentElement.dataset.theme} ${stream.only}`;
    if (list.dataset.key === key) return;
    list.dataset.key = key;
    const buttons = model.labels.map((label, number) => {
      const button = make("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(stream.only === number));
      const swatch = make("span", "swatch");
      swatch.style.background = look.colour(number);
      button.append(swatch, make("span", "", label || "(no name)"));
      button.title = label;
      button.onclick = () => {
        stream.only = stream.only === number ? null : number;
        this.legend();
        page.redraw();
      };
      return button;
    });
    const keys = [["fail", "failed"], ["run", "running"], ...(sent ? [["sent", "data sent to the node"]] : [])].map(([kind, what]) => {
      const item = make("span", "key");
      item.append(make("span", `swatch ${kind}`), what);
      return item;
    });
    list.replaceChildren(...(model.labels.length ? [...buttons, ...keys] : []));
  },
};

const throughput = {
  draw() {
    const { pen, width, height } = look.canvas(find("throughput"));
    const { span, done, failed } = this.spans();
    // The last span is not complete yet.
    const whole = model.state === "ended" ? done.length : Math.min(done.length, Math.floor(model.now / span));
    const rate = (count) => (count * 1000) / span;
    const all = done.slice(0, whole).map((n, at) => n + failed[at]);
    const peak = Math.max(1e-9, rate(Math.max(0, ...all)));
    const [left, bottom, top] = [stream.gutter || 68, height - 20, 10];
    const begin = Math.min(model.begin, Math.max(0, model.now - 1000));
    const end = Math.max(begin + 2000, model.now);
    const x = (time) => left + ((time - begin) / (end - begin)) * (width - left - 12);
    const scale = this.scale(peak);
    const y = (each) => bottom - (each / scale[scale.length - 1]) * (bottom - top);
    pen.textBaseline = "middle";
    for (const mark of peak > 1e-9 ? scale : [0]) {
      pen.fillStyle = look.line;
      pen.fillRect(left, Math.round(y(mark)), width - left - 12, 1);
      pen.fillStyle = look.muted;
      const label = mark >= 1000 ? `${mark / 1000}k` : String(mark);
      pen.fillText(label, left - 8 - pen.measureText(label).width, y(mark));
    }
    for (const time of look.ticks(begin, end, width - left)) {
      const label = text.clock(time);
      const half = pen.measureText(label).width / 2;
      if (x(time) + half < width) pen.fillText(label, x(time) - half, height - 9);
    }
    const area = (counts, colour, alpha) => {
      pen.beginPath();
      pen.moveTo(x(begin), bottom);
      counts.forEach((n, at) => {
        const [from, to] = [Math.max(begin, at * span), Math.min(end, (at + 1) * span)];
        if (to <= begin) return;
        pen.lineTo(x(from), y(rate(n)));
        pen.lineTo(x(to), y(rate(n)));
      });
      pen.lineTo(x(Math.min(end, counts.length * span)), bottom);
      pen.globalAlpha = alpha;
      pen.fillStyle = colour;
      pen.fill();
      pen.globalAlpha = 1;
    };
    area(all, look.accent, 0.32);
    area(failed.slice(0, whole), look.bad, 0.9);
    say(find("throughput-note"), peak > 1e-9 ? `tasks per second; peak ${text.rate(peak)}` : "tasks per second");
  },

  // Spans that are wide enough to see, and long enough that some tasks end in most of them.
  spans() {
    const { width, done, failed } = model.bins;
    const used = done.length - Math.floor(model.begin / width);
    const ended = done.reduce((sum, n, at) => sum + n + failed[at], 0);
    const wanted = Math.max(12, Math.min(150, ended / 4));
    const joined = Math.max(1, Math.ceil(used / wanted));
    if (joined === 1) return { span: width, done, failed };
    const join = (counts) => counts.reduce((all, n, at) => ((all[Math.floor(at / joined)] = (all[Math.floor(at / joined)] || 0) + n), all), []);
    return { span: width * joined, done: join(done), failed: join(failed) };
  },

  scale(peak) {
    const step = [1, 2, 5].flatMap((n) => [-2, -1, 0, 1, 2, 3, 4, 5].map((power) => Number((n * 10 ** power).toPrecision(1)))).sort((a, b) => a - b).find((each) => peak / each <= 3.2);
    return Array.from({ length: Math.ceil(peak / step) + 1 }, (_, at) => Number((at * step).toPrecision(6)));
  },
};

const failures = {
  items: new Map(),

  update() {
    const box = find("failures");
    const kinds = [...model.failures.values()];
    find("failures-empty").hidden = kinds.length > 0;
    const all = kinds.reduce((sum, kind) => sum + kind.count, 0);
    say(find("failures-count"), all ? text.count(all) : "");
    for (const kind of kinds) {
      if (!this.items.has(kind.id)) {
        this.items.set(kind.id, this.item(kind));
        box.append(this.items.get(kind.id).root);
      }
      const item = this.items.get(kind.id);
      say(item.count, `${text.count(kind.count)} ×`);
      say(item.time, kind.count > 1 ? `${text.clock(kind.first)} – ${text.clock(kind.last)}` : `at ${text.clock(kind.last)}`);
      for (const example of kind.examples.slice(item.shown)) item.root.append(this.example(example));
      item.shown = kind.examples.length;
    }
  },

  item(kind) {
    const root = make("details", "failure");
    const head = make("summary");
    const what = make("span", "what");
    const message = kind.examples.length ? kind.examples[0][3].slice(kind.error.length).replace(/^:\s*/, "") : "";
    what.append(make("b", "", kind.error || "failed"), " ", message);
    what.append(" ", make("span", "mono", `in ${kind.label}`));
    const item = { root, count: make("span", "count"), time: make("time"), shown: 0 };
    head.append(item.count, what, item.time);
    root.append(head);
    return item;
  },

  example([at, node, slot, message, trace]) {
    const root = make("div", "example");
    const place = slot >= 0 ? `${node}, slot ${slot + 1}` : node || "nowhere";
    root.append(make("p", "", `at ${text.clock(at)} on ${place}`), make("pre", "", trace || message));
    return root;
  },
};

// A line of output: without colours, and after a carriage return only what follows it.
const output = ([at, kind, node, said], long = true) => {
  const line = make("div", kind);
  const plain = said.replace(/\u001b\[[0-9;:]*m/g, "").split("\n").map((each) => each.replace(/\r+$/, "").split("\r").pop()).join("\n");
  line.append(make("span", "number", text.clock(at)));
  if (long) line.append(make("span", "from", node));
  line.append(make("span", "said", plain));
  return line;
};

class Lines {
  constructor(id) {
    this.box = find(id);
    this.empty = find(`${id}-empty`);
    this.seen = 0;
  }

  // Shows new lines; follows them unless the reader has scrolled up.
  update(lines, seen) {
    this.empty.hidden = lines.length > 0;
    const fresh = Math.min(lines.length, seen - this.seen);
    if (!fresh) return;
    const follows = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
    this.box.append(...lines.slice(-fresh).map((line) => output(line)));
    while (this.box.children.length > MAX_LINES) this.box.children[1].remove();
    this.seen = seen;
    if (follows) this.box.scrollTop = this.box.scrollHeight;
  }

  clear() {
    this.box.replaceChildren(this.empty);
    this.seen = 0;
  }
}
