/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Typed requests by ioctl: what is sent, what is refused, and programs of 32 bits.
 *
 * modules: ldm; gate; ldm_ramdisk size=64K
 */
#include "devices.h"

/* The number of ioctl(2) for programs of 32 bits. */
#define IOCTL_32 54

static char room[LDM_MAX_DATA];
static char metadata_room[LDM_MAX_METADATA];

static struct ldm_call asking(enum ldm_request_type type, const char *input)
{
	return (struct ldm_call){
		.type = type, .input = (uintptr_t)input, .input_size = strlen(input),
		.output = (uintptr_t)room, .output_size = sizeof(room),
		.output_metadata = (uintptr_t)metadata_room, .output_metadata_size = sizeof(metadata_room),
	};
}

static int send(int fd, struct ldm_call *call)
{
	return ioctl(fd, LDM_IOC_SEND, call);
}

/* An ioctl as a program of 32 bits makes it. */
static int ioctl_32(int fd, unsigned int command, void *argument)
{
	long result;

	asm volatile("int $0x80" : "=a"(result)
		     : "a"((long)IOCTL_32), "b"((long)fd), "c"((long)command), "d"(argument) : "memory", "cc");
	if (result >= 0)
		return result;
	errno = -result;
	return -1;
}

/* Memory that a program of 32 bits can have. */
static void *low(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

CASE(a_call_is_answered)
{
	struct ldm_call call = asking(LDM_CALL, "hello");

	CHECK_IS(send(opened("plain", O_RDWR), &call), 0);
	CHECK_IS(call.output_size, 5);
	CHECK_BYTES(room, "hello", 5);
	CHECK_IS(call.output_metadata_size, 0);
}

CASE(metadata_goes_there_and_back)
{
	struct ldm_call call = asking(LDM_CALL, "hello");

	call.input_metadata = (uintptr_t)"about";
	call.input_metadata_size = 5;
	CHECK_IS(send(opened("plain", O_RDWR), &call), 0);
	CHECK_IS(call.output_metadata_size, 5);
	CHECK_BYTES(metadata_room, "about", 5);
}

CASE(a_READ_is_answered)
{
	struct ldm_call call = asking(LDM_READ, "");

	call.length = 100;
	CHECK_IS(send(opened("plain", O_RDONLY), &call), 0);
	CHECK_IS(call.output_size, 4);
	CHECK_BYTES(room, "READ", 4);
}

CASE(an_empty_and_a_large_request_are_answered)
{
	int fd = opened("plain", O_RDWR);
	struct ldm_call call = asking(LDM_CALL, "");
	char *large = malloc(LDM_MAX_DATA);

	CHECK_IS(send(fd, &call), 0);
	CHECK_IS(call.output_size, 0);
	memset(large, 'l', LDM_MAX_DATA);
	call = asking(LDM_CALL, "");
	call.input = (uintptr_t)large;
	call.input_size = LDM_MAX_DATA;
	CHECK_IS(send(fd, &call), 0);
	CHECK_IS(call.output_size, LDM_MAX_DATA);
	CHECK_BYTES(room, large, LDM_MAX_DATA);
}

CASE(the_error_of_the_handler_is_that_of_the_ioctl)
{
	struct ldm_call call = asking(LDM_CALL, "fail 71");

	CHECK_ERRNO(send(opened("plain", O_RDWR), &call), EPROTO);
}

CASE(a_reply_without_room_is_lost_and_its_size_told)
{
	int fd = opened("plain", O_RDWR);
	struct ldm_call call = asking(LDM_CALL, "hello");

	call.output_size = 4;
	room[4] = 'x';
	CHECK_ERRNO(send(fd, &call), EMSGSIZE);
	CHECK_IS(call.output_size, 5);
	CHECK_IS(room[4], 'x');
	call.output_size = 5;
	CHECK_IS(send(fd, &call), 0);
}

CASE(types_that_a_device_does_not_take_are_refused)
{
	int fd = opened("plain", O_RDWR), before = told("calls");
	static const int types[] = { LDM_WRITE, LDM_TRIM };
	unsigned int i;

	for (i = 0; i < 2; i++) {
		struct ldm_call call = asking(types[i], "");

		CHECK_ERRNO(send(fd, &call), EOPNOTSUPP);
	}
	CHECK_IS(told("calls"), before);
}

CASE(what_is_no_request_is_refused)
{
	int fd = opened("plain", O_RDWR), before = told("calls");
	struct ldm_call good = asking(LDM_CALL, "hello"), call;

#define REFUSED(field, value, code) do { call = good; call.field = value; CHECK_ERRNO(send(fd, &call), code); } while (0)
	REFUSED(type, 0, EINVAL);
	REFUSED(type, 7, EINVAL);
	REFUSED(type, 0xffff, EINVAL);
	REFUSED(reserved[0], 1, EINVAL);
	REFUSED(reserved[2], 1, EINVAL);
	REFUSED(offset, -1, EINVAL);
	REFUSED(length, -1, EINVAL);
	REFUSED(input_size, LDM_MAX_DATA + 1, EMSGSIZE);
	REFUSED(input_size, UINT64_MAX, EMSGSIZE);
	REFUSED(input_metadata_size, LDM_MAX_METADATA + 1, EMSGSIZE);
	REFUSED(input, (uintptr_t)nowhere, EFAULT);
	REFUSED(input, UINT64_MAX - 2, EFAULT);
	CHECK_ERRNO(ioctl(fd, LDM_IOC_SEND, NULL), EFAULT);
	CHECK_ERRNO(ioctl(fd, LDM_IOC_SEND, nowhere), EFAULT);
	CHECK_ERRNO(ioctl(fd, LDM_IOC_ABOUT, nowhere), EFAULT);
	CHECK_ERRNO(ioctl(fd, _IOWR(0xDE, 99, struct ldm_call), &good), ENOTTY);
	CHECK_ERRNO(ioctl(fd, _IOWR(0xDE, 1, int), &good), ENOTTY);
	CHECK_ERRNO(ioctl(fd, TCGETS, &good), ENOTTY);
	CHECK_IS(told("calls"), before);
}

CASE(a_bad_address_for_the_reply_is_refused)
{
	int fd = opened("plain", O_RDWR);
	struct ldm_call call = asking(LDM_CALL, "hello");

	call.output = (uintptr_t)nowhere;
	CHECK_ERRNO(send(fd, &call), EFAULT);
	call = asking(LDM_CALL, "hello");
	CHECK_IS(send(fd, &call), 0);
}

enum { PART = 15 << 20, PARTS_THAT_FIT = LDM_MAX_MEMORY / PART };

static void call_with_a_large_input(int fd)
{
	void *input = mmap(NULL, PART, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ldm_call call = { .type = LDM_CALL, .input = (uintptr_t)input, .input_size = PART };

	CHECK_ERRNO(send(fd, &call), EPROTO);
}

CASE(memory_for_requests_is_limited)
{
	int fd = opened("gate", O_RDWR), i;
	struct thread *threads[PARTS_THAT_FIT];
	struct ldm_call call = asking(LDM_CALL, "");

	for (i = 0; i < PARTS_THAT_FIT; i++)
		threads[i] = in_a_thread(call_with_a_large_input, fd);
	UNTIL(told("held") == PARTS_THAT_FIT);
	call.input = (uintptr_t)mmap(NULL, PART, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	call.input_size = PART;
	CHECK_ERRNO(send(fd, &call), ENOMEM);
	keeper("fail 71");
	for (i = 0; i < PARTS_THAT_FIT; i++)
		joined(threads[i]);
}

CASE(what_a_file_is_open_for_decides_what_may_be_sent)
{
	struct ldm_call call = asking(LDM_CALL, "hello"), read = asking(LDM_READ, "");

	read.length = 4;
	CHECK_ERRNO(send(opened("plain", O_RDONLY), &call), EBADF);
	CHECK_ERRNO(send(opened("plain", O_WRONLY), &read), EBADF);
	CHECK_IS(send(opened("plain", O_WRONLY), &call), 0);
}

CASE(about_tells_what_was_opened)
{
	struct ldm_about one = {}, two = {}, block = {}, thread = {};

	CHECK_IS(ioctl(opened("plain", O_RDONLY), LDM_IOC_ABOUT, &one), 0);
	CHECK_IS(ioctl(opened("plain", O_RDONLY), LDM_IOC_ABOUT, &two), 0);
	CHECK_IS(ioctl(opened("ramdisk", O_RDONLY), LDM_IOC_ABOUT, &block), 0);
	CHECK_IS(ioctl(opened("thread", O_RDONLY), LDM_IOC_ABOUT, &thread), 0);
	CHECK(one.consumer_id && two.consumer_id && one.consumer_id != two.consumer_id);
	CHECK_IS(one.kind, LDM_MESSAGE);
	CHECK_IS(one.size, 0);
	CHECK(one.accepts & 1 << LDM_CALL && one.accepts & 1 << LDM_READ && !(one.accepts & 1 << LDM_WRITE));
	CHECK_IS(one.execution, LDM_INLINE);
	CHECK_IS(thread.execution, LDM_THREAD);
	CHECK_IS(block.kind, LDM_BLOCK);
	CHECK_IS(block.size, 64 << 10);
	CHECK(block.accepts & 1 << LDM_WRITE && !(block.accepts & 1 << LDM_CALL));
}

CASE(a_request_does_not_touch_what_write_and_read_are_about)
{
	int fd = opened("plain", O_RDWR);
	struct ldm_call call = asking(LDM_CALL, "other");

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(send(fd, &call), 0);
	CHECK_BYTES(room, "other", 5);
	READS(fd, "hello");
}

static void call_gate(int fd)
{
	char text[20], reply[20];
	struct ldm_call call = { .type = LDM_CALL, .input = (uintptr_t)text, .output = (uintptr_t)reply, .output_size = 20 };

	call.input_size = snprintf(text, sizeof(text), "%ld", syscall(SYS_gettid));
	CHECK_IS(send(fd, &call), 0);
	CHECK_IS(call.output_size, call.input_size);
	CHECK_BYTES(text, reply, call.input_size);
}

CASE(threads_send_on_one_descriptor_at_the_same_time)
{
	struct thread *threads[8];
	int fd = opened("gate", O_RDWR), i;

	for (i = 0; i < 8; i++)
		threads[i] = in_a_thread(call_gate, fd);
	UNTIL(told("held") == 8);
	keeper("release");
	for (i = 0; i < 8; i++)
		joined(threads[i]);
}

static int cancel(int fd, uint64_t id)
{
	return ioctl(fd, LDM_IOC_CANCEL, &id);
}

static int cancellable;	/* the descriptor of those below, whose argument is the id */

static void call_and_be_cancelled(int id)
{
	struct ldm_call call = { .type = LDM_CALL, .id = id };

	CHECK_ERRNO(send(cancellable, &call), ECANCELED);
}

CASE(a_call_is_cancelled_by_its_id)
{
	struct thread *threads[3];
	int before = told("cancelled"), id;

	cancellable = opened("gate", O_RDWR);
	for (id = 1; id <= 3; id++)
		threads[id - 1] = in_a_thread(call_and_be_cancelled, id);
	UNTIL(told("held") == 3);
	for (id = 2; id <= 4; id++) {
		CHECK_IS(cancel(cancellable, id % 3 + 1), 0);
		joined(threads[id % 3]);
		CHECK_IS(told("held"), 4 - id);
		CHECK_IS(told("cancelled"), before + id - 1);
	}
}

CASE(a_call_is_cancelled_whose_handler_does_not_care)
{
	struct thread *thread;

	cancellable = opened("stubborn", O_RDWR);
	thread = in_a_thread(call_and_be_cancelled, 7);
	UNTIL(told("held") == 1);
	CHECK_IS(cancel(cancellable, 7), 0);
	joined(thread);
	CHECK_IS(told("held"), 1);
	CHECK_ERRNO(cancel(cancellable, 7), ENOENT);
	keeper("release");
}

CASE(what_does_not_wait_is_not_cancelled)
{
	struct ldm_call call = asking(LDM_CALL, "hello");
	int fd = opened("gate", O_RDWR), plain = opened("plain", O_RDWR);
	struct thread *thread;

	call.id = 5;
	CHECK_IS(send(plain, &call), 0);
	CHECK_ERRNO(cancel(plain, 5), ENOENT);
	cancellable = opened("gate", O_RDWR);
	CHECK_IS(write(fd, "hello", 5), 5);
	thread = in_a_thread(call_and_be_cancelled, 5);
	UNTIL(told("held") == 2);
	CHECK_ERRNO(cancel(cancellable, 0), EINVAL);
	CHECK_ERRNO(cancel(cancellable, 6), ENOENT);
	CHECK_ERRNO(cancel(fd, 5), ENOENT);
	CHECK_ERRNO(ioctl(cancellable, LDM_IOC_CANCEL, nowhere), EFAULT);
	CHECK_IS(told("held"), 2);
	CHECK_IS(cancel(cancellable, 5), 0);
	joined(thread);
	keeper("release");
	READS(fd, "hello");
}

CASE(block_devices_take_requests_at_offsets)
{
	int fd = opened("ramdisk", O_RDWR);
	struct ldm_call call = asking(LDM_WRITE, "written");

	call.offset = 1000;
	CHECK_IS(send(fd, &call), 0);
	call = asking(LDM_FLUSH, "");
	CHECK_IS(send(fd, &call), 0);
	call = asking(LDM_READ, "");
	call.offset = 1002;
	call.length = 5;
	CHECK_IS(send(fd, &call), 0);
	CHECK_IS(call.output_size, 5);
	CHECK_BYTES(room, "itten", 5);
	call = asking(LDM_READ, "");
	call.offset = (64 << 10) - 3;
	call.length = 100;
	CHECK_IS(send(fd, &call), 0);
	CHECK_IS(call.output_size, 3);
	call = asking(LDM_WRITE, "written");
	call.offset = (64 << 10) - 3;
	CHECK_ERRNO(send(fd, &call), ENOSPC);
	call = asking(LDM_READ, "");
	call.offset = INT64_MAX;
	call.length = INT64_MAX;
	CHECK_IS(send(fd, &call), 0);
	CHECK_IS(call.output_size, 0);
}

CASE(a_program_of_32_bits_sends_the_same_request)
{
	int fd = opened("plain", O_RDWR);
	struct ldm_call *call = low(sizeof(*call));
	struct ldm_about *about = low(sizeof(*about));
	char *input = low(4096), *output = low(4096);

	memcpy(input, "hello", 5);
	*call = (struct ldm_call){
		.type = LDM_CALL, .input = (uintptr_t)input, .input_size = 5, .output = (uintptr_t)output, .output_size = 4096,
	};
	CHECK_IS(ioctl_32(fd, LDM_IOC_SEND, call), 0);
	CHECK_IS(call->output_size, 5);
	CHECK_BYTES(output, "hello", 5);
	CHECK_IS(ioctl_32(fd, LDM_IOC_ABOUT, about), 0);
	CHECK_IS(about->kind, LDM_MESSAGE);
	CHECK_ERRNO(ioctl_32(fd, TCGETS, call), ENOTTY);
	memset(input, 0, 8);
	CHECK_ERRNO(ioctl_32(fd, LDM_IOC_CANCEL, input), EINVAL);
	input[0] = 1;
	CHECK_ERRNO(ioctl_32(fd, LDM_IOC_CANCEL, input), ENOENT);
}
