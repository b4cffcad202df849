/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR Apache-2.0 */
/*
 * What a program says to a device of the kernel by ioctl
 *
 * For C programs and for ldm.ko.  Both structures are shared with the Python side: they have the same layout for 32-bit
 * and 64-bit programs, every field naturally aligned and addresses as 64-bit numbers.
 *
 *	LDM_IOC_ABOUT	tells what was opened.
 *	LDM_IOC_SEND	sends one typed request, waits for its reply and returns it, in one call.  Threads may do so on
 *			one descriptor at the same time; none of it touches what write(2) and read(2) are about.
 *	LDM_IOC_CANCEL	ends such a call, which was made by the same open file, with ECANCELED.  The call is told by its
 *			`id`.  Fails with ENOENT when none of that id waits: it has ended, or has not got there yet, so
 *			that who cancels asks again until it has ended.
 */
#ifndef LDM_IOCTL_H
#define LDM_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* What a request asks for. */
enum ldm_request_type {
	LDM_READ = 1,		/* `length` bytes from `offset`; for a message device whatever it has to tell */
	LDM_WRITE = 2,		/* the input goes to `offset` of a block device */
	LDM_CALL = 3,		/* the input is a message, the output its answer */
	LDM_FLUSH = 4,		/* what was written before is made durable */
	LDM_TRIM = 5,		/* `length` bytes from `offset` are no longer needed */
	LDM_NON_STANDARD = 6,	/* what consumer and provider agree on */
};

/* What the file of a device is like. */
enum ldm_kind {
	LDM_MESSAGE = 1,	/* a place to exchange messages */
	LDM_BLOCK = 2,		/* a range of bytes */
};

/* How the request handler of a device is run; 2 is for handlers that are coroutines, which C has not. */
enum ldm_execution {
	LDM_INLINE = 1,		/* in the thread of the consumer */
	LDM_THREAD = 3,		/* in a thread of its own, since it may wait for long */
};

/**
 * struct ldm_about - what was opened
 * @consumer_id: the id by which the provider knows this open; 0 where that is the provider's secret
 * @size: bytes of a block device, else 0
 * @accepts: bit 1 << t is set for each enum ldm_request_type t that the device takes
 * @kind: an enum ldm_kind
 * @execution: an enum ldm_execution
 */
struct ldm_about {
	__u64 consumer_id;
	__u64 size;
	__u32 accepts;
	__u16 kind;
	__u16 execution;
};

/**
 * struct ldm_call - a request and where its reply goes
 * @type: an enum ldm_request_type
 * @reserved: 0
 * @id: what LDM_IOC_CANCEL calls it, for the caller to keep apart from others; 0 where nobody cancels
 * @offset: bytes from the device's begin, not negative
 * @length: bytes to read or trim, not negative
 * @input: address of the input data
 * @input_size: its bytes, at most LDM_MAX_DATA
 * @input_metadata: address of the metadata that goes with it
 * @input_metadata_size: its bytes, at most LDM_MAX_METADATA
 * @output: address of room for the reply's data
 * @output_size: bytes of that room; after the call those of the reply
 * @output_metadata: address of room for the metadata that comes with it
 * @output_metadata_size: bytes of that room; after the call those of the metadata
 *
 * A reply that is longer than its room is lost: the call fails with EMSGSIZE and tells both sizes.  Room of
 * LDM_MAX_DATA bytes (mapped, not touched) is always enough.
 *
 * READ needs a descriptor that is open for reading, every other type one that is open for writing, else EBADF.
 */
struct ldm_call {
	__u16 type;
	__u16 reserved[3];
	__u64 id;
	__s64 offset;
	__s64 length;
	__u64 input;
	__u64 input_size;
	__u64 input_metadata;
	__u64 input_metadata_size;
	__u64 output;
	__u64 output_size;
	__u64 output_metadata;
	__u64 output_metadata_size;
};

#define LDM_IOC_SEND	_IOWR(0xDE, 1, struct ldm_call)
#define LDM_IOC_ABOUT	_IOR(0xDE, 2, struct ldm_about)
#define LDM_IOC_CANCEL	_IOW(0xDE, 3, __u64)

#endif
