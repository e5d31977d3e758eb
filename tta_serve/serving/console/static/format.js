// Numbers and times as they stand in texts and tables.

const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

const MOMENT = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});

/** Return at most three significant digits, "–" for nothing. */
export function number(value, { sign = false } = {}) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const digits = Math.abs(value) >= 1000 ? COUNT.format(value) : String(+value.toPrecision(3));
  return sign && value > 0 ? `+${digits}` : digits.replace("-", "−");
}

/** Return a whole number with its thousands apart. */
export function count(value) {
  return COUNT.format(value);
}

/** Return a share as percents. */
export function percent(share) {
  return `${number(100 * share)} %`;
}

/** Return a number of bytes in MiB. */
export function mebibytes(bytes) {
  return `${number(bytes / 2 ** 20)} MiB`;
}

/** Return a p-value with four digits. */
export function pValue(p) {
  if (p === null || p === undefined) return "–";
  return p >= 0.0001 ? p.toFixed(4) : "<0.0001";
}

/** Return the bounds of an interval, which may have none on a side. */
export function interval({ low, high }) {
  if (low === null && high === null) return "none yet";
  const lower = low === null ? "−∞" : number(low);
  return `${lower} to ${high === null ? "∞" : number(high)}`;
}

/** Return a day and the time of it. */
export function moment(date) {
  return MOMENT.format(date);
}

/** Return the time of day. */
export function clock(date = new Date()) {
  return TIME.format(date);
}
