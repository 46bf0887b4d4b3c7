/** Console device (VIRTIO 1.4 §5.3). */

export const VIRTIO_CONSOLE_F_SIZE = 0;
export const VIRTIO_CONSOLE_F_MULTIPORT = 1;
export const VIRTIO_CONSOLE_F_EMERG_WRITE = 2;

// struct virtio_console_config (§5.3.4).
export const VIRTIO_CONSOLE_CFG_COLS = 0; // le16
export const VIRTIO_CONSOLE_CFG_ROWS = 2; // le16
export const VIRTIO_CONSOLE_CFG_MAX_NR_PORTS = 4; // le32
export const VIRTIO_CONSOLE_CFG_EMERG_WR = 8; // le32
export const VIRTIO_CONSOLE_CFG_SIZE = 12;

// Queues: 0 receiveq(port0), 1 transmitq(port0), 2 control receiveq, 3 control transmitq, 4 receiveq(port1), ... (§5.3.2).
export const VIRTIO_CONSOLE_CONTROL_RX = 2;
export const VIRTIO_CONSOLE_CONTROL_TX = 3;

// struct virtio_console_control (§5.3.6.2): le32 id, le16 event, le16 value.
export const VIRTIO_CONSOLE_CONTROL_ID = 0;
export const VIRTIO_CONSOLE_CONTROL_EVENT = 4;
export const VIRTIO_CONSOLE_CONTROL_VALUE = 6;
export const VIRTIO_CONSOLE_CONTROL_SIZE = 8;

export const VIRTIO_CONSOLE_DEVICE_READY = 0;
export const VIRTIO_CONSOLE_DEVICE_ADD = 1;
export const VIRTIO_CONSOLE_DEVICE_REMOVE = 2;
export const VIRTIO_CONSOLE_PORT_READY = 3;
export const VIRTIO_CONSOLE_CONSOLE_PORT = 4;
export const VIRTIO_CONSOLE_RESIZE = 5;
export const VIRTIO_CONSOLE_PORT_OPEN = 6;
export const VIRTIO_CONSOLE_PORT_NAME = 7;

/** "Invalid port" as Linux and QEMU send it in DEVICE_READY. */
export const VIRTIO_CONSOLE_BAD_ID = 0xffffffff;
