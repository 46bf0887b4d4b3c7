import { VirtkitError } from "../../common/error.ts";
import { VIRTIO_PCI_COMMON_SIZE } from "../../spec/pci.ts";
import type { BarKind } from "./function.ts";

/** Where a virtio structure lies. */
export interface StructurePlace {
  readonly bar: number;
  /** Bytes from the BAR's start. */
  readonly offset: number;
  readonly length: number;
}

/** BARs and structures of a modern virtio-pci function. */
export interface ModernLayout {
  readonly bar: number;
  readonly kind: BarKind;
  readonly barSize: number;
  readonly common: StructurePlace;
  readonly isr: StructurePlace;
  readonly device: StructurePlace;
  readonly notify: StructurePlace;
  /** Bytes between the doorbells of two queues; a power of two, or 0 for one doorbell for all. */
  readonly notifyMultiplier: number;
}

/** Indices of the BARs, as QEMU has them. */
export const LEGACY_BAR = 0;
export const MSIX_BAR = 1;
export const NOTIFY_IO_BAR = 2;
/** 64 bits wide, so it takes BAR 3 too. */
export const SHARED_MEMORY_BAR = 2;
export const MODERN_BAR = 4;

const PAGE = 4096;
/** Doorbells that QEMU reserves room for; the BAR's size is the same for every device then. */
const DOORBELLS = 1024;

const alignUp = (value: number, align: number): number => Math.ceil(value / align) * align;

/**
 * In memory: a page for each structure and doorbells at the end, as in QEMU (16 KiB). In I/O space, which is scarce: packed, with
 * one doorbell for all queues.
 */
export function modernLayout(kind: BarKind, queues: number, configSize: number, pagePerQueue: boolean): ModernLayout {
  const place = (offset: number, length: number): StructurePlace => ({ bar: MODERN_BAR, offset, length });
  if (kind === "io") {
    const device = alignUp(VIRTIO_PCI_COMMON_SIZE + 8, 4);
    return {
      bar: MODERN_BAR,
      kind,
      barSize: 2 ** Math.ceil(Math.log2(device + Math.max(configSize, 4))),
      common: place(0, VIRTIO_PCI_COMMON_SIZE),
      isr: place(VIRTIO_PCI_COMMON_SIZE, 4),
      notify: place(VIRTIO_PCI_COMMON_SIZE + 4, 4),
      device: place(device, Math.max(alignUp(configSize, 4), 4)),
      notifyMultiplier: 0,
    };
  }
  if (configSize > PAGE)
    throw new VirtkitError("ERR_VIRTKIT_CONFIG_SIZE", `a configuration of ${configSize} bytes is over ${PAGE}`);
  const multiplier = pagePerQueue ? PAGE : 4;
  const notify = place(3 * PAGE, multiplier * Math.max(DOORBELLS, queues));
  return {
    bar: MODERN_BAR,
    kind,
    barSize: 2 ** Math.ceil(Math.log2(notify.offset + notify.length)),
    common: place(0, PAGE),
    isr: place(PAGE, PAGE),
    device: place(2 * PAGE, PAGE),
    notify,
    notifyMultiplier: multiplier,
  };
}
