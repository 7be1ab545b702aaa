// A chart of loss terms over training steps, as inline SVG. Colours that read on light and dark themes alike.
import { say, sayStage } from "./strings.js";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#3b82f6", "#f97316", "#22a06b", "#a855f7", "#ef4444", "#0891b2"];
const WIDTH = 300;
const HEIGHT = 96;
const MOST_POINTS = 400;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export class LossChart {
  // state: what is said before there is a loss, a key of the strings.
  constructor(state) {
    this.root = document.createElement("div");
    this.root.className = "concept-erasure-chart";
    this.root.style.cssText = "color:var(--input-text,currentColor);font:11px sans-serif;pointer-events:none;overflow:hidden";
    this.state = document.createElement("div");
    this.svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: "100%", height: HEIGHT, preserveAspectRatio: "none" });
    this.legend = document.createElement("div");
    this.root.append(this.state, this.svg, this.legend);
    this.points = [];
    this.state.textContent = say(state);
  }

  // losses: [[step, {name: value}], ...]; a new training starts again at a step that is already there.
  add(losses) {
    for (const [step, terms] of losses) {
      if (this.points.length && step <= this.points.at(-1)[0]) this.points = [];
      this.points.push([step, terms]);
    }
    if (losses.length) this.draw();
  }

  progress({ stage, step, total, seconds_left }) {
    const left = seconds_left == null ? "" : `, ${clock(seconds_left)} ${say("left")}`;
    this.state.textContent = `${sayStage(stage)} ${step}/${total}${step < total ? left : ""}`;
  }

  finished(losses) {
    this.points = [];
    this.add(losses);
    this.state.textContent = losses.length ? `${losses.length} / ${losses.length}` : say("noTraining");
  }

  draw() {
    const every = Math.ceil(this.points.length / MOST_POINTS);
    const shown = this.points.filter((_, i) => i % every === 0 || i === this.points.length - 1);
    const names = [...new Set(shown.flatMap(([, terms]) => Object.keys(terms)))];
    const values = shown.flatMap(([, terms]) => Object.values(terms)).filter(Number.isFinite);
    const top = Math.max(...values, 1e-12);
    const [first, last] = [shown[0][0], shown.at(-1)[0]];
    const x = (step) => (last === first ? 0 : ((step - first) / (last - first)) * WIDTH);
    const y = (value) => HEIGHT - 3 - (Math.max(value, 0) / top) * (HEIGHT - 8);
    const lines = names.map((name, i) => {
      const path = shown.filter(([, terms]) => Number.isFinite(terms[name])).map(([step, terms]) => `${x(step).toFixed(1)},${y(terms[name]).toFixed(1)}`);
      return element("polyline", { points: path.join(" "), fill: "none", stroke: COLOURS[i % COLOURS.length], "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" });
    });
    const floor = element("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 3, y2: HEIGHT - 3, stroke: "currentColor", "stroke-opacity": 0.3, "vector-effect": "non-scaling-stroke" });
    this.svg.replaceChildren(floor, ...lines);
    this.legend.replaceChildren(...names.map((name, i) => entry(name, shown.at(-1)[1][name], COLOURS[i % COLOURS.length])));
  }
}

function entry(name, value, colour) {
  const made = document.createElement("span");
  made.style.cssText = `color:${colour};margin-right:10px;white-space:nowrap`;
  made.textContent = `${name} ${Number.isFinite(value) ? value.toPrecision(3) : "–"}`;
  return made;
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}
