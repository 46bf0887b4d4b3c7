/** Block device (VIRTIO 1.4 §5.2). */

/** Unit of `capacity` and of a request's `sector`, whatever the block size. */
export const VIRTIO_BLK_SECTOR_SIZE = 512;
export const VIRTIO_BLK_SECTOR_SHIFT = 9;

export const VIRTIO_BLK_F_BARRIER = 0; // legacy
export const VIRTIO_BLK_F_SIZE_MAX = 1;
export const VIRTIO_BLK_F_SEG_MAX = 2;
export const VIRTIO_BLK_F_GEOMETRY = 4;
export const VIRTIO_BLK_F_RO = 5;
export const VIRTIO_BLK_F_BLK_SIZE = 6;
export const VIRTIO_BLK_F_SCSI = 7; // legacy
export const VIRTIO_BLK_F_FLUSH = 9;
export const VIRTIO_BLK_F_TOPOLOGY = 10;
export const VIRTIO_BLK_F_CONFIG_WCE = 11;
export const VIRTIO_BLK_F_MQ = 12;
export const VIRTIO_BLK_F_DISCARD = 13;
export const VIRTIO_BLK_F_WRITE_ZEROES = 14;
export const VIRTIO_BLK_F_LIFETIME = 15;
export const VIRTIO_BLK_F_SECURE_ERASE = 16;
export const VIRTIO_BLK_F_ZONED = 17;

// struct virtio_blk_config (§5.2.4).
export const VIRTIO_BLK_CFG_CAPACITY = 0; // le64
export const VIRTIO_BLK_CFG_SIZE_MAX = 8; // le32
export const VIRTIO_BLK_CFG_SEG_MAX = 12; // le32
export const VIRTIO_BLK_CFG_CYLINDERS = 16; // le16
export const VIRTIO_BLK_CFG_HEADS = 18; // u8
export const VIRTIO_BLK_CFG_SECTORS = 19; // u8
export const VIRTIO_BLK_CFG_BLK_SIZE = 20; // le32
export const VIRTIO_BLK_CFG_PHYSICAL_BLOCK_EXP = 24; // u8
export const VIRTIO_BLK_CFG_ALIGNMENT_OFFSET = 25; // u8
export const VIRTIO_BLK_CFG_MIN_IO_SIZE = 26; // le16
export const VIRTIO_BLK_CFG_OPT_IO_SIZE = 28; // le32
export const VIRTIO_BLK_CFG_WRITEBACK = 32; // u8
export const VIRTIO_BLK_CFG_NUM_QUEUES = 34; // le16
export const VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS = 36; // le32
export const VIRTIO_BLK_CFG_MAX_DISCARD_SEG = 40; // le32
export const VIRTIO_BLK_CFG_DISCARD_SECTOR_ALIGNMENT = 44; // le32
export const VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS = 48; // le32
export const VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SEG = 52; // le32
export const VIRTIO_BLK_CFG_WRITE_ZEROES_MAY_UNMAP = 56; // u8
export const VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS = 60; // le32
export const VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SEG = 64; // le32
export const VIRTIO_BLK_CFG_SECURE_ERASE_SECTOR_ALIGNMENT = 68; // le32
/** Bytes of the configuration up to and without the zoned characteristics. */
export const VIRTIO_BLK_CFG_SIZE = 72;
// struct virtio_blk_zoned_characteristics, with VIRTIO_BLK_F_ZONED.
export const VIRTIO_BLK_CFG_ZONE_SECTORS = 72; // le32
export const VIRTIO_BLK_CFG_MAX_OPEN_ZONES = 76; // le32
export const VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES = 80; // le32
export const VIRTIO_BLK_CFG_MAX_APPEND_SECTORS = 84; // le32
export const VIRTIO_BLK_CFG_WRITE_GRANULARITY = 88; // le32, bytes
export const VIRTIO_BLK_CFG_ZONED_MODEL = 92; // u8
export const VIRTIO_BLK_ZONED_CFG_SIZE = 96;

export const VIRTIO_BLK_Z_NONE = 0;
export const VIRTIO_BLK_Z_HM = 1;
export const VIRTIO_BLK_Z_HA = 2;

