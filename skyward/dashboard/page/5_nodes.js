// The list of nodes, of which only those in view are elements, and one node in detail.
const NODE_HEIGHT = 44;
const ORDERS = {
  name: () => 0,
  state: (node) => ["lost", "starting", "draining", "ready", "gone"].indexOf(node.state),
  cpu: (node) => -(nodes.load(node, 1) ?? -1),
  memory: (node) => -(nodes.load(node, 2) ?? -1),
  done: (node) => -node.done,
};

const nodes = {
  listed: [],
  elements: [],
  chosen: null, // by number
  shown: null, // in the dialog

  start() {
    this.view = find("nodes-view");
    this.space = find("nodes-space");
    this.view.addEventListener("scroll", () => page.redraw(), { passive: true });
    this.view.addEventListener("keydown", (event) => this.key(event));
    this.view.addEventListener("click", (event) => {
      const element = event.target.closest(".node");
      const node = element && model.nodes.get(Number(element.dataset.node));
      if (node) this.open(node);
    });
    for (const id of ["nodes-filter", "nodes-sort"]) find(id).addEventListener("input", () => this.update());
    find("node").addEventListener("close", () => (this.shown = null));
  },

  load(node, which) {
    const last = node.loads[node.loads.length - 1];
    return last && (runs(node) || node.state === "starting") ? last[which] : null;
  },

  update() {
    const wanted = find("nodes-filter").value.trim().toLowerCase();
    const order = ORDERS[find("nodes-sort").value];
    const match = (node) => [node.name, node.state, node.detail || "", ...node.machine].join(" ").toLowerCase().includes(wanted);
    this.listed = model.inOrder().filter((node) => !wanted || match(node));
    this.listed = this.listed.map((node, at) => [order(node), at, node]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, , node]) => node);
    this.space.style.height = `${this.listed.length * NODE_HEIGHT}px`;
    this.view.style.height = `${Math.min(9, Math.max(3, this.listed.length)) * NODE_HEIGHT}px`;
    find("nodes-empty").hidden = this.listed.length > 0;
    say(find("nodes-empty"), model.nodes.size ? "No node matches." : "No node yet.");
    this.view.hidden = !this.listed.length;
    const all = [...model.nodes.values()];
    const count = (state) => all.filter((node) => node.state === state).length;
    const parts = [["ready", count("ready")], ["draining", count("draining")], ["starting", count("starting")], ["lost", model.status ? model.status.lost : 0]];
    say(find("nodes-note"), parts.filter(([, n]) => n).map(([what, n]) => `${text.count(n)} ${what}`).join(", "));
    page.redraw();
  },

  draw() {
    const first = Math.max(0, Math.floor(this.view.scrollTop / NODE_HEIGHT) - 2);
    const count = Math.min(this.listed.length - first, Math.ceil(this.view.clientHeight / NODE_HEIGHT) + 4);
    while (this.elements.length < count) this.elements.push(this.element());
    this.elements.forEach((element, at) => {
      element.hidden = at >= count;
      if (at < count) this.fill(element, this.listed[first + at], first + at);
    });
    if (this.shown) this.drawDetail();
  },

  element() {
    const root = make("div", "node");
    root.setAttribute("role", "option");
    const who = make("div", "who");
    who.append(make("span", "dot"), make("b"), make("small"));
    const meter = () => {
      const element = make("div", "meter number");
      element.append(make("span"), make("i"));
      return element;
    };
    root.append(who, make("div", "number"), meter(), meter());
    this.space.append(root);
    return root;
  },

  fill(element, node, index) {
    const [who, slots, cpu, memory] = element.children;
    element.dataset.node = node.id;
    element.id = `node-${node.id}`;
    element.style.top = `${index * NODE_HEIGHT}px`;
    element.setAttribute("aria-setsize", this.listed.length);
    element.setAttribute("aria-posinset", index + 1);
    element.setAttribute("aria-selected", String(node.id === this.chosen));
    who.children[0].className = `dot ${node.state}`;
    say(who.children[1], node.name);
    say(who.children[2], this.summary(node));
    who.title = node.detail || "";
    say(slots, runs(node) ? `${node.busy}/${node.slots}` : "–");
    this.meter(cpu, this.load(node, 1));
    this.meter(memory, this.load(node, 2));
  },

  summary(node) {
    if (node.state === "starting") return node.detail || "starting";
    if (node.state === "lost") return `lost: ${node.detail || "no contact"}`;
    if (node.state === "draining") return "draining: finishing its tasks";
    if (node.state === "gone") return "released";
    const [provider, type] = node.machine;
    const gpu = node.gpus.length ? `${node.gpus.length} × ${node.gpus[0][0] || "GPU"}` : "";
    const price = node.price ? `$${node.price.toPrecision(3)}/h${node.spot ? " spot" : ""}` : "";
    return [type || provider, gpu, price].filter(Boolean).join(" · ") || "ready";
  },

  meter(element, hundredths) {
    say(element.children[0], hundredths == null ? "–" : `${hundredths}%`);
    element.children[1].style.setProperty("--part", `${hundredths ?? 0}%`);
    element.classList.toggle("high", hundredths >= 92 && element.matches(":last-child"));
  },

  key(event) {
    const at = this.listed.findIndex((node) => node.id === this.chosen);
    const page_ = Math.floor(this.view.clientHeight / NODE_HEIGHT);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page_, PageUp: at - page_, Home: 0, End: Infinity };
    if (event.key === "Enter" && at >= 0) this.open(this.listed[at]);
    else if (event.key in moves && this.listed.length) {
      const next = Math.min(Math.max(moves[event.key], 0), this.listed.length - 1);
      this.chosen = this.listed[next].id;
      const [top, bottom] = [next * NODE_HEIGHT, (next + 1) * NODE_HEIGHT];
      if (top < this.view.scrollTop) this.view.scrollTop = top;
      if (bottom > this.view.scrollTop + this.view.clientHeight) this.view.scrollTop = bottom - this.view.clientHeight;
      this.draw();
      this.view.setAttribute("aria-activedescendant", `node-${this.chosen}`);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  },

  // --- one node ---

  open(node) {
    tip.hide();
    this.shown = node.id;
    this.chosen = node.id;
    this.detail();
    if (!find("node").open) find("node").showModal();
    page.redraw();
  },

  detail() {
    const node = model.nodes.get(this.shown);
    if (!node) return;
    const [provider, type, region] = node.machine;
    say(find("node-name"), node.name);
    const state = find("node-state");
    state.className = `pill ${{ ready: "good", lost: "bad", starting: "wait", draining: "wait" }[node.state] || ""}`;
    say(state, node.state);
    say(find("node-detail"), [node.detail, node.problem].filter(Boolean).join("\n"));
    const lived = node.since == null ? null : ((node.until ?? model.now) - node.since) / 1000;
    facts(find("node-facts"), [
      ["Machine", [provider, type].filter(Boolean).join(" · ") || "–"],
      ["Region", region || "–"],
      ["Price", node.price ? `$${node.price.toPrecision(3)} per hour${node.spot ? ", spot" : ""}` : node.price === 0 ? "free" : "unknown"],
      ["Cost", node.price && lived != null ? `about ${text.money((node.price * lived) / 3600)}` : "–"],
      ["Slots busy", runs(node) ? `${node.busy} of ${node.slots}` : "–"],
      ["Tasks done", text.count(node.done)],
      ["Tasks failed", text.count(node.failed)],
      ["Ready", node.since == null ? "–" : `at ${text.clock(node.since)}, for ${text.seconds(lived)}`],
      ["Data received", node.arrived ? `${text.bytes(node.moved)} in ${text.count(node.arrived)} ${node.arrived === 1 ? "transfer" : "transfers"}` : "–"],
      ["Cores", node.cores == null ? "–" : text.count(node.cores)],
      ["Disk free", text.gib(node.disk)],
    ]);
    const percent = (n) => (n == null ? "unknown" : `${n}%`);
    say(find("node-cpu"), percent(this.load(node, 1)));
    const memory = this.load(node, 2);
    say(find("node-memory"), memory == null || !node.memory ? percent(memory) : `${text.gib((node.memory * memory) / 100)} of ${text.gib(node.memory)}`);
    const gpus = find("node-gpus");
    gpus.replaceChildren(...node.gpus.map(([name, memory_, used], at) => {
      const item = make("li");
      const meter = make("div", "meter number");
      meter.append(make("span"), make("i"));
      this.meter(meter, memory_ && used != null ? Math.round((100 * used) / memory_) : null);
      item.append(make("span", "", `GPU ${at}: ${name || "?"}, ${text.gib(used)} of ${text.gib(memory_)}`), meter);
      return item;
    }));
    const lines = model.lines.filter((line) => line[2] === node.name).slice(-60);
    const box = find("node-lines");
    box.replaceChildren(...lines.map((line) => output(line, false)));
    if (!lines.length) box.append(make("p", "empty", "No recent output."));
    box.scrollTop = box.scrollHeight;
  },

  drawDetail() {
    const node = model.nodes.get(this.shown);
    if (!node) return;
    for (const [id, which, colour] of [["spark-cpu", 1, look.accent], ["spark-memory", 2, look.palette[2]]]) {
      sparkline(find(id), node.loads.map((load) => [load[0], load[which]]), colour);
    }
    const canvas = find("node-stream");
    const rows = node.rows.map((number) => model.rows[number]).filter(Boolean);
    const high = Math.max(4, Math.min(14, Math.floor(160 / Math.max(1, rows.length))));
    canvas.style.height = `${Math.max(1, rows.length) * high + 8}px`;
    const { pen, width } = look.canvas(canvas);
    const begin = model.begin;
    const end = Math.max(begin + 1000, node.until ?? model.now);
    const x = (time) => 4 + ((time - begin) / (end - begin)) * (width - 8);
    rows.forEach((row, at) => drawRow(pen, row, 4 + at * high, high - 1, x, begin, end, null));
  },
};

