// Installs what package-lock.json names, unless it is there, and compiles: the library, its tests and the driver.

import { execFileSync } from "node:child_process";
import { statSync } from "node:fs";
import path from "node:path";

const folder = path.dirname(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname));

function changed(file) {
  return statSync(path.join(folder, file), { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

function run(...command) {
  execFileSync(command[0], command.slice(1), { cwd: folder, stdio: "inherit" });
}

// what is installed has its binaries with it: no package's script need run
if (changed("node_modules/.package-lock.json") < changed("package-lock.json")) {
  run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error");
}
run(process.execPath, path.join("node_modules", "typescript", "bin", "tsc"), "-p", "tsconfig.all.json");
