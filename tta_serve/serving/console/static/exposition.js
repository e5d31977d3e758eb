// Prometheus' text format, and how fast its counters grow.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/**
 * Return the samples of a text whose names are wanted.
 * @param {string} text As `/metrics` gives it.
 * @param {Set<string>} wanted Names of samples.
 * @returns {Array<{name: string, labels: Map<string, string>, value: number}>}
 */
export function parseSamples(text, wanted) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = SAMPLE.exec(line);
    if (!match || !wanted.has(match[1])) continue;
    const labels = new Map();
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL))
      labels.set(name, unescape(value));
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return found;
}

function unescape(value) {
  return value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
}

/**
 * Return sums of samples by one of their labels, over all others: replicas, say.
 * @param {string|null} label Null for one sum, under "".
 */
export function sumBy(samples, name, label) {
  const sums = new Map();
  for (const sample of samples) {
    if (sample.name !== name) continue;
    const key = label === null ? "" : (sample.labels.get(label) ?? "");
    sums.set(key, (sums.get(key) ?? 0) + sample.value);
  }
  return sums;
}

/** How fast counters grow, from one reading to the next, in a window of readings. */
export class Rates {
  /** @param {number} most So many points are kept. */
  constructor(most) {
    this.most = most;
    this.times = [];
    this.points = new Map();
    this.last = null;
  }

  /**
   * Take a reading.
   * @param {number} time In seconds.
   * @param {Map<string, number>} totals By series. One that has fallen was begun anew.
   */
  add(time, totals) {
    const before = this.last;
    this.last = { time, totals };
    if (before === null || time <= before.time) return;
    for (const name of totals.keys()) {
      if (!this.points.has(name))
        this.points.set(
          name,
          this.times.map(() => 0),
        );
    }
    this.times.push(time);
    for (const [name, points] of this.points) {
      const now = totals.get(name) ?? 0;
      const then = before.totals.get(name) ?? 0;
      points.push((now >= then ? now - then : now) / (time - before.time));
    }
    if (this.times.length > this.most) {
      this.times.shift();
      for (const points of this.points.values()) points.shift();
    }
  }
}
