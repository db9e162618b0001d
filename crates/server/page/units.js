// Numbers as people read them.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (number) => whole.format(Math.round(number));

/// 1.1 billion, 135 million, 5,120.
export function amount(number) {
  if (number >= 1e9) return `${short.format(number / 1e9)} billion`;
  if (number >= 1e6) return `${short.format(number / 1e6)} million`;
  return count(number);
}

export function bytes(number) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const power = number < 1024 ? 0 : Math.min(Math.floor(Math.log2(number) / 10), units.length - 1);
  return `${short.format(number / 1024 ** power)} ${units[power]}`;
}

export function milliseconds(number) {
  return number < 1000 ? `${Math.max(1, Math.round(number))} ms` : `${short.format(number / 1000)} s`;
}

export const rate = (number) => (number >= 100 ? count(number) : short.format(number));

export const percent = (share) => `${short.format(Math.round(share * 1000) / 10)} %`;
