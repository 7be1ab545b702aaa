// Opens a map page in a real browser, uses it, and prints what it saw as JSON: node browse.mjs PAGE PICTURE.
// Needs playwright-core (PLAYWRIGHT_CORE names its folder) and a chromium (CHROMIUM names it).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , path, picture] = process.argv;
const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"],
});
const page = await browser.newPage({ viewport: { width: 1240, height: 820 }, acceptDownloads: true });
const problems = [], requests = [];
page.on("pageerror", (error) => problems.push(String(error)));
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
page.on("request", (request) => requests.push(request.url()));
await page.goto("file://" + path);
await page.waitForFunction(() => window.boundary && window.boundary.visible() > 0);
const seen = { problems, start: await page.evaluate(() => window.boundary.visible()) };

// Hover: walk over the plot until a prompt is told.
const box = await page.locator("#map").boundingBox();
const tip = page.locator("#tip");
for (let i = 0; i < 400 && !(await tip.isVisible()); i++)
  await page.mouse.move(box.x + 80 + ((i * 37) % (box.width - 120)), box.y + 30 + ((i * 53) % (box.height - 90)));
seen.tip = (await tip.isVisible()) ? await tip.innerText() : "";

// Filter by origin, by leak, by text.
await page.locator('input[data-origin="vocabulary"]').uncheck();
seen.withoutVocabulary = await page.evaluate(() => window.boundary.visible());
await page.locator('input[data-origin="vocabulary"]').check();
await page.locator("#leaking").check();
seen.leaking = await page.evaluate(() => window.boundary.visible());

// The picture of each: where the tips show which, and one that the mouse really goes to.
seen.pictures = await page.evaluate(() => {
  const canvas = document.getElementById("map"), box = canvas.getBoundingClientRect(), found = {};
  for (let x = 0; x < box.width; x += 6)
    for (let y = 0; y < box.height; y += 6) {
      canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
      const tip = document.getElementById("tip"), image = tip.querySelector("img");
      if (tip.style.display !== "none") found[tip.firstChild.textContent] ??= { x, y, alt: image && image.alt, src: image && image.src };
    }
  return found;
});
const [text, at] = Object.entries(seen.pictures).find(([, one]) => one.src);
await page.mouse.move(box.x + at.x, box.y + at.y);
seen.hovered = (await tip.locator("b").textContent()) === text && (await tip.locator("img").evaluate(async (image) => (await image.decode(), image.naturalWidth)));
await page.screenshot({ path: picture });
await page.locator("#find").fill("word1");
seen.found = await page.evaluate(() => window.boundary.visible());
await page.locator("#find").fill("");

// Select by dragging over everything, then all that leaks; export.
await page.mouse.move(box.x + 70, box.y + 20);
await page.mouse.down();
await page.mouse.move(box.x + box.width - 20, box.y + box.height - 40, { steps: 4 });
await page.mouse.up();
seen.dragged = Number(await page.locator("#count").innerText());
await page.locator("#clear").click();
seen.cleared = Number(await page.locator("#count").innerText());
await page.locator("#worst").click();
seen.selected = Number(await page.locator("#count").innerText());
const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#export").click()]);
seen.exported = readFileSync(await download.path(), "utf8").trim().split("\n");

// With everything shown and nothing selected: milliseconds from an event until its picture is there, the median of
// many, and how many points were painted for it at most.
await page.locator("#leaking").uncheck();
await page.locator("#clear").click();
Object.assign(seen, await page.evaluate(async () => {
  const canvas = document.getElementById("map"), box = canvas.getBoundingClientRect(), pen = canvas.getContext("2d");
  const vocabulary = document.querySelector('input[data-origin="vocabulary"]');
  const arc = CanvasRenderingContext2D.prototype.arc;
  let painted = 0;
  CanvasRenderingContext2D.prototype.arc = function (...given) { painted++; return arc.apply(this, given); };
  const measured = async (count, act) => {
    const times = [], points = [];
    for (let i = 0; i < count; i++) {
      await new Promise((done) => setTimeout(done, 5));
      const started = performance.now();
      painted = 0;
      act(i);
      await new Promise(requestAnimationFrame);
      pen.getImageData(0, 0, 1, 1); // asks for the pixels, which the browser paints when it likes
      times.push(performance.now() - started);
      points.push(painted);
    }
    return { middle: times.sort((a, b) => a - b)[count >> 1], most: Math.max(...points) };
  };
  const hover = await measured(30, (i) =>
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 120 + i * 18, clientY: box.top + 500 - i * 9 })));
  const filter = await measured(20, () => vocabulary.click());
  CanvasRenderingContext2D.prototype.arc = arc;
  return { hover, filter };
}));
seen.broken = await page.evaluate(() => window.broken === undefined);
seen.requests = requests.filter((url) => !url.startsWith("file://" + path) && !url.startsWith("data:") && !url.startsWith("blob:"));
console.log(JSON.stringify(seen));
await browser.close();
