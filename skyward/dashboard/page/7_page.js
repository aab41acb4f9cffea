// The page as a whole: messages arrive, panels are updated, and everything drawn is drawn once a frame.
const KEYS = [
  ["T", "light or dark"],
  ["S", "go to the task stream"],
  ["/", "filter the nodes"],
  ["0, L", "the whole run; live"],
  ["+ −", "show less or more time"],
  ["← →", "earlier, later (in the stream)"],
  ["N P", "the next or previous block (in the stream)"],
  ["↑ ↓", "the row above or below; a node (in the list)"],
  ["Enter", "details of the node"],
  ["Esc", "close"],
];
const STATES = {
  starting: ["wait", "Starting"],
  running: ["good", "Running"],
  idle: ["good", "Ready"],
  draining: ["wait", "Draining"],
  ended: ["", "Ended"],
  broken: ["bad", "Connection lost, trying again"],
};

const page = {
  frames: [], // how long the last frames took to draw, in ms
  applied: 0, // messages

  start() {
    look.refresh();
    stream.start();
    nodes.start();
    this.output = new Lines("output");
    this.log = new Lines("log");
    facts(find("keys-list"), KEYS);
    this.listen();
    this.tabs();
    const recorded = find("recording").textContent.trim();
    if (recorded) {
      find("save").hidden = true;
      stream.show("all");
      this.take(JSON.parse(recorded));
    } else this.connect();
  },

  connect() {
    const source = new EventSource("feed");
    this.source = source;
    source.onmessage = (event) => {
      this.broken = false;
      this.take(JSON.parse(event.data));
      if (model.state === "ended") source.close();
    };
    source.onerror = () => {
      if (model.state === "ended") return;
      this.broken = true;
      this.state();
    };
  },

  take(message) {
    if (message.whole) this.clear();
    model.apply(message);
    this.applied++;
    this.state();
    figures.update();
    functions.update();
    failures.update();
    nodes.update();
    this.output.update(model.lines, model.linesSeen);
    this.log.update(model.log, model.logSeen);
    const warnings = model.log.filter((line) => line[1] === "warning").length;
    say(find("log-count"), warnings ? text.count(warnings) : "");
    if (nodes.shown !== null) nodes.detail();
    this.redraw();
  },

  // Everything is sent again: the server was out of reach, or this page too slow.
  clear() {
    this.output.clear();
    this.log.clear();
    for (const [list, items] of [[find("functions"), functions.items], [null, failures.items]]) {
      if (list) list.replaceChildren();
      for (const item of items.values()) if (item.root) item.root.remove();
      items.clear();
    }
    stream.chosen = null;
    nodes.shown = null;
    if (find("node").open) find("node").close();
  },

  state() {
    const busy = model.status && model.status.tasks[0] + model.status.tasks[1] > 0;
    const draining = model.state === "running" && [...model.nodes.values()].some((node) => node.state === "draining");
    const running = draining ? "draining" : busy ? "running" : "idle";
    const name = this.broken ? "broken" : model.state === "running" ? running : model.state;
    const [kind, said] = STATES[name];
    find("state").className = `pill ${kind}`;
    if (model.state === "ended") find("save").hidden = true; // nobody is there to make it
    say(find("state"), said);
    const has = stream.lanes.length > 0 || model.rows.length > 0;
    find("stream-view").classList.toggle("none", !has);
    find("stream-empty").hidden = has;
    say(find("stream-empty"), "The stream begins when the first node is ready.");
    const slots = model.rows.filter(Boolean).length;
    const ran = model.blocks > 0;
    say(find("stream-note"), has ? `${text.count(slots)} slots${ran ? "" : "; a block appears when its task ends"}` : "");
  },

  redraw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      const began = performance.now();
      if (model.rows.length) stream.draw();
      nodes.draw();
      throughput.draw();
      this.frames.push(performance.now() - began);
      if (this.frames.length > 200) this.frames.shift();
    });
  },

  theme() {
    look.toggle();
    functions.update();
    this.redraw();
  },

  listen() {
    find("theme").onclick = () => this.theme();
    find("help").onclick = () => find("keys").showModal();
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.querySelector("[data-close]").onclick = () => dialog.close();
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
    addEventListener("resize", () => this.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      look.refresh();
      functions.update();
      this.redraw();
    });
    document.addEventListener("keydown", (event) => this.key(event));
  },

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog")) return;
    const keys = {
      t: () => this.theme(),
      s: () => find("stream-view").focus(),
      "/": () => find("nodes-filter").focus(),
      "?": () => find("keys").showModal(),
      0: () => stream.show("all"),
      l: () => stream.show("live"),
      "+": () => stream.zoom(0.5),
      "-": () => stream.zoom(2),
    };
    const action = keys[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  },

  tabs() {
    const tabs = [...document.querySelectorAll('[role="tab"]')];
    const choose = (tab) => {
      for (const each of tabs) {
        const chosen = each === tab;
        each.setAttribute("aria-selected", String(chosen));
        each.tabIndex = chosen ? 0 : -1;
        find(each.getAttribute("aria-controls")).hidden = !chosen;
      }
      const panel = find(tab.getAttribute("aria-controls"));
      if (panel.classList.contains("lines")) panel.scrollTop = panel.scrollHeight;
    };
    tabs.forEach((tab, at) => {
      tab.onclick = () => choose(tab);
      tab.onkeydown = (event) => {
        const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        const chosen = tabs[(next + tabs.length) % tabs.length];
        choose(chosen);
        chosen.focus();
      };
    });
  },
};

page.start();
window.skyward = { model, page, stream, look }; // for the console, and for tests
