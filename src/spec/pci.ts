/** Virtio over PCI bus (VIRTIO 1.4 §4.1) and the parts of PCI itself that it needs. */

export const VIRTIO_PCI_VENDOR_ID = 0x1af4;
/** A modern device's PCI device id is this plus the virtio device id (§4.1.2). */
export const VIRTIO_PCI_DEVICE_ID_MODERN_BASE = 0x1040;
/** Transitional device ids lie in 0x1000..0x103f (§4.1.2.1). */
export const VIRTIO_PCI_DEVICE_ID_TRANSITIONAL_FIRST = 0x1000;
export const VIRTIO_PCI_DEVICE_ID_TRANSITIONAL_LAST = 0x103f;

/** What a transitional device's id (§4.1.2.1) is, by device type; other types have no legacy interface. */
export const VIRTIO_PCI_DEVICE_ID_TRANSITIONAL: ReadonlyMap<number, number> = new Map([
  [1, 0x1000], // network
  [2, 0x1001], // block
  [3, 0x1003], // console
  [4, 0x1005], // entropy
  [5, 0x1002], // memory balloon
  [8, 0x1004], // SCSI host
  [9, 0x1009], // 9P
]);

// Legacy header in I/O BAR 0 (§4.1.4.10).
export const VIRTIO_PCI_HOST_FEATURES = 0; // le32
export const VIRTIO_PCI_GUEST_FEATURES = 4; // le32
export const VIRTIO_PCI_QUEUE_PFN = 8; // le32
export const VIRTIO_PCI_QUEUE_NUM = 12; // le16
export const VIRTIO_PCI_QUEUE_SEL = 14; // le16
export const VIRTIO_PCI_QUEUE_NOTIFY = 16; // le16
export const VIRTIO_PCI_STATUS = 18; // u8
export const VIRTIO_PCI_ISR = 19; // u8
/** The next two are there only while MSI-X is enabled. */
export const VIRTIO_MSI_CONFIG_VECTOR = 20; // le16
export const VIRTIO_MSI_QUEUE_VECTOR = 22; // le16
/** Where device-specific configuration starts while MSI-X is disabled, and while it is enabled. */
export const VIRTIO_PCI_LEGACY_CONFIG = 20;
export const VIRTIO_PCI_LEGACY_CONFIG_MSIX = 24;
/** Bytes of a page that QUEUE_PFN counts. */
export const VIRTIO_PCI_LEGACY_PAGE = 4096;

// struct virtio_pci_cap64 (§4.1.4.7): the high halves behind struct virtio_pci_cap.
export const VIRTIO_PCI_CAP64_OFFSET_HI = 16; // le32
export const VIRTIO_PCI_CAP64_LENGTH_HI = 20; // le32
export const VIRTIO_PCI_CAP64_SIZE = 24;

// struct virtio_pci_cap (§4.1.4).
export const VIRTIO_PCI_CAP_VNDR = 0;
export const VIRTIO_PCI_CAP_NEXT = 1;
export const VIRTIO_PCI_CAP_LEN = 2;
export const VIRTIO_PCI_CAP_CFG_TYPE = 3;
export const VIRTIO_PCI_CAP_BAR = 4;
export const VIRTIO_PCI_CAP_ID = 5;
export const VIRTIO_PCI_CAP_OFFSET = 8;
export const VIRTIO_PCI_CAP_LENGTH = 12;
export const VIRTIO_PCI_CAP_SIZE = 16;
/** le32 notify_off_multiplier behind the capability of type NOTIFY_CFG (§4.1.4.4). */
export const VIRTIO_PCI_NOTIFY_CAP_MULT = 16;
/** u8 pci_cfg_data[4] behind the capability of type PCI_CFG (§4.1.4.9). */
export const VIRTIO_PCI_CFG_CAP_DATA = 16;

export const VIRTIO_PCI_CAP_COMMON_CFG = 1;
export const VIRTIO_PCI_CAP_NOTIFY_CFG = 2;
export const VIRTIO_PCI_CAP_ISR_CFG = 3;
export const VIRTIO_PCI_CAP_DEVICE_CFG = 4;
export const VIRTIO_PCI_CAP_PCI_CFG = 5;
export const VIRTIO_PCI_CAP_SHARED_MEMORY_CFG = 8;
export const VIRTIO_PCI_CAP_VENDOR_CFG = 9;

