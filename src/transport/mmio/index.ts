export type { MmioAccess } from "./access.ts";
export { type MmioAccessSize, type MmioVersion, VirtioMmioDevice, type VirtioMmioOptions } from "./device.ts";
export { type MmioDriverOptions, openMmio, VirtioMmioTransport } from "./driver.ts";
export { MmioLink, type MmioLinkOptions } from "./link.ts";
