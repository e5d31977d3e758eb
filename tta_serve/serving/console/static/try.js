// A prompt, answered twice side by side, and what every policy would do with it.

import { ApiError, ask, hasKey, manage, stream } from "/console/api.js";
import { EXPERTS } from "/console/charts.js";
import { card, el, facts, field, fill, pill, say, table } from "/console/dom.js";
import { count, number } from "/console/format.js";
import { describeMix, layerChart, mixTable, parseMix, scoreTable } from "/console/mixes.js";

const CHAT = "/v1/chat/completions";
const AUTO = "auto";
const EXAMPLE = "Table staff(name, salary, dept). Which name in staff have salary above 70?";

/** The view on which a prompt is tried. */
export class TryView {
  constructor() {
    this.prompt = el("textarea", { rows: "4", required: true });
    this.prompt.value = EXAMPLE;
    this.streams = el("input", { type: "checkbox", id: "streams", checked: true });
    this.longest = el("input", { type: "number", min: "1", max: "2048", value: "96" });
    this.sides = [new Side("first", "First answer"), new Side("second", "Second answer")];
    this.explained = el("div", { "aria-live": "polite" });
    this.askButton = el("button.primary", { type: "submit" }, "Ask both");
    this.stopButton = el(
      "button",
      { type: "button", disabled: true, onclick: () => this.#stop() },
      "Stop",
    );
    this.explainButton = el(
      "button",
      { type: "button", onclick: () => this.#explain() },
      "Explain all policies",
    );
    this.element = el(
      "div",
      {},
      this.#form(),
      el(
        "div.two",
        {},
        this.sides.map((side) => side.element),
      ),
      this.explained,
    );
  }

  #form() {
    const submit = (event) => {
      event.preventDefault();
      this.#ask();
    };
    const keydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
    };
    this.prompt.addEventListener("keydown", keydown);
    return el(
      "form.card",
      { onsubmit: submit },
      el("h2", {}, "Prompt"),
      field(
        "prompt",
        "What a user says",
        this.prompt,
        "Ctrl + Enter asks. Answers are greedy (temperature 0).",
      ),
      el(
        "div.row",
        {},
        field("longest", "Tokens at most", this.longest),
        el("label.check", { for: "streams" }, this.streams, "Stream"),
        el("span.spring"),
        this.explainButton,
        this.stopButton,
        this.askButton,
      ),
    );
  }

  /** Read what can be asked for. */
  async show() {
    const reading = {};
    this.reading = reading;
    const managed = hasKey("management");
    this.explainButton.disabled = !managed;
    this.explainButton.title = managed ? "" : "It wants the management key";
    try {
      const [models, policies, experts] = await Promise.all([
        ask("/v1/models"),
        managed ? manage("/admin/policies") : null,
        managed ? manage("/admin/experts") : null,
      ]);
      if (this.reading !== reading) return; // with other keys it is being read again
      if (experts) EXPERTS.add(Object.keys(experts.replicas[0].experts));
      const names = models.data.map((one) => one.id);
      for (const side of this.sides) side.offer(names, policies);
    } catch (error) {
      for (const side of this.sides) side.fail(error);
    }
  }

  hide() {}

  async #ask() {
    this.#stop();
    const run = new AbortController();
    this.run = run;
    const options = {
      prompt: this.prompt.value,
      most: Number(this.longest.value),
      streams: this.streams.checked,
    };
    this.stopButton.disabled = false;
    say("Asking …");
    await Promise.all(this.sides.map((side) => side.ask(options, run.signal)));
    if (this.run !== run) return; // asked again meanwhile
    this.stopButton.disabled = true;
    say(run.signal.aborted ? "Stopped." : "Both have answered.");
  }

  #stop() {
    this.run?.abort();
    this.stopButton.disabled = true;
  }

  async #explain() {
    this.explainButton.disabled = true;
    say("Asking all policies …");
    try {
      const body = { prompt: this.prompt.value };
      const { policies } = await manage("/admin/policies/explain", { method: "POST", body });
      fill(this.explained, explainedCard(policies));
      say("All policies have decided.");
    } catch (error) {
      fill(this.explained, el("p.error", {}, error.message));
    }
    this.explainButton.disabled = false;
  }
}

function explainedCard(policies) {
  const rows = policies.map((one) => [
    one.policy,
    one.abstained ? pill("abstains") : describeMix(one.experts),
    one.gating ? `${one.gating.score}, top ${one.gating.top}, token by token` : one.reason,
    number(one.router_ms),
    count(one.passes),
  ]);
  const columns = ["Policy", "Mix", "Reason", "Router, ms", "Rows of the engine"];
  const details = policies
    .filter((one) => Object.keys(one.scores).length)
    .map((one) =>
      el(
        "details",
        {},
        el("summary", {}, `Scores of ${one.policy}`),
        scoreTable(one.scores, one.floor),
      ),
    );
  return card(
    "What each policy would do",
    table("Decisions of all policies, without an answer", columns, rows, {
      hidden: true,
      numeric: [3, 4],
    }),
    el("p.hint", {}, "The line in a bar is the score that an expert must reach."),
    el("div.columns", {}, details),
  );
}

