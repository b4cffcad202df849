/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What becomes of a call when the kernel has no memory: each allocation of it, and each copy, fails once.
 *
 * The debug kernel can be told to (/proc/thread-self/fail-nth); with Debian's everything goes through at once.
 *
 * modules: ldm; gate; ldm_crc32; ldm_ramdisk size=1M; ldm_relay lower=sum=kernel/crc32,held=kernel/gate,none=none/none
 */
#include "devices.h"

#define FAULTS "/sys/kernel/debug/"

static int fail_nth = -1;

static void tell(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK_IS(write(fd, what, strlen(what)), (long long)strlen(what));
	close(fd);
}

static void prepare(void)
{
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (fail_nth < 0)
		return;
	tell(FAULTS "failslab/ignore-gfp-wait", "N");
	tell(FAULTS "failslab/verbose", "0");
	tell(FAULTS "fail_page_alloc/ignore-gfp-wait", "N");
	tell(FAULTS "fail_page_alloc/verbose", "0");
	tell(FAULTS "fail_usercopy/verbose", "0");
}

/* The nth of what can fail is to, or nothing: 0.  What was told before may fail the first attempt to tell it. */
static void fail(unsigned int nth)
{
	char text[12];
	int size = snprintf(text, sizeof(text), "%u", nth);

	if (fail_nth >= 0 && pwrite(fail_nth, text, size, 0) < 0)
		CHECK_IS(pwrite(fail_nth, text, size, 0), size);
}

static bool has_failed(void)
{
	char left = '1';

	return fail_nth >= 0 && pread(fail_nth, &left, 1, 0) == 1 && left == '0';
}

/* Does something that returns 0 or an errno, with ever later failures, until it goes through with none. */
static void with_each_failure(int (*act)(void), int in_the_end)
{
	unsigned int nth = 0, failures = 0;
	bool again = true;
	int code;

	prepare();
	while (again) {
		fail(++nth);
		code = act();
		again = has_failed();
		fail(0);
		failures += again;
		if (code != in_the_end && !(again && (code == ENOMEM || code == EFAULT)))
			FAIL("failure %u: %s", nth, strerror(code));
	}
	CHECK_IS(code, in_the_end);
	CHECK((fail_nth < 0) == !failures);
}

static int open_and_close(const char *device, int flags)
{
	int fd = open(device, flags | O_CLOEXEC);

	if (fd < 0)
		return errno;
	return close(fd) ? errno : 0;
}

static int exchange_on(const char *device, const char *text)
{
	int fd = open(device, O_RDWR | O_CLOEXEC), code = 0;
	char found[100];

	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) < 0 || read(fd, found, sizeof(found)) < 0)
		code = errno;
	return close(fd) && !code ? errno : code;
}

static int call_on(const char *device)
{
	static char room[100];
	struct ldm_call call = {
		.type = LDM_CALL, .id = 1, .input = (uintptr_t)"hello", .input_size = 5, .input_metadata = (uintptr_t)"about",
		.input_metadata_size = 5, .output = (uintptr_t)room, .output_size = sizeof(room),
		.output_metadata = (uintptr_t)room + 50, .output_metadata_size = 50,
	};
	int fd = open(device, O_RDWR | O_CLOEXEC), code;

	if (fd < 0)
		return errno;
	code = ioctl(fd, LDM_IOC_SEND, &call) ? errno : 0;
	close(fd);
	return code;
}

static int open_plain(void)
{
	return open_and_close(KERNEL "plain", O_RDWR);
}

static int open_block(void)
{
	return open_and_close(KERNEL "ramdisk", O_RDWR);
}

static int open_stack(void)
{
	return open_and_close(KERNEL "sum", O_RDWR);
}

static int open_what_is_nowhere(void)
{
	return open_and_close(KERNEL "none", O_RDWR);
}

CASE(an_open_fails_or_goes_through)
{
	with_each_failure(open_plain, 0);
	with_each_failure(open_block, 0);
	with_each_failure(open_stack, 0);
	with_each_failure(open_what_is_nowhere, ENOENT);
	UNTIL(told("opened") == told("closed"));
}

static int exchange_plain(void)
{
	return exchange_on(KERNEL "plain", "hello");
}

static int exchange_in_a_thread(void)
{
	return exchange_on(KERNEL "thread", "hello");
}

static int exchange_over_a_stack(void)
{
	return exchange_on(KERNEL "sum", "abc");
}

CASE(an_exchange_fails_or_goes_through)
{
	with_each_failure(exchange_plain, 0);
	with_each_failure(exchange_in_a_thread, 0);
	with_each_failure(exchange_over_a_stack, 0);
}

static int call_plain(void)
{
	return call_on(KERNEL "plain");
}

static int call_over_a_stack(void)
{
	return call_on(KERNEL "sum");
}

CASE(a_call_fails_or_goes_through)
{
	with_each_failure(call_plain, 0);
	with_each_failure(call_over_a_stack, 0);
}

static int leave_a_reply_and_take_it(void)
{
	int fd = open(KERNEL "plain", O_RDWR | O_CLOEXEC), code;
	char found[100];

	if (fd < 0)
		return errno;
	code = write(fd, "kept", 4) < 0 ? errno : 0;
	close(fd);
	fd = open(KERNEL "plain", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	if (read(fd, found, sizeof(found)) < 0)
		code = errno;
	close(fd);
	return code;
}

CASE(a_reply_is_kept_or_not)
{
	with_each_failure(leave_a_reply_and_take_it, 0);
}

static int cancel_by_closing(void)
{
	int fd = open(KERNEL "held", O_RDWR | O_NONBLOCK | O_CLOEXEC), code;

	if (fd < 0)
		return errno;
	code = write(fd, "hello", 5) < 0 ? errno : 0;
	close(fd);
	return code;
}

CASE(a_request_that_is_given_up_fails_or_goes_through)
{
	with_each_failure(cancel_by_closing, 0);
	UNTIL(told("held") == 0);
	UNTIL(told("opened") == told("closed"));
}

static int write_and_read_blocks(void)
{
	int fd = open(KERNEL "ramdisk", O_RDWR | O_CLOEXEC), code = 0;
	static char data[5000];

	if (fd < 0)
		return errno;
	if (pwrite(fd, data, sizeof(data), 65000) < 0 || fsync(fd) || pread(fd, data, sizeof(data), 65000) < 0)
		code = errno == ENOSPC ? ENOMEM : errno;	/* a disk in memory is full without it */
	close(fd);
	return code;
}

CASE(blocks_are_written_and_read_or_not)
{
	with_each_failure(write_and_read_blocks, 0);
}
