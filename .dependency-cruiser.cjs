// The layers of docs/architecture.md as rules. An arrow of import may only point down.
const layer = (name, from, to, comment) => ({
  name,
  comment,
  severity: "error",
  from: { path: from, pathNot: "\\.test\\.ts$" },
  to: { path: to },
});

// A folder of the core and what it may import besides itself.
const core = {
  spec: [],
  common: ["spec"],
  memory: ["spec", "common"],
  virtqueue: ["spec", "common", "memory"],
  backend: ["common"],
  device: ["spec", "common", "memory", "virtqueue", "backend", "trace"],
  driver: ["spec", "common", "memory", "virtqueue", "trace"],
  transport: ["spec", "common", "memory", "virtqueue", "device", "driver", "trace"],
  trace: [],
};

module.exports = {
  forbidden: [
    {
      name: "no-cycles",
      comment: "A cycle of imports has no order in which it can be read.",
      severity: "error",
      from: {},
      to: { circular: true },
    },
    ...Object.entries(core).map(([folder, allowed]) => ({
      name: `${folder}-imports-only-below`,
      severity: "error",
      from: { path: `^src/${folder}/`, pathNot: "\\.test\\.ts$" },
      to: { pathNot: `^src/(${[folder, ...allowed].join("|")})/` },
    })),
    layer(
      "device-knows-no-other-device",
      "^src/device/(balloon|blk|console|custom|rng)[/.]",
      "^src/device/(?!$1)(balloon|blk|console|custom|rng)[/.]",
      "A device is read, tested and changed by itself.",
    ),
    layer(
      "driver-knows-no-other-driver",
      "^src/driver/(balloon|blk|console|custom|rng)[/.]",
      "^src/driver/(?!$1)(balloon|blk|console|custom|rng)[/.]",
      "A driver is read, tested and changed by itself.",
    ),
    layer(
      "transport-knows-no-concrete-device",
      "^src/transport/",
      "^src/(device|driver)/(balloon|blk|console|custom|rng)[/.]",
      "A transport carries any device: it knows DeviceCore and the driver core.",
    ),
    layer(
      "transport-knows-no-chains",
      "^src/transport/",
      "^src/virtqueue/(?!index\\.ts|types\\.ts)",
      "A transport moves registers and notifications; chains belong to devices.",
    ),
    layer(
      "core-knows-types-of-traces-only",
      "^src/(device|driver|transport)/",
      "^src/trace/(?!types\\.ts)",
      "Who watches is handed in; while nobody does, a hook costs one comparison.",
    ),
    layer("engine-knows-no-machine", "^src/(engine|host)/", "^src/cli/", "The command line is the top."),
    layer("machine-knows-no-cli", "^src/machine/", "^src/cli/", "The command line is the top."),
    layer("testing-is-for-tests", "^src/(?!testing/)", "^src/testing/", "What ships does not import test helpers."),
  ],
  options: {
    tsConfig: { fileName: "tsconfig.json" },
    tsPreCompilationDeps: true,
    doNotFollow: { path: "node_modules" },
    exclude: { path: "node_modules" },
  },
};
