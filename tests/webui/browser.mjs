// Uses the tab of a running web UI in a real browser and prints what it saw as JSON: node browser.mjs '{"url":…, …}'.
// Needs playwright-core (PLAYWRIGHT_CORE names its folder) and a chromium (CHROMIUM names it).
import { createRequire } from "node:module";

const task = JSON.parse(process.argv[2]);
const require = createRequire(import.meta.url);
const { chromium } = require(process.env.PLAYWRIGHT_CORE || "playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"],
});
const HOSTILE = "<img src=x onerror='window.broken = 1'>";
const page = await browser.newPage({ viewport: { width: 1400, height: 1150 }, acceptDownloads: true });
const problems = [], outside = [];
const GRADIOS_OWN = /^https:\/\/(cdnjs\.cloudflare\.com\/ajax\/libs\/iframe-resizer|fonts\.googleapis\.com|fonts\.gstatic\.com)\//;
const ours = (text) => /concept.erasure/i.test(text);
page.on("pageerror", (error) => ours(error.stack ?? "") && problems.push(error.stack));
page.on("console", (message) => message.type() === "error" && ours(message.text() + message.location().url) && problems.push(message.text()));
page.on("request", (request) => {
  if (!request.url().startsWith(task.url) && /^https?:/.test(request.url()) && !GRADIOS_OWN.test(request.url())) outside.push(request.url());
});

const at = (id) => page.locator(`#concept_erasure_${id}`);
const fill = (id, value) => at(id).locator("textarea, input[type=number]").first().fill(String(value));
// Gradio 3.41 gives the id of an HTML block to the block and to what is in it.
const text = async (id) => (await at(id).first().innerText()).trim();

// A text is the whole choice; both gradios put a mark before the ones that are chosen.
async function choose(id, value) {
  const whole = value instanceof RegExp ? value : new RegExp(`^\\W*${value}\\s*$`);
  await at(id).locator("input").first().click();
  await at(id).locator("ul li").filter({ hasText: whole }).first().click();
  await page.keyboard.press("Escape");
}

async function says(id, words, timeout = 900000) {
  const found = ([id, source]) => new RegExp(source).test(document.querySelector(`#concept_erasure_${id}`).innerText);
  await page.waitForFunction(found, [id, words.source], { timeout });
  return text(id);
}

async function opened(id) {
  await at(id).locator("button, .label-wrap").first().click();
  await page.waitForTimeout(500);
}

const tab = (name) => page.locator("#tabs > .tab-nav button", { hasText: new RegExp(`^\\s*${name}\\s*$`, "i") }).first();

async function open(name) {
  await page.locator("#concept_erasure_tabs .tab-nav button", { hasText: new RegExp(`^\\s*${name}\\s*$`) }).first().click();
  await page.waitForTimeout(700);
}

const picture = async (name) => {
  await page.evaluate(() => window.scrollTo(0, 0));
  await page.screenshot({ path: `${task.folder}/${name}.jpg`, type: "jpeg", quality: 80, fullPage: true });
};

// A whole-page screenshot leaves frames of other origins white.
const framed = async (name, frame) => {
  await page.locator(frame).scrollIntoViewIfNeeded();
  await page.waitForTimeout(700);
  await page.screenshot({ path: `${task.folder}/${name}.jpg`, type: "jpeg", quality: 80 });
};

// Erases with the method that trains nothing, with something sensible in its place and a name.
async function erase() {
  await open("Erase");
  await fill("words", "ball");
  await fill("instead", "box");
  await fill("keep", "a red star\na blue cube");
  await fill("name", "toy");
  await choose("method", "closed_form");
  await fill("size", 64);
  await at("start").click();
  const seen = { said: await says("last_job", /Wrote toy[^]*same noise/) };
  seen.shown = await page.locator("#concept_erasure_before_after img").evaluate((image) => image.naturalWidth);
  seen.harden = (await at("harden").locator("input[type=range]").boundingBox()).width;
  await picture("erase");
  await tab("txt2img").click();
  await opened("panel_txt2img");
  await at("name_txt2img_1").locator("input").first().click();
  seen.listed = await at("name_txt2img_1").locator("ul li").allInnerTexts();
  await page.keyboard.press("Escape");
  await tab("Concept Erasure").click();
  return seen;
}

