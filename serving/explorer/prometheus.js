// The format of Prometheus, and times from its histograms.

/** The samples of Prometheus' text: [{name, labels, value}]. */
export function read(text) {
  const lines = [...text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)];
  return lines.map(([, name, labels = "", value]) => ({
    name,
    labels: Object.fromEntries([...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, said]) => [key, said.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter))])),
    value: value === "+Inf" ? Infinity : Number(value),
  }));
}

/** The time in seconds under which a share of requests is, by [bound, requests under it]; linear within a bucket. */
export function quantile(share, buckets) {
  const wanted = share * (buckets.at(-1)?.[1] ?? 0), at = buckets.findIndex(([, under]) => under >= wanted);
  if (!wanted) return null;
  const [bound, under] = buckets[at], [low, before] = buckets[at - 1] ?? [0, 0];
  return bound === Infinity ? Infinity : low + (bound - low) * (wanted - before) / (under - before);
}

/** [bound, requests under it] of the samples of histograms, added up. */
export function buckets(samples) {
  const under = new Map();
  for (const { labels, value } of samples) under.set(labels.le, (under.get(labels.le) ?? 0) + value);
  return [...under].map(([le, value]) => [le === "+Inf" ? Infinity : Number(le), value]).sort(([one], [next]) => one - next);
}

/** A time in words; beyond the last bound only that it is. */
export function time(seconds, buckets) {
  if (seconds === null) return "–";
  if (seconds === Infinity) return `> ${buckets.at(-2)[0]} s`;
  return seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;
}
