// Experiments while they run: what their reports say, and the kill switch.

import { manage } from "/console/api.js";
import { ARMS, bar, LineChart, swatch } from "/console/charts.js";
import { card, el, facts, field, fill, pill, refill, say, table } from "/console/dom.js";
import { clock, count, interval, moment, number, percent, pValue } from "/console/format.js";
import { keyNotice } from "/console/keys.js";
import { KillSwitch } from "/console/kill_switch.js";
import { pauseButton, Poller } from "/console/poller.js";

const EVERY_MS = 10_000;
const READINGS = { better: "good", worse: "bad", undecided: "plain" };
const STATES = { running: "good", stopped: "bad", draft: "plain" };

/** The view of the experiments. */
export class ExperimentsView {
  constructor() {
    this.poller = new Poller((signal) => this.#read(signal), EVERY_MS);
    this.killSwitch = new KillSwitch();
    this.choice = el("select", { onchange: () => this.poller.start() });
    this.chooser = field("experiment", "Experiment", this.choice);
    this.updated = el("span.hint");
    this.bar = el(
      "div.row.toolbar",
      {},
      this.chooser,
      el("span.spring"),
      this.updated,
      pauseButton(this.poller),
    );
    this.looks = new LineChart(
      "Less the control's, as one could know it at each time; bands are confidence sequences",
      { x: "Time", formatX: (time) => moment(new Date(1000 * time)), time: true },
      ARMS,
    );
    this.report = el("div");
    this.notice = el("div");
    this.body = el("div", {}, this.killSwitch.element, this.bar, this.report);
    this.element = el("div", {}, this.notice, this.body);
  }

  show() {
    this.body.hidden = keyNotice(this.notice, "management");
    if (this.body.hidden) return;
    fill(this.notice);
    this.poller.start();
  }

  hide() {
    this.poller.stop();
  }

  async #read(signal) {
    try {
      const [found, { replicas }] = await Promise.all([
        manage("/admin/experiments", { signal }),
        manage("/admin/experts", { signal }),
      ]);
      this.killSwitch.show(found.kill, replicas[0].entries);
      this.#offer(found.experiments);
      const now = found.experiments.find((one) => one.name === this.choice.value);
      if (now) {
        const path = `/admin/experiments/${encodeURIComponent(now.name)}/report`;
        this.#tell(now, await manage(path, { signal }));
      } else {
        fill(this.report, card("No experiment", el("p", {}, "Define one: tta experiment --help.")));
      }
      this.updated.textContent = `as of ${clock()}, every ${EVERY_MS / 1000} s`;
      fill(this.notice);
    } catch (error) {
      if (!signal.aborted) {
        fill(this.notice, el("p.error", { role: "alert" }, error.message));
        this.body.hidden = error.status === 409; // a server without a store has none of this
      }
      throw error;
    }
  }

  #offer(experiments) {
    const order = ["running", "draft", "stopped"];
    const sorted = experiments.toSorted((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
    const state = JSON.stringify(sorted.map((one) => [one.name, one.state]));
    if (state === this.offered) return;
    this.offered = state;
    const before = this.choice.value;
    fill(
      this.choice,
      sorted.map((one) => el("option", { value: one.name }, `${one.name} (${one.state})`)),
    );
    if (before) this.choice.value = before;
    this.chooser.hidden = !sorted.length;
  }

  #tell(experiment, report) {
    ARMS.add(report.arms.map((arm) => arm.arm));
    showLooks(this.looks, report);
    const [primary, ...others] = report.metrics;
    refill(
      this.report,
      verdictCard(experiment, report),
      el("div.two", {}, armsCard(report), splitCard(report.split)),
      metricCard(primary, report, report.looks.length ? this.looks.element : null),
      report.guardrails.length ? guardrailsCard(report) : null,
      others
        .filter((metric) => metric.role === "secondary")
        .map((metric) => metricCard(metric, report)),
    );
    const words = `${experiment.name}: ${report.verdict.words[0] ?? experiment.state}`;
    if (words !== this.words) say(words);
    this.words = words;
  }
}

function verdictCard(experiment, report) {
  return card(
    `${experiment.name}`,
    facts([
      ["State", pill(experiment.state, STATES[experiment.state])],
      ["Winner", report.verdict.winner ?? "none yet"],
      ["Units", report.unit],
      ["Control", report.control],
      ["Version", count(experiment.version)],
    ]),
    el(
      "ul.sentences",
      {},
      report.verdict.words.map((words) => el("li", {}, words)),
    ),
    report.verdict.missing.length
      ? [
          el("h3", {}, "What is missing"),
          el(
            "ul.sentences",
            {},
            report.verdict.missing.map((one) => el("li", {}, one)),
          ),
        ]
      : null,
    el(
      "details",
      {},
      el("summary", {}, "What one has to know of the data"),
      el(
        "ul.sentences",
        {},
        report.health.map((one) => el("li", {}, one)),
      ),
    ),
  );
}

function armsCard({ arms }) {
  const rows = arms.map((arm) => [
    swatch(arm.arm, ARMS),
    arm.policy,
    percent(arm.share),
    count(arm.units),
    count(arm.requests),
    arm.stopped ? pill("stopped", "bad") : pill("on", "good"),
  ]);
  const columns = ["Arm", "Policy", "Share", "Units", "Requests", "State"];
  return card(
    "Arms",
    table("Arms and their traffic", columns, rows, { hidden: true, numeric: [2, 3, 4] }),
  );
}