// A training that is interrupted, saved as it is, and thrown away.
async function trained() {
  await fill("words", "cube");
  await fill("name", "");
  await choose("method", "esd");
  await opened("settings_esd");
  const few = { batch: 1, trajectories: 1, trajectory_steps: 2, rank: 2 };
  for (const [name, value] of Object.entries({ ...few, steps: 2000 })) await fill(`esd_${name}`, value);
  await at("start").click();
  const now = () => fetch("/concept-erasure/v1/last-job").then((answer) => answer.json());
  const trains = (job) => job.title.includes("cube") && job.stage === "training" && job.step > 2;
  const until = Date.now() + 900000;
  while (Date.now() < until && !trains(await page.evaluate(now))) await page.waitForTimeout(1000);
  await at("interrupt").click();
  const seen = { stopped: await says("last_job", /cube[^]*stopped[^]*discard it/) };
  await at("save_unfinished").click();
  seen.saved = await says("result", /Wrote/);
  await at("discard").click();
  seen.discarded = await says("result", /discarded/);
  await fill("name", "block");
  await choose("method", "auto");
  await opened("settings_auto");
  const short = { ...few, steps: 4, warm_up: 1, check_every: 2, check_starts: 1, check_steps: 2 };
  for (const [name, value] of Object.entries(short)) await fill(`auto_${name}`, value);
  await at("start").click();
  seen.auto = await says("last_job", /Wrote block\.safetensors/, 1800000);
  await fill("name", "");
  return seen;
}

// A word as a stranger might write it comes back as text.
async function strange() {
  await choose("method", "closed_form");
  await fill("words", `${HOSTILE}\nstar`);
  await at("start").click();
  const ended = (word) => {
    const said = document.querySelector("#concept_erasure_last_job").innerText;  // until then, of the job before
    return said.includes(word) && /Wrote .*safetensors/.test(said);
  };
  await page.waitForFunction(ended, HOSTILE, { timeout: 900000 });
  const seen = { job: await text("last_job") };
  seen.live = await page.locator("#concept_erasure_live").count();
  await page.reload({ waitUntil: "domcontentloaded" });
  await page.locator("#tabs > .tab-nav button", { hasText: "Concept Erasure" }).click({ timeout: 120000 });
  await page.waitForTimeout(3000);
  seen.afterReload = await text("last_job");
  seen.model = await text("model");
  seen.broken = await page.evaluate(() => window.broken === undefined);
  await fill("words", "");
  return seen;
}

