// Colours and helpers for drawing. The palette stays distinct for the colour-blind; failures are marked by shape too.
const PALETTES = {
  light: ["#1271b5", "#e39802", "#0b9e73", "#c774a5", "#4fb0e6", "#8a6d1b", "#54429b", "#8d8f98"],
  dark: ["#4aa3ea", "#f0b23f", "#2fbf95", "#e298c5", "#8ad2f9", "#c9ad5a", "#9d8cf0", "#a2a6b0"],
};
const SHADES = 5;

const look = {
  refresh() {
    const root = document.documentElement;
    const chosen = look.stored();
    const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "dark" : "light";
    const style = getComputedStyle(root);
    for (const name of ["back", "panel", "raised", "text", "muted", "line", "accent", "bad", "good", "warn", "track", "stripe", "running"]) {
      look[name] = style.getPropertyValue(`--${name}`).trim();
    }
    const palette = PALETTES[dark ? "dark" : "light"];
    look.palette = palette;
    look.shaded = palette.map((colour) => Array.from({ length: SHADES }, (_, n) => look.mix(look.panel, colour, 0.3 + (0.7 * n) / (SHADES - 1))));
    look.dimmed = palette.map((colour) => look.mix(look.panel, colour, 0.13));
    look.hatch = look.hatched(look.running);
    look.gone = look.hatched(look.line);
  },

  stored() {
    try {
      return localStorage.getItem("skyward-theme");
    } catch {
      return null; // storage is switched off, or this is a file
    }
  },

  toggle() {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("skyward-theme", theme);
    } catch {
      look.stored = () => theme;
    }
    look.refresh();
  },

  mix(under, over, part) {
    const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    const [a, b] = [channels(under), channels(over)];
    return `#${a.map((n, at) => Math.round(n + (b[at] - n) * part).toString(16).padStart(2, "0")).join("")}`;
  },

  hatched(colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const pen = tile.getContext("2d");
    pen.strokeStyle = colour;
    pen.lineWidth = 1.6;
    for (const at of [-6, 0, 6]) {
      pen.moveTo(at, 6);
      pen.lineTo(at + 6, 0);
    }
    pen.stroke();
    return pen.createPattern(tile, "repeat");
  },

  colour: (label) => look.palette[label % look.palette.length],

  // A canvas in the size in which it is shown, cleared; its pen draws in CSS pixels.
  canvas(canvas, height) {
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const width = canvas.clientWidth;
    height = height || canvas.clientHeight;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = '11px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
    return { pen, width, height };
  },

  // Times at which an axis has its marks, `apart` pixels or more from each other.
  ticks(from, to, width, apart = 80) {
    const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400].map((s) => s * 1000);
    const step = steps.find((each) => ((to - from) / each) * apart <= width) || 86_400_000 * Math.ceil((((to - from) / 86_400_000) * apart) / width);
    const found = [];
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(at);
    return found;
  },
};

// An element with a class and a text. Text of nodes gets into the page this way only, so that none of it is HTML.
const make = (tag, className = "", content = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (content !== "") element.textContent = content;
  return element;
};
const find = (id) => document.getElementById(id);
const say = (element, content) => {
  if (element.textContent !== content) element.textContent = content;
};
