// Where audio comes from.  A source has a `title`, a `rate`, blocks() that yields Int16Array, mono, and stop().

const FILE_RATE = 16000;
const BLOCK_SECONDS = 0.1;
const MOST_QUEUED_SECONDS = 30;
const LAST_BLOCK_MS = 300; // the recorder answers in a few

const MICROPHONE_ERRORS = {
  NotAllowedError: "The microphone is not allowed. Allow it for this page in the browser's address bar and start again.",
  NotFoundError: "No microphone was found. Plug one in, or drop a file.",
  NotReadableError: "The microphone cannot be read: another program may be using it.",
};

export class Microphone {
  /** Asks for the microphone; throws an Error fit to be shown. */
  static async open() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give the microphone only to pages from https:// or localhost. A file works here too.");
    }
    // The recogniser was trained on plain recordings; what is meant for calls only changes the sound.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(MICROPHONE_ERRORS[error.name] ?? `The microphone does not start (${error.message}).`);
    }
    try {
      return await Microphone.listen(stream);
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      throw error;
    }
  }

  static async listen(stream) {
    const context = new AudioContext();
    await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    return new Microphone(stream, context);
  }

  constructor(stream, context) {
    this.title = "Microphone";
    this.stream = stream;
    this.context = context;
    this.rate = context.sampleRate;
    this.queue = [];
    this.stopped = false;
    this.wake = () => {};
    const size = Math.round(BLOCK_SECONDS * this.rate);
    this.recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0, processorOptions: { size } });
    this.recorder.port.onmessage = ({ data }) => {
      if (this.stopped) return;
      if (data.length) this.queue.push(data);
      if (data.length < size) this.end(); // the last
      this.wake();
    };
    context.createMediaStreamSource(stream).connect(this.recorder);
    const [track] = stream.getAudioTracks();
    track.onended = () => this.stop(); // unplugged, or permission withdrawn
    context.resume();
  }

  async *blocks() {
    while (!this.stopped || this.queue.length) {
      if (this.queue.length * BLOCK_SECONDS > MOST_QUEUED_SECONDS) {
        throw new Error("The connection is too slow for live audio. The text so far is kept.");
      }
      if (this.queue.length) yield this.queue.shift();
      else await new Promise((resolve) => (this.wake = resolve));
    }
  }

  /** Asks for what was heard last; blocks() ends behind it. */
  stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    this.recorder.port.postMessage("last");
    setTimeout(() => this.end(), LAST_BLOCK_MS); // a context that does not run answers nothing
  }

  end() {
    this.stopped = true;
    if (this.context.state !== "closed") this.context.close();
    this.wake();
  }
}

export class SoundFile {
  /** Decodes the file; throws an Error fit to be shown. */
  static async open(file, { fast, play }) {
    const context = new OfflineAudioContext(1, 1, FILE_RATE); // decoding resamples to its rate
    let sound;
    try {
      sound = await context.decodeAudioData(await file.arrayBuffer());
    } catch {
      throw new Error(`${file.name} is no sound file that this browser can read.`);
    }
    return new SoundFile(file.name, sound, fast, play && !fast);
  }

  constructor(title, sound, fast, play) {
    Object.assign(this, { title, sound, fast, play, rate: sound.sampleRate, stopped: false });
  }

  async *blocks() {
    const size = Math.round(BLOCK_SECONDS * this.rate);
    const channels = Array.from({ length: this.sound.numberOfChannels }, (_, index) => this.sound.getChannelData(index));
    if (this.play) this.startPlaying();
    const begin = performance.now();
    for (let start = 0; start < this.sound.length && !this.stopped; start += size) {
      const end = Math.min(start + size, this.sound.length);
      // A block is sent when a microphone would have heard it.
      const early = (end / this.rate) * 1000 - (performance.now() - begin);
      if (!this.fast && early > 0) await new Promise((resolve) => setTimeout(resolve, early));
      yield toInt16(channels, start, end);
    }
  }

  startPlaying() {
    this.player = new AudioContext();
    const node = new AudioBufferSourceNode(this.player, { buffer: this.sound });
    node.connect(this.player.destination);
    node.onended = () => this.stopPlaying();
    node.start();
  }

  stopPlaying() {
    if (this.player && this.player.state !== "closed") this.player.close();
  }

  stop() {
    this.stopped = true;
    this.stopPlaying();
  }
}

/** Samples start to end of all channels, averaged. */
function toInt16(channels, start, end) {
  const samples = new Int16Array(end - start);
  for (let index = start; index < end; index++) {
    let sum = 0;
    for (const channel of channels) sum += channel[index];
    samples[index - start] = Math.max(-32768, Math.min(32767, Math.round((sum / channels.length) * 32768)));
  }
  return samples;
}
