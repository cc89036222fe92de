// Opens an exported page in headless Chromium and prints what it found. Usage: node page.mjs FOLDER SCREENSHOT
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import puppeteer from "puppeteer-core";

const [folder, screenshot] = process.argv.slice(2);
const types = { ".html": "text/html", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };
const server = createServer(async (request, response) => {
  const path = new URL(request.url, "http://page").pathname.replace(/\/$/, "/index.html");
  try {
    const content = await readFile(join(folder, path));
    response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" });
    response.end(content);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(error.message));
  await page.setViewport({ width: 1100, height: 620 });
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForSelector("body[data-result]", { timeout: 120000 });
  await page.screenshot({ path: screenshot, fullPage: true });
  console.log(await page.evaluate(() => document.body.dataset.result));
} finally {
  await browser.close();
  server.close();
}