// struct virtio_pci_common_cfg (§4.1.4.3).
export const VIRTIO_PCI_COMMON_DFSELECT = 0; // le32
export const VIRTIO_PCI_COMMON_DF = 4; // le32
export const VIRTIO_PCI_COMMON_GFSELECT = 8; // le32
export const VIRTIO_PCI_COMMON_GF = 12; // le32
export const VIRTIO_PCI_COMMON_MSIX = 16; // le16
export const VIRTIO_PCI_COMMON_NUMQ = 18; // le16
export const VIRTIO_PCI_COMMON_STATUS = 20; // u8
export const VIRTIO_PCI_COMMON_CFGGENERATION = 21; // u8
export const VIRTIO_PCI_COMMON_Q_SELECT = 22; // le16
export const VIRTIO_PCI_COMMON_Q_SIZE = 24; // le16
export const VIRTIO_PCI_COMMON_Q_MSIX = 26; // le16
export const VIRTIO_PCI_COMMON_Q_ENABLE = 28; // le16
export const VIRTIO_PCI_COMMON_Q_NOFF = 30; // le16
export const VIRTIO_PCI_COMMON_Q_DESCLO = 32; // le32
export const VIRTIO_PCI_COMMON_Q_DESCHI = 36; // le32
export const VIRTIO_PCI_COMMON_Q_AVAILLO = 40; // le32, queue_driver
export const VIRTIO_PCI_COMMON_Q_AVAILHI = 44; // le32
export const VIRTIO_PCI_COMMON_Q_USEDLO = 48; // le32, queue_device
export const VIRTIO_PCI_COMMON_Q_USEDHI = 52; // le32
export const VIRTIO_PCI_COMMON_Q_NDATA = 56; // le16, queue_notif_config_data
export const VIRTIO_PCI_COMMON_Q_RESET = 58; // le16
export const VIRTIO_PCI_COMMON_ADM_Q_IDX = 60; // le16
export const VIRTIO_PCI_COMMON_ADM_Q_NUM = 62; // le16
export const VIRTIO_PCI_COMMON_SIZE = 64;

export const VIRTIO_PCI_ISR_QUEUE = 1;
export const VIRTIO_PCI_ISR_CONFIG = 2;

export const VIRTIO_MSI_NO_VECTOR = 0xffff;

// PCI configuration space header (PCI Local Bus 3.0 §6.1).
export const PCI_VENDOR_ID = 0x00;
export const PCI_DEVICE_ID = 0x02;
export const PCI_COMMAND = 0x04;
export const PCI_STATUS = 0x06;
export const PCI_REVISION_ID = 0x08;
export const PCI_CLASS_PROG = 0x09;
export const PCI_CLASS_DEVICE = 0x0a;
export const PCI_CACHE_LINE_SIZE = 0x0c;
export const PCI_LATENCY_TIMER = 0x0d;
export const PCI_HEADER_TYPE = 0x0e;
export const PCI_BASE_ADDRESS_0 = 0x10;
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
export const PCI_SUBSYSTEM_ID = 0x2e;
export const PCI_ROM_ADDRESS = 0x30;
export const PCI_CAPABILITY_LIST = 0x34;
export const PCI_INTERRUPT_LINE = 0x3c;
export const PCI_INTERRUPT_PIN = 0x3d;
export const PCI_STD_HEADER_SIZE = 0x40;

export const PCI_COMMAND_IO = 1 << 0;
export const PCI_COMMAND_MEMORY = 1 << 1;
export const PCI_COMMAND_MASTER = 1 << 2;
export const PCI_COMMAND_INTX_DISABLE = 1 << 10;
export const PCI_STATUS_INTERRUPT = 1 << 3;
export const PCI_STATUS_CAP_LIST = 1 << 4;

export const PCI_BASE_ADDRESS_SPACE_IO = 1;
export const PCI_BASE_ADDRESS_MEM_TYPE_64 = 4;
export const PCI_BASE_ADDRESS_MEM_PREFETCH = 8;

export const PCI_CAP_ID_VNDR = 0x09;
export const PCI_CAP_ID_MSIX = 0x11;

// MSI-X capability and table (PCI Local Bus 3.0 §6.8.2).
export const PCI_MSIX_FLAGS = 2; // le16
export const PCI_MSIX_FLAGS_QSIZE = 0x07ff;
export const PCI_MSIX_FLAGS_MASKALL = 0x4000;
export const PCI_MSIX_FLAGS_ENABLE = 0x8000;
export const PCI_MSIX_TABLE = 4; // le32: BAR in bits 2:0, offset above
export const PCI_MSIX_PBA = 8; // le32: likewise
export const PCI_CAP_MSIX_SIZEOF = 12;
export const PCI_MSIX_ENTRY_SIZE = 16;
export const PCI_MSIX_ENTRY_LOWER_ADDR = 0;
export const PCI_MSIX_ENTRY_UPPER_ADDR = 4;
export const PCI_MSIX_ENTRY_DATA = 8;
export const PCI_MSIX_ENTRY_VECTOR_CTRL = 12;
export const PCI_MSIX_ENTRY_CTRL_MASKBIT = 1;
