/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Logical devices in C, the same in the kernel and in user space
 *
 * A provider is one source file that includes this header and no other.  It is compiled into a kernel module, whose
 * devices are in the container `kernel`, and unchanged into a shared object that a user-space container loads.  From
 * the headers of either world it may use what both have: the fixed-size integer types, bool, errno, memcpy(), memset(),
 * memcmp(), memchr(), strlen(), strcmp(), strncmp(), strchr(), snprintf().
 *
 *	static int upper_request(struct ldm_consumer *consumer, struct ldm_request *request)
 *	{
 *		char *reply = ldm_resize(request, &request->output, request->input.size);
 *		...
 *		return reply ? 0 : -ENOMEM;
 *	}
 *
 *	static int upper_start(struct ldm_provider *provider)
 *	{
 *		struct ldm_device_spec spec = { .name = "upper", .request = upper_request };
 *
 *		return ldm_create_device(provider, &spec, NULL);
 *	}
 *
 *	LDM_PROVIDER(upper, upper_start, NULL, "Upper case");
 *
 * Status.  0, or a negative errno.  A request handler may also return LDM_LATER.
 *
 * Who owns what.
 *  - A device is the provider's from ldm_create_device() to ldm_destroy_device().  What `stop` leaves is destroyed
 *    behind it.
 *  - A consumer (struct ldm_consumer) is one open of a device.  It is the API's; `state` in it is the provider's.
 *  - A handle (struct ldm_handle) is one open that this code made itself: from ldm_open_device() to ldm_close_device().
 *  - A request (struct ldm_request) is one parameter block of a chain: ldm_alloc_request() allocates all blocks of the
 *    chain at once, each hop takes the next one by ldm_forward_request(), and gives it back by ldm_free_request().  The
 *    memory of its four parts is the block's: got by ldm_resize(), gone with the block.  A request is sent once.
 *  - Between ldm_send_request() and its end a request belongs to the provider that it was sent to: the consumer neither
 *    touches nor frees it.
 *
 * Who calls whom, for each consumer:
 *
 *	open handler		once; when it fails, nothing else follows
 *	request handler		any number of times, any number at a time
 *	cancel handler		for a request that was answered with LDM_LATER, at any time until the close handler
 *	close handler		once, after the last request has been completed
 *
 * The API holds no lock while it calls any of them.
 *
 * Complete later.  A request handler that returns LDM_LATER owes one ldm_complete_request(), from any thread, maybe
 * before it has returned.  With any other value it owes none.
 *
 * Each request ends exactly once for its consumer: by its reply, by an error, by being cancelled, or by the provider's
 * death.  A completion handler runs exactly once, maybe before ldm_send_request() has returned.  A cancelled request
 * has ended with ECANCELED for its consumer at once; for its provider it ends as it always does, by
 * ldm_complete_request(), whose result nobody sees.  Until then the device stays open.
 *
 * Who may sleep.  All code here runs in threads that may sleep, handlers and completion handlers too, and no function
 * is to be called from anywhere else: not from interrupts, not under a spin lock.  A handler runs in its consumer's
 * thread, and keeps that waiting; one that waits for long says so (`thread`), or completes later.
 *
 * Who dies when.
 *  - A consumer dies: its requests are cancelled, and its close handler runs, once they have been completed.
 *  - A provider's process dies: requests that are under way end with ECONNABORTED, further ones with ENOTCONN while
 *    nobody serves its devices.  The handle stays good for when somebody does.
 *  - A kernel module is not unloaded while one of its devices is open.  In user space a crash is that of the container.
 */
#ifndef LDM_H
#define LDM_H

#ifdef __KERNEL__
#include "ldm_kernel.h"
#else
#include "ldm_user.h"
#endif
#include "ldm_ioctl.h"

/* All of them refuse at the entrance, none drops what was accepted, except that a kept reply makes room for a newer. */
enum ldm_limit {
	LDM_MAX_NAME = 255,			/* bytes of the name of a container or a device: ENAMETOOLONG */
	LDM_MAX_MESSAGE = (1 << 20) - 4096,	/* bytes of one write to a message device: EMSGSIZE */
	LDM_MAX_DATA = 16 << 20,		/* bytes of one part of a request: EMSGSIZE */
	LDM_MAX_METADATA = 64 << 10,		/* bytes of its metadata: EMSGSIZE */
	LDM_MAX_BLOCKS = 64,			/* parameter blocks that are allocated at once: EINVAL */
	LDM_MAX_CHAIN = 16,			/* devices in a row, each consuming the next: ELOOP; bounds the stack */
	LDM_MAX_DEVICES = 4096,			/* devices of the kernel: ENOSPC */
	LDM_MAX_CONSUMERS = 1 << 16,		/* opens of the kernel's devices: EAGAIN */
	LDM_MAX_OUTSTANDING = 4096,		/* requests to them that have not ended: EAGAIN */
	LDM_MAX_MEMORY = 256 << 20,		/* bytes of all of their parts, kept replies too: ENOMEM */
	LDM_MAX_THREADS = 64,			/* handlers of devices with `thread` at a time; more wait */
	LDM_MAX_USER_CALLS = 1024,		/* requests of the kernel to user space that have not ended: EAGAIN */
	LDM_MAX_USER_OPENS = 32,		/* opens of one such device that are under way at a time: ELOOP */
	LDM_MAX_KEPT = 256,			/* replies kept for the next reader; the oldest makes room */
	LDM_MAX_KEPT_BYTES = 64 << 20,		/* their bytes; the oldest make room */
	LDM_KEPT_SECONDS = 60,			/* how long a reply is kept */
};

