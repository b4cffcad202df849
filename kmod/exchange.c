// SPDX-License-Identifier: GPL-2.0-only
/* The exchange of one open file of a message device: see exchange.h for what it answers when. */
#include <linux/uio.h>

#include "exchange.h"

static void put_if(struct request *request)
{
	if (request)
		ldm_request_put(request);
}

/* What was completed while the file was being closed has left its reply here. */
static void free_exchange(struct kref *memory)
{
	struct exchange *exchange = container_of(memory, struct exchange, memory);

	put_if(exchange->request);
	kfree(exchange);
}

/* Leaves RUNNING for IDLE, or READY for IDLE; returns what is to be put. */
static struct request *reset(struct exchange *exchange)
{
	struct request *request = exchange->request;

	lockdep_assert_held(&exchange->lock);
	exchange->state = IDLE;
	exchange->request = NULL;
	exchange->error = 0;
	exchange->offset = 0;
	return request;
}

/* The reply is there; takes over the reference to the request. */
static void ready(struct exchange *exchange, struct request *request, int error)
{
	struct request *before;

	spin_lock(&exchange->lock);
	before = exchange->request;
	exchange->state = READY;
	exchange->request = request;
	exchange->error = error;
	exchange->offset = 0;
	spin_unlock(&exchange->lock);
	put_if(before);
	wake_up_all(&exchange->changed);
}

static void completed(void *context, struct ldm_request *public, int status)
{
	struct exchange *exchange = context;

	ready(exchange, to_request(public), status);
	kref_put(&exchange->memory, free_exchange);
}

/* Goes from IDLE or READY to RUNNING. */
static int begin(struct exchange *exchange, bool idle_only)
{
	struct request *old = NULL;
	bool kept = false;
	int status = 0;

	spin_lock(&exchange->lock);
	if (exchange->state == RUNNING || (idle_only && exchange->state != IDLE)) {
		status = -EBUSY;
	} else {
		old = reset(exchange);
		exchange->state = RUNNING;
		kept = exchange->kept;
		exchange->kept = false;
		exchange->interrupted = false;
		exchange->abandoned = false;
	}
	spin_unlock(&exchange->lock);
	put_if(old);
	if (kept)
		ldm_withdraw_kept(exchange->open.consumer);
	return status;
}

static void fail(struct exchange *exchange)
{
	struct request *request;

	spin_lock(&exchange->lock);
	request = reset(exchange);
	spin_unlock(&exchange->lock);
	put_if(request);
	wake_up_all(&exchange->changed);
}

/* Sends the request of a message that is RUNNING, and takes it over; returns an error that is known at once. */
static int send(struct exchange *exchange, struct ldm_request *public)
{
	struct request *request = to_request(public);
	int status;

	request->completion_handler = completed;
	request->completion_context = exchange;
	kref_get(&exchange->memory);
	spin_lock(&exchange->lock);
	exchange->request = ldm_request_get(request);	/* for who cancels it meanwhile */
	spin_unlock(&exchange->lock);
	status = ldm_dispatch(exchange->open.consumer, request);
	if (status == LDM_LATER)
		return 0;
	kref_put(&exchange->memory, free_exchange);
	if (status) {
		fail(exchange);
		ldm_request_put(request);
	} else {
		ready(exchange, request, 0);
	}
	return status;
}

int ldm_exchange_call(struct exchange *exchange, struct iov_iter *from)
{
	size_t size = iov_iter_count(from);
	struct ldm_request *request;
	int status = begin(exchange, false);

	if (status)
		return status;
	status = -ENOMEM;
	request = ldm_alloc_request(LDM_FILE_BLOCKS, LDM_CALL);
	if (request && ldm_resize(request, &request->input, size))
		status = copy_from_iter_full(request->input.data, size, from) ? 0 : -EFAULT;
	if (!status)
		return send(exchange, request);
	ldm_free_request(request);
	fail(exchange);
	return status;
}

int ldm_exchange_read(struct exchange *exchange, size_t size)
{
	struct ldm_request *request;
	struct request *kept;
	int error, status = begin(exchange, true);

	if (status)
		return 0;	/* somebody else has begun */
	kept = ldm_take_kept(exchange->open.consumer, &error);
	if (kept) {
		ready(exchange, kept, error);
		return 0;
	}
	request = ldm_alloc_request(LDM_FILE_BLOCKS, LDM_READ);
	if (!request) {
		fail(exchange);
		return -ENOMEM;
	}
	request->length = min_t(size_t, size, LDM_MAX_DATA);
	return send(exchange, request);
}

bool ldm_exchange_take(struct exchange *exchange, size_t size, struct piece *piece)
{
	struct request *finished = NULL;
	bool kept = false, is_ready;

	*piece = (struct piece){ 0 };
	spin_lock(&exchange->lock);
	is_ready = exchange->state == READY;
	if (is_ready) {
		kept = exchange->kept;
		exchange->kept = false;
		piece->error = exchange->error;
		piece->offset = exchange->offset;
		if (!piece->error)
			piece->size = min(size, exchange->request->public.output.size - piece->offset);
		exchange->offset += piece->size;
		if (piece->size)
			piece->request = ldm_request_get(exchange->request);
		else
			finished = reset(exchange);
	}
	spin_unlock(&exchange->lock);
	put_if(finished);
	if (kept)
		ldm_withdraw_kept(exchange->open.consumer);
	return is_ready;
}

void ldm_exchange_give_back(struct exchange *exchange, const struct piece *piece, size_t copied)
{
	spin_lock(&exchange->lock);
	if (exchange->state == READY && exchange->request == piece->request &&
	    exchange->offset == piece->offset + piece->size)
		exchange->offset = piece->offset + copied;
	spin_unlock(&exchange->lock);
}

void ldm_exchange_cancel(struct exchange *exchange)
{
	struct request *request = NULL;

	spin_lock(&exchange->lock);
	if (exchange->state == RUNNING && exchange->request)
		request = ldm_request_get(exchange->request);
	spin_unlock(&exchange->lock);
	if (request) {
		ldm_cancel_request(&request->public);
		ldm_request_put(request);
	}
}

int ldm_exchange_leave(struct exchange *exchange)
{
	struct request *reply = NULL;
	bool stays = true;
	int error = 0;

	spin_lock(&exchange->lock);
	if (exchange->state == READY) {
		error = exchange->error;
		if (!exchange->offset && !exchange->kept && !exchange->abandoned &&
		    (error || exchange->request->public.output.size))
			reply = ldm_request_get(exchange->request);
	}
	spin_unlock(&exchange->lock);
	if (reply && ldm_keep(exchange->open.consumer, reply, error)) {
		spin_lock(&exchange->lock);
		stays = exchange->state == READY && exchange->request == reply;
		exchange->kept = stays;
		spin_unlock(&exchange->lock);
	}
	if (!stays)
		ldm_withdraw_kept(exchange->open.consumer);
	put_if(reply);
	return error;
}

struct exchange *ldm_exchange_new(struct consumer *consumer)
{
	struct exchange *exchange = kzalloc(sizeof(*exchange), GFP_KERNEL_ACCOUNT);

	if (!exchange)
		return NULL;
	exchange->open.consumer = consumer;
	kref_init(&exchange->memory);
	init_waitqueue_head(&exchange->changed);
	spin_lock_init(&exchange->lock);
	return exchange;
}

void ldm_exchange_put(struct exchange *exchange)
{
	struct request *request;

	spin_lock(&exchange->lock);
	request = reset(exchange);
	spin_unlock(&exchange->lock);
	put_if(request);
	kref_put(&exchange->memory, free_exchange);
}
