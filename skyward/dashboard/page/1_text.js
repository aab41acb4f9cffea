// Numbers, times and sizes in words.
const text = {
  count: (n) => Math.round(n).toLocaleString("en-US"),

  rate: (n) => (n === 0 ? "0" : n >= 100 ? text.count(n) : n >= 10 ? n.toFixed(0) : n.toFixed(n < 1 ? 2 : 1)),

  // A length of time in seconds.
  seconds(s) {
    if (s < 0.001) return `${(s * 1e6).toFixed(0)} µs`;
    if (s < 1) return `${(s * 1e3).toFixed(s < 0.01 ? 1 : 0)} ms`;
    if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
    s = Math.round(s);
    if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
  },

  // A time since the beginning, in ms, as on a stopwatch.
  clock(ms, fine = false) {
    const s = ms / 1000;
    const two = (n) => String(Math.floor(n)).padStart(2, "0");
    const rest = fine ? `${two(s % 60)}.${Math.floor((s * 10) % 10)}` : two(s % 60);
    return s < 3600 ? `${Math.floor(s / 60)}:${rest}` : `${Math.floor(s / 3600)}:${two((s / 60) % 60)}:${rest}`;
  },

  bytes(n) {
    if (n == null) return "–";
    for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
      if (n < 999.5) return `${unit === "B" || n >= 100 ? Math.round(n) : n.toPrecision(2)} ${unit}`;
      n /= 1000;
    }
    return `${n.toPrecision(2)} PB`;
  },

  gib: (n) => (n == null ? "–" : `${(n / 2 ** 30).toFixed(n < 10 * 2 ** 30 ? 1 : 0)} GiB`),

  money: (n) => (n >= 0.01 ? `$${n.toFixed(2)}` : n > 0 ? `$${n.toFixed(4)}` : "$0"),

  tasks: (n) => `${text.count(n)} task${n === 1 ? "" : "s"}`,

  percent: (part) => (part > 0 && part < 0.01 ? "<1%" : `${Math.floor(100 * part)}%`),

  // The time of day, of a time in ms since 1970.
  day: (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }),
};
