// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Messages that come back after a time: the device `delay`, which answers later.
 *
 *	$ echo hello > /dev/ldm/kernel/delay; cat /dev/ldm/kernel/delay		waits in the close of the first
 *	hello
 *
 * It answers each message with itself `milliseconds` later; one that begins with "fail" ends with EIO.  A request that
 * is cancelled ends at once.
 */
#include "ldm.h"

static unsigned int milliseconds = 1000;
LDM_PARAM(milliseconds, uint, "the time (default 1000)");

/* A request that waits for its time; all wait for equally long, so that they stand in order. */
struct delayed {
	struct delayed *next;
	struct ldm_request *request;
	uint64_t due;
};

static struct ldm_mutex lock;
static struct delayed *first, **end = &first;	/* under `lock` */
static struct ldm_timer timer;			/* runs while there is a first */

/* Takes the delayed request that `link` points to out of the queue. */
static struct ldm_request *take(struct delayed **link)
{
	struct delayed *delayed = *link;
	struct ldm_request *request = delayed->request;

	*link = delayed->next;
	if (end == &delayed->next)
		end = link;
	ldm_free(delayed);
	return request;
}

/* Returns the first request whose time has come; sees to it that the timer comes for the next one otherwise. */
static struct ldm_request *next_due(void)
{
	struct ldm_request *request = NULL;
	uint64_t now = ldm_now_ms();

	ldm_lock(&lock);
	if (first && first->due <= now)
		request = take(&first);
	else if (first)
		ldm_start_timer(&timer, first->due - now);
	ldm_unlock(&lock);
	return request;
}

static void answer(struct ldm_request *request)
{
	const struct ldm_data *input = &request->input;

	if (input->size >= 4 && !memcmp(input->data, "fail", 4))
		ldm_complete_request(request, -EIO);
	else
		ldm_complete_request(request, ldm_fill(request, &request->output, input->data, input->size));
}

static void ring(void *context)
{
	struct ldm_request *request;

	while ((request = next_due()))
		answer(request);
}

static int delay_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct delayed *delayed = ldm_alloc(sizeof(*delayed));

	if (!delayed)
		return -ENOMEM;
	delayed->request = request;
	delayed->due = ldm_now_ms() + milliseconds;
	ldm_lock(&lock);
	if (!first)
		ldm_start_timer(&timer, milliseconds);
	*end = delayed;
	end = &delayed->next;
	ldm_unlock(&lock);
	return LDM_LATER;
}

static void delay_cancel(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct delayed **link;
	bool found;

	ldm_lock(&lock);
	for (link = &first; *link && (*link)->request != request; link = &(*link)->next)
		;
	found = *link;
	if (found)
		take(link);
	ldm_unlock(&lock);
	if (found)
		ldm_complete_request(request, -ECANCELED);
}

static void delay_stop(struct ldm_provider *provider)
{
	ldm_stop_timer(&timer);
}

static int delay_start(struct ldm_provider *provider)
{
	struct ldm_device_spec spec = {
		.name = "delay",
		.description = "the message, after a time",
		.takes = "any bytes",
		.gives = "the same",
		.accepts = 1 << LDM_CALL,
		.request = delay_request,
		.cancel = delay_cancel,
	};

	ldm_init_mutex(&lock);
	ldm_init_timer(&timer, ring, NULL);
	return ldm_create_device(provider, &spec, NULL);
}

LDM_PROVIDER(delay, delay_start, delay_stop, "Messages that come back after a time");
