// What a node shows of an erasure file: words, method, base and what was measured. Everything is written as text, never
// as HTML: the file may come from anyone.
import { api } from "../../scripts/api.js";
import { say } from "./strings.js";

const WORDS = 4;

export class Badge {
  constructor() {
    this.asked = 0;
    this.root = document.createElement("div");
    this.root.className = "concept-erasure-badge";
    this.root.style.cssText =
      "color:var(--input-text,currentColor);background:var(--comfy-input-bg,transparent);border-radius:6px;" +
      "font:11px/1.45 sans-serif;padding:4px 8px;overflow:auto;overflow-wrap:anywhere";
  }

  show(erasures) {
    this.asked += 1;
    this.root.replaceChildren(...erasures.map(card));
  }

  // The file chosen in a widget, before anything runs. Answers may overtake each other: only the last choice's counts.
  async read(file) {
    this.show([]);
    if (!file) return;
    const asked = this.asked;
    const told = await this.ask(file).catch((error) => ({ file, problem: String(error) }));
    if (asked === this.asked) this.show([told]);
  }

  async ask(file) {
    const answer = await api.fetchApi(`/concept_erasure/erasure?name=${encodeURIComponent(file)}`);
    const told = await answer.json();
    return told.error ? { file, problem: told.error } : told;
  }
}

// full: what the text has no room for, shown where the mouse rests.
function line(label, text, strong = false, full = text) {
  const row = document.createElement("div");
  const what = document.createElement(strong ? "strong" : "span");
  what.textContent = text;
  row.title = full;
  if (label) {
    const name = document.createElement("span");
    name.style.opacity = 0.65;
    name.textContent = `${label}: `;
    row.append(name);
  }
  row.append(what);
  return row;
}

function card(told) {
  const made = document.createElement("div");
  if (told.problem) made.append(line("", told.file, true), line("", `${say("unusable")} ${told.problem}`));
  else if (told.foreign) made.append(line("", told.file, true), line("", say("foreign")));
  else if (told.plain) made.append(line("", told.file, true), line("", say("plain")));
  else {
    made.append(line("", `− ${few(told.words)}`, true, told.words.join(", ")));
    if (told.alternative) made.append(line(say("instead"), told.alternative));
    if (told.missing) made.append(line(say("missing"), told.missing));
    made.append(line(say("measured"), told.summary || say("notMeasured"), false, told.details));
    made.append(line(say("method"), `${told.method} (${told.status})`));
    made.append(line(say("base"), `${told.family}, ${told.base}`));
    made.append(line(say("stored"), `${told.dtype}, ± ${Number(told.storage_error).toExponential(1)}`));
    if (told.hardened) made.append(line(say("hardened"), told.hardened));
  }
  return made;
}

function few(words) {
  return words.slice(0, WORDS).join(", ") + (words.length > WORDS ? ` +${words.length - WORDS}` : "");
}
