// One recording over /v1/stream: samples out, results in.

const MOST_WAITING = 1 << 18; // bytes on their way to the server; more are held back

/** Opens a stream and resolves with it once the server is ready; rejects with an Error fit to be shown. */
export function connect(parameters, onMessage) {
  const url = new URL("v1/stream", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  url.search = new URLSearchParams(parameters);
  return new Connection(url, onMessage).ready;
}

class Connection {
  constructor(url, onMessage) {
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.ready = new Promise((resolve, reject) => {
      this.closed = new Promise((resolveClosed, rejectClosed) => {
        let complete = false;
        let failure = null;
        this.socket.onmessage = ({ data }) => {
          const message = JSON.parse(data);
          if (message.type === "error") failure = message.message;
          if (message.type === "end") complete = true;
          onMessage(message);
          if (message.type === "ready") resolve(this);
        };
        this.socket.onclose = ({ code, reason }) => {
          if (complete && this.finished && code === 1000) return resolveClosed();
          const error = new Error(failure ?? this.reason(complete, reason));
          reject(error);
          rejectClosed(error);
        };
        this.socket.onopen = () => (this.opened = true);
      });
      this.closed.catch(() => {}); // whoever waits for it hears of it, and before that `ready` tells
    });
  }

  // A browser says nothing about why a connection failed.
  reason(complete, said) {
    if (complete) return "The server ended the recording. The text so far is kept.";
    if (said) return said;
    if (this.opened) return "The connection was lost. The text so far is kept; start again to go on.";
    return "No connection. Does the server run, and does it ask for an access token (see Settings)?";
  }

  /** Resolves when the network has taken most of it, so that a fast sender waits. */
  async send(samples) {
    this.socket.send(samples);
    while (this.socket.bufferedAmount > MOST_WAITING && this.socket.readyState === WebSocket.OPEN) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Tells the phrases (strings) to expect; before the first sound. */
  expect(phrases) {
    this.socket.send(JSON.stringify({ type: "phrases", phrases }));
  }

  /** Ends the audio; resolves when the last results are there. */
  finish() {
    this.finished = true;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "end" }));
    return this.closed;
  }

  close() {
    this.socket.close();
  }
}
