/*
 * The load of the v86-blk bench, inside the guest: `load OPERATION DEVICE BYTES COUNT BLOCKS SEED`.
 * OPERATION is read, write or random-read; it moves COUNT blocks of BYTES each, one at a time and around the page cache, within the
 * first BLOCKS blocks of DEVICE, and prints the nanoseconds that took. No library: any compiler for i386 makes it.
 */
typedef unsigned u32;
typedef unsigned long long u64;

enum { EXIT = 1, WRITE = 4, OPEN = 5, PREAD64 = 180, PWRITE64 = 181, CLOCK_GETTIME = 265 };
enum { O_RDWR = 2, O_DIRECT = 040000, CLOCK_MONOTONIC = 1, MOST = 4 << 20 };

/* One huge page, where the kernel gives them: else two thirds of the time go into pinning small pages, the same for each disk. */
static char buffer[MOST] __attribute__((aligned(MOST)));

static int call(u32 number, u32 a, u32 b, u32 c, u32 d, u32 e)
{
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
	return result;
}

static void fail(const char *text, u32 length)
{
	call(WRITE, 2, (u32)text, length, 0, 0);
	call(EXIT, 1, 0, 0, 0, 0);
}
#define FAIL(text) fail(text "\n", sizeof text)

static u32 number(const char *text)
{
	u32 value = 0;
	while (*text)
		value = value * 10 + (u32)(*text++ - '0');
	return value;
}

static u64 now(void)
{
	u32 time[2];
	call(CLOCK_GETTIME, CLOCK_MONOTONIC, (u32)time, 0, 0, 0);
	return (u64)time[0] * 1000000000u + time[1];
}

/* By subtraction: a 64-bit division would need the compiler's library. */
static void print(u64 nanoseconds)
{
	char text[20];
	u32 at = sizeof text, seconds = 0, rest;
	while (nanoseconds >= 1000000000u) {
		nanoseconds -= 1000000000u;
		seconds++;
	}
	rest = (u32)nanoseconds;
	text[--at] = '\n';
	for (int digit = 0; digit < 9; digit++, rest /= 10)
		text[--at] = (char)('0' + rest % 10);
	do
		text[--at] = (char)('0' + seconds % 10);
	while (seconds /= 10);
	call(WRITE, 1, (u32)(text + at), sizeof text - at, 0, 0);
}

__attribute__((used)) static void run(char **arguments)
{
	int writes = arguments[1][0] == 'w', scattered = arguments[1][1] == 'a';
	u32 bytes = number(arguments[3]), count = number(arguments[4]), blocks = number(arguments[5]);
	u32 random = number(arguments[6]);
	int file = call(OPEN, (u32)arguments[2], O_RDWR | O_DIRECT, 0, 0, 0);
	if (file < 0)
		FAIL("the device cannot be opened");
	if (bytes > MOST)
		FAIL("the block is too large");
	for (u32 i = 0; i < MOST; i++)
		buffer[i] = (char)(i * 7);
	u32 what = writes ? PWRITE64 : PREAD64;
	u64 start = now();
	for (u32 i = 0; i < count; i++) {
		random = random * 1664525u + 1013904223u;
		u32 block = scattered ? (random >> 8) % blocks : i % blocks;
		u64 position = (u64)block * bytes;
		if (call(what, (u32)file, (u32)buffer, bytes, (u32)position, (u32)(position >> 32)) != (int)bytes)
			FAIL("the device failed");
	}
	print(now() - start);
	call(EXIT, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tlea 4(%esp), %eax\n\tandl $-16, %esp\n\tsubl $12, %esp\n\tpushl %eax\n\tcall run\n");
