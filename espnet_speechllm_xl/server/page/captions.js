// The captions: a heading for each recording, a paragraph for each segment, a span for each settled word.

const MOST_TIMED = 50; // paragraphs that keep their words' times; older ones turn into plain text
// Of a caption, as in formats.py: columns of a line, seconds, a pause that ends it, letters that take two columns.
const COLUMNS = 42;
const MOST_SECONDS = 7;
const PAUSE_SECONDS = 0.8;
const FULL_WIDTH = /(?![\uff61-\uffdc])[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Hang}\u3000-\u303e\uff01-\uff60]/u;

export class Captions {
  constructor(element, tip) {
    this.element = element;
    this.clear();
    showTips(element, tip);
    walkWithArrowKeys(element);
  }

  clear() {
    this.element.replaceChildren();
    this.open = new Map(); // segments of this recording that may still grow, by index
    this.ended = []; // cues of this recording's other segments
  }

  /** A recording begins: its segments count from 0. */
  begin(title) {
    this.finish();
    this.ended = [];
    this.element.append(make("h2", "", title));
    this.scrollToEnd();
  }

  /** The recording is over, complete or not; partial text that never settled goes. */
  finish() {
    for (const [index, segment] of this.open) this.end(index, segment);
  }

  /** Shows a result: the state of one segment. */
  show(result) {
    const follow = this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 40;
    const segment = this.open.get(result.segment) ?? this.add(result.segment);
    // Settled words are never taken back: only new ones are added, so that a selection or a tip stays.
    for (const word of result.words.slice(segment.words.length)) {
      endWithSpace(segment.settled, !word.joined);
      segment.settled.append(wordElement(word));
    }
    endWithSpace(segment.settled, result.text.startsWith(`${result.settled} `));
    segment.words = result.words;
    segment.partial.textContent = result.partial;
    if (segment.words.length) segment.time.textContent = clock(segment.words[0].start);
    if (result.is_final) this.end(result.segment, segment);
    if (follow) this.scrollToEnd(); // a reader who scrolled up stays there
  }

  add(index) {
    const segment = { words: [], time: make("time"), settled: make("span", "settled"), partial: make("i", "partial") };
    segment.partial.setAttribute("aria-live", "off");
    segment.paragraph = make("p", "timed");
    segment.paragraph.append(segment.time, segment.settled, segment.partial);
    this.element.append(segment.paragraph);
    this.open.set(index, segment);
    return segment;
  }

  end(index, segment) {
    this.open.delete(index);
    segment.partial.remove();
    if (!segment.words.length) segment.paragraph.remove();
    this.ended.push(...cuesOf(segment.words));
    const timed = this.element.getElementsByClassName("timed");
    while (timed.length > MOST_TIMED) {
      const settled = timed[0].querySelector(".settled");
      settled.textContent = settled.textContent;
      timed[0].classList.remove("timed");
    }
  }

  scrollToEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  /** The settled text of all recordings, a line for each paragraph. */
  text() {
    const lines = [...this.element.children].map((child) => child.querySelector(".settled") ?? child);
    return lines.map((line) => `${line.tagName === "H2" ? "\n" : ""}${line.textContent.trim()}\n`).join("").trimStart();
  }

