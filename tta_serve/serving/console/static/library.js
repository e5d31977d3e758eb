// The experts that are served: where they are, how much room they take, and how alike they are.

import { manage } from "/console/api.js";
import { bar, EXPERTS, swatch } from "/console/charts.js";
import { card, el, facts, fill, pill, say, table } from "/console/dom.js";
import { clock, count, mebibytes, number } from "/console/format.js";
import { keyNotice } from "/console/keys.js";
import { Poller } from "/console/poller.js";

const EVERY_MS = 10_000;
const ROOM = [
  ["experts", "Experts", count],
  ["ranks", "Ranks", count],
  ["bytes", "Memory", mebibytes],
];

/** The view of the library. */
export class LibraryView {
  constructor() {
    this.serving = el("div");
    this.kinship = el("div");
    this.known = "";
    this.element = el("div", {}, this.serving, this.kinship);
    this.poller = new Poller((signal) => this.#read(signal), EVERY_MS);
  }

  show() {
    this.known = "";
    if (keyNotice(this.serving, "management")) fill(this.kinship);
    else this.poller.start();
  }

  hide() {
    this.poller.stop();
  }

  async #read(signal) {
    try {
      const { replicas } = await manage("/admin/experts", { signal });
      const state = JSON.stringify(replicas);
      if (state === this.known) return;
      EXPERTS.add(Object.keys(replicas[0].experts));
      fill(this.serving, describeServing(replicas));
      const digests = JSON.stringify(replicas.map((replica) => replica.experts));
      if (digests !== this.digests || !this.kinship.firstChild) {
        fill(this.kinship, kinshipCard(await manage("/admin/experts/kinship", { signal })));
        this.digests = digests;
      }
      this.known = state;
      say(`The library as of ${clock()}.`);
    } catch (error) {
      if (!signal.aborted) fill(this.serving, el("p.error", {}, error.message));
      throw error;
    }
  }
}

function describeServing(replicas) {
  const [first] = replicas;
  const found = [
    card(
      "Room",
      facts([
        ["Replicas", count(replicas.length)],
        ["Generation", count(first.generation)],
        ["Entries", first.entries.join(", ") || "none"],
      ]),
      el(
        "div.meters",
        {},
        replicas.map((replica, at) => roomTable(replica, at, replicas.length)),
      ),
    ),
    card("Experts", expertTable(replicas)),
  ];
  const unusable = Object.entries(first.unusable);
  if (unusable.length) {
    const rows = unusable.map(([name, reason]) => [name, reason]);
    found.push(
      card(
        "Policies that cannot work now",
        table("Policies and why", ["Policy", "Why"], rows, { hidden: true }),
      ),
    );
  }
  if (first.stale.length) {
    found.push(
      card("Out of date", el("p", {}, `Made for other experts: ${first.stale.join(", ")}.`)),
    );
  }
  return found;
}

function roomTable(replica, at, replicas) {
  const rows = ROOM.map(([name, title, write]) => {
    const [used, most] = [replica.used[name], replica.capacity[name]];
    const bound = most === null || most === undefined ? "no bound" : write(most);
    return [title, most ? bar(used / most) : "", `${write(used)} of ${bound}`];
  });
  const title = replicas > 1 ? `Room taken in replica ${at}` : "Room taken";
  return table(title, ["What", "Taken", "In numbers"], rows, {
    hidden: replicas === 1,
    numeric: [2],
  });
}

function expertTable(replicas) {
  const names = [...new Set(replicas.flatMap((replica) => Object.keys(replica.experts)))].sort();
  const rows = names.map((name) => {
    const digests = replicas.map((replica) => replica.experts[name]);
    const there = digests.filter(Boolean);
    const alike = new Set(there).size === 1;
    const all = there.length === replicas.length;
    const word = `${there.length} of ${replicas.length}`;
    return [
      swatch(name),
      el("code.digest", {}, [...new Set(there)].join(" ")),
      pill(alike ? word : `${word}, other weights`, alike && all ? "good" : "bad"),
    ];
  });
  return table(
    "Experts that are served",
    ["Expert", "Digest of its weights", "In replicas"],
    rows,
    { hidden: true },
  );
}

function kinshipCard({ experts, cosines, left_out: leftOut }) {
  const apart = cosines.flatMap((row, i) => row.filter((_, j) => i !== j).map(Math.abs));
  const most = Math.max(...apart, 0);
  const rows = cosines.map((row, i) => [
    swatch(experts[i]),
    ...row.map((value, j) => (i === j ? el("span.own", {}, "1") : shade(value, most))),
  ]);
  const why = Object.entries(leftOut).map(([name, reason]) => el("li", {}, `${name}: ${reason}`));
  return card(
    "Kinship",
    el(
      "p",
      {},
      "The cosine of the changes that two experts make to the base, all weights together: 1 for the same" +
        " direction, 0 for none in common, below 0 where they undo each other. " +
        (apart.length ? `The strongest colour is ${number(most)}.` : ""),
    ),
    experts.length
      ? table("Cosines of all pairs of experts", ["Expert", ...experts], rows, {
          hidden: true,
          numeric: experts.map((_, at) => at + 1),
        })
      : el("p", {}, "There is no low-rank expert to compare."),
    why.length ? el("div", {}, el("p", {}, "Left out:"), el("ul", {}, why)) : null,
  );
}

function shade(value, most) {
  const cell = el("span.shade", {}, number(Number(value.toFixed(3))));
  const share = most ? Math.round((40 * Math.abs(value)) / most) : 0;
  const colour = value < 0 ? "--bad" : "--accent";
  cell.style.background = `color-mix(in srgb, var(${colour}) ${share}%, transparent)`;
  return cell;
}
