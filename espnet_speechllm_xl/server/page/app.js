// Ties the page's controls to a source of sound, a connection and the views.

import { Captions } from "./captions.js";
import { connect } from "./connection.js";
import { Latency } from "./latency.js";
import { Microphone, SoundFile } from "./sources.js";
import { Waveform } from "./waveform.js";

const $ = (id) => document.getElementById(id);
const captions = new Captions($("captions"), $("tip"));
const waveform = new Waveform($("waveform"));
const latency = new Latency(Object.fromEntries(["last", "p50", "p90", "algorithmic", "what"].map((id) => [id, $(id)])));
const PHONE = matchMedia("(max-width: 30rem)"); // as in style.css
let current = null; // the Recording under way

/** One stream from its first to its last word. */
class Recording {
  source = null;
  connection = null;
  stopped = false; // the user ended the sound
  aborted = false; // and did not wait for the last words
  sent = false; // all sound; what comes now are the last results
  heard = false; // any word
  remarks = []; // of the server: on the settings, then on the sound

  /** `open` gives the source; returns what to tell the user, or throws an Error fit to be shown. */
  async run(open) {
    say("Starting …");
    this.source = await open();
    if (this.stopped) this.source.stop();
    captions.begin(this.source.title);
    waveform.begin(this.source.rate);
    latency.begin(Boolean(this.source.fast));
    this.connection = await connect(parameters(this.source.rate), (message) => {
      this.heard ||= message.type === "result";
      const kind = { ready: "The settings", end: "The sound" }[message.type];
      if (kind) this.remarks.push(...(message.remarks ?? []).map((remark) => `${kind}: ${remark}.`));
      receive(message);
    });
    const phrases = $("settings").elements.phrases.value.split("\n").filter((line) => line.trim());
    if (phrases.length) this.connection.expect(phrases);
    this.connection.closed.catch(() => {}).finally(() => this.source.stop());
    say(this.source instanceof Microphone ? "Listening …" : `Reading ${this.source.title} …`);
    for await (const samples of this.source.blocks()) {
      waveform.add(samples);
      await this.connection.send(samples);
    }
    this.sent = true;
    say("Waiting for the last words …");
    await this.connection.finish();
    const done = this.heard ? "Done." : "Done: no words were recognised.";
    return [done, ...this.remarks].join(" ");
  }

  /** Ends the sound; the second time it does not wait for the last words either. */
  stop() {
    if (this.stopped || this.sent) {
      this.aborted = true;
      this.connection?.close();
    }
    this.stopped = true;
    this.source?.stop();
  }

  release() {
    this.source?.stop();
    this.connection?.close();
  }
}

async function record(open) {
  if (current) return;
  current = new Recording();
  showError("");
  showRunning(true);
  if (PHONE.matches) $("folded").open = false; // the captions need the room
  const awake = await navigator.wakeLock?.request("screen").catch(() => null); // a phone that sleeps stops listening
  try {
    say(await current.run(open));
  } catch (error) {
    say("Stopped.");
    if (!current.aborted) showError(error.message);
  } finally {
    current.release();
    captions.finish();
    awake?.release();
    current = null;
    showRunning(false);
  }
}

function receive(message) {
  if (message.type === "ready") {
    showModel(message.model, message.settings);
    waveform.chunk = message.chunk_seconds;
    latency.algorithmic(message.chunk_seconds, message.lookahead_seconds);
  } else if (message.type === "result") {
    captions.show(message);
    waveform.decodedUpTo(message.time);
    latency.add(message);
  } else if (message.type === "progress" || message.type === "end") {
    waveform.decodedUpTo(message.time);
  }
}

/** Which model listens, and by which search. */
function showModel(name, { search, beam_size: beam, ctc_weight: ctc }) {
  $("model").textContent = name;
  $("search").textContent = `· ${search}${beam > 1 ? `, beam ${beam}` : ""}${ctc ? `, CTC ${ctc}` : ""}`;
}

/** Shows what a stream gets where a setting is left empty; a server that wants a token tells it with the token only. */
async function showDefaults() {
  const token = $("settings").elements.token.value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("v1/models", { headers }).catch(() => null);
  if (!answer?.ok) return;
  const [{ id, settings, takes_prompts: takesPrompts }] = (await answer.json()).data;
  if (!current) showModel(id, settings);
  const { prompt } = $("settings").elements;
  prompt.disabled = !takesPrompts;
  prompt.placeholder = takesPrompts ? "none" : "this model takes none";
  $("default-search").textContent = `the server's: ${settings.search}`;
  for (const input of $("settings").querySelectorAll("input[type=number]")) {
    input.placeholder = `the server's: ${settings[input.name] ?? "no limit"}`;
  }
}

/** Of the stream: the rate and what the settings say; empty ones are left to the server.  Phrases may be many. */
function parameters(rate) {
  const settings = [...new FormData($("settings"))].filter(([name, value]) => value !== "" && name !== "phrases");
  return { rate, format: "s16", ...Object.fromEntries(settings) };
}

function say(text) {
  $("status").textContent = text;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function showRunning(running) {
  $("microphone").textContent = running ? "Stop" : "Start microphone";
  $("microphone").classList.toggle("running", running);
  for (const id of ["choose", "fast", "play", "clear"]) $(id).disabled = running;
}

function recordFile(file) {
  if (file) record(() => SoundFile.open(file, { fast: $("fast").checked, play: $("play").checked }));
}

function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("microphone").onclick = () => (current ? current.stop() : record(() => Microphone.open()));
$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  recordFile($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
};
$("settings").onsubmit = (event) => event.preventDefault();
$("settings").elements.token.value = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
$("settings").elements.token.onchange = showDefaults;
showDefaults();

document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (current) showError("Stop the recording first, then drop the file again.");
  else recordFile(event.dataTransfer.files[0]);
};

$("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(captions.text());
    say("Copied.");
  } catch {
    showError("The browser does not let this page copy. Save the text instead.");
  }
};
$("txt").onclick = () => save(captions.text(), "captions.txt", "text/plain");
$("vtt").onclick = () => save(captions.vtt(), "captions.vtt", "text/vtt");
$("clear").onclick = () => captions.clear();
