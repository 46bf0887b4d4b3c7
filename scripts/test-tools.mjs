// Programs of the distribution that tests call: installed here when root runs the tests, named otherwise.
import { spawnSync } from "node:child_process";

const PACKAGES = {
  e2fsck: "e2fsprogs",
  mke2fs: "e2fsprogs",
  debugfs: "e2fsprogs",
  script: "bsdutils",
  unshare: "util-linux",
  mkfifo: "coreutils",
  xz: "xz-utils",
  mformat: "mtools",
  mcopy: "mtools",
  syslinux: "syslinux",
};

const isThere = (tool) => spawnSync("sh", ["-c", `PATH=$PATH:/usr/sbin:/sbin command -v ${tool}`]).status === 0;

export function installTestTools() {
  const missing = Object.keys(PACKAGES).filter((tool) => !isThere(tool));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((tool) => PACKAGES[tool]))];
  const install = ["apt-get", "install", "-y", "--no-install-recommends", ...packages];
  const asRoot = process.getuid?.() === 0 && isThere("apt-get");
  if (asRoot) {
    spawnSync("apt-get", ["update"], { stdio: "ignore" });
    const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    if (spawnSync(install[0], install.slice(1), { stdio: ["ignore", "ignore", "inherit"], env }).status === 0) return;
  }
  console.error(`Tests need ${missing.join(", ")}, so some will fail; install them with: sudo ${install.join(" ")}`);
}
