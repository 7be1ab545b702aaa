// Shows frames of the tab by the tab's own script, with stand-ins for the web UI's functions, in each theme of the web UI
// and of the browser, and prints their colours as JSON: node frames.mjs SCRIPT MAP REPORT (files with what is shown).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [script, ...frames] = process.argv.slice(2).map((path) => readFileSync(path, "utf8"));
const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"],
});
const page = await browser.newPage();
const seen = {};
for (const colorScheme of ["dark", "light"]) {
  await page.emulateMedia({ colorScheme });
  for (const host of ["dark", "light"]) {
    await page.setContent(`<body class="${host}"><div id="at"></div></body>`);
    await page.addScriptTag({ content: "gradioApp = () => document; onUiUpdate = (work) => (window.updated = work);" + script });
    const colours = [];
    for (const html of frames) {
      await page.evaluate((html) => { document.getElementById("at").innerHTML = html; updated(); updated(); }, html);
      await page.frameLocator("iframe").locator("h1").waitFor();
      await page.waitForTimeout(200);
      const body = page.frames().find((each) => each !== page.mainFrame()).locator("body");
      colours.push(await body.evaluate((one) => [getComputedStyle(one).backgroundColor, getComputedStyle(document.documentElement).colorScheme]));
    }
    seen[`${host} in ${colorScheme}`] = colours;
  }
}
console.log(JSON.stringify(seen));
await browser.close();
