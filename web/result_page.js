// Pages that nodes wrote, shown inside nodes: the interactive map, whose selection goes into a widget, and the report card.
// A page is read by this module and shown in a frame of an origin of its own, so that nothing in it reaches the host.
import { api } from "../../scripts/api.js";
import { say } from "./strings.js";

const SELECTION = "concept-erasure-selection";
const SELECT = "concept-erasure-select";
// Inside the frame: what is selected goes out, what was selected before comes in.
const BRIDGE = `<script>
addEventListener("boundary-selection", (event) => parent.postMessage({ kind: "${SELECTION}", words: event.detail }, "*"));
addEventListener("message", (event) => {
  if (event.source === parent && event.data?.kind === "${SELECT}") window.boundary.select(event.data.words);
});
</script>`;

function isDark() {
  const numbers = getComputedStyle(document.body).backgroundColor.match(/\d+/g)?.map(Number) ?? [32, 32, 32];
  return numbers[0] + numbers[1] + numbers[2] < 384;
}

// The page follows the browser's theme; here it follows the host's.
function themed(page) {
  const dark = isDark();
  const style = `<style>:root { color-scheme: ${dark ? "dark" : "light"} !important }</style>`;
  return page.replaceAll("(prefers-color-scheme: dark)", dark ? "all" : "not all").replace("</head>", () => `${style}</head>`);
}

function button(label, action) {
  const made = document.createElement("button");
  made.textContent = label;
  made.onclick = action;
  made.style.cssText =
    "font:12px sans-serif;padding:3px 10px;border-radius:5px;cursor:pointer;color:var(--input-text,currentColor);" +
    "background:var(--comfy-input-bg,transparent);border:1px solid var(--border-color,#8888)";
  return made;
}

export class ResultPage {
  // scripts: whether the page's own scripts run; the report card has none.
  constructor(kind, scripts) {
    this.scripts = scripts;
    this.root = document.createElement("div");
    this.root.className = `concept-erasure-${kind}`;
    this.root.style.cssText = "display:flex;flex-direction:column;gap:4px;height:100%;color:var(--input-text,currentColor);font:12px sans-serif";
    this.bar = document.createElement("div");
    this.bar.style.cssText = "display:flex;gap:6px;align-items:center;flex:none";
    this.note = document.createElement("span");
    this.note.style.cssText = "opacity:.75;overflow:hidden;text-overflow:ellipsis";
    this.frame = document.createElement("iframe");
    this.frame.setAttribute("sandbox", scripts ? "allow-scripts allow-downloads" : "");
    if (scripts) this.frame.allow = "clipboard-write *"; // the map copies words
    this.frame.style.cssText = "flex:1;min-height:0;width:100%;border:0;border-radius:6px;background:#fff";
    this.large = button(say("enlarge"), () => this.frame.requestFullscreen());
    this.bar.append(this.large, this.note);
    this.root.append(this.bar, this.frame);
    this.clear();
  }

  clear() {
    this.note.textContent = say("noResult");
    this.large.disabled = true;
    this.frame.style.visibility = "hidden";
  }

  async show(file) {
    const answer = await api.fetchApi(`/view?${new URLSearchParams(file)}`);
    if (!answer.ok) throw new Error(`${file.subfolder}/${file.filename}: ${answer.status}`);
    const page = themed(await answer.text());
    const end = page.lastIndexOf("</body>");
    this.frame.srcdoc = this.scripts ? page.slice(0, end) + BRIDGE + page.slice(end) : page;
    this.frame.style.visibility = "visible";
    this.large.disabled = false;
    this.note.textContent = `output/${file.subfolder}/${file.filename}`;
  }
}

// The map beside the widget `selected`: points that are selected are lines of it; lines that somebody typed stay.
export class BoundaryMap extends ResultPage {
  constructor(widget) {
    super("map", true);
    this.widget = widget;
    this.fromMap = new Set();
    this.frame.addEventListener("load", () => {
      this.fromMap.clear();
      this.frame.contentWindow?.postMessage({ kind: SELECT, words: this.lines() }, "*");
    });
    this.listen = (event) => {
      if (event.source === this.frame.contentWindow && event.data?.kind === SELECTION) this.select(event.data.words);
    };
    window.addEventListener("message", this.listen);
  }

  remove() {
    window.removeEventListener("message", this.listen);
  }

  lines() {
    return String(this.widget.value ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
  }

  select(words) {
    if (!Array.isArray(words) || !words.every((word) => typeof word === "string")) return;
    const chosen = words.map((word) => word.split(/\s+/).join(" ").trim()).filter(Boolean);
    const typed = this.lines().filter((line) => !this.fromMap.has(line));
    this.fromMap = new Set(chosen);
    this.widget.value = [...new Set([...typed, ...chosen])].join("\n");
    this.widget.callback?.(this.widget.value);
  }
}
