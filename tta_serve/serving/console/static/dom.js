// Elements from plain values. All that a server says becomes text nodes: nothing here parses markup.

/**
 * Return a new element.
 * @param {string} kind A tag and its classes, such as `p.hint`.
 * @param {Object<string, *>} [props] `on…` are listeners, `true` and `false` are attributes that are
 *     there or not, all else is an attribute's text.
 * @param {...*} children Texts, elements, lists of these; null and "" are left out.
 */
export function el(kind, props = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null) element.setAttribute(name, value);
  }
  return fill(element, ...children);
}

/** Put children in place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== ""),
  );
  return element;
}

/** Do the same, and keep what is open in it, and which control has the focus. */
export function refill(element, ...children) {
  const controls = () => [
    ...element.querySelectorAll("summary, button, select, input, [tabindex]"),
  ];
  const focused = controls().indexOf(document.activeElement);
  const titleOf = (details) => details.querySelector("summary").textContent;
  const open = new Set([...element.querySelectorAll("details[open]")].map(titleOf));
  fill(element, ...children);
  for (const details of element.querySelectorAll("details"))
    details.open = open.has(titleOf(details));
  if (focused >= 0) controls()[focused]?.focus({ preventScroll: true });
}

/**
 * Return a table that scrolls by itself where it is wider than the page.
 * @param {string} caption What it shows.
 * @param {string[]} columns Titles; the first column holds the rows' names.
 * @param {Array<Array<*>>} rows Cells: texts or elements.
 * @param {{hidden?: boolean, numeric?: number[]}} [options] Whether the caption is for screen readers
 *     alone, and which columns hold numbers.
 */
export function table(caption, columns, rows, { hidden = false, numeric = [] } = {}) {
  const kind = (at) => (numeric.includes(at) ? ".number" : "");
  const head = columns.map((title, at) => el(`th${kind(at)}`, { scope: "col" }, title));
  const body = rows.map((row) =>
    el(
      "tr",
      {},
      row.map((cell, at) => cellOf(cell, at, kind(at))),
    ),
  );
  return el(
    "div.scroll",
    { tabindex: "0", role: "group", "aria-label": caption },
    el(
      "table",
      {},
      el(hidden ? "caption.unseen" : "caption", {}, caption),
      el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, body),
    ),
  );
}

function cellOf(cell, at, kind) {
  return at === 0 ? el(`th${kind}`, { scope: "row" }, cell) : el(`td${kind}`, {}, cell);
}

/** Return a labelled control: a label above it, and a hint below if there is one. */
export function field(id, label, control, hint = "") {
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return el(
    "div.field",
    {},
    el("label", { for: id }, label),
    control,
    hint && el("p.hint", { id: `${id}-hint` }, hint),
  );
}

/** Return a box with a heading. */
export function card(title, ...children) {
  return el("section.card", {}, el("h2", {}, title), ...children);
}

/** Return a short word with a colour: `good`, `bad`, `warn` or `plain`. */
export function pill(word, kind = "plain") {
  return el(`span.pill.${kind}`, {}, word);
}

/** Return a list of names and values. */
export function facts(pairs) {
  return el(
    "dl.facts",
    {},
    pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** Say something at the head of the page, and to screen readers. */
export function say(text) {
  document.getElementById("status").textContent = text;
}
