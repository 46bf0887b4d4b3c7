import type { ChardevBackend, ChardevOptions, SocketChardev } from "../../machine/description.ts";
import { oneOf, suggest } from "../../machine/nearest.ts";
import { UsageError } from "../../machine/usage-error.ts";
import { Keyval } from "./keyval.ts";

export const CHARDEV_TYPES = ["file", "null", "pipe", "ringbuf", "socket", "stdio"] as const;
type ChardevType = (typeof CHARDEV_TYPES)[number];
const UNSUPPORTED_TYPES =
  "console dbus memory msmouse mux parallel parport port pty qemu-vdagent serial spiceport spicevmc testdev tty udp vc wctablet".split(
    " ",
  );

const MAX_PORT = 65535;

/** -chardev. @throws UsageError */
export function parseChardev(text: string): ChardevOptions {
  const keys = new Keyval("-chardev", text, "backend");
  const type = chardevType(keys, keys.text("backend"));
  const id = keys.id() ?? keys.fail("chardev: no id specified", `Add id=NAME: -chardev ${type},id=NAME`);
  const mux = keys.flag("mux") ?? false;
  if (mux && type !== "stdio") keys.fail("mux=on is only supported for stdio");
  keys.refuse({ logfile: "use -chardev file", logappend: "use -chardev file,append=on" });
  const backend = PARSERS[type](keys, mux);
  keys.finish();
  return { option: keys.option, id, backend };
}

/** What `-chardev help` prints. */
export const chardevHelp = (): string =>
  `Available chardev backend types:\n${CHARDEV_TYPES.map((type) => `  ${type}\n`).join("")}`;

function chardevType(keys: Keyval, name: string | undefined): ChardevType {
  const found = CHARDEV_TYPES.find((type) => type === name);
  if (found !== undefined) return found;
  const valid = `Valid types: ${oneOf(CHARDEV_TYPES)}.`;
  if (name === undefined || name === "") return keys.fail("Parameter 'backend' is missing", valid);
  if (UNSUPPORTED_TYPES.includes(name)) return keys.fail(`the char driver '${name}' is not supported`, valid);
  return keys.fail(`'${name}' is not a valid char driver name`, suggest(name, CHARDEV_TYPES, valid));
}

const PARSERS: Readonly<Record<ChardevType, (keys: Keyval, mux: boolean) => ChardevBackend>> = {
  null: () => ({ type: "null" }),
  stdio: (keys, mux) => ({ type: "stdio", signal: keys.flag("signal") ?? !mux, mux }),
  file: (keys) => ({
    type: "file",
    path: path(keys, "file: no filename given"),
    append: keys.flag("append") ?? false,
    inputPath: keys.text("input-path"),
  }),
  pipe: (keys) => ({ type: "pipe", path: path(keys, "pipe: no device path given") }),
  socket: (keys) => parseSocket(keys, socketAddress(keys)),
  ringbuf: (keys) => ({ type: "ringbuf", size: ringSize(keys) }),
};

function path(keys: Keyval, missing: string): string {
  const given = keys.text("path");
  if (given !== undefined && given !== "") return given;
  return keys.fail(`chardev: ${missing}`, "Add path=PATH.");
}

function ringSize(keys: Keyval): number {
  const size = keys.size("size") ?? 65536;
  if (!Number.isInteger(Math.log2(size)) || size > 2 ** 30)
    keys.fail("size of ringbuf chardev must be power of two", "64K is the default; at most 1G.");
  return size;
}

const SECURE = "connections are plain; tunnel them where they leave the machine";

