// Opens a report in headless Chromium, narrow and wide, light and dark, and prints what axe-core finds, how far the page
// is wider than the window, what it asks the network for, and whether the table sorts. Usage: node report.mjs PAGE FOLDER
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const [file, folder] = process.argv.slice(2);
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const found = { violations: [], overflow: 0, requests: [], errors: [], sorted: [] };
try {
  for (const width of [1400, 390]) {
    for (const scheme of ["light", "dark"]) {
      const page = await browser.newPage();
      page.on("pageerror", (error) => found.errors.push(error.message));
      page.on("request", (request) => request.url().startsWith("file:") || found.requests.push(request.url()));
      await page.setBypassCSP(true); // for axe; the page's own script is tried below without
      await page.setViewport({ width, height: 900, isMobile: width < 500, deviceScaleFactor: width < 500 ? 2 : 1 });
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.goto(pathToFileURL(file));
      await page.screenshot({ path: `${folder}/report_${width}_${scheme}.png`, fullPage: true });
      found.overflow = Math.max(found.overflow, await page.evaluate((given) => document.documentElement.scrollWidth - given, width));
      await page.evaluate(() => document.querySelectorAll("details").forEach((each) => (each.open = true)));
      await page.addScriptTag({ path: axe });
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      const rows = violations.map(({ id, impact, nodes }) => ({ id, impact, width, scheme, first: nodes[0].html.slice(0, 200) }));
      found.violations.push(...rows);
      await page.close();
    }
  }
  const page = await browser.newPage();
  page.on("pageerror", (error) => found.errors.push(error.message));
  page.on("console", (message) => found.errors.push(message.text()));
  await page.goto(pathToFileURL(file));
  for (let press = 0; press < 2; press++) {
    await page.click("table.sortable th:nth-child(2) button");
    found.sorted.push(await page.$$eval("table.sortable tbody tr td:nth-child(2)", (cells) => cells.map((cell) => Number(cell.dataset.value))));
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(found));