async function library() {
  await open("Library");
  await page.waitForTimeout(1500);
  const seen = { rows: await page.locator("#concept_erasure_table tbody tr").count(), table: await text("library") };
  await at("check").click();
  await page.waitForFunction(() => /Fit/.test(document.querySelector("#concept_erasure_library_message").innerText), null, { timeout: 60000 });
  seen.fit = await text("library_message");
  await choose("chosen", /img_src/);
  await at("delete").click();
  await page.waitForFunction(() => /Tick the box/.test(document.querySelector("#concept_erasure_library_message").innerText), null, { timeout: 60000 });
  seen.refused = await text("library_message");
  await at("sure").locator("input").check();
  await at("delete").click();
  await page.waitForFunction(() => /was deleted/.test(document.querySelector("#concept_erasure_library_message").innerText), null, { timeout: 60000 });
  const fewer = (rows) => document.querySelectorAll("#concept_erasure_table tbody tr").length < rows;
  await page.waitForFunction(fewer, seen.rows, { timeout: 60000 });
  await page.waitForTimeout(1000);
  seen.left = await page.locator("#concept_erasure_table tbody tr").count();
  seen.sure = await at("sure").locator("input").isChecked();
  seen.broken = await page.evaluate(() => window.broken === undefined);
  await picture("library");
  const done = async (button, words) => {
    await at(button).click();
    const said = await says("library_message", words);
    await page.waitForTimeout(2000);
    return said;
  };
  await fill("search", "TOY");
  await page.waitForTimeout(2000);
  seen.searched = await page.locator("#concept_erasure_table tbody tr").allInnerTexts();
  await fill("search", "");
  await choose("chosen", "toy");
  await fill("new_name", "plaything");
  seen.renamed = await done("rename", /is now plaything/);
  await at("import_file").locator("input[type=file]").setInputFiles(task.file);
  await page.waitForFunction(() => /brought/.test(document.querySelector("#concept_erasure_import_file").innerText), null, { timeout: 60000 });
  seen.imported = await done("import", /was imported/);
  await choose("chosen", "brought");
  seen.exported = await done("export", /is now a LoRA/);
  await fill("profile_name", "playground");
  await choose("profile_files", "plaything");
  seen.profile = await done("profile_make", /was written/);
  return seen;
}

async function panel() {
  await tab("txt2img").click();
  await page.waitForTimeout(1000);
  await opened("panel_txt2img");
  await at("enabled_txt2img").locator("input").check();
  await page.locator("#txt2img_prompt textarea").first().fill("a red ball");
  for (const [id, value] of [["steps", 3], ["width", 64], ["height", 64]]) {
    await page.locator(`#txt2img_${id} input[type=number]`).first().fill(String(value));
    await page.keyboard.press("Tab");
  }
  const results = page.locator("#txt2img_results");
  await page.locator("#txt2img_generate").click();
  await page.waitForFunction(() => /names no erasure/.test(document.querySelector("#txt2img_results").innerText), null, { timeout: 600000 });
  const seen = { empty: await results.innerText() };
  await choose("name_txt2img_1", task.erasure);
  await page.waitForTimeout(500);
  await page.locator("#txt2img_generate").click();
  await page.waitForFunction(() => /Concept erasure: /.test(document.querySelector("#txt2img_results").innerText), null, { timeout: 600000 });
  seen.erased = await results.innerText();
  await at("panel_txt2img").scrollIntoViewIfNeeded();
  await page.screenshot({ path: `${task.folder}/panel.jpg`, type: "jpeg", quality: 80 });
  // Pasting an infotext that the panel cannot hold whole: the rest goes into the prompt.
  const pasted = `a red ball\nSteps: 3, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64, Concept erasure: "${task.erasure}:0.5, ${task.erasure}:1:0"`;
  await page.locator("#txt2img_prompt textarea").first().fill(pasted);
  await page.locator("#paste").first().click();
  await page.waitForTimeout(4000);
  seen.prompt = await page.locator("#txt2img_prompt textarea").first().inputValue();
  seen.strength = await at("strength_txt2img_1").locator("input[type=number]").first().inputValue();
  return seen;
}

