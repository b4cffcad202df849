/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the file of a block device does: the bundled ramdisk.
 *
 * modules: ldm; gate; ldm_ramdisk size=3000000
 */
#include "devices.h"

#define SIZE 3000000LL

CASE(what_was_written_is_read_at_any_offset)
{
	static const long long offsets[] = { 0, 1, 4095, 4096, SIZE / 2, SIZE - 6000 };
	int fd = opened("ramdisk", O_RDWR), other = opened("ramdisk", O_RDONLY);
	char written[6000], found[6000];
	unsigned int i, j;

	for (i = 0; i < 6; i++) {
		for (j = 0; j < sizeof(written); j++)
			written[j] = rand();
		CHECK_IS(pwrite(fd, written, sizeof(written), offsets[i]), sizeof(written));
		CHECK_IS(fsync(fd), 0);
		CHECK_IS(pread(other, found, sizeof(found), offsets[i]), sizeof(found));
		CHECK_BYTES(found, written, sizeof(found));
	}
}

CASE(it_is_zero_where_nothing_was_written)
{
	char found[100], zero[100] = {};

	CHECK_IS(pread(opened("ramdisk", O_RDONLY), found, 100, 100000), 100);
	CHECK_BYTES(found, zero, 100);
}

CASE(a_read_ends_at_the_end)
{
	int fd = opened("ramdisk", O_RDONLY);
	char found[100];

	CHECK_IS(pread(fd, found, 100, SIZE - 1), 1);
	CHECK_IS(pread(fd, found, 100, SIZE), 0);
	CHECK_IS(pread(fd, found, 100, SIZE + 9), 0);
	CHECK_IS(pread(fd, found, 100, INT64_MAX - 200), 0);
	CHECK_ERRNO(pread(fd, found, 100, -1), EINVAL);
}

CASE(a_write_ends_at_the_end)
{
	int fd = opened("ramdisk", O_RDWR);

	CHECK_IS(pwrite(fd, "xyz", 3, SIZE - 2), 2);
	CHECK_ERRNO(pwrite(fd, "x", 1, SIZE), ENOSPC);
	CHECK_ERRNO(pwrite(fd, "x", 1, SIZE + 4096), ENOSPC);
	CHECK_IS(lseek(fd, 0, SEEK_END), SIZE);
}

CASE(read_and_write_go_on_from_the_offset)
{
	int fd = opened("ramdisk", O_RDWR);
	char found[10];

	CHECK_IS(lseek(fd, 1000, SEEK_SET), 1000);
	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(write(fd, "world", 5), 5);
	CHECK_IS(lseek(fd, -10, SEEK_CUR), 1000);
	CHECK_IS(read(fd, found, 10), 10);
	CHECK_BYTES(found, "helloworld", 10);
	CHECK_IS(lseek(fd, 0, SEEK_CUR), 1010);
	CHECK_ERRNO(lseek(fd, -1, SEEK_SET), EINVAL);
}

CASE(more_than_one_request_holds_is_written_and_read)
{
	int fd = opened("ramdisk", O_RDWR);
	char *written = malloc(SIZE), *found = malloc(SIZE);
	long long at, got;

	for (at = 0; at < SIZE; at++)
		written[at] = rand();
	for (at = 0; at < SIZE; at += got)
		CHECK((got = pwrite(fd, written + at, SIZE - at, at)) > 0);
	for (at = 0; at < SIZE; at += got)
		CHECK((got = pread(fd, found + at, SIZE - at, at)) > 0);
	CHECK_BYTES(found, written, SIZE);
}

CASE(a_bad_address_is_refused)
{
	int fd = opened("ramdisk", O_RDWR);

	CHECK_ERRNO(pwrite(fd, nowhere, 5, 0), EFAULT);
	CHECK_ERRNO(pread(fd, nowhere, 5, 0), EFAULT);
}

CASE(what_a_file_is_not_open_for_is_refused)
{
	char byte;

	CHECK_ERRNO(pwrite(opened("ramdisk", O_RDONLY), "x", 1, 0), EBADF);
	CHECK_ERRNO(pread(opened("ramdisk", O_WRONLY), &byte, 1, 0), EBADF);
}

CASE(it_is_always_ready)
{
	CHECK_IS(ready(opened("ramdisk", O_RDWR)), POLLIN | POLLOUT);
}

static void read_blocks(int fd)
{
	char found[100];

	CHECK_IS(pread(fd, found, 100, 0), 100);
	CHECK_IS(found[99], 'r');
}

CASE(a_read_that_waits_holds_up_no_other)
{
	int fd = opened("blocks", O_RDWR), i;
	struct thread *readers[4];

	for (i = 0; i < 4; i++)
		readers[i] = in_a_thread(read_blocks, fd);
	UNTIL(told("held") == 4);
	keeper("release");
	for (i = 0; i < 4; i++)
		joined(readers[i]);
}

static void overwrite(int number)
{
	int fd = opened("ramdisk", O_RDWR), i;
	char page[4096], found[4096];
	long long offset = 4096LL * (10 + number);

	for (i = 0; i < rounds(1000); i++) {
		memset(page, i, sizeof(page));
		CHECK_IS(pwrite(fd, page, sizeof(page), offset), sizeof(page));
		CHECK_IS(pread(fd, found, sizeof(found), offset), sizeof(found));
		CHECK_BYTES(found, page, sizeof(page));
	}
	close(fd);
}

CASE(writers_on_two_processors_do_not_disturb_each_other)
{
	struct thread *writers[4];
	int i;

	for (i = 0; i < 4; i++)
		writers[i] = in_a_thread(overwrite, i);
	for (i = 0; i < 4; i++)
		joined(writers[i]);
}
