// SPDX-License-Identifier: GPL-2.0-only
/* Opens of the kernel's devices: from the open handler to the close handler. */
#include <linux/cred.h>
#include <linux/sched.h>

#include "internal.h"

static atomic64_t last_id;
static atomic_long_t consumers;

bool ldm_lineage_has(const struct ldm_lineage *lineage, u64 serial)
{
	unsigned int place;

	for (place = 0; place < lineage->depth; place++)
		if (lineage->serials[place] == serial)
			return true;
	return false;
}

void ldm_consumer_free(struct kref *memory)
{
	struct consumer *consumer = container_of(memory, struct consumer, memory);

	put_pid(consumer->session);
	kfree(consumer);
}

/* After the last request and the close: nothing of the provider's code runs for this consumer any more. */
static void end(struct consumer *consumer)
{
	struct ldm_device *device = consumer->public.device;

	if (device->spec.close)
		device->spec.close(&consumer->public);
	atomic_long_dec(&consumers);
	kref_put(&consumer->memory, ldm_consumer_free);
	ldm_device_unuse(device);
}

static void end_work(struct work_struct *work)
{
	end(container_of(work, struct consumer, close_work));
}

/* In a work item, since the caller may be the provider's code, with its own locks. */
void ldm_consumer_put(struct consumer *consumer)
{
	if (refcount_dec_and_test(&consumer->uses))
		queue_work(ldm_workqueue, &consumer->close_work);
}

static struct consumer *alloc_consumer(struct ldm_device *device)
{
	struct consumer *consumer = kzalloc(sizeof(*consumer), GFP_KERNEL_ACCOUNT);
	struct pid *session;

	if (!consumer)
		return NULL;
	consumer->public.id = atomic64_inc_return(&last_id);
	consumer->public.device = device;
	consumer->public.context = device->spec.context;
	kref_init(&consumer->memory);
	refcount_set(&consumer->uses, 1);
	spin_lock_init(&consumer->lock);
	INIT_LIST_HEAD(&consumer->requests);
	INIT_LIST_HEAD(&consumer->cancelled);
	INIT_WORK(&consumer->close_work, end_work);
	consumer->uid = current_fsuid();
	session = get_task_pid(current, PIDTYPE_SID);
	if (session && pid_nr(session))
		consumer->session = session;
	else
		put_pid(session);
	return consumer;
}

static int inherit(struct consumer *consumer, const struct ldm_lineage *upper, u64 serial)
{
	struct ldm_lineage *lineage = &consumer->lineage;

	if (upper)
		*lineage = *upper;
	if (lineage->depth >= LDM_MAX_CHAIN || ldm_lineage_has(lineage, serial))
		return -ELOOP;
	lineage->serials[lineage->depth++] = serial;
	return 0;
}

/* Opens a device that is in use (ldm_device_use), which the consumer takes over; on failure the caller keeps it. */
static struct consumer *open_used(struct ldm_device *device, const struct ldm_lineage *upper)
{
	struct consumer *consumer;
	int status;

	if (!ldm_count(&consumers, 1, LDM_MAX_CONSUMERS))
		return ERR_PTR(-EAGAIN);
	consumer = alloc_consumer(device);
	status = consumer ? inherit(consumer, upper, device->serial) : -ENOMEM;
	if (!status && device->spec.open)
		status = device->spec.open(&consumer->public);
	if (!status)
		return consumer;
	if (consumer)
		kref_put(&consumer->memory, ldm_consumer_free);
	atomic_long_dec(&consumers);
	return ERR_PTR(status > 0 ? -EIO : status);
}

struct consumer *ldm_consumer_open(struct ldm_device *device, const struct ldm_lineage *upper)
{
	int status = ldm_device_use(device);
	struct consumer *consumer;

	if (status)
		return ERR_PTR(status);
	consumer = open_used(device, upper);
	if (IS_ERR(consumer))
		ldm_device_unuse(device);
	return consumer;
}

/* Nothing is sent by this consumer any more: cancels what it has outstanding, and ends it when that is done. */
void ldm_consumer_close(struct consumer *consumer)
{
	struct request *request;

	spin_lock(&consumer->lock);
	while ((request = list_first_entry_or_null(&consumer->requests, struct request, node))) {
		list_move_tail(&request->node, &consumer->cancelled);
		ldm_request_get(request);
		spin_unlock(&consumer->lock);
		ldm_cancel_request(&request->public);
		ldm_request_put(request);
		spin_lock(&consumer->lock);
	}
	spin_unlock(&consumer->lock);
	if (refcount_dec_and_test(&consumer->uses))
		end(consumer);
}

/* Cancels the request that is sent by the call of this id; false when there is none, or it has ended. */
bool ldm_consumer_cancel(struct consumer *consumer, u64 call)
{
	struct request *request, *found = NULL;

	spin_lock(&consumer->lock);
	list_for_each_entry(request, &consumer->requests, node) {
		if (request->call == call && atomic_read(&request->state) == REQUEST_SENT) {
			found = ldm_request_get(request);
			break;
		}
	}
	spin_unlock(&consumer->lock);
	if (!found)
		return false;
	ldm_cancel_request(&found->public);
	ldm_request_put(found);
	return true;
}

void ldm_consumer_about(const struct consumer *consumer, struct ldm_about *about)
{
	const struct ldm_device *device = consumer->public.device;

	*about = (struct ldm_about){
		.consumer_id = consumer->public.id,
		.size = device->spec.size,
		.accepts = ldm_device_accepts(device),
		.kind = device->spec.kind,
		.execution = device->spec.thread ? LDM_THREAD : LDM_INLINE,
	};
}
