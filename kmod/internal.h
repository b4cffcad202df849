/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of ldm.ko know of each other
 *
 *	main.c		set-up, limits that are counted
 *	device.c	the name space: devices by name and number
 *	node.c		their nodes in /dev/ldm/kernel
 *	sysfs.c		their attributes in /sys/class/ldm
 *	provider.c	what a provider's module calls beside requests
 *	consumer.c	opens of the kernel's devices
 *	request.c	parameter blocks and their memory
 *	dispatch.c	the one way of a request to a handler and back
 *	handle.c	opens by kernel code: a plain call, or a file in user space
 *	user.c		devices in user space: opening them, queues, time limits
 *	user_file.c	what is read from and written to their files
 *	file.c		the character devices: open
 *	ioctl.c		a whole request in one call
 *	message.c	read, write, poll of a message device
 *	exchange.c	the request and the reply of one open file of it
 *	kept.c		replies for the next reader of a login session
 *	block.c		read, write, fsync of a block device
 *
 * Who keeps whom.  An open consumer keeps its device, which cannot be destroyed meanwhile, and its provider's module.
 * A request keeps its consumer open until the provider has completed it, even if the consumer has given it up.  The
 * memory of a consumer lives on as long as a request that it sent, and that of a request as long as those that borrow
 * its input.
 *
 * Locks, the outer ones first: ldm_registry_lock; the rest are leaves (consumer.lock, chain.lock, exchange.lock,
 * the lists of kept.c and user.c).  None is held while a handler runs.
 */
#ifndef LDM_INTERNAL_H
#define LDM_INTERNAL_H

#include <linux/cdev.h>
#include <linux/completion.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "ldm.h"

/* Blocks of a chain that begins at a file of the kernel's container: the request itself and some hops. */
#define LDM_FILE_BLOCKS 4

enum ldm_device_state {
	LDM_DEVICE_STARTING,		/* its provider's `start` has not returned yet: nobody gets in */
	LDM_DEVICE_LIVE,
	LDM_DEVICE_GONE,
};

struct ldm_device {
	struct device dev;		/* its references keep this memory */
	u64 serial;			/* never used twice, unlike its address */
	struct ldm_provider *provider;	/* good while the device is in the name space, or has a consumer */
	struct module *module;
	struct ldm_device_spec spec;	/* the strings are copies */
	const char *provider_name;
	char *strings;
	int minor;
	enum ldm_device_state state;	/* this and `consumers`: under ldm_registry_lock */
	unsigned int consumers;
};

/* Devices on whose behalf a consumer was opened, by serial, its own last. */
struct ldm_lineage {
	unsigned int depth;
	u64 serials[LDM_MAX_CHAIN];
};

/* One open of a device of the kernel. */
struct consumer {
	struct ldm_consumer public;
	struct ldm_lineage lineage;
	struct kref memory;
	refcount_t uses;		/* the open itself, and each request that its provider has */
	spinlock_t lock;
	struct list_head requests;	/* that the provider has; this and the next: under `lock` */
	struct list_head cancelled;	/* those of them that were cancelled */
	struct work_struct close_work;
	kuid_t uid;			/* who opened it: this and `session` tell whose a kept reply is */
	struct pid *session;		/* NULL where there is none */
};

enum request_state {
	REQUEST_NEW,
	REQUEST_SENT,
	REQUEST_ENDED,
};

struct chain;
struct user_file;

/* The parts of a request, in their order in struct ldm_request. */
enum request_part { PART_INPUT, PART_INPUT_METADATA, PART_OUTPUT, PART_OUTPUT_METADATA, PARTS };

/* A parameter block. */
struct request {
	struct ldm_request public;
	struct chain *chain;
	struct request *parent;		/* whose input it borrows, and with which it is cancelled */
	refcount_t refs;		/* its consumer's, its provider's, and those of its children */
	atomic_t state;			/* an enum request_state */
	bool alone;			/* allocated by itself: the chain had no block left */
	bool marshalled;		/* of a LDM_NON_STANDARD request: it crosses the container's border */
	u8 depth;			/* hops from the first of the chain */
	u64 call;			/* the id of the call that sends it, 0 where it has none */
	void *memory[PARTS];		/* what the parts point to, unless it is the parent's */
	size_t room[PARTS];
	bool sent;			/* this and those below it: under the chain's lock */
	bool retired;			/* its provider has completed it */
	struct list_head sibling;	/* in the chain */
	struct consumer *consumer;	/* who sent it, NULL to user space; keeps the memory */
	struct list_head node;		/* in the consumer's lists */
	struct ldm_handle *handle;	/* that it was sent by, whose `pending` counts it */
	ldm_completion_handler completion_handler;
	void *completion_context;
	struct work_struct work;	/* for a handler in a thread of its own */
};

