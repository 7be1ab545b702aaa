// Drives ComfyUI in a real browser and prints what it saw as JSON: node browser.mjs '{"url":…, "job":…, …}'.
// Needs playwright-core (PLAYWRIGHT_CORE names its folder) and a chromium (CHROMIUM names it).
import { createRequire } from "node:module";

const task = JSON.parse(process.argv[2]);
const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"],
});
const page = await browser.newPage({ viewport: { width: task.width ?? 1700, height: task.height ?? 1000 } });
const problems = [];
const others = [];
// The front end has errors of its own; what counts is what passes through this pack.
const ours = (text) => /concept.erasure/i.test(text);
page.on("pageerror", (error) => (ours(error.stack ?? "") ? problems : others).push(error.stack ?? String(error)));
page.on("console", (message) => {
  if (message.type() === "error" && ours(message.text() + message.location().url)) problems.push(message.text());
});

async function ready() {
  await page.goto(task.url, { waitUntil: "domcontentloaded", timeout: 180000 });
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager?.toast, null, { timeout: 180000 });
  await page.waitForTimeout(3000);
  await page.keyboard.press("Escape"); // the templates that a first visit shows
  await page.waitForTimeout(500);
}

// Settings are the user's, kept by the host: the page is opened again with them in force (a new language would load the
// graph again in the middle of the job), and what was there before comes back at the end.
const before = {};
async function settings(values) {
  if (!Object.keys(values ?? {}).length) return;
  for (const [key, value] of Object.entries(values)) {
    before[key] = await page.evaluate((k) => window.app.extensionManager.setting.get(k), key);
    await set(key, value);
  }
  await ready();
}

const set = (key, value) => page.evaluate(([k, v]) => window.app.extensionManager.setting.set(k, v), [key, value]);

async function restored() {
  for (const [key, value] of Object.entries(before)) await set(key, value);
}

// Whether the front end shows elements that a pack adds to a node: some draw none on Vue nodes, whosever they are.
const showsElements = () =>
  page.evaluate(async () => {
    const element = document.createElement("div");
    window.app.graph.nodes[0].addDOMWidget("probe", "probe", element, { serialize: false });
    for (let tries = 0; tries < 20 && !element.isConnected; tries++) await new Promise((done) => setTimeout(done, 200));
    return element.isConnected;
  });

const fit = () =>
  page.evaluate(async () => {
    const { nodes } = window.app.graph;
    const boxes = nodes.map((node) => [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
    const [x0, y0] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
    const [x1, y1] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])));
    const { ds, canvas } = window.app.canvas;
    const room = canvas.getBoundingClientRect();
    ds.scale = Math.min((room.width - 160) / (x1 - x0), (room.height - 120) / (y1 - y0), 1.5);
    ds.offset[0] = -x0 + 90 / ds.scale;
    ds.offset[1] = -y0 + 60 / ds.scale;
    window.app.canvas.setDirty(true, true);
  });

async function load(workflow) {
  await page.evaluate((data) => window.app.loadGraphData(data), workflow);
  await page.waitForTimeout(1200);
  // Other values than the file's, by the widgets' names; what is left empty stays so.
  // Numbers and texts of the same name are different things.
  await page.evaluate((values) => {
    for (const node of window.app.graph.nodes.filter((each) => each.type !== "Note"))
      for (const widget of node.widgets ?? [])
        if (widget.value !== "" && typeof widget.value === typeof values[widget.name]) widget.value = values[widget.name];
  }, task.values ?? {});
  // Nodes of the files are as tall as their contents only once they exist.
  await page.evaluate(() => {
    let columns = new Map();
    for (const node of window.app.graph.nodes) {
      const size = node.computeSize();
      node.setSize([Math.max(node.size[0], size[0]), size[1] + (node.comfyClass === "SaveImage" ? 240 : 0)]);
      const x = Math.round(node.pos[0] / 100);
      columns.set(x, [...(columns.get(x) ?? []), node]);
    }
    for (const nodes of columns.values()) {
      let y = 0;
      for (const node of nodes.sort((a, b) => a.pos[1] - b.pos[1])) {
        node.pos = [node.pos[0], y];
        y += node.size[1] + 60;
      }
    }
  });
  await fit();
  await page.waitForTimeout(800);
}

const texts = (name) => page.$$eval(`.concept-erasure-${name}`, (found) => found.map((element) => element.innerText));
const toasts = () => page.$$eval(".p-toast-message", (found) => found.map((element) => element.innerText));

