// Bundles the page into ../../src/psd_gs/assets/viewer, with the notices of what is in it and the hashes of everything.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const OUT = new URL("../../src/psd_gs/assets/viewer/", import.meta.url);
const here = (path) => new URL(path, import.meta.url);
const read = (path) => readFileSync(here(path), "utf8");
const sha256 = (text) => createHash("sha256").update(text).digest("hex");

const { outputFiles } = await build({
  entryPoints: [fileURLToPath(here("src/main.js"))],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "none", // they are in the notices
  write: false,
});
const script = outputFiles[0].text.trim();
if (/<\/script|<!--/i.test(script)) throw new Error("the script would end its own element");

const page = read("src/page.html")
  .replace("/*style*/", () => read("src/page.css").trim())
  .replace("/*script*/", () => script);

const packages = ["@sparkjsdev/spark", "three", "fflate"];
const notices = packages.map((name) => {
  const { version, license } = JSON.parse(read(`node_modules/${name}/package.json`));
  return `${name} ${version} (${license})\n\n${read(`node_modules/${name}/LICENSE`).trim()}\n`;
});
// Spark's WebAssembly is compiled from Rust; the messages in it name the files of the crates that it was made from.
const wasm = Buffer.from(script.match(/AGFzbQ[\w+/=]{1000,}/)[0], "base64").toString("latin1");
const crates = [...new Set([...wasm.matchAll(/([a-z][\w-]*-\d+\.\d+\.\d+)\/src/g)].map((match) => match[1]))].sort();
const head = `page.html contains these programs, bundled and minified. Spark in turn contains these Rust crates, in WebAssembly,
each under MIT, Apache-2.0, Zlib or Unlicense: ${crates.join(", ")}.
`;
const written = {
  "page.html": page,
  "THIRD_PARTY_NOTICES.txt": [head, ...notices].join(`\n${"-".repeat(80)}\n\n`),
};

mkdirSync(OUT, { recursive: true });
const sources = ["build.js", "package-lock.json", ...readdirSync(here("src")).sort().map((name) => `src/${name}`)];
const record = {
  sources: Object.fromEntries(sources.map((name) => [name, sha256(read(name))])),
  files: Object.fromEntries(Object.entries(written).map(([name, text]) => [name, sha256(text)])),
};
for (const [name, text] of Object.entries(written)) writeFileSync(new URL(name, OUT), text);
writeFileSync(new URL("build.json", OUT), `${JSON.stringify(record, null, 2)}\n`);
