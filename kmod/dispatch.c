// SPDX-License-Identifier: GPL-2.0-only
/*
 * The one way of a request to the handler of a kernel device and back, whoever sends it.
 *
 * A request ends for its consumer when its state becomes REQUEST_ENDED, which one of these does: the handler's return,
 * its ldm_complete_request(), ldm_cancel_request(), a time limit.  Who made that change tells the consumer.  For its
 * provider it ends by retire(), also when it had ended for the consumer long before.
 */
#include "internal.h"

atomic_long_t ldm_outstanding;

/* Checks a request against its device, and cuts what is read or trimmed at a block device's end. */
static int check(const struct ldm_device *device, struct ldm_request *request)
{
	u64 room;

	if (request->type >= 32 || !(ldm_device_accepts(device) & BIT(request->type)))
		return -EOPNOTSUPP;
	if (request->offset < 0 || request->length < 0)
		return -EINVAL;
	if (device->spec.kind != LDM_BLOCK || request->type == LDM_FLUSH)
		return 0;
	room = device->spec.size - min_t(u64, request->offset, device->spec.size);
	if (request->type == LDM_WRITE) {
		request->length = request->input.size;
		return request->input.size > room ? -ENOSPC : 0;
	}
	request->length = min_t(u64, request->length, room);
	return request->type == LDM_READ && request->length > LDM_MAX_DATA ? -EMSGSIZE : 0;
}

static int run(struct consumer *consumer, struct request *request)
{
	const struct ldm_device_spec *spec = &consumer->public.device->spec;
	int status = 0;

	if (request->marshalled)
		status = spec->unmarshal ? spec->unmarshal(&consumer->public, &request->public) : -EOPNOTSUPP;
	return status ? status : spec->request(&consumer->public, &request->public);
}

/* Returns the status that the consumer gets for the one that the handler gave. */
static int settle(struct request *request, int status)
{
	const struct ldm_device_spec *spec = &request->consumer->public.device->spec;
	struct ldm_request *public = &request->public;

	if (status > 0) {
		ldm_error("device %s: a handler ended with status %d, which is none", spec->name, status);
		return -EIO;
	}
	if (!status && request->marshalled)
		status = spec->marshal ? spec->marshal(&request->consumer->public, public) : -EOPNOTSUPP;
	if (!status && spec->kind == LDM_BLOCK && public->type == LDM_READ && public->output.size != public->length) {
		ldm_error("device %s: %zu bytes for a READ of %lld", spec->name, public->output.size, public->length);
		status = -EINVAL;
	}
	return status > 0 ? -EIO : status;
}

/* Tells whether the request ends by this. */
bool ldm_end_request(struct request *request, int status)
{
	if (atomic_cmpxchg(&request->state, REQUEST_SENT, REQUEST_ENDED) != REQUEST_SENT)
		return false;
	request->public.status = status;
	wake_up_var(&request->state);	/* who does it for a device in user space has no need to go on */
	return true;
}

/* Tells whoever sent it that the request has ended; it may be freed by that. */
void ldm_ended(struct request *request)
{
	struct ldm_handle *handle = request->handle;

	request->completion_handler(request->completion_context, &request->public, request->public.status);
	if (handle && atomic_dec_and_test(&handle->pending))
		wake_up_var(&handle->pending);
}

static void retire(struct request *request)
{
	struct consumer *consumer = request->consumer;

	if (WARN_ONCE(!ldm_request_retire(request), "a request was completed twice"))
		return;
	spin_lock(&consumer->lock);
	list_del_init(&request->node);
	spin_unlock(&consumer->lock);
	atomic_long_dec(&ldm_outstanding);
	ldm_consumer_put(consumer);
	ldm_request_put(request);
}

void ldm_complete_request(struct ldm_request *public, int status)
{
	struct request *request = to_request(public);

	if (ldm_end_request(request, settle(request, status)))
		ldm_ended(request);
	retire(request);
}
EXPORT_SYMBOL_GPL(ldm_complete_request);

static void run_in_thread(struct work_struct *work)
{
	struct request *request = container_of(work, struct request, work);
	struct consumer *consumer = request->consumer;
	int status;

	refcount_inc(&consumer->uses);	/* for the way out of the handler, which may have completed the request */
	status = atomic_read(&request->state) == REQUEST_ENDED ? -ECANCELED : run(consumer, request);
	if (status != LDM_LATER)
		ldm_complete_request(&request->public, status);
	ldm_consumer_put(consumer);
}

/* Gives the request to the provider, unless too many are out or the consumer is closing. */
static int admit(struct consumer *consumer, struct request *request)
{
	int status;

	if (request->depth >= LDM_MAX_CHAIN)
		return -ELOOP;
	if (!ldm_count(&ldm_outstanding, 1, LDM_MAX_OUTSTANDING))
		return -EAGAIN;
	kref_get(&consumer->memory);
	request->consumer = consumer;
	request->public.consumer_id = consumer->public.id;
	ldm_request_get(request);	/* before it can be cancelled, and given up by who sends it */
	status = ldm_request_mark_sent(request);
	if (status) {
		atomic_long_dec(&ldm_outstanding);
		ldm_request_put(request);
		return status;
	}
	refcount_inc(&consumer->uses);
	spin_lock(&consumer->lock);
	list_add_tail(&request->node, &consumer->requests);
	spin_unlock(&consumer->lock);
	return 0;
}

/*
 * Sends a request.  Returns how it ended, and then the completion handler is not called, or LDM_LATER, and then it is,
 * or has been.
 */
int ldm_dispatch(struct consumer *consumer, struct request *request)
{
	int status = check(consumer->public.device, &request->public);

	if (!status)
		status = admit(consumer, request);
	if (status) {
		atomic_set(&request->state, REQUEST_ENDED);
		request->public.status = status;
		return status;
	}
	if (consumer->public.device->spec.thread) {
		INIT_WORK(&request->work, run_in_thread);
		queue_work(ldm_threads, &request->work);
		return LDM_LATER;
	}
	status = run(consumer, request);
	if (status == LDM_LATER)
		return LDM_LATER;
	status = settle(request, status);
	if (!ldm_end_request(request, status))
		status = LDM_LATER;
	retire(request);
	return status;
}

void ldm_cancel_request(struct ldm_request *public)
{
	struct request *request = ldm_request_get(to_request(public)), *child;

	if (ldm_request_pin_consumer(request)) {
		const struct ldm_device_spec *spec = &request->consumer->public.device->spec;

		if (spec->cancel && atomic_read(&request->state) == REQUEST_SENT)
			spec->cancel(&request->consumer->public, public);
		ldm_consumer_put(request->consumer);
	}
	if (ldm_end_request(request, -ECANCELED))
		ldm_ended(request);
	while ((child = ldm_request_next_child(request))) {
		ldm_cancel_request(&child->public);
		ldm_request_put(child);
	}
	ldm_request_put(request);
}
EXPORT_SYMBOL_GPL(ldm_cancel_request);