/** One of the two answers. */
class Side {
  constructor(id, name) {
    this.id = id;
    this.choice = el("select", { onchange: () => this.#toggle() });
    this.mix = el("input", {
      type: "text",
      value: "sql=0.5, math=0.5",
      spellcheck: "false",
      autocomplete: "off",
    });
    this.mixField = field(
      `${id}-mix`,
      "Mix",
      this.mix,
      "Experts and their coefficients, such as sql=0.7, math=0.3",
    );
    this.answer = el("div.answer", { "aria-live": "polite", "aria-busy": "false" });
    this.said = el("div");
    this.element = el(
      "section.card",
      { "aria-labelledby": `${id}-title` },
      el("h2", { id: `${id}-title` }, name),
      field(`${id}-by`, "Answered by", this.choice),
      this.mixField,
      this.answer,
      this.said,
    );
    fill(this.answer, el("p.hint", {}, "No answer yet."));
    this.#toggle();
  }

  /** Offer these models, and these policies if they are known. */
  offer(models, policies) {
    const before = this.choice.value;
    const names = policies ? policies.policies.map((one) => one.name) : [];
    const title = (name) => (name === policies.default ? `${name} (the default)` : name);
    const option = (kind) => (name) =>
      el("option", { value: `${kind}:${name}` }, kind === "policy" ? title(name) : name);
    fill(
      this.choice,
      el(
        "optgroup",
        { label: "The server" },
        el("option", { value: `model:${AUTO}` }, "as the server decides"),
      ),
      names.length ? el("optgroup", { label: "Policies" }, names.map(option("policy"))) : null,
      el(
        "optgroup",
        { label: "Models" },
        models.filter((name) => name !== AUTO).map(option("model")),
      ),
      el("optgroup", { label: "A mix" }, el("option", { value: "mix:" }, "coefficients of my own")),
    );
    const base = models.find((name) => name.endsWith(":base"));
    this.choice.value =
      before || (this.id === "second" && base ? `model:${base}` : `model:${AUTO}`);
    this.#toggle();
  }

  #toggle() {
    this.mixField.hidden = this.choice.value !== "mix:";
  }

  fail(error) {
    const hint =
      error instanceof ApiError && error.wantsKey ? " Give a key for requests under “Keys”." : "";
    fill(this.answer, el("p.error", {}, `${error.message}${hint}`));
  }

  #wish() {
    const [kind, ...name] = this.choice.value.split(":");
    if (kind === "mix") return { model: AUTO, merge: { experts: parseMix(this.mix.value) } };
    if (kind === "policy") return { model: AUTO, merge: { policy: name.join(":") } };
    return { model: name.join(":") };
  }

  async ask({ prompt, most, streams }, signal) {
    this.answer.setAttribute("aria-busy", "true");
    fill(this.answer);
    fill(this.said);
    const began = performance.now();
    try {
      const body = {
        ...this.#wish(),
        messages: [{ role: "user", content: prompt }],
        max_tokens: most,
        temperature: 0,
      };
      const whole = streams ? await this.#stream(body, signal) : await this.#once(body, signal);
      this.#tell(whole, performance.now() - began);
    } catch (error) {
      if (!signal.aborted) this.fail(error);
    } finally {
      this.answer.setAttribute("aria-busy", "false");
    }
  }

  async #once(body, signal) {
    const whole = await ask(CHAT, { method: "POST", body, signal });
    const [choice] = whole.choices;
    this.answer.textContent = choice.message.content;
    return { merge: whole.merge, usage: whole.usage, finish: choice.finish_reason };
  }

  async #stream(body, signal) {
    const options = { stream: true, stream_options: { include_usage: true } };
    const whole = { merge: null, usage: null, finish: null };
    const text = document.createTextNode("");
    this.answer.append(text);
    for await (const event of stream(CHAT, { ...body, ...options }, signal)) {
      const choice = event.choices[0];
      text.appendData(choice?.delta.content ?? "");
      whole.finish = choice?.finish_reason ?? whole.finish;
      whole.merge = event.merge ?? whole.merge;
      whole.usage = event.usage ?? whole.usage;
    }
    return whole;
  }

  #tell({ merge, usage, finish }, tookMs) {
    if (!merge) return;
    const flags = [
      merge.abstained && pill("abstained"),
      merge.kept && pill("kept from an earlier turn"),
      merge.fallback && pill(`answered by ${merge.fallback}`, "warn"),
      merge.policy === "kill" && pill("kill switch", "bad"),
      merge.arm && pill(`arm ${merge.arm}`),
    ].filter(Boolean);
    fill(
      this.said,
      facts([
        ["Decided by", merge.policy],
        ["Router", `${number(merge.router_ms)} ms`],
        ["In all", `${number(tookMs)} ms`],
        [
          "Tokens",
          usage
            ? `${count(usage.prompt_tokens)} read, ${count(usage.completion_tokens)} written`
            : "–",
        ],
        ["Ended by", finish ?? "–"],
        ["Mix", el("code", {}, merge.mix)],
      ]),
      flags.length ? el("p.pills", {}, flags) : null,
      merge.reason && el("p", {}, `Reason: ${merge.reason}`),
      (merge.warnings ?? []).map((warning) => el("p.warning", {}, warning)),
      el("div.pair", {}, mixTable(merge.experts), scoreTable(merge.scores ?? {})),
      merge.gating
        ? el("p", {}, `Shared token by token: ${merge.gating.score}, top ${merge.gating.top}.`)
        : null,
      layerChart(merge.experts)?.element ?? null,
    );
  }
}
