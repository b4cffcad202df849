/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How many devices, consumers and threads there may be, and what is refused beyond; how long a name may be.
 *
 * modules: ldm; gate; limits
 */
#include <dirent.h>
#include <sys/resource.h>

#include "devices.h"

static int entries(void)
{
	DIR *directory = opendir(KERNEL);
	struct dirent *entry;
	int number = 0;

	CHECK(directory);
	while ((entry = readdir(directory)))
		number += entry->d_name[0] != '.';
	closedir(directory);
	return number;
}

CASE(devices_are_refused_beyond_their_limit)
{
	int fd = opened("devices", O_RDWR), before = entries();
	char expected[40];

	snprintf(expected, sizeof(expected), "%d %d\n", LDM_MAX_DEVICES - before, ENOSPC);
	CHECK_IS(write(fd, "count", 5), 5);
	READS(fd, expected);
	CHECK_IS(entries(), before);
	CHECK_IS(write(fd, "name 10", 7), 7);
	READS(fd, "0\n");
	CHECK_IS(entries(), before + 1);
	close(opened("nnnnnnnnnn", O_RDWR));
}

CASE(a_name_is_refused_beyond_its_limit)
{
	int fd = opened("devices", O_RDWR);
	char longest[LDM_MAX_NAME + 1] = "", expected[20];

	CHECK_IS(write(fd, "name 255", 8), 8);
	READS(fd, "0\n");
	memset(longest, 'n', LDM_MAX_NAME);
	close(opened(longest, O_RDWR));
	snprintf(expected, sizeof(expected), "%d\n", ENAMETOOLONG);
	CHECK_IS(write(fd, "name 256", 8), 8);
	READS(fd, expected);
	snprintf(expected, sizeof(expected), "%d\n", EEXIST);
	CHECK_IS(write(fd, "name 255", 8), 8);
	READS(fd, expected);
	close(opened(longest, O_RDWR));
}

CASE(consumers_are_refused_beyond_their_limit)
{
	struct rlimit limit = { LDM_MAX_CONSUMERS + 100, LDM_MAX_CONSUMERS + 100 };
	int number = 0, last = -1, fd;

	CHECK_IS(setrlimit(RLIMIT_NOFILE, &limit), 0);
	while ((fd = open(KERNEL "plain", O_RDWR | O_CLOEXEC)) >= 0) {
		last = fd;
		number++;
	}
	CHECK_IS(errno, EAGAIN);
	CHECK_IS(number, LDM_MAX_CONSUMERS);
	CHECK_ERRNO(open(KERNEL "gate", O_RDWR), EAGAIN);
	CHECK_IS(write(last, "hello", 5), 5);
	READS(last, "hello");
	close(last);
	UNTIL((fd = open(KERNEL "gate", O_RDWR | O_CLOEXEC)) >= 0);
	close(fd);
}

static void call_waits(int fd)
{
	char reply[20];
	struct ldm_call call = {
		.type = LDM_CALL, .input = (uintptr_t)"hello", .input_size = 5, .output = (uintptr_t)reply, .output_size = 20,
	};

	CHECK_IS(ioctl(fd, LDM_IOC_SEND, &call), 0);
	CHECK_IS(call.output_size, 5);
	CHECK_BYTES(reply, "hello", 5);
}

enum { MORE = 10 };

CASE(handlers_beyond_the_limit_of_threads_wait_for_one)
{
	struct thread *threads[LDM_MAX_THREADS + MORE];
	int fd = opened("waits", O_RDWR), before = told("opened"), closed = told("closed"), i;

	for (i = 0; i < LDM_MAX_THREADS + MORE; i++)
		threads[i] = in_a_thread(call_waits, fd);
	for (i = 0; i < LDM_MAX_THREADS + MORE; i++)
		UNTIL(waits(threads[i]));
	UNTIL(told("held") == LDM_MAX_THREADS);
	CHECK_IS(told("opened"), before + LDM_MAX_THREADS);
	keeper("release");
	UNTIL(told("held") == MORE);
	CHECK_IS(told("opened"), before + LDM_MAX_THREADS + MORE);
	keeper("release");
	for (i = 0; i < LDM_MAX_THREADS + MORE; i++)
		joined(threads[i]);
	UNTIL(told("closed") == closed + LDM_MAX_THREADS + MORE);
}