  /** The settled words of the last recording as a WebVTT file. */
  vtt() {
    const cues = [...this.ended, ...[...this.open.values()].flatMap(({ words }) => cuesOf(words))];
    const line = ({ start, end, text }) => `${clock(start, 3)} --> ${clock(end, 3)}\n${text}\n\n`;
    return `WEBVTT\n\n${cues.map(line).join("")}`;
  }
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function wordElement(word) {
  const element = make("span", "word", word.text);
  const confidence = Math.round(word.confidence * 100);
  element.dataset.tip = `${word.start.toFixed(2)}–${word.end.toFixed(2)} s, ${confidence} %`;
  element.tabIndex = -1;
  return element;
}

/** Takes the space at the end of settled words away, or adds it. */
function endWithSpace(element, wanted) {
  const last = element.lastChild;
  if (last?.nodeType === Node.TEXT_NODE && !wanted) last.remove();
  if (last?.nodeType === Node.ELEMENT_NODE && wanted) element.append(" ");
}

/** Words cut into captions by the rule of the command line (formats.py). */
function cuesOf(words) {
  const gap = (place) => Math.round(1000 * (words[place].start - words[place - 1].end)) / 1000;
  const goesOn = (place) => place < words.length && gap(place) < PAUSE_SECONDS;
  const cues = [];
  for (let first = 0, after = 0; first < words.length; first = after) {
    const fits = (place) =>
      words[place].end - words[first].start <= MOST_SECONDS &&
      secondLine(words.slice(first, place + 1)).columns <= COLUMNS;
    after = first + 1;
    while (goesOn(after) && fits(after)) after += 1;
    if (goesOn(after)) {
      const middle = Math.floor((first + after) / 2);
      for (let place = after; place > middle; place -= 1) if (gap(place) > gap(after)) after = place;
    }
    const caption = words.slice(first, after);
    const { place } = secondLine(caption);
    const lines = place ? [caption.slice(0, place), caption.slice(place)] : [caption];
    cues.push({ start: caption[0].start, end: caption.at(-1).end, text: lines.map(escaped).join("\n") });
  }
  return cues;
}

/** The word that begins the second line (0: there is but one), and the columns of the longer line. */
function secondLine(words) {
  const spaces = words.map(({ joined }, index) => (index && !joined ? 1 : 0));
  const upto = [0];
  words.forEach(({ text }, index) => upto.push(upto[index] + columnsOf(text) + spaces[index]));
  const total = upto.at(-1);
  const longer = (place) => Math.max(upto[place], total - upto[place] - spaces[place]);
  if (total <= COLUMNS || words.length === 1) return { place: 0, columns: total };
  let place = 1;
  for (let next = 2; next < words.length; next += 1) if (longer(next) < longer(place)) place = next;
  return { place, columns: longer(place) };
}

function columnsOf(text) {
  const columns = (letter) => (/[\p{Mn}\p{Me}]/u.test(letter) ? 0 : FULL_WIDTH.test(letter) ? 2 : 1);
  return [...text].reduce((sum, letter) => sum + columns(letter), 0);
}

function escaped(words) {
  const text = words.map((word, index) => (index && !word.joined ? " " : "") + word.text).join("");
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** 0:05, 12:34, 1:02:03; with `digits` decimals hours and minutes have two places, as WebVTT wants it. */
function clock(seconds, digits = 0) {
  const units = Math.floor(seconds * 10 ** digits + (digits ? 0.5 : 0));
  const whole = Math.floor(units / 10 ** digits);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  if (!digits) return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
  return `${two(hours)}:${two(minutes)}:${two(rest)}.${String(units % 10 ** digits).padStart(digits, "0")}`;
}

/** A word under the pointer, tapped or focused shows its times; `title` would need a mouse. */
function showTips(container, tip) {
  const show = ({ target }) => {
    if (!target.dataset?.tip) return;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    target.setAttribute("aria-describedby", tip.id);
    const word = target.getBoundingClientRect();
    const left = Math.min(Math.max(4, word.left), document.documentElement.clientWidth - tip.offsetWidth - 4);
    const above = word.top - tip.offsetHeight - 4;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 0 ? above : word.bottom + 4}px`;
  };
  const hide = () => (tip.hidden = true);
  for (const event of ["pointerover", "focusin", "click"]) container.addEventListener(event, show);
  for (const event of ["pointerout", "focusout", "scroll"]) container.addEventListener(event, hide);
  container.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
}

/** The words are one stop of the tab key; left and right go from word to word. */
function walkWithArrowKeys(container) {
  container.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const words = [...container.getElementsByClassName("word")];
    if (!step || !words.length) return;
    const now = words.indexOf(document.activeElement);
    const next = now < 0 ? (step > 0 ? 0 : words.length - 1) : now + step;
    words[Math.min(Math.max(0, next), words.length - 1)].focus();
    event.preventDefault();
  });
}
