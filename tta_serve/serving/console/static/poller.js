// A question that is asked again and again while somebody looks.

import { el } from "/console/dom.js";

const LONGEST_MS = 60_000;

/**
 * Runs a task now and then: never twice at once, not while the page is hidden, and less often while
 * it fails.
 */
export class Poller {
  /**
   * @param {function(AbortSignal): Promise<void>} task What is run.
   * @param {number} everyMs The pause after it.
   */
  constructor(task, everyMs) {
    this.task = task;
    this.everyMs = everyMs;
    this.run = null;
    this.paused = false;
  }

  /** Begin, or begin anew, at once. While it is paused the task is run once. */
  start() {
    this.stop();
    this.run = new AbortController();
    this.#loop(this.run.signal);
  }

  /** End; what is under way is given up. */
  stop() {
    this.run?.abort();
    this.run = null;
  }

  async #loop(signal) {
    let pause = this.everyMs;
    while (!signal.aborted) {
      if (!document.hidden) {
        try {
          await this.task(signal);
          pause = this.everyMs;
        } catch (error) {
          if (signal.aborted) return;
          pause = Math.min(2 * pause, LONGEST_MS);
        }
      }
      if (this.paused) return;
      await sleep(pause, signal);
    }
  }
}

/** Return a button that holds a poller, so that what it shows stays as it is, and lets it go on. */
export function pauseButton(poller) {
  const press = () => {
    poller.paused = !poller.paused;
    button.setAttribute("aria-pressed", String(poller.paused));
    if (poller.paused) poller.stop();
    else poller.start();
  };
  const button = el("button", { type: "button", "aria-pressed": "false", onclick: press }, "Pause");
  return button;
}

function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
