// Shows result pages by this pack's own front end, with stand-ins for the host's modules, and prints what it saw as JSON:
// node pages.mjs '{"web":…, "map":…, "report":…, "picture":…, "dark":…}'. Needs playwright-core and a chromium.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const task = JSON.parse(process.argv[2]);
const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"],
});
const page = await browser.newPage({ viewport: { width: 1080, height: 760 } });
const problems = [], elsewhere = [];
page.on("pageerror", (error) => problems.push(String(error)));
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));

const HOST = "http://127.0.0.1:1";
const colours = task.dark ? "background:#202020;--input-text:#ddd;--comfy-input-bg:#333" : "background:#f2f2f2;--input-text:#222;--comfy-input-bg:#fff";
const files = {
  "/": `<!doctype html><title>t</title><body style="${colours};margin:8px"><div id="at" style="height:740px"></div>
    <script type="module" src="/extensions/pack/concept_erasure.js"></script></body>`,
  "/scripts/app.js": `export const app = { extensionManager: { toast: { add: (t) => (window.toasts ??= []).push(t) } },
    registerExtension: (extension) => (window.extension = extension) };`,
  "/scripts/api.js": "export const api = { fetchApi: (path) => fetch(path), addEventListener() {} };",
};
await page.route("**/*", (route) => {
  const url = new URL(route.request().url());
  if (url.origin !== HOST) return elsewhere.push(url.href), route.abort();
  const kind = url.pathname.endsWith(".js") ? "text/javascript" : url.pathname === "/" ? "text/html" : "application/octet-stream";
  const body = files[url.pathname]
    ?? (url.pathname.startsWith("/extensions/pack/") ? readFileSync(`${task.web}/${url.pathname.split("/").at(-1)}`, "utf8")
    : url.pathname === "/view" ? readFileSync(task[url.searchParams.get("filename").split(".")[0]], "utf8") : "");
  return route.fulfill({ contentType: kind, body });
});
await page.goto(HOST);
await page.waitForFunction(() => window.extension);

const build = (kind, key, file, selected) =>
  page.evaluate(([kind, key, file, selected]) => {
    document.getElementById("at").replaceChildren();
    const node = {
      comfyClass: kind, id: 1, size: [300, 200], computeSize: () => [300, 200], setSize() {},
      widgets: [{ name: "selected", value: selected, callback: (value) => (window.called = value) }],
      addDOMWidget: (name, type, element) => document.getElementById("at").append(element),
    };
    window.node = node;
    window.extension.nodeCreated(node);
    node.onExecuted({ [key]: [{ filename: file, subfolder: "concept_erasure/x", type: "output" }] });
  }, [kind, key, file, selected]);
const value = () => page.evaluate(() => window.node.widgets[0].value);
const inside = async () => {
  await page.waitForSelector("iframe");
  for (let i = 0; i < 100; i++) {
    const frame = page.frames().find((each) => each !== page.mainFrame());
    if (frame && (await frame.locator("h1").count().catch(() => 0))) return frame;
    await page.waitForTimeout(100);
  }
  throw new Error("The page does not appear in its frame.");
};

const seen = {};
try {
  await build("ConceptErasureBoundaryMap", "boundary_map", "map.html", "typed by hand\nword7");
  let frame = await inside();
  await frame.waitForFunction(() => window.boundary.selection().length === 1);
  seen.restored = await value();
  await frame.locator("#worst").click();
  await page.waitForFunction(() => window.node.widgets[0].value.split("\n").length > 3);
  seen.selected = (await value()).split("\n");
  seen.called = (await page.evaluate(() => window.called)) === (await value());
  if (task.picture) await page.screenshot({ path: task.picture });
  await frame.locator("#clear").click();
  await page.waitForFunction(() => window.node.widgets[0].value.split("\n").length === 1);
  seen.cleared = await value();
  seen.reaches = await frame.evaluate(() => { try { return Boolean(parent.document.body); } catch { return false; } });
  seen.paper = await frame.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.evaluate(() => window.postMessage({ kind: "concept-erasure-selection", words: ["forged"] }, "*"));
  await page.waitForTimeout(200);
  seen.forged = await value();
  await page.evaluate(() => window.node.onRemoved());

  await build("ConceptErasureReport", "report_card", "report.html", "");
  frame = await inside();
  seen.report = await frame.locator("h1").innerText();
  seen.reportPaper = await frame.evaluate(() => getComputedStyle(document.body).backgroundColor);
  if (task.picture) await page.screenshot({ path: task.picture.replace(".png", "_report.png") });
  console.log(JSON.stringify({ ...seen, problems, elsewhere }));
} catch (error) {
  console.log(JSON.stringify({ ...seen, error: String(error), problems, elsewhere }));
} finally {
  await browser.close();
}
