/** vhost-user, by the names of QEMU's docs/interop/vhost-user.rst. All numbers are in the byte order of the machine. */

export const VHOST_USER_VERSION = 1;
/** Bytes of the header: request, flags and size of the payload. */
export const VHOST_USER_HEADER_SIZE = 12;
export const VHOST_USER_VERSION_MASK = 0x3;
export const VHOST_USER_REPLY_MASK = 0x4;
export const VHOST_USER_NEED_REPLY_MASK = 0x8;

/** Feature bits of vhost itself, among the device's. */
export const VHOST_F_LOG_ALL = 26;
export const VHOST_USER_F_PROTOCOL_FEATURES = 30;

/** Protocol feature bits. */
export const VHOST_USER_PROTOCOL_F_MQ = 0;
export const VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1;
export const VHOST_USER_PROTOCOL_F_RARP = 2;
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 3;
export const VHOST_USER_PROTOCOL_F_MTU = 4;
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5;
export const VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6;
export const VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7;
export const VHOST_USER_PROTOCOL_F_PAGEFAULT = 8;
export const VHOST_USER_PROTOCOL_F_CONFIG = 9;
export const VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10;
export const VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11;
export const VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12;
export const VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13;
export const VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14;
export const VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15;
export const VHOST_USER_PROTOCOL_F_STATUS = 16;
export const VHOST_USER_PROTOCOL_F_XEN_MMAP = 17;
export const VHOST_USER_PROTOCOL_F_SHARED_OBJECT = 18;
export const VHOST_USER_PROTOCOL_F_DEVICE_STATE = 19;

/** In the payload of SET_VRING_KICK, CALL and ERR: the queue's index, and that no descriptor comes with it. */
export const VHOST_USER_VRING_IDX_MASK = 0xff;
export const VHOST_USER_VRING_NOFD_MASK = 0x100;
/** A flag of SET_VRING_ADDR: writes to the used ring are logged. */
export const VHOST_VRING_F_LOG = 0;
/** Bytes of guest memory that one bit of the dirty log stands for. */
export const VHOST_LOG_PAGE = 0x1000;

/** Flags of GET_CONFIG and SET_CONFIG. */
export const VHOST_SET_CONFIG_TYPE_FRONTEND = 0;
export const VHOST_SET_CONFIG_TYPE_MIGRATION = 1;

/** Directions of SET_DEVICE_STATE_FD. */
export const VHOST_TRANSFER_STATE_DIRECTION_SAVE = 0;
export const VHOST_TRANSFER_STATE_DIRECTION_LOAD = 1;
export const VHOST_TRANSFER_STATE_PHASE_STOPPED = 0;
