// Charts by uPlot, each with a legend that reads values out and a table of the same numbers.

import uPlot from "/console/vendor/uplot/uPlot.esm.js";
import { el, fill, refill, table } from "/console/dom.js";
import { number } from "/console/format.js";

const HEIGHT = 240;
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const COLOURS = 8;
const MOST_TABLE_ROWS = 12;

/** Colours by name, in the order in which the names came; a name keeps its colour on all views. */
export class Palette {
  #places = new Map();

  /** Return the style's variable of a name's colour. */
  colourOf(name) {
    if (!this.#places.has(name)) this.#places.set(name, this.#places.size);
    return `--series-${this.#places.get(name) % COLOURS}`;
  }

  /** Give these names their colours, in this order. */
  add(names) {
    for (const name of names) this.colourOf(name);
  }
}

/** The colours of experts, of arms, and of what else is counted. */
export const EXPERTS = new Palette();
export const ARMS = new Palette();
export const OTHERS = new Palette();

/** Return a name with a spot of its colour before it. */
export function swatch(name, palette = EXPERTS) {
  const spot = el("span.spot", { "aria-hidden": "true" });
  spot.style.background = `var(${palette.colourOf(name)})`;
  return el("span.swatch", {}, spot, name);
}

/**
 * Return a bar: how much of a whole, between 0 and 1.
 * @param {string|null} name Whose colour it has, null for none's.
 * @param {number|null} mark Where a line crosses it.
 */
export function bar(share, name = null, mark = null, palette = EXPERTS) {
  const track = el("span.track", { "aria-hidden": "true" });
  const filled = el("span.filled");
  filled.style.inlineSize = `${100 * Math.min(1, Math.max(0, share))}%`;
  if (name !== null) filled.style.background = `var(${palette.colourOf(name)})`;
  track.append(filled);
  if (mark !== null && mark >= 0 && mark <= 1) {
    const line = el("span.mark");
    line.style.insetInlineStart = `${100 * mark}%`;
    track.append(line);
  }
  return track;
}

const shown = new Set();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of shown) chart.redraw();
});

