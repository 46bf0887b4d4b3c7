import type { SocketAddress } from "../../host/node/socket-char.ts";
import { Keyval } from "./keyval.ts";

/** Where a control socket listens. */
export interface ControlOptions {
  readonly option: string;
  readonly address: SocketAddress;
  /** The machine starts when a client is there. */
  readonly wait: boolean;
}

const FORMS = "Write -qmp unix:PATH,server=on,wait=off or -qmp tcp:HOST:PORT,server=on,wait=off";
const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|::1|\[::1\])$/;

/** -qmp. @throws UsageError */
export function parseControl(text: string): ControlOptions {
  const keys = new Keyval("-qmp", text, "address");
  const [, kind, rest = ""] = /^(unix|tcp):(.*)$/s.exec(keys.text("address") ?? "") ?? [];
  if (kind === undefined || rest === "") keys.fail("no address of a socket", `${FORMS}.`);
  const server = keys.flag("server") ?? false;
  const wait = keys.flag("wait") ?? false;
  keys.refuse({
    telnet: "telnet's negotiation is not done; drop telnet",
    websocket: "only plain sockets are",
    "tls-creds": "connections are plain; tunnel them where they leave the machine",
    reconnect: "clients connect to the machine, not the other way round",
    abstract: "give a path",
    to: "give the port itself",
  });
  for (const key of ["ipv4", "ipv6", "nodelay", "delay"]) keys.flag(key);
  if (!server) {
    // A misspelt "server" is what is to blame then.
    keys.finish();
    keys.fail("the machine does not connect to a client by itself", `Add server=on. ${FORMS}.`);
  }
  const address = kind === "unix" ? { path: rest } : tcpAddress(keys, rest);
  keys.finish();
  return { option: keys.option, address, wait };
}

function tcpAddress(keys: Keyval, text: string): SocketAddress {
  const [, given = "", port = ""] = /^(.*):(\d{1,5})$/.exec(text) ?? [];
  if (port === "" || Number(port) > 65535) keys.fail(`'${text}' is no address`, `${FORMS}.`);
  const host = given === "" ? "localhost" : given;
  if (!LOOPBACK.test(host))
    keys.fail(
      `'${host}' is not on this machine's loopback interface`,
      "Whoever connects commands the machine: listen on localhost, and tunnel from elsewhere (ssh -L).",
    );
  return { host: host.replace(/^\[(.*)\]$/, "$1"), port: Number(port) };
}