// A list of names and values; elements are kept, so that a selection in them survives.
const facts = (list, entries) => {
  while (list.children.length > entries.length) list.lastChild.remove();
  while (list.children.length < entries.length) {
    const entry = make("div");
    entry.append(make("dt"), make("dd"));
    list.append(entry);
  }
  entries.forEach(([name, value, small], at) => {
    const [term, content] = list.children[at].children;
    say(term, name);
    const joined = small ? `${value}\n${small}` : value;
    if (content.dataset.said === joined) return;
    content.dataset.said = joined;
    content.replaceChildren(document.createTextNode(value));
    if (small) content.append(make("small", "", small));
  });
};

const sparkline = (canvas, points, colour) => {
  const { pen, width, height } = look.canvas(canvas);
  points = points.filter(([, value]) => value != null);
  if (!points.length) return;
  const [first, last] = [points[0][0], Math.max(points[points.length - 1][0], points[0][0] + 1)];
  const x = (time) => 3 + ((time - first) / (last - first)) * (width - 6);
  const y = (value) => height - 3 - (value / 100) * (height - 6);
  pen.beginPath();
  points.forEach(([time, value], at) => (at ? pen.lineTo(x(time), y(value)) : pen.moveTo(x(time), y(value))));
  pen.strokeStyle = colour;
  pen.lineWidth = 1.5;
  pen.stroke();
  pen.lineTo(x(points[points.length - 1][0]), height);
  pen.lineTo(x(first), height);
  pen.globalAlpha = 0.16;
  pen.fillStyle = colour;
  pen.fill();
  pen.globalAlpha = 1;
};
