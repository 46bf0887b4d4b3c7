import {
  QUEUE_DESC_HIGH,
  QUEUE_DESC_LOW,
  QUEUE_DEVICE_HIGH,
  QUEUE_DEVICE_LOW,
  QUEUE_DRIVER_HIGH,
  QUEUE_DRIVER_LOW,
  type QueueRegisters,
} from "../../device/queue-registers.ts";
import type { StatusMachine } from "../../device/status-machine.ts";
import {
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_COMMON_CFGGENERATION,
  VIRTIO_PCI_COMMON_DF,
  VIRTIO_PCI_COMMON_DFSELECT,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_NUMQ,
  VIRTIO_PCI_COMMON_Q_AVAILHI,
  VIRTIO_PCI_COMMON_Q_AVAILLO,
  VIRTIO_PCI_COMMON_Q_DESCHI,
  VIRTIO_PCI_COMMON_Q_DESCLO,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_NOFF,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SELECT,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_Q_USEDHI,
  VIRTIO_PCI_COMMON_Q_USEDLO,
  VIRTIO_PCI_COMMON_SIZE,
  VIRTIO_PCI_COMMON_STATUS,
} from "../../spec/pci.ts";
import type { TraceEvent } from "../../trace/types.ts";
import { type Field, RegisterFields } from "./register-fields.ts";

/** Which MSI-X vector stands for which event. All are unmapped at reset (device: MSI-X Vector Configuration). */
export class VectorMap {
  /** Vectors of the function: 0 without MSI-X, and then nothing can be mapped. */
  readonly count: number;
  config = VIRTIO_MSI_NO_VECTOR;
  readonly queues: Uint16Array;

  constructor(count: number, queues: number) {
    this.count = count;
    this.queues = new Uint16Array(queues).fill(VIRTIO_MSI_NO_VECTOR);
  }

  /** The vector itself, or NO_VECTOR for one that does not exist. */
  valid(vector: number): number {
    return vector < this.count ? vector : VIRTIO_MSI_NO_VECTOR;
  }

  reset(): void {
    this.config = VIRTIO_MSI_NO_VECTOR;
    this.queues.fill(VIRTIO_MSI_NO_VECTOR);
  }
}

/**
 * struct virtio_pci_common_cfg (VIRTIO 1.4 §4.1.4.3). A driver has to use each field's own width; other accesses work too:
 * bytes that are not written keep their value, and a wide write reaches every field that it covers.
 */
export class CommonConfig extends RegisterFields {
  constructor(machine: StatusMachine, vectors: VectorMap) {
    super(machine.device, VIRTIO_PCI_COMMON_SIZE, [
      ...deviceFields(machine, vectors),
      ...queueFields(machine, vectors),
    ]);
  }
}

function deviceFields(machine: StatusMachine, vectors: VectorMap): Field[] {
  return [
    {
      offset: VIRTIO_PCI_COMMON_DFSELECT,
      size: 4,
      read: () => machine.deviceFeatureSelect,
      write: (value) => {
        machine.deviceFeatureSelect = value;
      },
    },
    { offset: VIRTIO_PCI_COMMON_DF, size: 4, read: () => machine.deviceFeature },
    {
      offset: VIRTIO_PCI_COMMON_GFSELECT,
      size: 4,
      read: () => machine.driverFeatureSelect,
      write: (value) => {
        machine.driverFeatureSelect = value;
      },
    },
    {
      offset: VIRTIO_PCI_COMMON_GF,
      size: 4,
      read: () => machine.driverFeature,
      write: (value) => machine.writeDriverFeature(value),
    },
    {
      offset: VIRTIO_PCI_COMMON_MSIX,
      size: 2,
      read: () => vectors.config,
      write: (value) => {
        vectors.config = vectors.valid(value);
      },
    },
    { offset: VIRTIO_PCI_COMMON_NUMQ, size: 2, read: () => machine.queues.count },
    {
      offset: VIRTIO_PCI_COMMON_STATUS,
      size: 1,
      read: () => machine.status,
      write: (value) => machine.writeStatus(value),
    },
    { offset: VIRTIO_PCI_COMMON_CFGGENERATION, size: 1, read: () => machine.device.config.generation & 0xff },
  ];
}

/** A write to a register of the selected queue, for traces. */
export function tracedQueue(queues: QueueRegisters, register: string): (value: number) => TraceEvent {
  return (value) => ({ kind: "queue", queue: queues.select, register, value });
}

// queue_notif_config_data and the administration queue's fields belong to features that are not offered: they read 0.
function queueFields(machine: StatusMachine, vectors: VectorMap): Field[] {
  const { queues } = machine;
  const address = (offset: number, half: number, name: string): Field => ({
    offset,
    size: 4,
    read: () => queues.address(half),
    write: (value) => queues.writeAddress(half, value),
    trace: tracedQueue(queues, name),
  });
  return [
    {
      offset: VIRTIO_PCI_COMMON_Q_SELECT,
      size: 2,
      read: () => queues.select,
      write: (value) => {
        queues.select = value;
      },
    },
    {
      offset: VIRTIO_PCI_COMMON_Q_SIZE,
      size: 2,
      read: () => queues.size,
      write: (value) => queues.writeSize(value),
      trace: tracedQueue(queues, "queue_size"),
    },
    {
      offset: VIRTIO_PCI_COMMON_Q_MSIX,
      size: 2,
      read: () => vectors.queues[queues.select] ?? VIRTIO_MSI_NO_VECTOR,
      write: (value) => {
        if (queues.select < queues.count) vectors.queues[queues.select] = vectors.valid(value);
      },
      trace: tracedQueue(queues, "queue_msix_vector"),
    },
    {
      offset: VIRTIO_PCI_COMMON_Q_ENABLE,
      size: 2,
      read: () => (queues.enabled ? 1 : 0),
      write: (value) => queues.writeEnable(value),
      trace: tracedQueue(queues, "queue_enable"),
    },
    {
      offset: VIRTIO_PCI_COMMON_Q_NOFF,
      size: 2,
      read: () => (queues.select < queues.count ? queues.select : 0),
    },
    address(VIRTIO_PCI_COMMON_Q_DESCLO, QUEUE_DESC_LOW, "queue_desc"),
    address(VIRTIO_PCI_COMMON_Q_DESCHI, QUEUE_DESC_HIGH, "queue_desc+4"),
    address(VIRTIO_PCI_COMMON_Q_AVAILLO, QUEUE_DRIVER_LOW, "queue_driver"),
    address(VIRTIO_PCI_COMMON_Q_AVAILHI, QUEUE_DRIVER_HIGH, "queue_driver+4"),
    address(VIRTIO_PCI_COMMON_Q_USEDLO, QUEUE_DEVICE_LOW, "queue_device"),
    address(VIRTIO_PCI_COMMON_Q_USEDHI, QUEUE_DEVICE_HIGH, "queue_device+4"),
    {
      offset: VIRTIO_PCI_COMMON_Q_RESET,
      size: 2,
      read: () => (queues.resetting ? 1 : 0),
      write: (value) => queues.writeReset(value),
      trace: tracedQueue(queues, "queue_reset"),
    },
  ];
}