// Request header: le32 type, le32 reserved, le64 sector; then data; then u8 status (§5.2.6).
export const VIRTIO_BLK_REQ_TYPE = 0;
export const VIRTIO_BLK_REQ_SECTOR = 8;
export const VIRTIO_BLK_REQ_HEADER_SIZE = 16;

// struct virtio_blk_discard_write_zeroes, of DISCARD, WRITE_ZEROES and SECURE_ERASE.
export const VIRTIO_BLK_RANGE_SECTOR = 0; // le64
export const VIRTIO_BLK_RANGE_NUM_SECTORS = 8; // le32
export const VIRTIO_BLK_RANGE_FLAGS = 12; // le32
export const VIRTIO_BLK_RANGE_SIZE = 16;
export const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

// struct virtio_blk_lifetime.
export const VIRTIO_BLK_LIFETIME_PRE_EOL_INFO = 0; // le16
export const VIRTIO_BLK_LIFETIME_EST_TYP_A = 2; // le16
export const VIRTIO_BLK_LIFETIME_EST_TYP_B = 4; // le16
export const VIRTIO_BLK_LIFETIME_SIZE = 6;
export const VIRTIO_BLK_PRE_EOL_INFO_UNDEFINED = 0;
export const VIRTIO_BLK_PRE_EOL_INFO_NORMAL = 1;
export const VIRTIO_BLK_PRE_EOL_INFO_WARNING = 2;
export const VIRTIO_BLK_PRE_EOL_INFO_URGENT = 3;
/** Largest wear estimate that is not reserved: beyond the estimated lifetime. */
export const VIRTIO_BLK_LIFETIME_EST_MAX = 11;

export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;
export const VIRTIO_BLK_T_GET_LIFETIME = 10;
export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;
export const VIRTIO_BLK_T_SECURE_ERASE = 14;
export const VIRTIO_BLK_T_ZONE_APPEND = 15;
export const VIRTIO_BLK_T_ZONE_REPORT = 16;
export const VIRTIO_BLK_T_ZONE_OPEN = 18;
export const VIRTIO_BLK_T_ZONE_CLOSE = 20;
export const VIRTIO_BLK_T_ZONE_FINISH = 22;
export const VIRTIO_BLK_T_ZONE_RESET = 24;
export const VIRTIO_BLK_T_ZONE_RESET_ALL = 26;

export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;
export const VIRTIO_BLK_S_ZONE_INVALID_CMD = 3;
export const VIRTIO_BLK_S_ZONE_UNALIGNED_WP = 4;
export const VIRTIO_BLK_S_ZONE_OPEN_RESOURCE = 5;
export const VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE = 6;

/** Bytes of `append_sector`, between the data of a ZONE_APPEND request and its status. */
export const VIRTIO_BLK_APPEND_SECTOR_SIZE = 8;

// struct virtio_blk_zone_report: le64 nr_zones, padding, then the descriptors.
export const VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE = 64;
// struct virtio_blk_zone_descriptor.
export const VIRTIO_BLK_ZONE_CAP = 0; // le64
export const VIRTIO_BLK_ZONE_START = 8; // le64
export const VIRTIO_BLK_ZONE_WP = 16; // le64
export const VIRTIO_BLK_ZONE_TYPE = 24; // u8
export const VIRTIO_BLK_ZONE_STATE = 25; // u8
export const VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE = 64;

export const VIRTIO_BLK_ZT_CONV = 1;
export const VIRTIO_BLK_ZT_SWR = 2;
export const VIRTIO_BLK_ZT_SWP = 3;

export const VIRTIO_BLK_ZS_NOT_WP = 0;
export const VIRTIO_BLK_ZS_EMPTY = 1;
export const VIRTIO_BLK_ZS_IOPEN = 2;
export const VIRTIO_BLK_ZS_EOPEN = 3;
export const VIRTIO_BLK_ZS_CLOSED = 4;
export const VIRTIO_BLK_ZS_RDONLY = 13;
export const VIRTIO_BLK_ZS_FULL = 14;
export const VIRTIO_BLK_ZS_OFFLINE = 15;

/** Bytes of the device id that GET_ID returns, padded with zeros. */
export const VIRTIO_BLK_ID_BYTES = 20;
