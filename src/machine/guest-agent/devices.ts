import type { CharBackend } from "../../backend/char/types.ts";
import type { MachineDescription } from "../description.ts";

/** For messages about what nobody typed. */
const OPTION = "the guest agent";
export const AGENT_BUS_ID = "virtkit-agent";

/** The machine with one more console device, which carries the agent's and the helper's ports and nothing else. */
export function withAgentPorts(description: MachineDescription, ports: readonly CharBackend[]): MachineDescription {
  const id = (port: CharBackend): string => `${AGENT_BUS_ID}.${port.name}`;
  return {
    ...description,
    chardevs: [
      ...description.chardevs,
      ...ports.map((backend) => ({ option: OPTION, id: id(backend), backend: { type: "open", backend } as const })),
    ],
    devices: [
      ...description.devices,
      { option: OPTION, driver: "virtio-serial-pci", id: AGENT_BUS_ID, properties: [] },
      ...ports.map((port) => ({
        option: OPTION,
        driver: "virtserialport",
        id: id(port),
        bus: `${AGENT_BUS_ID}.0`,
        properties: [
          { name: "chardev", value: id(port) },
          { name: "name", value: port.name },
        ],
      })),
    ],
  };
}
