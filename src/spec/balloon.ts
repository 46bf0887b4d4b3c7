/** Traditional memory balloon (VIRTIO 1.4 §5.5). */

export const VIRTIO_BALLOON_F_MUST_TELL_HOST = 0;
export const VIRTIO_BALLOON_F_STATS_VQ = 1;
export const VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 2;
export const VIRTIO_BALLOON_F_FREE_PAGE_HINT = 3;
export const VIRTIO_BALLOON_F_PAGE_POISON = 4;
export const VIRTIO_BALLOON_F_PAGE_REPORTING = 5;

export const VIRTIO_BALLOON_INFLATEQ = 0;
export const VIRTIO_BALLOON_DEFLATEQ = 1;
export const VIRTIO_BALLOON_STATSQ = 2;
export const VIRTIO_BALLOON_FREE_PAGE_VQ = 3;
export const VIRTIO_BALLOON_REPORTING_VQ = 4;

// struct virtio_balloon_config (§5.5.4); little-endian in the legacy interface too.
export const VIRTIO_BALLOON_CFG_NUM_PAGES = 0; // le32
export const VIRTIO_BALLOON_CFG_ACTUAL = 4; // le32
export const VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID = 8; // le32
export const VIRTIO_BALLOON_CFG_POISON_VAL = 12; // le32
export const VIRTIO_BALLOON_CFG_SIZE = 16;

/** Values of free_page_hint_cmd_id and of command ids that name no round of hints. */
export const VIRTIO_BALLOON_CMD_ID_STOP = 0;
export const VIRTIO_BALLOON_CMD_ID_DONE = 1;
/** First value that names one. */
export const VIRTIO_BALLOON_CMD_ID_MIN = 2;
export const VIRTIO_BALLOON_CMD_ID_SIZE = 4;

/** Unit of page numbers, whatever the guest's own pages are. */
export const VIRTIO_BALLOON_PAGE_SIZE = 4096;

// struct virtio_balloon_stat: le16 tag, le64 val, packed.
export const VIRTIO_BALLOON_STAT_SIZE = 10;
export const VIRTIO_BALLOON_S_SWAP_IN = 0;
export const VIRTIO_BALLOON_S_SWAP_OUT = 1;
export const VIRTIO_BALLOON_S_MAJFLT = 2;
export const VIRTIO_BALLOON_S_MINFLT = 3;
export const VIRTIO_BALLOON_S_MEMFREE = 4;
export const VIRTIO_BALLOON_S_MEMTOT = 5;
export const VIRTIO_BALLOON_S_AVAIL = 6;
export const VIRTIO_BALLOON_S_CACHES = 7;
export const VIRTIO_BALLOON_S_HTLB_PGALLOC = 8;
export const VIRTIO_BALLOON_S_HTLB_PGFAIL = 9;
