export type { AddressRange, MsiMessage, PciAccess, PciResources } from "./access.ts";
export { devfn, intxLine, PciBus, type PciBusHost, type PciWindow } from "./bus.ts";
export { type PciDriverTransport, PciScanner, type PciScanOptions, VirtioPciTransport } from "./driver.ts";
export type { InterruptMode } from "./driver-interrupts.ts";
export { PciEndpoint, type PciIdentity } from "./endpoint.ts";
export type { AccessSize, BarKind, PciBar, PciFunction, PciHost } from "./function.ts";
export { type HostBridgeOptions, PciHostBridge } from "./host-bridge.ts";
export { VirtioPciDevice, type VirtioPciOptions } from "./virtio-pci-device.ts";
