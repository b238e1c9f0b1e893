// How long the server took, last and over the last results.  Sound sent as fast as possible waits for what was sent
// before it: that queue is of the sender's making and does not count.

const KEPT = 500;

export class Latency {
  constructor(elements) {
    this.elements = elements; // last, p50, p90, algorithmic, what
    this.begin(false);
  }

  /** A recording begins, `fast` or as it is heard. */
  begin(fast) {
    this.fast = fast;
    this.values = []; // seconds, oldest first
    const { what, ...values } = this.elements;
    for (const element of Object.values(values)) element.textContent = "–";
    what.textContent = fast ? "Without queue, last" : "Latency, last";
  }

  /** What the chunks alone cost, in the worst case: a word that begins one waits for its end and the look-ahead. */
  algorithmic(chunk, lookahead) {
    this.elements.algorithmic.textContent =
      chunk === null ? "all of the sound" : `${chunk.toFixed(2)} + ${lookahead.toFixed(2)} s`;
  }

  /** Of a result. */
  add({ latency, queued }) {
    const seconds = this.fast ? latency - queued : latency;
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
