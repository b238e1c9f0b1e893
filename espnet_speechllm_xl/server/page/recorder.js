// AudioWorklet: gathers the microphone's samples into blocks of `size` and posts them as Int16Array.  To any message it
// answers with the samples of the block that is not full yet, which are the last.

class Recorder extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.block = new Int16Array(processorOptions.size);
    this.filled = 0;
    this.port.onmessage = () => this.port.postMessage(this.block.slice(0, this.filled));
  }

  process([channels]) {
    const length = channels.length ? channels[0].length : 0; // no channels: the source is not running
    for (let index = 0; index < length; index++) {
      let sum = 0;
      for (const channel of channels) sum += channel[index];
      const sample = Math.round((sum / channels.length) * 32768);
      this.block[this.filled++] = Math.max(-32768, Math.min(32767, sample));
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block); // a copy
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