function parseSocket(keys: Keyval, address: SocketChardev["address"]): SocketChardev {
  keys.refuse({
    fd: "give path= or host= and port=",
    telnet: "telnet's negotiation is not done; drop telnet",
    tn3270: "only plain sockets are",
    websocket: "only plain sockets are",
    "tls-creds": SECURE,
    "tls-authz": SECURE,
    abstract: "give path= or host= and port=",
    to: "give the port itself",
  });
  const server = keys.flag("server") ?? false;
  const wait = keys.flag("wait");
  const reconnect = keys.integer("reconnect", 0, 86400) ?? 0;
  if (wait !== undefined && !server) keys.fail("'wait' option is incompatible with socket in client connect mode");
  if (reconnect > 0 && server) keys.fail("'reconnect' option is incompatible with socket in server listen mode");
  for (const family of ["ipv4", "ipv6"]) keys.flag(family);
  return {
    type: "socket",
    address,
    server,
    wait: wait ?? server,
    noDelay: keys.flag("nodelay") ?? keys.flag("delay") === false,
    reconnect,
  };
}

function socketAddress(keys: Keyval): SocketChardev["address"] {
  const unix = keys.text("path");
  const host = keys.text("host");
  const port = keys.integer("port", 0, MAX_PORT);
  if (unix !== undefined && port !== undefined) keys.fail("path and port cannot be given together");
  if (unix !== undefined && unix !== "") return { path: unix };
  if (port === undefined)
    return keys.fail("chardev: socket: no address given", "Add path=PATH, or host=HOST and port=PORT.");
  return { host: host === undefined || host === "" ? "localhost" : host, port };
}

/** What a -serial says: a chardev of its own, one that is declared elsewhere, or nothing. */
export type ParsedSerial =
  | { readonly option: string; readonly backend: ChardevBackend }
  | { readonly option: string; readonly chardev: string }
  | { readonly option: string };

const SERIAL_FORMS =
  "none, null, stdio, mon:stdio, file:PATH, pipe:PATH, chardev:ID, unix:PATH,server=on,wait=off, tcp:HOST:PORT";
const SERIAL_WORDS = ["none", "null", "stdio", "mon:stdio", "file", "pipe", "chardev", "unix", "tcp"];

/** -serial. @throws UsageError */
export function parseSerial(text: string): ParsedSerial {
  const option = `-serial ${text}`;
  const valid = `Valid here: ${SERIAL_FORMS}.`;
  if (text === "none") return { option };
  if (text === "null") return { option, backend: { type: "null" } };
  if (text === "stdio") return { option, backend: { type: "stdio", signal: true, mux: false } };
  if (text === "mon:stdio") return { option, backend: { type: "stdio", signal: false, mux: true } };
  const [, kind, rest] = /^(file|pipe|chardev|unix|tcp):(.+)$/s.exec(text) ?? [];
  if (rest === undefined) {
    const word = text.split(/[:,]/, 1)[0] ?? "";
    const reason =
      UNSUPPORTED_TYPES.includes(word) || word === "telnet" || word === "mon" || word === "con"
        ? `'${text}' is not supported`
        : `'${text}' is not a valid char driver`;
    throw new UsageError(reason, { option, hint: suggest(word, SERIAL_WORDS, valid) });
  }
  if (kind === "chardev") return { option, chardev: rest };
  if (kind === "file") return { option, backend: { type: "file", path: rest, append: false, inputPath: undefined } };
  if (kind === "pipe") return { option, backend: { type: "pipe", path: rest } };
  return { option, backend: parseSerialSocket(option, kind === "unix" ? "unix" : "tcp", rest) };
}

/** unix:PATH and tcp:HOST:PORT, with a socket's other keys behind them. */
function parseSerialSocket(option: string, kind: "unix" | "tcp", text: string): SocketChardev {
  const keys = new Keyval("-serial", text, kind === "unix" ? "path" : "address", option);
  const socket = parseSocket(keys, kind === "unix" ? socketAddress(keys) : tcpAddress(keys));
  keys.finish();
  return socket;
}

function tcpAddress(keys: Keyval): SocketChardev["address"] {
  const address = keys.text("address");
  const [, host, port] = /^(.*):(\d+)$/.exec(address ?? "") ?? [];
  if (host === undefined || Number(port) > MAX_PORT)
    return keys.fail(`'${address}' is no address`, "Write tcp:HOST:PORT.");
  return { host: host === "" ? "localhost" : host, port: Number(port) };
}
