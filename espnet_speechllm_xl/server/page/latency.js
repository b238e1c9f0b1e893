// How long the server took, last and over the last results.

const KEPT = 500;

export class Latency {
  constructor(elements) {
    this.elements = elements; // last, p50, p90, algorithmic
    this.begin();
  }

  begin() {
    this.values = []; // seconds, oldest first
    for (const element of Object.values(this.elements)) element.textContent = "–";
  }

  /** What the chunks alone cost, in the worst case: a word that begins one waits for its end and the look-ahead. */
  algorithmic(chunk, lookahead) {
    this.elements.algorithmic.textContent =
      chunk === null ? "all of the sound" : `${chunk.toFixed(2)} + ${lookahead.toFixed(2)} s`;
  }

  add(seconds) {
    this.values.push(seconds);
    if (this.values.length > KEPT) this.values.shift();
    const sorted = [...this.values].sort((a, b) => a - b);
    const percentile = (share) => sorted[Math.ceil(share * sorted.length) - 1];
    this.elements.last.textContent = format(seconds);
    this.elements.p50.textContent = format(percentile(0.5));
    this.elements.p90.textContent = format(percentile(0.9));
  }
}

function format(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
}
