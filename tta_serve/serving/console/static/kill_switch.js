// The switch that answers everybody with the base or with an entry, always after a confirmation.

import { manage } from "/console/api.js";
import { el, field, fill, say } from "/console/dom.js";

const PATH = "/admin/kill";

/** The card with the switch. It tells the page by the event `kill` what it is set to. */
export class KillSwitch {
  constructor() {
    this.state = el("p");
    this.target = el("select");
    this.wrong = el("p.error", { role: "alert" });
    this.on = el(
      "button.danger",
      { type: "button", onclick: () => this.#confirmOn() },
      "Answer everybody with it …",
    );
    this.off = el(
      "button.primary",
      { type: "button", onclick: () => this.#confirmOff() },
      "Answer as usual …",
    );
    this.chooser = el("div.row", {}, field("kill-to", "Answer with", this.target), this.on);
    this.dialog = new Confirmation();
    this.element = el(
      "section.card.switch",
      { "aria-labelledby": "kill-title" },
      el("h2", { id: "kill-title" }, "Kill switch"),
      this.state,
      this.chooser,
      this.off,
      this.wrong,
    );
  }

  /**
   * Show what it is set to.
   * @param {{to: string}|null} kill Null while it is off.
   * @param {string[]} entries What may answer beside the base.
   */
  show(kill, entries) {
    const now = ["base", ...entries];
    if (now.join() !== this.offered) {
      this.offered = now.join();
      fill(
        this.target,
        now.map((name) => el("option", {}, name)),
      );
    }
    this.state.textContent = kill
      ? `On: every request is answered by ${kill.to}, pinned ones too.`
      : "Off: requests are answered as they ask.";
    this.chooser.hidden = kill !== null;
    this.off.hidden = kill === null;
    document.dispatchEvent(new CustomEvent("kill", { detail: kill }));
  }

  #confirmOn() {
    const to = this.target.value;
    this.dialog.ask(
      `Answer every request with ${to}?`,
      "It holds for all clients and on all replicas within a second, and outlives restarts." +
        " Experiments get no traffic until it is off.",
      `Answer everybody with ${to}`,
      () => this.#set({ method: "PUT", body: { to } }),
    );
  }

  #confirmOff() {
    this.dialog.ask(
      "Answer as usual again?",
      "Policies and experiments decide again, on all replicas within a second.",
      "Answer as usual",
      () => this.#set({ method: "DELETE" }),
    );
  }

  async #set(options) {
    this.wrong.textContent = "";
    try {
      const { kill } = await manage(PATH, options);
      this.show(kill, this.offered.split(",").slice(1));
      say(this.state.textContent);
      (kill ? this.off : this.on).focus();
    } catch (error) {
      this.wrong.textContent = error.message;
    }
  }
}

/** A dialog that does something only if it is told to. */
class Confirmation {
  constructor() {
    this.title = el("h2", { id: "confirm-title" });
    this.words = el("p", { id: "confirm-words" });
    this.yes = el("button.danger", { type: "button" });
    this.no = el(
      "button",
      { type: "button", autofocus: true, onclick: () => this.dialog.close() },
      "Cancel",
    );
    this.dialog = el(
      "dialog",
      {
        role: "alertdialog",
        "aria-labelledby": "confirm-title",
        "aria-describedby": "confirm-words",
      },
      this.title,
      this.words,
      el("div.row", {}, el("span.spring"), this.no, this.yes),
    );
    this.yes.addEventListener("click", () => {
      this.dialog.close();
      this.action();
    });
    document.body.append(this.dialog);
  }

  ask(title, words, yes, action) {
    this.title.textContent = title;
    this.words.textContent = words;
    this.yes.textContent = yes;
    this.action = action;
    this.dialog.showModal();
  }
}