struct ldm_device;
struct ldm_handle;

/**
 * struct ldm_data - one of the four parts of a request
 * @data: its bytes, NULL where there are none
 * @size: how many
 */
struct ldm_data {
	void *data;
	size_t size;
};

/**
 * struct ldm_request - one parameter block
 * @type: what is asked for; the consumer's to set, like everything down to @input_metadata
 * @offset: bytes from the device's begin
 * @length: bytes to read or trim
 * @input: the input data
 * @input_metadata: what describes it
 * @output: the output data, the provider's to fill
 * @output_metadata: what describes it
 * @object: of a LDM_NON_STANDARD request within one container: in from the consumer, out from the provider
 * @consumer_id: who asks; set when the request is sent
 * @status: how the request ended; valid in the completion handler and after a synchronous ldm_send_request()
 * @data: the provider's own, until it has completed the request
 */
struct ldm_request {
	enum ldm_request_type type;
	int64_t offset;
	int64_t length;
	struct ldm_data input;
	struct ldm_data input_metadata;
	struct ldm_data output;
	struct ldm_data output_metadata;
	void *object;
	uint64_t consumer_id;
	int status;
	void *data;
};

/**
 * struct ldm_consumer - one open of a device, as its provider sees it
 * @id: unique in the container, never 0, never used twice
 * @device: what was opened
 * @context: that of the device's specification
 * @state: the provider's own
 */
struct ldm_consumer {
	uint64_t id;
	struct ldm_device *device;
	void *context;
	void *state;
};

/* What a request handler returns that will call ldm_complete_request(). */
#define LDM_LATER 1

/**
 * struct ldm_device_spec - what a provider says of a device; copied by ldm_create_device()
 * @name: the file's name
 * @description: one line for listings
 * @takes: what a request holds, in a few words
 * @gives: what a reply holds, in a few words
 * @kind: 0 is LDM_MESSAGE
 * @size: bytes of a LDM_BLOCK device
 * @accepts: bit 1 << t for each type that reaches @request, others get EOPNOTSUPP; 0 is all that the kind has
 * @mode: permission bits of the file; 0 is the container's default, for @uid and @gid too
 * @uid: owner
 * @gid: group
 * @thread: @request may wait for long: it is run in a thread of its own
 * @context: the provider's own, found in every consumer
 * @open: takes note of a new consumer, or refuses it with an error; optional
 * @close: forgets a consumer; optional
 * @request: answers a request; on a block device within its size, a LDM_READ with exactly @length bytes of output
 * @cancel: asks to complete early a request that was answered with LDM_LATER; it may just have been completed, so that
 *	the provider looks it up in its own books, by address, before it touches it; optional
 * @unmarshal: makes the object of a LDM_NON_STANDARD request out of its input, for a consumer in another container;
 *	without it such a request gets EOPNOTSUPP
 * @marshal: makes the output of its object on the way back
 */
struct ldm_device_spec {
	const char *name;
	const char *description;
	const char *takes;
	const char *gives;
	enum ldm_kind kind;
	uint64_t size;
	uint32_t accepts;
	unsigned int mode;
	unsigned int uid;
	unsigned int gid;
	bool thread;
	void *context;
	int (*open)(struct ldm_consumer *consumer);
	void (*close)(struct ldm_consumer *consumer);
	int (*request)(struct ldm_consumer *consumer, struct ldm_request *request);
	void (*cancel)(struct ldm_consumer *consumer, struct ldm_request *request);
	int (*unmarshal)(struct ldm_consumer *consumer, struct ldm_request *request);
	int (*marshal)(struct ldm_consumer *consumer, struct ldm_request *request);
};

/**
 * typedef ldm_completion_handler - is told that a request has ended
 * @context: as it was given to ldm_send_request()
 * @request: which request; the handler's to free
 * @status: how it ended
 */
