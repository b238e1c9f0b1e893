// The last seconds of the sound: what of it is recognised, and where its chunks begin.

const SECONDS = 20; // in sight, and kept
const BINS = 50; // a second

export class Waveform {
  constructor(canvas) {
    this.canvas = canvas;
    this.begin(16000);
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** A recording at `rate` begins. */
  begin(rate) {
    this.rate = rate;
    this.peaks = new Float32Array(SECONDS * BINS); // a ring: bin n is at n % length
    this.samples = this.bins = this.peak = 0;
    this.decoded = 0; // seconds
    this.chunk = null; // seconds; null: unknown, or all sound is one chunk
    this.draw();
  }

  add(samples) {
    for (const sample of samples) {
      this.peak = Math.max(this.peak, Math.abs(sample) / 32768);
      this.samples += 1;
      if (this.samples * BINS >= (this.bins + 1) * this.rate) {
        this.peaks[this.bins % this.peaks.length] = this.peak;
        this.bins += 1;
        this.peak = 0;
      }
    }
    this.draw();
  }

  decodedUpTo(seconds) {
    this.decoded = seconds;
    this.draw();
  }

  /** Draws when the browser paints next, however often it is called until then. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    const left = Math.max(0, this.bins / BINS - SECONDS);
    const x = (seconds) => ((seconds - left) * width) / SECONDS;
    const line = (seconds, name, thickness, bottom) => {
      context.fillStyle = colour(name);
      context.fillRect(Math.round(x(seconds)), 0, thickness, bottom);
    };

    const floor = height - 14; // below it are the seconds
    const middle = Math.round(floor / 2);
    if (this.chunk) {
      for (let n = Math.ceil(left / this.chunk); n * this.chunk < left + SECONDS; n++) {
        line(n * this.chunk, "line", 1, floor);
      }
    }
    for (let column = 0; column < width; column++) {
      const [start, end] = [column, column + 1].map((at) => Math.floor((left + (at * SECONDS) / width) * BINS));
      if (start >= this.bins) break;
      let peak = 0;
      for (let bin = start; bin <= Math.max(start, end - 1) && bin < this.bins; bin++) {
        peak = Math.max(peak, this.peaks[bin % this.peaks.length]);
      }
      const half = Math.max(1, Math.round((Math.sqrt(peak) * floor) / 2)); // root: quiet speech shows
      context.fillStyle = colour(start / BINS < this.decoded ? "accent" : "dim");
      context.fillRect(column, middle - half, 1, 2 * half);
    }
    if (this.bins) line(Math.min(this.decoded, this.bins / BINS), "text", 2, floor);

    context.fillStyle = colour("dim");
    context.font = "11px system-ui, sans-serif";
    for (let second = Math.ceil(left / 5) * 5; second < left + SECONDS - 1; second += 5) {
      context.fillText(`${second} s`, x(second) + 1, height - 2);
    }
  }
}
