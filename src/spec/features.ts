/** Reserved feature bits (VIRTIO 1.4 §6), independent of the device type. */

export const VIRTIO_F_NOTIFY_ON_EMPTY = 24; // legacy
export const VIRTIO_F_ANY_LAYOUT = 27; // legacy
export const VIRTIO_F_INDIRECT_DESC = 28;
export const VIRTIO_F_EVENT_IDX = 29;
export const VIRTIO_F_VERSION_1 = 32;
export const VIRTIO_F_ACCESS_PLATFORM = 33;
export const VIRTIO_F_RING_PACKED = 34;
export const VIRTIO_F_IN_ORDER = 35;
export const VIRTIO_F_ORDER_PLATFORM = 36;
export const VIRTIO_F_SR_IOV = 37;
export const VIRTIO_F_NOTIFICATION_DATA = 38;
export const VIRTIO_F_NOTIF_CONFIG_DATA = 39;
export const VIRTIO_F_RING_RESET = 40;
export const VIRTIO_F_ADMIN_VQ = 41;
/** Since VIRTIO 1.4. */
export const VIRTIO_F_SUSPEND = 43;