typedef void (*ldm_completion_handler)(void *context, struct ldm_request *request, int status);

/* -- for providers */

/**
 * ldm_create_device() - make a device available
 * @provider: as `start` was given it
 * @spec: what it is
 * @device: set to the device before any handler of it runs; may be NULL where nobody destroys it
 *
 * Return: 0, -EEXIST when the name is taken, -EINVAL or -ENAMETOOLONG for what cannot be a name.
 */
int ldm_create_device(struct ldm_provider *provider, const struct ldm_device_spec *spec, struct ldm_device **device);

/**
 * ldm_destroy_device() - make a device unavailable
 * @device: which one; gone afterwards
 *
 * Return: 0, or -EBUSY while it has a consumer.
 */
int ldm_destroy_device(struct ldm_device *device);

/**
 * ldm_complete_request() - end a request that was answered with LDM_LATER
 * @request: not to be touched afterwards
 * @status: how it ended
 */
void ldm_complete_request(struct ldm_request *request, int status);

/* -- for consumers */

/**
 * ldm_open_device() - become a consumer of a device
 * @name: container/device
 * @upper: the consumer on whose behalf, NULL for the caller's own; by this a device that would consume itself, by some
 *	way round, is found out
 * @handle: set to what the other functions take
 *
 * Return: 0, -ELOOP for a cycle, -ENOENT, what the open handler returned, -EINTR when the caller is killed, -ETIMEDOUT.
 */
int ldm_open_device(const char *name, struct ldm_consumer *upper, struct ldm_handle **handle);

/**
 * ldm_close_device() - be a consumer no longer
 * @handle: gone afterwards
 *
 * What is outstanding is cancelled: its completion handlers have run when this returns.  So it is not for a completion
 * handler of the same handle to call this.
 */
void ldm_close_device(struct ldm_handle *handle);

/**
 * ldm_about_device() - tell what was opened
 * @handle: of the device
 * @about: filled
 */
void ldm_about_device(const struct ldm_handle *handle, struct ldm_about *about);

/**
 * ldm_alloc_request() - allocate the parameter blocks of a chain
 * @blocks: how many, one for each request of the chain: 1 where the provider consumes nothing further
 * @type: of the first request
 *
 * Return: the first block; NULL when there is no memory, or for a number that is 0 or above LDM_MAX_BLOCKS.
 */
struct ldm_request *ldm_alloc_request(unsigned int blocks, enum ldm_request_type type);

/**
 * ldm_forward_request() - take the next block of a chain
 * @request: what the provider was asked, and has not completed
 *
 * The block asks for the same thing.  Its input is that of @request, which is not copied; ldm_resize() gives it one of
 * its own.  Cancelling @request cancels what was forwarded of it.  When all blocks of the chain are in use one more is
 * allocated.
 *
 * Return: the block; NULL when there is no memory.
 */
struct ldm_request *ldm_forward_request(struct ldm_request *request);

/**
 * ldm_free_request() - give a block back
 * @request: one that was not sent, or has ended; NULL is fine
 */
void ldm_free_request(struct ldm_request *request);

/**
 * ldm_send_request() - ask a device for something
 * @handle: of the device
 * @request: what
 * @completion_handler: told how it ended; NULL waits for that
 * @completion_context: handed to it
 *
 * Return: without a completion handler how the request ended, -EINTR when the caller is killed; with one always 0.
 */
int ldm_send_request(struct ldm_handle *handle, struct ldm_request *request,
		     ldm_completion_handler completion_handler, void *completion_context);

/**
 * ldm_cancel_request() - end a request early
 * @request: one that was sent, and whose completion handler has not freed it
 */
void ldm_cancel_request(struct ldm_request *request);

/* -- for both */

/**
 * ldm_resize() - get memory for a part of a request
 * @request: which request
 * @part: its input, output, or the metadata of one of them
 * @size: bytes; what was there before is gone, what is there now is not set to anything
 *
 * Return: the memory, which is the part's data from now on; NULL, and the part empty, when there is none.  Of a size of
 * 0 the memory is not NULL, and has no bytes.
 */
void *ldm_resize(struct ldm_request *request, struct ldm_data *part, size_t size);

/**
 * ldm_fill() - copy bytes into a part of a request
 * @request: which request
 * @part: as of ldm_resize()
 * @data: the bytes
 * @size: how many
 *
 * Return: 0 or -ENOMEM.
 */
int ldm_fill(struct ldm_request *request, struct ldm_data *part, const void *data, size_t size);

/**
 * ldm_take_output() - answer with what a lower device answered
 * @request: gets output, metadata and object; nothing is copied
 * @lower: had them; ended and not freed yet
 */
void ldm_take_output(struct ldm_request *request, struct ldm_request *lower);

#endif
