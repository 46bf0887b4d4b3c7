import type { MachineDescription } from "./description.ts";

export interface OrdersFor {
  readonly description: MachineDescription;
  /** Disks to wait for. */
  readonly disks: number;
  /** The agent's ports are there. */
  readonly agent: boolean;
  /** The helper's port is there. */
  readonly control: boolean;
  /** A disk for init to mount, "vda:/root"; undefined for none. */
  readonly data: string | undefined;
  /** TERM for the shell; left out where init would not take it. */
  readonly term: string | undefined;
  /** Milliseconds since 1970. */
  readonly now: number;
}

/**
 * The line that a prepared guest's init waits for (docs/guest-agent.md): look for devices, wait until those of this machine are
 * there, and give the user a shell on the virtio console if there is one, else on the first serial port.
 */
export function orders({ description, disks, agent, control, data, term, now }: OrdersFor): string {
  const { devices, serials } = description;
  const named = (name: string): number => devices.filter(({ driver }) => driver.startsWith(name)).length;
  const words = ["go", "rescan", `time=${Math.floor(now / 1000)}`];
  for (let i = 0; i < Math.min(disks, 26); i++) words.push(`wait=vd${String.fromCharCode(0x61 + i)}`);
  if (agent) words.push("exec");
  if (control) words.push("control");
  if (data !== undefined) words.push(`data=${data}`);
  if (term !== undefined && /^[A-Za-z0-9_-]+$/.test(term)) words.push(`term=${term}`);
  if (named("virtconsole") > 0) words.push("shell=hvc0");
  else if (serials[0]?.chardev !== undefined) words.push("shell=ttyS0");
  return words.join(" ");
}
