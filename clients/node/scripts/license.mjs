// Puts the licence of the repository into the folder, for the packed file.

import { copyFileSync } from "node:fs";

const folder = new URL("../", import.meta.url);
copyFileSync(new URL("../../LICENSE", folder), new URL("LICENSE", folder));