async function run() {
  await page.evaluate(() => {
    window.ended = undefined;
    for (const name of ["execution_success", "execution_error", "execution_interrupted"])
      window.app.api.addEventListener(name, () => (window.ended ??= name), { once: true });
    window.app.queuePrompt(0, 1);
  });
  const seen = { toasts: [], lines: 0 };
  const until = Date.now() + (task.seconds ?? 3600) * 1000;
  while (Date.now() < until) {
    seen.lines = Math.max(seen.lines, await page.$$eval(".concept-erasure-chart polyline", (found) => found.length));
    seen.toasts.push(...(await toasts()));
    if (await page.evaluate(() => window.ended)) break;
    await page.waitForTimeout(400);
  }
  await page.waitForTimeout(1500);
  seen.toasts = [...new Set([...seen.toasts, ...(await toasts())])];
  return { ...seen, ended: await page.evaluate(() => window.ended), charts: await texts("chart"), badges: await texts("badge") };
}

const jobs = {
  async workflow() {
    await load(task.workflow);
    const seen = task.run === false ? { badges: await texts("badge"), charts: await texts("chart") } : await run();
    await page.keyboard.press("Escape");
    await fit();
    await page.waitForTimeout(1500);
    if (task.picture) await page.screenshot({ path: task.picture, type: "jpeg", quality: task.quality ?? 82 });
    const vue = await page.$$eval(".lg-node", (found) => found.length);
    return { ...seen, vue, elements: await showsElements() };
  },

  // The graph in the format of the API, as the front end makes it from a workflow.
  async prompt() {
    await load(task.workflow);
    return page.evaluate(async () => (await window.app.graphToPrompt()).output);
  },

  // The nodes of this pack that the canvas's menu offers.
  async addable() {
    const types = await page.evaluate(() =>
      Object.values(window.LiteGraph.registered_node_types).filter((type) => !type.skip_list).map((type) => type.comfyClass));
    return { types: types.filter((type) => type?.startsWith("ConceptErasure")) };
  },

  // How tall a node is as it is made, with everything unfolded, and folded again.
  async fold() {
    return page.evaluate((kind) => {
      window.app.graph.clear();
      const node = window.LiteGraph.createNode(kind);
      window.app.graph.add(node);
      const button = node.widgets.find((widget) => widget.name === "more_settings");
      const seen = () => ({ height: node.size[1], shown: node.widgets.filter((w) => node.isWidgetVisible(w)).length, label: button.label });
      const folded = seen();
      button.callback();
      const unfolded = seen();
      button.callback();
      const values = node.serialize().widgets_values;
      return { folded, unfolded, again: seen(), values };
    }, task.kind);
  },

  // One picture of each node, for the help pages; results: what some of them are told when they have run.
  async nodes() {
    for (const [i, kind] of task.kinds.entries()) {
      const box = await page.evaluate(
        async ([name, told, number]) => {
          window.app.graph.clear();
          const node = window.LiteGraph.createNode(name);
          node.id = number; // new front ends keep what widgets show by the number of their node
          window.app.graph.add(node);
          if (told) node.onExecuted(told);
          await new Promise((done) => setTimeout(done, told ? 4000 : 1500)); // what it asks of the server
          const [width, height] = node.computeSize();
          const { ds, canvas, ctx } = window.app.canvas;
          ctx.font = node.titleFontStyle;
          const titled = ctx.measureText(node.title).width + 80; // longer titles are cut
          node.setSize([Math.max(360, node.size[0], width, titled), Math.max(node.size[1], height)]);
          const room = canvas.getBoundingClientRect();
          ds.scale = Math.min(1.12, 720 / node.size[0]);
          node.pos = [0, 0];
          ds.offset[0] = (100 - room.left) / ds.scale;
          ds.offset[1] = (150 - room.top) / ds.scale;
          window.app.canvas.setDirty(true, true);
          const title = window.LiteGraph.NODE_TITLE_HEIGHT;
          const [w, h] = [node.size[0] * ds.scale, (node.size[1] + title) * ds.scale];
          return { x: 92, y: 142 - title * ds.scale, width: w + 16, height: h + 16 };
        },
        [kind, task.results?.[kind], i + 1],
      );
      await page.waitForTimeout(1000);
      await page.screenshot({ path: `${task.folder}/${kind}.jpg`, type: "jpeg", quality: 70, clip: box });
    }
    return { made: task.kinds.length };
  },
};

try {
  await ready();
  await settings(task.settings);
  console.log(JSON.stringify({ ...(await jobs[task.job]()), problems, others }));
} catch (error) {
  await page.screenshot({ path: task.failure ?? "failure.png" }).catch(() => {});
  console.log(JSON.stringify({ error: String(error), problems, others }));
} finally {
  await restored().catch(() => {});
  await browser.close();
}
