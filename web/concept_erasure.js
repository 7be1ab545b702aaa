// Front end of the pack: a loss chart on Erase nodes, a badge on nodes that hold erasures, the boundary map and the report
// card inside their nodes, toasts for what stopped a graph.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Badge } from "./badge.js";
import { LossChart } from "./chart.js";
import { BoundaryMap, ResultPage } from "./result_page.js";
import { say } from "./strings.js";

const PREFIX = "ConceptErasure";
const ERASE = `${PREFIX}Erase_`;
const WITH_BADGE = ["Load", "Save", "Inspect"].map((name) => PREFIX + name);
const INTERNAL = ["Refused", "ServerProfile"].map((name) => PREFIX + name);
const CHART_HEIGHT = 158;
const BADGE_HEIGHT = 150;
const PAGE_HEIGHT = 640;
const PAGE_WIDTH = 1020;
const charts = new Map();

function addElement(node, name, element, height) {
  // Both kinds of nodes, on the canvas and as Vue components, lay out DOM widgets by these.
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => height, getMaxHeight: () => height };
  node.addDOMWidget(name, name, element, options);
  node.setSize?.(node.computeSize());
}

function after(object, name, extra) {
  const original = object[name];
  object[name] = function (...inputs) {
    const result = original?.apply(this, inputs);
    extra.apply(this, inputs);
    return result;
  };
}

function toast(severity, summary, detail) {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: severity === "error" ? 12000 : 6000 });
}

// Vue nodes fold by themselves what is seldom needed. On the canvas, hosts would keep its place empty: it is hidden here,
// behind a button, and takes no place.
function fold(node) {
  const rare = node.widgets?.filter((widget) => widget.options?.advanced) ?? [];
  if (!rare.length) return;
  const turn = (hidden) => {
    for (const widget of rare) {
      widget.hidden = hidden;
      if (hidden) widget.computeSize = () => [0, -4]; // hosts leave a gap of 4 between widgets
      else delete widget.computeSize;
    }
    button.label = `${say(hidden ? "more" : "fewer")} (${rare.length})`;
    node.setSize([node.size[0], node.computeSize()[1]]);
  };
  const options = { serialize: false, canvasOnly: true };
  const button = node.addWidget("button", "more_settings", null, () => turn(!rare[0].hidden), options);
  button.serialize = false;
  turn(true);
}

function withChart(node) {
  fold(node);
  // Methods that solve at once have no previews while they train either.
  const trains = node.widgets?.some((widget) => widget.name === "preview_every");
  const chart = new LossChart(trains ? "waiting" : "noTraining");
  charts.set(node, chart);
  addElement(node, "loss_chart", chart.root, CHART_HEIGHT);
  after(node, "onExecuted", ({ erasure }) => {
    if (!erasure?.length) return;
    // The last preview of the training would hide the pictures that the node ends with.
    if (app.nodePreviewImages) delete app.nodePreviewImages[node.id];
    chart.finished(erasure[0].losses ?? []);
    if (erasure[0].reused) toast("info", erasure[0].file, say("reused"));
  });
  after(node, "onRemoved", () => charts.delete(node));
}

function withBadge(node) {
  const badge = new Badge();
  addElement(node, "erasure_badge", badge.root, BADGE_HEIGHT);
  after(node, "onExecuted", ({ erasure }) => erasure && badge.show(erasure));
  const file = node.widgets?.find((widget) => widget.name === "file");
  if (!file) return;
  const read = () => badge.read(file.value);
  after(file, "callback", read);
  after(node, "onConfigure", read); // a loaded graph sets values without calling back
  read();
}

// A page may be made larger than this with the node.
function addPage(node, name, page) {
  node.addDOMWidget(name, name, page.root, { serialize: false, hideOnZoom: false, getMinHeight: () => PAGE_HEIGHT });
  const [width, height] = node.computeSize();
  node.setSize?.([Math.max(width, PAGE_WIDTH), Math.max(height, node.size?.[1] ?? 0)]);
}

function shown(node, page, key) {
  after(node, "onExecuted", (output) => {
    const file = output?.[key]?.[0];
    if (file) page.show(file).catch((error) => toast("error", say("pageMissing"), String(error)));
  });
}

function withMap(node) {
  const selected = node.widgets?.find((widget) => widget.name === "selected");
  if (!selected) return;
  const map = new BoundaryMap(selected);
  addPage(node, "boundary_map", map);
  shown(node, map, "boundary_map");
  after(node, "onRemoved", () => map.remove());
}

function withReport(node) {
  const report = new ResultPage("report", false);
  addPage(node, "report_card", report);
  shown(node, report, "report_card");
}

// Inside a subgraph the server names a node by the path to it.
function chartOf(id) {
  const own = String(id).split(":").at(-1);
  for (const [node, chart] of charts) if (String(node.id) === own) return chart;
}

async function announceProfile() {
  const told = await (await api.fetchApi("/concept_erasure/default_profile")).json();
  if (told.error) toast("error", say("profileBroken"), told.error);
  else if (told.profile) toast("info", say("profile"), told.profile);
}

app.registerExtension({
  name: "concept_erasure",

  setup() {
    api.addEventListener("concept_erasure.progress", ({ detail }) => {
      const chart = chartOf(detail.node);
      chart?.progress(detail);
      chart?.add(detail.losses ?? []);
    });
    api.addEventListener("execution_error", ({ detail }) => {
      if (String(detail?.node_type).startsWith(PREFIX)) toast("error", say("stopped"), detail.exception_message);
    });
    announceProfile().catch((error) => console.warn("concept_erasure:", error));
  },

  // Hosts hide such nodes where they are searched, and older ones list them in the canvas's menu all the same.
  beforeRegisterNodeDef(type, { name }) {
    if (INTERNAL.includes(name)) type.skip_list = true;
  },

  nodeCreated(node) {
    const kind = node.comfyClass ?? "";
    if (kind.startsWith(ERASE)) withChart(node);
    else if (WITH_BADGE.includes(kind)) withBadge(node);
    else if (kind === `${PREFIX}BoundaryMap`) withMap(node);
    else if (kind === `${PREFIX}Report`) withReport(node);
  },
});
