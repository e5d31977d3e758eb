// What the server does now: its counters, read again and again, differenced in this page.

import { readMetrics } from "/console/api.js";
import { EXPERTS, LineChart, OTHERS } from "/console/charts.js";
import { el, field, fill } from "/console/dom.js";
import { clock, count, number, percent } from "/console/format.js";
import { parseSamples, Rates, sumBy } from "/console/exposition.js";
import { pauseButton, Poller } from "/console/poller.js";

const WINDOW = 180; // readings
const COUNTERS = [
  {
    name: "tta_expert_coefficient_total",
    label: "expert",
    palette: EXPERTS,
    title: "Experts: coefficients a second, summed over requests",
  },
  {
    name: "tta_requests_total",
    label: "policy",
    palette: OTHERS,
    title: "Requests a second, by what decided",
  },
  {
    name: "tta_tokens_total",
    label: "kind",
    palette: OTHERS,
    title: "Tokens a second, read and written",
  },
];
const ABSTENTIONS = "tta_abstentions_total";
const GAUGES = ["tta_slots_used", "tta_slots", "tta_experts_loaded", "tta_distinct_mixes"];
const WANTED = new Set([...COUNTERS.map((one) => one.name), ABSTENTIONS, ...GAUGES]);
const SECONDS = ["2", "5", "15"];

/** The view of the traffic. */
export class TrafficView {
  constructor() {
    this.poller = new Poller((signal) => this.#read(signal), 1000 * Number(SECONDS[0]));
    this.rates = COUNTERS.map(() => new Rates(WINDOW));
    this.abstentions = new Rates(1);
    this.charts = COUNTERS.map(
      ({ title, palette }) =>
        new LineChart(
          title,
          { x: "Time", formatX: (time) => clock(new Date(1000 * time)), time: true },
          palette,
        ),
    );
    this.tiles = el("dl.tiles");
    this.every = el(
      "select",
      { onchange: () => this.#restart() },
      SECONDS.map((s) => el("option", { value: s }, `${s} s`)),
    );
    this.notice = el("div");
    this.updated = el("span.hint");
    this.element = el(
      "div",
      {},
      el(
        "div.row.toolbar",
        {},
        field("every", "Read every", this.every),
        el("span.spring"),
        this.updated,
        pauseButton(this.poller),
      ),
      this.notice,
      this.tiles,
      this.charts.map((chart) => el("section.card", {}, chart.element)),
    );
  }

  show() {
    this.poller.start();
  }

  hide() {
    this.poller.stop();
  }

  #restart() {
    this.poller.everyMs = 1000 * Number(this.every.value);
    this.show();
  }

  async #read(signal) {
    try {
      const samples = parseSamples(await readMetrics(signal), WANTED);
      const now = Date.now() / 1000;
      COUNTERS.forEach(({ name, label }, at) =>
        this.rates[at].add(now, sumBy(samples, name, label)),
      );
      this.abstentions.add(now, sumBy(samples, ABSTENTIONS, null));
      this.#draw(samples);
      fill(this.notice);
      this.updated.textContent = `as of ${clock()}`;
    } catch (error) {
      if (!signal.aborted) {
        const hint = error.wantsKey
          ? " Give the management key, or one with the scope metrics, under “Keys”."
          : "";
        fill(this.notice, el("p.error", { role: "alert" }, `${error.message}${hint}`));
      }
      throw error;
    }
  }

  #draw(samples) {
    EXPERTS.add([...this.rates[0].points.keys()].sort());
    this.rates.forEach((rates, at) => {
      const series = [...rates.points].sort().map(([name, values]) => ({ name, values }));
      if (rates.times.length) this.charts[at].show(rates.times, series);
    });
    const gauge = (name) => sumBy(samples, name, null).get("") ?? 0;
    const requests = latest(this.rates[1]);
    const tiles = [
      ["Requests a second", number(requests)],
      ["Tokens a second", number(latest(this.rates[2]))],
      ["Left to the base", requests ? percent(latest(this.abstentions) / requests) : "–"],
      ["Slots in use", `${count(gauge("tta_slots_used"))} of ${count(gauge("tta_slots"))}`],
      ["Distinct mixes lately", count(gauge("tta_distinct_mixes"))],
    ];
    fill(
      this.tiles,
      tiles.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    );
  }
}

/** Return how fast all series of a counter grew at last, null before there are two readings. */
function latest(rates) {
  if (!rates.times.length) return null;
  return [...rates.points.values()].reduce((sum, points) => sum + points.at(-1), 0);
}
