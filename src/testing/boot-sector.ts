/** Sectors behind the boot sector that it reads and sums up. */
const SECTORS = 16;
const SECTOR = 512;
const TEXT_BYTES = 64;

/**
 * A boot sector at 0:7c00 that reads the 16 sectors behind it through INT 13h, prints the text at their start and their checksum on COM1 and
 * switches the machine off. "!" says that the firmware could not read.
 */
const CODE: readonly number[] = [
  [0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0], // cli; xor ax, ax; mov ds, ax; mov ss, ax
  [0xbc, 0x00, 0x7c, 0xfb, 0xfc], // mov sp, 7c00; sti; cld
  [0xbe, 0x6e, 0x7c, 0xb4, 0x42, 0xcd, 0x13, 0x72, 0x44], // mov si, packet; mov ah, 42; int 13; jc fail
  [0xbe, 0x00, 0x80, 0xb9, 0x00, 0x20, 0x31, 0xdb], // mov si, 8000; mov cx, 2000; xor bx, bx
  [0xac, 0x30, 0xe4, 0x01, 0xc3, 0xd1, 0xc3, 0xe2, 0xf7], // sum: lodsb; xor ah, ah; add bx, ax; rol bx, 1; loop sum
  [0xbe, 0x00, 0x80], // mov si, 8000
  [0xac, 0x84, 0xc0, 0x74, 0x05, 0xe8, 0x2f, 0x00, 0xeb, 0xf6], // text: lodsb; test al, al; jz hex; call put; jmp text
  [0xb9, 0x04, 0x00], // hex: mov cx, 4
  [0xc1, 0xc3, 0x04, 0x88, 0xd8, 0x24, 0x0f], // digit: rol bx, 4; mov al, bl; and al, 0f
  [0x3c, 0x0a, 0x72, 0x02, 0x04, 0x27, 0x04, 0x30], // cmp al, 0a; jb low; add al, 'a' - '0' - 10; low: add al, '0'
  [0xe8, 0x18, 0x00, 0xe2, 0xec, 0xb0, 0x0a, 0xe8, 0x11, 0x00], // call put; loop digit; mov al, newline; call put
  [0xba, 0x04, 0xb0, 0xb8, 0x00, 0x20, 0xef], // off: mov dx, PM1 control; mov ax, sleep type 0 and sleep; out dx, ax
  [0xf4, 0xeb, 0xfd], // stop: hlt; jmp stop
  [0xb0, 0x21, 0xe8, 0x02, 0x00, 0xeb, 0xef], // fail: mov al, '!'; call put; jmp off
  [0x50, 0xba, 0xfd, 0x03], // put: push ax; mov dx, line status
  [0xec, 0xa8, 0x20, 0x74, 0xfb], // wait: in al, dx; test al, transmitter empty; jz wait
  [0x58, 0xb2, 0xf8, 0xee, 0xc3], // pop ax; mov dl, data; out dx, al; ret
  [0x10, 0x00, SECTORS, 0x00, 0x00, 0x80, 0x00, 0x00, 1, 0, 0, 0, 0, 0, 0, 0], // packet: sectors, 0:8000, from sector 1
].flat();

/** A disk with that boot sector, and what it prints when it boots. */
export function bootableDisk(text: string, bytes = 1 << 20): { image: Uint8Array; prints: string } {
  const image = new Uint8Array(bytes);
  image.set(CODE);
  image.set([0x55, 0xaa], SECTOR - 2);
  image.set(new TextEncoder().encode(text), SECTOR);
  for (let i = SECTOR + TEXT_BYTES; i < SECTOR * (SECTORS + 1); i++) image[i] = i * 7 + text.length;
  let sum = 0;
  for (const byte of image.subarray(SECTOR, SECTOR * (SECTORS + 1))) {
    sum = (sum + byte) & 0xffff;
    sum = ((sum << 1) | (sum >>> 15)) & 0xffff;
  }
  return { image, prints: `${text}${sum.toString(16).padStart(4, "0")}\n` };
}
