// What is known of the pool: messages from the server, applied one after the other. Times are in ms since the beginning.
// See skyward/dashboard/feed.py for the messages.
const MAX_BLOCKS = 150_000;
const MAX_LINES = 1000;
const MAX_MARKS = 4000;
const MAX_TRANSFERS = 500; // of a node

// The blocks of one slot, in the order of their starts.
class Row {
  constructor(node, slot) {
    Object.assign(this, { node, slot, starts: [], lengths: [], shares: [], labels: [], counts: [], failed: [] });
  }

  get size() {
    return this.starts.length;
  }

  // Adds a block; one with the start of the last block replaces that. Returns how many more there are.
  add(start, length, share, label, count, failed) {
    const at = this.size && this.starts[this.size - 1] === start ? this.size - 1 : this.size;
    const more = at === this.size ? 1 : 0;
    this.starts[at] = start;
    this.lengths[at] = length;
    this.shares[at] = share;
    this.labels[at] = label;
    this.counts[at] = count;
    this.failed[at] = failed;
    return more;
  }

  // The first block that may reach beyond a time.
  from(time) {
    let low = 0;
    let high = this.size;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] < time) low = middle + 1;
      else high = middle;
    }
    return Math.max(0, low - 1);
  }

  block(at) {
    return {
      start: this.starts[at], length: this.lengths[at], share: this.shares[at], label: this.labels[at],
      count: this.counts[at], failed: this.failed[at],
    };
  }

  // Joins blocks that lie closer together than their age, divided by `parts`; as skyward/dashboard/blocks.py does.
  thin(now, parts) {
    const kept = new Row(this.node, this.slot);
    let width = 0;
    for (let at = 0; at < this.size; at++) {
      const b = this.block(at);
      const last = kept.size - 1;
      width = 2 ** Math.ceil(Math.log2(Math.max(1, (now - b.start) / parts)));
      if (last < 0 || Math.floor(kept.starts[last] / width) !== Math.floor(b.start / width)) {
        kept.add(b.start, b.length, b.share, b.label, b.count, b.failed);
        continue;
      }
      const busy = (kept.lengths[last] * kept.shares[last]) / 100;
      const more = (b.length * b.share) / 100;
      if (more > busy) kept.labels[last] = b.label;
      kept.lengths[last] = Math.max(kept.starts[last] + kept.lengths[last], b.start + b.length) - kept.starts[last];
      kept.shares[last] = kept.lengths[last] ? Math.min(100, (100 * (busy + more)) / kept.lengths[last]) : 100;
      kept.counts[last] += b.count;
      kept.failed[last] += b.failed;
    }
    Object.assign(this, kept);
  }
}

