/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands behind ldm.h in user space: between a shared object and the process that has loaded it, its host
 *
 * A shared object is a provider's source, unmodified, and the files of this directory.  It keeps parameter blocks,
 * timers and the books of its own devices; names, consumers and whatever crosses the container's border are the host's.
 * The one symbol that it exports is `ldm_runtime`, a table of functions; the host hands over its own by `init`.
 *
 * Threads.  The host calls from threads that may sleep, and takes calls from any thread.  Nothing is locked meanwhile.
 *
 * Memory.  A part of a request may be the host's: it lends it under a number, and is told by `release` when the part is
 * no longer needed, which may be at another request (ldm_take_output), and later than the request's end.
 */
#ifndef LDM_RUNTIME_H
#define LDM_RUNTIME_H

#include <stdarg.h>
#include <stdatomic.h>

#include "ldm.h"

#define LDM_RUNTIME_VERSION 1

/* The parts of a request, in their order in struct ldm_request. */
enum ldm_part { LDM_INPUT, LDM_INPUT_METADATA, LDM_OUTPUT, LDM_OUTPUT_METADATA, LDM_PARTS };

struct ldm_device {
	struct ldm_device_spec spec;	/* without its strings */
};

struct ldm_handle {
	struct ldm_about about;
};

/* What the host does for the shared object; each returns a status, where it returns something. */
struct ldm_host {
	void (*log)(int level, const char *line);
	int (*create_device)(struct ldm_device *device, const struct ldm_device_spec *spec);
	int (*destroy_device)(struct ldm_device *device);
	void (*complete_request)(struct ldm_request *request, int status);
	int (*open_device)(const char *name, struct ldm_consumer *upper, struct ldm_handle *handle,
			   struct ldm_about *about);
	void (*close_device)(struct ldm_handle *handle);
	int (*send_request)(struct ldm_handle *handle, struct ldm_request *request);	/* waits */
	int (*send_soon)(struct ldm_handle *handle, struct ldm_request *request);	/* 0: `end` will be called */
	void (*cancel_request)(struct ldm_request *request);
	void (*release)(uint64_t number);
};

/* What the shared object does for the host. */
struct ldm_runtime {
	uint32_t version;
	struct ldm_provider *provider;
	const struct ldm_param *params, *params_end;

	void (*init)(const struct ldm_host *host);
	int (*start)(void);
	void (*stop)(void);

	/* A consumer: made, opened, and closed if that succeeded, freed. */
	struct ldm_consumer *(*new_consumer)(struct ldm_device *device, uint64_t id);
	int (*open)(struct ldm_consumer *consumer);
	void (*close)(struct ldm_consumer *consumer);
	void (*free_consumer)(struct ldm_consumer *consumer);

	/* Its request: a status or LDM_LATER; then complete_request() is called, maybe before. */
	int (*request)(struct ldm_consumer *consumer, struct ldm_request *request, bool marshalled);
	int (*marshal)(struct ldm_consumer *consumer, struct ldm_request *request);
	void (*cancel)(struct ldm_consumer *consumer, struct ldm_request *request);

	/* A request of the shared object, sent by send_soon(), has ended. */
	void (*end)(struct ldm_request *request, int status);

	/* Parameter blocks. */
	struct ldm_request *(*new_request)(unsigned int blocks, enum ldm_request_type type);
	void (*free_request)(struct ldm_request *request);
	int (*fill)(struct ldm_request *request, enum ldm_part part, const void *data, size_t size);
	void (*lend)(struct ldm_request *request, enum ldm_part part, void *data, size_t size, uint64_t number);
	uint64_t (*lender)(struct ldm_request *request, enum ldm_part part);	/* 0: the part is none of the host's */
	void (*lend_room)(struct ldm_request *request, void *data, size_t size);	/* for its output, if it fits */
	struct ldm_request *(*parent)(struct ldm_request *request);	/* NULL where it begins a chain */
	bool (*inherits_input)(struct ldm_request *request);
};

extern const struct ldm_host *ldm_host;
extern const struct ldm_runtime ldm_runtime;

/* request.c */
int ldm_fill_part(struct ldm_request *request, enum ldm_part part, const void *data, size_t size);
void ldm_lend(struct ldm_request *request, enum ldm_part part, void *data, size_t size, uint64_t number);
uint64_t ldm_lender(struct ldm_request *request, enum ldm_part part);
void ldm_lend_room(struct ldm_request *request, void *data, size_t size);
struct ldm_request *ldm_parent(struct ldm_request *request);
bool ldm_inherits_input(struct ldm_request *request);
bool ldm_mark_sent(struct ldm_request *request, ldm_completion_handler completion_handler, void *completion_context);
void ldm_end(struct ldm_request *request, int status);

#endif
