import {
  VIRTIO_ID_9P,
  VIRTIO_ID_BLOCK,
  VIRTIO_ID_CONSOLE,
  VIRTIO_ID_FS,
  VIRTIO_ID_GPU,
  VIRTIO_ID_INPUT,
  VIRTIO_ID_NET,
  VIRTIO_ID_SCSI,
  VIRTIO_ID_SOUND,
  VIRTIO_ID_VSOCK,
} from "../../spec/ids.ts";

const PCI_CLASS_OTHERS = 0x00ff;

/** Class and subclass that QEMU gives the PCI form of each device type; firmware looks for its boot disk by them. */
const CLASS_CODES = new Map<number, number>([
  [VIRTIO_ID_NET, 0x0200], // network, Ethernet
  [VIRTIO_ID_BLOCK, 0x0100], // storage, SCSI
  [VIRTIO_ID_CONSOLE, 0x0780], // communication, other
  [VIRTIO_ID_SCSI, 0x0100],
  [VIRTIO_ID_9P, 0x0002],
  [VIRTIO_ID_GPU, 0x0380], // display, other
  [VIRTIO_ID_INPUT, 0x0980], // input, other
  [VIRTIO_ID_VSOCK, 0x0780],
  [VIRTIO_ID_SOUND, 0x0401], // multimedia, audio
  [VIRTIO_ID_FS, 0x0180], // storage, other
]);

/** PCI class and subclass of a virtio device type; "others" for those without a class of their own. */
export const classCodeOf = (deviceId: number): number => CLASS_CODES.get(deviceId) ?? PCI_CLASS_OTHERS;
