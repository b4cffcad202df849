/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Modules that are loaded and unloaded again and again. */
#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "devices.h"

/* A module that was built for this kernel, from the list in the share. */
static int module_file(const char *name)
{
	FILE *list = fopen("/run/vm/modules", "r");
	char found[100], path[1000];
	int fd = -1;

	CHECK(list);
	while (fd < 0 && fscanf(list, "%99s %999s", found, path) == 2)
		if (!strcmp(found, name))
			fd = open(path, O_RDONLY | O_CLOEXEC);
	fclose(list);
	CHECK(fd >= 0);
	return fd;
}

static void load(int file, const char *parameters)
{
	CHECK_IS(syscall(SYS_finit_module, file, parameters, 0), 0);
}

static void unload(const char *name)
{
	UNTIL(!syscall(SYS_delete_module, name, O_NONBLOCK));
}

static void exchange(const char *device, const char *request, const char *reply)
{
	int fd = opened(device, O_RDWR);

	CHECK_IS(write(fd, request, strlen(request)), (long long)strlen(request));
	READS(fd, reply);
	CHECK_IS(close(fd), 0);
}

CASE(loaded_and_unloaded_a_hundred_times)
{
	int ldm = module_file("ldm"), crc32 = module_file("ldm_crc32"), i;

	for (i = 0; i < rounds(100); i++) {
		load(ldm, "");
		load(crc32, "");
		exchange("crc32", "abc", "352441c2\n");
		unload("ldm_crc32");
		CHECK_ERRNO(open(KERNEL "crc32", O_RDWR), ENOENT);
		unload("ldm");
		CHECK_ERRNO(access("/sys/class/ldm", F_OK), ENOENT);
	}
}

/* Whether a message of the kernel has a line; its lines end with NUL. */
static bool has(const char *message, ssize_t size, const char *line)
{
	ssize_t at;

	for (at = 0; at < size; at += strlen(message + at) + 1)
		if (!strcmp(message + at, line))
			return true;
	return false;
}

/* Waits for what udev is told of a device. */
static void uevent(int sock, const char *action, const char *device, const char *kind)
{
	char message[8192], lines[3][100];
	ssize_t size;

	snprintf(lines[0], 100, "%s@/devices/virtual/ldm/%s", action, device);
	snprintf(lines[1], 100, "DEVNAME=ldm/kernel/%s", device);
	snprintf(lines[2], 100, "DEVTYPE=%s", kind);
	do {
		size = recv(sock, message, sizeof(message) - 1, 0);
		CHECK(size > 0);
		message[size] = 0;
	} while (!has(message, size, lines[0]));
	CHECK(has(message, size, "SUBSYSTEM=ldm"));
	CHECK(has(message, size, lines[1]));
	CHECK(has(message, size, lines[2]));
}

CASE(udev_is_told_of_devices_that_come_and_go)
{
	int ldm = module_file("ldm"), crc32 = module_file("ldm_crc32"), ramdisk = module_file("ldm_ramdisk");
	int sock = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };

	CHECK_IS(bind(sock, (struct sockaddr *)&address, sizeof(address)), 0);
	load(ldm, "");
	load(crc32, "");
	uevent(sock, "add", "crc32", "message");
	load(ramdisk, "size=4096");
	uevent(sock, "add", "ramdisk", "block");
	unload("ldm_ramdisk");
	uevent(sock, "remove", "ramdisk", "block");
	unload("ldm_crc32");
	uevent(sock, "remove", "crc32", "message");
	unload("ldm");
}

static volatile bool stop;

static void use_what_is_there(int number)
{
	static const char *const names[] = { KERNEL "plain", KERNEL "gate", KERNEL "thread", "/sys/class/ldm/plain/consumers" };
	char byte;
	int fd;

	while (!stop) {
		fd = open(names[number % 4], number == 3 ? O_RDONLY : O_RDWR | O_NONBLOCK);
		if (fd < 0) {
			CHECK(errno == ENOENT || errno == ENXIO || errno == ENODEV);
			continue;
		}
		if (number != 3 && write(fd, "hello", 5) != 5)
			FAIL("write: %s", strerror(errno));
		if (read(fd, &byte, 1) < 0)
			CHECK(errno == EAGAIN || errno == ENODEV);
		close(fd);
	}
}

CASE(a_provider_comes_and_goes_below_its_consumers)
{
	int ldm = module_file("ldm"), gate = module_file("gate"), i;
	struct thread *users[4];

	load(ldm, "");
	for (i = 0; i < 4; i++)
		users[i] = in_a_thread(use_what_is_there, i);
	for (i = 0; i < rounds(40); i++) {
		load(gate, "");
		unload("gate");
	}
	stop = true;
	for (i = 0; i < 4; i++)
		joined(users[i]);
	unload("ldm");
}