#define to_request(r) container_of(r, struct request, public)
#define to_consumer(c) container_of(c, struct consumer, public)

extern struct workqueue_struct *ldm_workqueue;	/* closes that must not run where they come up, and what has a time */
extern struct workqueue_struct *ldm_threads;	/* handlers of devices with `thread` */
extern struct mutex ldm_registry_lock;

/* Counts up, unless that would be more than the limit allows. */
static inline bool ldm_count(atomic_long_t *counter, long amount, long limit)
{
	if (atomic_long_add_return(amount, counter) <= limit)
		return true;
	atomic_long_sub(amount, counter);
	return false;
}

/* device.c */
void ldm_devices_exit(void);
void ldm_devices_release(struct ldm_provider *provider);
void ldm_devices_destroy(struct ldm_provider *provider);
struct ldm_device *ldm_device_by_minor(int minor);
struct ldm_device *ldm_device_by_name(const char *name);
int ldm_device_use(struct ldm_device *device);
void ldm_device_unuse(struct ldm_device *device);
u32 ldm_device_accepts(const struct ldm_device *device);

/* node.c */
int ldm_nodes_init(void);
void ldm_nodes_exit(void);
void ldm_node_init(struct ldm_device *device);
int ldm_node_add(struct ldm_device *device);

/* sysfs.c */
extern const struct attribute_group *ldm_device_groups[];

/* consumer.c */
struct consumer *ldm_consumer_open(struct ldm_device *device, const struct ldm_lineage *upper);
void ldm_consumer_close(struct consumer *consumer);
bool ldm_consumer_cancel(struct consumer *consumer, u64 call);
void ldm_consumer_put(struct consumer *consumer);
void ldm_consumer_free(struct kref *memory);
void ldm_consumer_about(const struct consumer *consumer, struct ldm_about *about);
bool ldm_lineage_has(const struct ldm_lineage *lineage, u64 serial);

/* request.c */
struct request *ldm_request_get(struct request *request);
void ldm_request_put(struct request *request);
int ldm_request_mark_sent(struct request *request);
struct request *ldm_request_next_child(struct request *parent);
bool ldm_request_retire(struct request *request);
bool ldm_request_pin_consumer(struct request *request);
int ldm_request_grow_output(struct request *request, size_t room);

/* dispatch.c */
extern atomic_long_t ldm_outstanding;
int ldm_dispatch(struct consumer *consumer, struct request *request);
bool ldm_end_request(struct request *request, int status);
void ldm_ended(struct request *request);

/* handle.c */
int ldm_send_and_wait(struct consumer *consumer, struct ldm_request *request);

struct ldm_handle {
	struct consumer *consumer;	/* of a device of the kernel, or */
	struct user_file *file;		/* of one in user space */
	atomic_t pending;		/* requests whose completion handler has not returned */
};

/* user.c */
int ldm_user_init(void);
void ldm_user_exit(void);
struct user_file *ldm_user_open(const char *name);
void ldm_user_close(struct user_file *file);
int ldm_user_send(struct user_file *file, struct request *request);
void ldm_user_about(const struct user_file *file, struct ldm_about *about);

/* file.c */
extern const struct file_operations ldm_fops;
long ldm_ioctl(struct consumer *consumer, struct file *file, unsigned int command, unsigned long argument);

/* message.c, block.c: `private_data` of an open file begins with its consumer */
struct open_file {
	struct consumer *consumer;
};

int ldm_message_open(struct file *file, struct consumer *consumer);
int ldm_block_open(struct file *file, struct consumer *consumer);
extern const struct file_operations ldm_message_fops;
extern const struct file_operations ldm_block_fops;

/* kept.c */
void ldm_kept_exit(void);
bool ldm_keep(struct consumer *writer, struct request *reply, int error);
struct request *ldm_take_kept(struct consumer *reader, int *error);
void ldm_withdraw_kept(struct consumer *writer);
void ldm_forget_kept(struct ldm_device *device);

#endif
