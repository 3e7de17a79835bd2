// How numbers, times and sizes are written. Short, and as wide as the last time: digits are tabular in the style sheet.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NONE = "–";

/** A count: exact up to a hundred thousand, then with k, M, G. */
export function count(value) {
  if (value === null || value === undefined) return NONE;
  if (Math.abs(value) < 100_000) return WHOLE.format(value);
  return short(value);
}

/** Any number in at most four digits. */
export function short(value) {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit * 0.9995) return digits(value / unit) + letter;
  }
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return WHOLE.format(value);
  return value.toFixed(size >= 10 ? 1 : 2).replace(/\.?0+$/, "");
}

/** A rate in things a second. */
export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value > 0 && value < 0.01 ? "<0.01" : short(value);
}

/** A time span, given in seconds. */
export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 0.001) return Math.max(1, Math.round(size * 1e6)) + " µs";
  if (size < 1) return digits(size * 1000 < 10 ? Number((size * 1000).toFixed(1)) : Math.round(size * 1000)) + " ms";
  if (size < 10) return digits(Number(size.toFixed(1))) + " s";
  if (size < 120) return Math.round(size) + " s";
  if (size < 7200) return Math.round(size / 60) + " min";
  if (size < 172_800) return digits(Number((size / 3600).toFixed(1))) + " h";
  return WHOLE.format(size / 86_400) + " d";
}

/** A number of bytes. */
export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1000 && place < units.length - 1) {
    value /= 1024;
    place += 1;
  }
  return (place === 0 || value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 0 : 1)) + " " + units[place];
}

/** A share of one core. */
export const cores = (value) => (value === null || value === undefined ? NONE : Math.round(value * 100) + " %");

let skewMs = 0;

/** Take note of what time it is on the server. */
export function setServerTime(ms) {
  skewMs = ms - Date.now();
}

/** The server's clock, in milliseconds. */
export const serverNow = () => Date.now() + skewMs;

/** How long ago, or in how long, an RFC 3339 instant is. */
export function relative(instant) {
  if (!instant) return NONE;
  const away = (Date.parse(instant) - serverNow()) / 1000;
  if (Number.isNaN(away)) return instant;
  if (Math.abs(away) < 1) return "now";
  return away > 0 ? "in " + seconds(away) : seconds(-away) + " ago";
}

/** An instant as the user's clock has it, with the day where that is another one. */
export function instant(text) {
  if (!text) return NONE;
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return text;
  const sameDay = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(undefined, sameDay ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "medium" });
}

export const clock = (ms) => new Date(ms).toLocaleTimeString(undefined, { hour12: false });

/** "1 job", "2 jobs". */
export const plural = (number, noun) => count(number) + " " + noun + (number === 1 ? "" : "s");