async function explore() {
  await open("Explore");
  await fill("explore_words", "ball");
  await choose("explore_with", task.erasure);
  await fill("explore_seconds", task.seconds);
  await at("explore_more").locator("button, .label-wrap").first().click();
  await page.waitForTimeout(400);
  for (const [id, value] of [["explore_look", 4], ["explore_states", 2], ["explore_side", 64]]) await fill(id, value);
  await fill("explore_tries", HOSTILE);
  await at("explore_pictures").locator("input").check();
  await at("explore").click();
  const live = new Set();
  const until = Date.now() + 900000;
  while (Date.now() < until && !(await page.locator("#concept_erasure_map iframe").count())) {
    const told = await text("explore_candidates");
    if (told.includes("Searching")) live.add(told.split("\n")[0]);
    await page.waitForTimeout(500);
  }
  await page.waitForTimeout(1500);
  const frame = page.frameLocator("#concept_erasure_map iframe");
  await frame.locator("#worst").click();
  await page.waitForTimeout(800);
  const seen = { live: [...live], said: await text("explore_message"), title: await frame.locator("#title").innerText() };
  seen.count = Number(await frame.locator("#count").innerText());
  const chosen = async () => (await at("selected").locator("textarea").inputValue()).split("\n").filter(Boolean);
  if (!(await chosen()).length) {
    // In a short search perhaps nothing leaks, or only what no words stand for: select all there is.
    const map = frame.locator("#map");
    const { width, height } = await map.boundingBox();
    await map.dragTo(map, { sourcePosition: { x: 2, y: 2 }, targetPosition: { x: width - 2, y: height - 2 } });
    await page.waitForTimeout(800);
  }
  seen.selected = await chosen();
  seen.rows = await page.locator("#concept_erasure_candidates_table tbody tr").count();
  seen.escaped = (await text("explore_candidates")).includes("<img src=x");
  await picture("explore");
  await framed("explore-map", "#concept_erasure_map iframe");
  const [download] = await Promise.all([page.waitForEvent("download"), at("map").locator("a[download]").first().click()]);
  seen.download = download.suggestedFilename();
  await at("harden_selected").click();
  await page.waitForTimeout(2500);
  seen.form = (await at("words").locator("textarea").inputValue()).split("\n");
  seen.formSaid = await text("result");
  await picture("harden");
  seen.broken = await page.evaluate(() => window.broken === undefined);
  return seen;
}

async function interrupted() {
  await open("Explore");
  await fill("explore_seconds", 600);
  await at("explore").click();
  const until = Date.now() + 600000;
  // Not while it prepares: nothing is found then, and nothing could be kept.
  while (Date.now() < until && !(await text("explore_candidates")).includes("Searching: lexical")) await page.waitForTimeout(500);
  await at("explore_interrupt").click();
  await page.waitForFunction(() => /Stopped early/.test(document.querySelector("#concept_erasure_explore_message").innerText), null, { timeout: 600000 });
  return { said: await text("explore_message"), map: await page.locator("#concept_erasure_map iframe").count() };
}

async function report() {
  await open("Report");
  await choose("report_erasures", task.erasure);
  await fill("report_seconds", task.seconds);
  await at("report_more").locator("button, .label-wrap").first().click();
  await page.waitForTimeout(400);
  for (const [id, value] of [["report_states", 2], ["report_steps", 3], ["report_side", 64]]) await fill(id, value);
  await at("report").click();
  await page.waitForSelector("#concept_erasure_report_page iframe", { timeout: 900000 });
  await page.waitForTimeout(1500);
  const frame = page.frameLocator("#concept_erasure_report_page iframe");
  const seen = { title: await frame.locator("h1").innerText(), pictures: await frame.locator("img").count() };
  seen.said = await text("report_message");
  await picture("report");
  await framed("report-page", "#concept_erasure_report_page iframe");
  return seen;
}

try {
  await page.goto(task.url, { waitUntil: "domcontentloaded", timeout: 180000 });
  await page.locator("#tabs > .tab-nav button", { hasText: "Concept Erasure" }).click({ timeout: 120000 });
  await page.waitForTimeout(1500);
  const seen = { erase: await erase(), trained: await trained(), strange: await strange(), library: await library() };
  Object.assign(seen, { explore: await explore(), interrupted: await interrupted(), report: await report() });
  seen.panel = await panel();
  console.log(JSON.stringify({ ...seen, problems, outside }));
} catch (error) {
  await page.screenshot({ path: `${task.folder}/failure.png`, fullPage: true }).catch(() => {});
  console.log(JSON.stringify({ error: String(error), problems, outside }));
} finally {
  await browser.close();
}
