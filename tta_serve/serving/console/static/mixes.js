// Mixes of experts, in words, bars and by layer.

import { el, table } from "/console/dom.js";
import { bar, LineChart, swatch } from "/console/charts.js";
import { number } from "/console/format.js";

const PART = /^\s*([^=\s]+)\s*=\s*(-?\d*\.?\d+)\s*$/;

/**
 * Return the coefficients of a text such as `sql=0.7, math=0.3`.
 * Throws an Error that says how it is written.
 */
export function parseMix(text) {
  const experts = {};
  for (const part of text.split(",")) {
    const match = PART.exec(part);
    if (!match) throw new Error(`“${part.trim()}” is no coefficient; write sql=0.7, math=0.3`);
    experts[match[1]] = Number(match[2]);
  }
  return experts;
}

/** Return a coefficient in words: a number, one for each half of a layer, or one for each layer. */
export function describeCoefficient(coefficient) {
  if (Array.isArray(coefficient)) {
    return `${number(Math.min(...coefficient))} to ${number(Math.max(...coefficient))} by layer`;
  }
  if (typeof coefficient === "object") {
    return Object.entries(coefficient)
      .map(([half, value]) => `${half} ${describeCoefficient(value)}`)
      .join(", ");
  }
  return number(coefficient);
}

/** Return a mix in one line. */
export function describeMix(experts) {
  const parts = Object.entries(experts).map(([name, c]) => `${name} ${describeCoefficient(c)}`);
  return parts.join(" + ") || "the base";
}

function size(coefficient) {
  if (typeof coefficient === "number") return Math.abs(coefficient);
  const sizes = Object.values(coefficient).map(size);
  return sizes.reduce((sum, one) => sum + one, 0) / sizes.length;
}

/** Return a table of a mix with a bar for each expert. */
export function mixTable(experts) {
  const names = Object.keys(experts);
  if (!names.length) return el("p", {}, "The base alone: no expert takes part.");
  const most = Math.max(1, ...names.map((name) => size(experts[name])));
  const rows = names.map((name) => [
    swatch(name),
    bar(size(experts[name]) / most, name),
    describeCoefficient(experts[name]),
  ]);
  return barTable("Mix", "Expert", "Coefficient", rows);
}

/**
 * Return a table of scores with a bar for each, whatever their unit.
 * @param {number|null} floor The score that an expert must reach, null if it is not known.
 */
export function scoreTable(scores, floor = null) {
  const names = Object.keys(scores);
  if (!names.length) return el("p.hint", {}, "It gives no scores.");
  const values = [...Object.values(scores), ...(floor === null ? [] : [floor])];
  const low = Math.min(0, ...values);
  const span = Math.max(...values) - low || 1;
  const share = (value) => (value - low) / span;
  const mark = floor === null ? null : share(floor);
  const rows = names.map((name) => [
    swatch(name),
    bar(share(scores[name]), name, mark),
    number(scores[name]),
  ]);
  return barTable("Scores", "Expert", "Score", rows);
}

function barTable(caption, first, last, rows) {
  const found = table(caption, [first, "", last], rows, { numeric: [2] });
  found.classList.add("bars");
  // A column of pictures alone has no title to read.
  const [, drawn] = found.querySelectorAll("th");
  drawn.replaceWith(el("td", { "aria-hidden": "true" }));
  return found;
}

/** Return a chart of the coefficients by layer, null where no coefficient has layers. */
export function layerChart(experts) {
  const series = Object.entries(experts).flatMap(([name, c]) => byLayer(name, c));
  const layers = Math.max(0, ...series.map((one) => one.values.length));
  if (!layers) return null;
  const even = series.map((one) => ({
    ...one,
    values: one.values.length ? one.values : Array(layers).fill(one.constant),
  }));
  const chart = new LineChart("Coefficients by layer", {
    x: "Layer",
    formatX: number,
    steps: true,
  });
  chart.show([...Array(layers).keys()], even);
  return chart;
}

function byLayer(name, coefficient) {
  if (typeof coefficient === "number") return [{ name, values: [], constant: coefficient }];
  if (Array.isArray(coefficient)) return [{ name, values: coefficient }];
  return Object.entries(coefficient).flatMap(([half, c]) => byLayer(`${name} ${half}`, c));
}
