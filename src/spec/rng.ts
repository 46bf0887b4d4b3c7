/** Entropy device (VIRTIO 1.4 §5.4): one queue, no features, no configuration. */

export const VIRTIO_RNG_REQUESTQ = 0;
