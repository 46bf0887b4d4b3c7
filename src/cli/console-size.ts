import type { Terminal } from "../host/node/terminal.ts";
import { consoleDevices } from "../machine/devices/virtio-serial.ts";
import type { DeviceTree } from "../machine/machine-builder.ts";

/** Tells the guest's consoles the size of the window, now and whenever it changes. */
export function connectTerminal(terminal: Terminal, machine: DeviceTree): void {
  const resize = (cols: number, rows: number): void => {
    if (cols === 0 || rows === 0) return;
    for (const device of consoleDevices(machine.devices)) device.resize(cols, rows);
  };
  terminal.onResize = resize;
  resize(terminal.size.cols, terminal.size.rows);
}