/** Lines over time, or over layers. */
export class LineChart {
  /**
   * @param {string} title What it shows.
   * @param {{x: string, formatX: function(number): string, time?: boolean, steps?: boolean}} axis Its
   *     name for the table, how its values are written, and whether it is time, or jumps.
   */
  constructor(title, axis, palette = EXPERTS) {
    this.title = title;
    this.axis = axis;
    this.palette = palette;
    this.plot = null;
    this.names = "";
    this.legend = el("ul.legend", { "aria-hidden": "true" });
    this.picture = el("div.chart", { role: "img", "aria-label": `${title}. No numbers yet.` });
    this.numbers = el("div");
    const details = el("details", {}, el("summary", {}, "As a table"), this.numbers);
    details.addEventListener("toggle", () => this.#tabulate());
    this.details = details;
    this.element = el(
      "figure",
      {},
      el("figcaption", {}, title),
      this.legend,
      this.picture,
      details,
    );
    new ResizeObserver(() => this.#resize()).observe(this.picture);
  }

  /** Draw it anew, in the colours of now. */
  redraw() {
    if (!this.series) return;
    this.plot?.destroy();
    this.plot = null;
    if (!this.picture.clientWidth) return; // drawn when it is shown
    this.plot = new uPlot(this.#options(), this.#data(), this.picture);
    this.items = this.series.map((one, at) => this.#legendItem(one.name, at));
    fill(
      this.legend,
      this.items.map((item) => item.element),
    );
    this.#readOut(null);
  }

  /**
   * Show other numbers.
   * @param {number[]} xs Ascending.
   * @param {Array<{name: string, values: Array<number|null>, low?: Array, high?: Array}>} series With
   *     the bounds of a band, where there is one.
   */
  show(xs, series) {
    this.xs = xs;
    this.series = series;
    this.picture.setAttribute("aria-label", this.#describe());
    const names = series.map((one) => `${one.name}${"low" in one}`).join();
    if (this.plot === null || names !== this.names) {
      this.names = names;
      this.redraw();
    } else {
      this.plot.setData(this.#data());
      this.#readOut(null);
    }
    this.#tabulate();
  }

  #data() {
    return [this.xs, ...this.series.flatMap((one) => [one.values, ...bounds(one)])];
  }

  /** Follow the size of its place, which is none while it is not shown. */
  #resize() {
    if (!this.picture.clientWidth) {
      shown.delete(this);
      this.plot?.destroy();
      this.plot = null;
      return;
    }
    shown.add(this);
    if (this.plot === null) this.redraw();
    else this.plot.setSize({ width: this.picture.clientWidth, height: HEIGHT });
  }

  #options() {
    const style = getComputedStyle(this.picture);
    const ink = style.getPropertyValue("--muted");
    const grid = { stroke: style.getPropertyValue("--line"), width: 1 };
    const font = `12px ${style.fontFamily}`;
    const axis = { stroke: ink, grid, ticks: { show: false }, font };
    const paths = this.axis.steps ? uPlot.paths.stepped({ align: 1 }) : undefined;
    const lines = [];
    const bands = [];
    this.series.forEach((one, at) => {
      const stroke = style.getPropertyValue(this.palette.colourOf(one.name));
      const dash = DASHES[this.#repeats(at) % DASHES.length];
      lines.push({ stroke, width: 2, dash, paths, points: { show: false }, spanGaps: true });
      if (bounds(one).length) {
        const first = lines.length;
        const edge = { stroke, width: 0.5, points: { show: false }, spanGaps: true };
        lines.push(edge, edge);
        bands.push({ series: [first + 2, first + 1], fill: `${stroke.trim()}22` });
      }
    });
    const formatXs = (_, ticks) => ticks.map((tick) => this.axis.formatX(tick));
    return {
      width: this.picture.clientWidth,
      height: HEIGHT,
      series: [{}, ...lines],
      bands,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: Boolean(this.axis.time) }, y: { range: withZero } },
      axes: [
        { ...axis, values: formatXs, space: 120, size: 30 },
        { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => number(tick)) },
      ],
      hooks: { setCursor: [(plot) => this.#readOut(plot.cursor.idx)] },
    };
  }

  /** Return how many series before one have its colour. */
  #repeats(at) {
    const [colour, ...before] = [at, ...Array(at).keys()].map((i) =>
      this.palette.colourOf(this.series[i].name),
    );
    return before.filter((other) => other === colour).length;
  }

  #legendItem(name, at) {
    const value = el("b");
    const dashed = this.#repeats(at) ? " (dashed)" : "";
    return { value, element: el("li", {}, swatch(name, this.palette), dashed, value) };
  }

  /** Write the values at a place into the legend, the last ones if there is none. */
  #readOut(at) {
    this.series.forEach((one, i) => {
      if (this.items?.[i]) this.items[i].value.textContent = number(one.values.at(at ?? -1));
    });
  }

  #describe() {
    const last = this.series.map((one) => `${one.name} ${number(one.values.at(-1))}`).join(", ");
    const now = this.axis.time ? ` Last: ${last || "nothing yet"}.` : "";
    return `${this.title}.${now} The table below has the numbers.`;
  }

  #tabulate() {
    if (!this.details.open || !this.series) return;
    const from = Math.max(0, this.xs.length - (this.axis.time ? MOST_TABLE_ROWS : Infinity));
    const columns = [this.axis.x, ...this.series.map((one) => one.name)];
    const rows = this.xs
      .slice(from)
      .map((x, at) => [this.axis.formatX(x), ...this.series.map((one) => inTable(one, from + at))]);
    refill(
      this.numbers,
      table(this.title, columns, this.axis.time ? rows.reverse() : rows, {
        hidden: true,
        numeric: columns.map((_, at) => at).slice(1),
      }),
    );
  }
}

/** Return a range for an axis that has 0 in it, and a little room. */
function withZero(_, low, high) {
  const [from, to] = [Math.min(0, low ?? 0), Math.max(0, high ?? 0)];
  const room = 0.08 * (to - from) || 1;
  return [from < 0 ? from - room : 0, to + room];
}

function bounds(one) {
  return "low" in one ? [one.low, one.high] : [];
}

function inTable(one, at) {
  const value = number(one.values[at]);
  return "low" in one ? `${value} (${number(one.low[at])} to ${number(one.high[at])})` : value;
}