const model = {
  reset() {
    Object.assign(this, {
      now: 0, state: "starting", pool: { name: "", began: 0 }, status: null, functions: [], labels: [],
      nodes: new Map(), rows: [], running: new Map(), blocks: 0, marks: [], bins: { width: 1000, done: [], failed: [] },
      failures: new Map(), lines: [], log: [], linesSeen: 0, logSeen: 0, shape: (this.shape || 0) + 1,
    });
  },

  apply(message) {
    if (message.whole) this.reset();
    for (const key of ["now", "state", "pool", "status", "functions"]) if (key in message) this[key] = message[key];
    this.labels.push(...(message.labels || []));
    for (const id of message.forgotten || []) this.forget(id);
    for (const node of message.nodes || []) this.node(node);
    for (const [id, busy, done, failed, arrived, moved] of message.counts || []) {
      const node = this.nodes.get(id);
      if (node) Object.assign(node, { busy, done, failed, arrived, moved });
    }
    for (const [id, ...loads] of message.loads || []) {
      const node = this.nodes.get(id);
      if (node) node.loads = node.loads.concat(loads).slice(-60);
    }
    for (const [row, id, slot] of message.rows || []) this.row(row, id, slot);
    if (message.blocks && message.blocks.length) this.stream(message.blocks);
    for (const [id, ...transfer] of message.transfers || []) this.transfer(id, transfer);
    for (const row of message.idle || []) this.running.delete(row);
    if (message.running && message.running.length) this.run(message.running);
    if (message.bins) this.count(...message.bins);
    for (const kind of message.failures || []) this.failures.set(kind.id, kind);
    this.lines = this.lines.concat(message.lines || []).slice(-MAX_LINES);
    this.log = this.log.concat(message.log || []).slice(-MAX_LINES);
    this.linesSeen += (message.lines || []).length;
    this.logSeen += (message.log || []).length;
  },

  node(sent) {
    const known = this.nodes.get(sent.id);
    const fresh = { busy: 0, done: 0, failed: 0, arrived: 0, moved: 0, loads: [], rows: [], transfers: [], slots: 0, gpus: [], machine: ["", "", ""] };
    const same = known && known.name === sent.name;
    if (!same || known.until !== sent.until || known.since !== sent.since) this.shape++;
    this.nodes.set(sent.id, same ? Object.assign(known, sent) : { ...fresh, ...sent });
  },

  forget(id) {
    const node = this.nodes.get(id);
    for (const row of node ? node.rows : []) {
      if (this.rows[row] && this.rows[row].node === node) {
        this.blocks -= this.rows[row].size;
        this.rows[row] = undefined;
        this.running.delete(row);
      }
    }
    this.nodes.delete(id);
    this.shape++;
  },

  row(row, id, slot) {
    const node = this.nodes.get(id);
    if (this.rows[row]) this.blocks -= this.rows[row].size;
    this.rows[row] = new Row(node, slot);
    node.rows[slot] = row;
    this.shape++;
  },

  stream([rows, starts, lengths, shares, labels, counts, failed]) {
    for (let at = 0; at < rows.length; at++) {
      const row = this.rows[rows[at]];
      if (!row) continue;
      this.blocks += row.add(starts[at], lengths[at], shares[at], labels[at], counts[at], failed[at]);
      if (failed[at]) this.marks.push(starts[at] + lengths[at]);
    }
    if (this.marks.length > MAX_MARKS) this.marks = this.marks.filter((_, at) => at % 2);
    for (let parts = 256; this.blocks > MAX_BLOCKS && parts >= 1; parts /= 2) {
      for (const row of this.rows) if (row) row.thin(this.now, parts);
      this.blocks = this.rows.reduce((sum, row) => sum + (row ? row.size : 0), 0);
    }
  },

  // What was sent to a node: start, length, bytes, and which node sent it.
  transfer(id, [start, length, size, peer]) {
    const node = this.nodes.get(id);
    if (!node) return;
    if (!node.transfers.length) this.shape++; // it takes a strip
    node.transfers.push({ start, length, size, peer });
    if (node.transfers.length > MAX_TRANSFERS) node.transfers.splice(0, MAX_TRANSFERS / 2);
  },

  // What runs now, by row.
  run([rows, starts, labels, counts]) {
    rows.forEach((row, at) => this.running.set(row, { start: starts[at], label: labels[at], count: counts[at] }));
  },

  count(width, first, done, failed) {
    this.bins.width = width;
    done.forEach((n, at) => (this.bins.done[first + at] = n));
    failed.forEach((n, at) => (this.bins.failed[first + at] = n));
    this.bins.done.length = this.bins.failed.length = first + done.length;
  },

  // Nodes in the order of their numbers: node-2 before node-10.
  inOrder() {
    if (this.ordered !== this.shape) {
      const key = new Intl.Collator("en", { numeric: true });
      this.sorted = [...this.nodes.values()].sort((a, b) => key.compare(a.name, b.name));
      this.ordered = this.shape;
    }
    return this.sorted;
  },

  // When the first slot was ready or the first task began.
  get begin() {
    let first = Infinity;
    for (const node of this.nodes.values()) if (node.since != null) first = Math.min(first, node.since);
    if (first === Infinity) for (const row of this.rows) if (row && row.size) first = Math.min(first, row.starts[0]);
    return first === Infinity ? 0 : first;
  },
};
model.reset();

// Whether a node runs tasks: one that drains gets no more once those that wait are done.
const runs = (node) => node.state === "ready" || node.state === "draining";
