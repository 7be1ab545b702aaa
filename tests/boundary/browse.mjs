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
seen.image = await tip.locator("img").count();
await page.screenshot({ path: picture });

// Filter by origin, by leak, by text.
await page.locator('input[data-origin="vocabulary"]').uncheck();
seen.withoutVocabulary = await page.evaluate(() => window.boundary.visible());
await page.locator('input[data-origin="vocabulary"]').check();
await page.locator("#leaking").check();
seen.leaking = await page.evaluate(() => window.boundary.visible());
await page.locator("#find").fill("word1");
seen.found = await page.evaluate(() => window.boundary.visible());
await page.locator("#find").fill("");

// Select by dragging over everything, then all that leaks; export.
await page.mouse.move(box.x + 70, box.y + 20);
await page.mouse.down();
await page.mouse.move(box.x + box.width - 20, box.y + box.height - 50, { steps: 4 });
await page.mouse.up();
seen.dragged = Number(await page.locator("#count").innerText());
await page.locator("#clear").click();
seen.cleared = Number(await page.locator("#count").innerText());
await page.locator("#worst").click();
seen.selected = Number(await page.locator("#count").innerText());
const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#export").click()]);
seen.exported = readFileSync(await download.path(), "utf8").trim().split("\n");

// Redrawing with everything shown: milliseconds for each hover.
await page.locator("#leaking").uncheck();
seen.milliseconds = await page.evaluate(async () => {
  const canvas = document.getElementById("map"), box = canvas.getBoundingClientRect(), started = performance.now();
  for (let i = 0; i < 30; i++) {
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 70 + i * 20, clientY: box.top + 100 + i * 9 }));
    await new Promise(requestAnimationFrame);
  }
  return (performance.now() - started) / 30;
});
seen.broken = await page.evaluate(() => window.broken === undefined);
seen.requests = requests.filter((url) => !url.startsWith("file://" + path) && !url.startsWith("data:") && !url.startsWith("blob:"));
console.log(JSON.stringify(seen));
await browser.close();
