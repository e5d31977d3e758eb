// The dialog that asks for keys, once for as long as the page is open.

import { hasKey, manage, setKeys } from "/console/api.js";
import { el, field, fill, say } from "/console/dom.js";

const HINTS = {
  management: "What the server was started with as TTA_ADMIN_KEY, or a key with the scope admin.",
  requests: "Only where the server asks for keys: one with the scope infer.",
};

function keyInput() {
  return el("input", { type: "password", autocomplete: "off", spellcheck: "false" });
}

/** The dialog. */
export class KeysDialog {
  constructor(button) {
    this.button = button;
    this.management = keyInput();
    this.requests = keyInput();
    this.wrong = el("p.error", { role: "alert" });
    const submit = (event) => {
      event.preventDefault();
      this.#take();
    };
    const forget = () => {
      setKeys("", "");
      this.#close("The keys are forgotten.");
    };
    this.dialog = el(
      "dialog",
      { "aria-labelledby": "keys-title" },
      el(
        "form",
        { onsubmit: submit },
        el("h2", { id: "keys-title" }, "Keys"),
        el("p", {}, "They stay in the memory of this page: a reload forgets them."),
        field("management-key", "Management key", this.management, HINTS.management),
        field("requests-key", "Key for requests", this.requests, HINTS.requests),
        this.wrong,
        el(
          "div.row",
          {},
          el("button", { type: "button", onclick: forget }, "Forget both"),
          el("span.spring"),
          el("button", { type: "button", onclick: () => this.dialog.close() }, "Cancel"),
          el("button.primary", { type: "submit" }, "Use"),
        ),
      ),
    );
    this.dialog.addEventListener("close", () => this.#clear());
    document.body.append(this.dialog);
    button.addEventListener("click", () => this.open());
    document.addEventListener("keys", () => this.#tell());
    document.addEventListener("want-keys", () => this.open());
    this.#tell();
  }

  open() {
    this.dialog.showModal();
    this.management.focus();
  }

  async #take() {
    const before = hasKey("management");
    const management = this.management.value.trim();
    setKeys(management, this.requests.value.trim());
    try {
      if (management) await manage("/admin/policies");
    } catch (error) {
      if (error.wantsKey) {
        setKeys("", "");
        this.wrong.textContent = error.message;
        return;
      }
    }
    this.#close(before ? "The keys are changed." : "The keys are held until the page is left.");
  }

  #close(words) {
    this.dialog.close();
    say(words);
  }

  /** Nothing of a key stays in the page's fields. */
  #clear() {
    this.management.value = "";
    this.requests.value = "";
    this.wrong.textContent = "";
  }

  #tell() {
    const held = ["management", "requests"].filter(hasKey);
    this.button.textContent = held.length ? `Keys: ${held.join(", ")}` : "Keys: none";
  }
}

/**
 * Say in an element that it wants a key, if that is not held.
 * @returns {boolean} Whether it is not held.
 */
export function keyNotice(element, kind) {
  if (hasKey(kind)) return false;
  const open = () => document.dispatchEvent(new CustomEvent("want-keys"));
  fill(
    element,
    el(
      "section.card.notice",
      {},
      el("h2", {}, `This wants the ${kind} key`),
      el("p", {}, HINTS[kind]),
      el("button.primary", { type: "button", onclick: open }, "Give the key"),
    ),
  );
  return true;
}