function splitCard(split) {
  const names = Object.keys(split.counts);
  const most = Math.max(1, ...names.flatMap((name) => [split.counts[name], split.expected[name]]));
  const rows = names.map((name) => [
    swatch(name, ARMS),
    bar(split.counts[name] / most, name, split.expected[name] / most, ARMS),
    count(split.counts[name]),
    number(split.expected[name]),
  ]);
  return card(
    "Sample ratio",
    el("p", {}, splitPill(split), ` p = ${pValue(split.p)}`),
    names.length
      ? table(
          "Units of each arm, and how many there should be",
          ["Arm", "Units, wanted at the line", "Units", "Wanted"],
          rows,
          {
            hidden: true,
            numeric: [2, 3],
          },
        )
      : null,
    split.p === null || split.alert ? el("p", {}, split.why) : null,
  );
}

function splitPill({ p, alert }) {
  if (p === null) return pill("not tested");
  return alert ? pill("mismatch", "bad") : pill("as it should be", "good");
}

function metricCard(metric, report, chart = null) {
  const title = `${metric.name}: ${metric.role}, ${metric.better} is better`;
  return card(title, chart, comparisonTable(metric, report), meanTable(metric));
}

function comparisonTable(metric, report) {
  if (!metric.comparisons.length) return null;
  const range = rangeOf(
    metric.comparisons.map((one) => one.difference),
    0,
  );
  const rows = metric.comparisons.map((one) => [
    swatch(one.arm, ARMS),
    one.difference ? rangePicture(one.difference, range, one.arm, 0) : "",
    one.difference ? number(one.difference.value, { sign: true }) : "–",
    one.difference ? interval(one.difference) : "none yet",
    pValue(one.p_holm),
    pill(one.reading, READINGS[one.reading]),
  ]);
  const columns = [
    `Less ${report.control}`,
    "Confidence sequence",
    "Difference",
    "Interval",
    "p, Holm",
    "Reading",
  ];
  return table(`${metric.name} less the control's`, columns, rows, {
    hidden: true,
    numeric: [2, 3, 4],
  });
}

function meanTable(metric) {
  const range = rangeOf(
    metric.arms.map((arm) => arm.mean),
    null,
  );
  const rows = metric.arms.map((arm) => [
    swatch(arm.arm, ARMS),
    arm.mean ? rangePicture(arm.mean, range, arm.arm, null) : "",
    arm.mean ? number(arm.mean.value) : "–",
    arm.mean ? interval(arm.mean) : "none yet",
    count(arm.units),
  ]);
  const columns = ["Arm", "Mean", "Value", "Interval", "Units"];
  return table(`${metric.name} in each arm`, columns, rows, { hidden: true, numeric: [2, 3, 4] });
}

/** Return the least and the most of all estimates and of `also`. */
function rangeOf(estimates, also) {
  const values = estimates
    .filter(Boolean)
    .flatMap((one) => [one.value, one.low, one.high])
    .concat(also)
    .filter((value) => value !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.05 * (high - low) || 1;
  return { low: low - margin, span: high - low + 2 * margin };
}

/** Return an interval as a line with a point on it; without a bound it goes on to the edge. */
function rangePicture({ value, low, high }, range, name, zero) {
  const at = (x) => 100 * ((x - range.low) / range.span);
  const [from, to] = [low === null ? 0 : at(low), high === null ? 100 : at(high)];
  const line = el("span.range");
  line.style.insetInlineStart = `${from}%`;
  line.style.inlineSize = `${to - from}%`;
  const point = el("span.point");
  point.style.insetInlineStart = `${at(value)}%`;
  const track = el("span.interval", { "aria-hidden": "true" }, line, point);
  for (const part of [line, point]) part.style.background = `var(${ARMS.colourOf(name)})`;
  if (zero !== null) {
    const mark = el("span.mark");
    mark.style.insetInlineStart = `${at(zero)}%`;
    track.prepend(mark);
  }
  return track;
}

function guardrailsCard(report) {
  const rows = report.guardrails.map((one) => [
    one.metric,
    swatch(one.arm, ARMS),
    number(one.worse_by.value, { sign: true }),
    one.worse_by.low === null ? "none yet" : number(one.worse_by.low, { sign: true }),
    number(one.tolerated),
    pill(one.breached ? "breached" : "kept", one.breached ? "bad" : "good"),
  ]);
  const columns = [
    "Guardrail",
    "Arm",
    `Worse than ${report.control} by`,
    "Surely by",
    "Tolerated",
    "State",
  ];
  const why = report.guardrails.filter((one) => one.why).map((one) => el("li", {}, one.why));
  return card(
    "Guardrails",
    table("Guardrails of each arm", columns, rows, { hidden: true, numeric: [2, 3, 4] }),
    why.length ? el("ul.sentences", {}, why) : null,
  );
}

/** Show the primary differences over time, each with its confidence sequence as a band. */
function showLooks(chart, { looks }) {
  const times = [...new Set(looks.map((look) => look.time))].sort((a, b) => a - b);
  const arms = [...new Set(looks.map((look) => look.arm))];
  const series = arms.map((arm) => {
    const by = new Map(
      looks.filter((look) => look.arm === arm).map((look) => [look.time, look.difference]),
    );
    const column = (part) => times.map((time) => by.get(time)?.[part] ?? null);
    return { name: arm, values: column("value"), low: column("low"), high: column("high") };
  });
  chart.show(times, series);
}
