// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Devices for tests that consume the device `lower`, each in another way.
 *
 *	sync		passes each request on and waits for it
 *	changed		passes it on with its input turned round, waiting for it
 *	pair		passes it on twice at a time, and joins the replies
 *	own		sends a CALL "own" on a chain that it begins itself
 *	cancelling	passes it on and cancels that at once
 *	leaving		passes it on, closes the device at once, and answers how often its completion handler ran
 *	about		READ tells what the lower device is
 *	number		sends the lower device a number as an object, and answers with what has become of it
 *
 * and some that consume nothing:
 *
 *	object		NON_STANDARD, whose object is a number, marshalled as one byte; answers with twice the number
 *	slow		answers with its input; to "wait" only when it is cancelled
 *	ticks		READ tells how often a timer of 1 ms has rung, after it has rung `ticks` times
 *	crash		CALL ends the process by a bad address
 *	odd		a handler that returns what is no status
 *	talk		writes its input to the log
 *	big		READ gives `length` bytes, the first half of what it took memory for
 */
#include "ldm.h"

static const char *lower = "box/plain";
LDM_PARAM(lower, string, "the device that is consumed");
static unsigned int ticks = 3;
LDM_PARAM(ticks, uint, "how often the timer rings");
static bool refuse;
LDM_PARAM(refuse, bool, "refuse to start");
static uint64_t room = 1 << 10;
LDM_PARAM(room, size, "nothing");

static struct ldm_mutex lock;

static int open_lower(struct ldm_consumer *consumer)
{
	struct ldm_handle *handle;
	int status = ldm_open_device(lower, consumer, &handle);

	if (!status)
		consumer->state = handle;
	return status;
}

static void close_lower(struct ldm_consumer *consumer)
{
	if (consumer->state)
		ldm_close_device(consumer->state);
}

static int sync_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *next = ldm_forward_request(request);
	int status;

	if (!next)
		return -ENOMEM;
	status = ldm_send_request(consumer->state, next, NULL, NULL);
	if (!status)
		ldm_take_output(request, next);
	if (status != next->status)
		status = -EPROTO;
	ldm_free_request(next);
	return status;
}

static int changed_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *next = ldm_forward_request(request);
	const char *from = request->input.data;
	size_t size = request->input.size, place;
	int status = -ENOMEM;
	char *to;

	if (!next)
		return -ENOMEM;
	to = ldm_resize(next, &next->input, size);
	for (place = 0; to && place < size; place++)
		to[place] = from[size - place - 1];
	if (to)
		status = ldm_send_request(consumer->state, next, NULL, NULL);
	if (!status)
		ldm_take_output(request, next);
	ldm_free_request(next);
	return status;
}

/* Two requests that are under way for one. */
struct pair {
	struct ldm_request *request, *halves[2];
	int missing, status;
};

static void join(struct pair *pair)
{
	struct ldm_data *one = &pair->halves[0]->output, *two = &pair->halves[1]->output;
	char *to;

	if (!pair->status) {
		to = ldm_resize(pair->request, &pair->request->output, one->size + two->size);
		if (to) {
			memcpy(to, one->data, one->size);
			memcpy(to + one->size, two->data, two->size);
		} else {
			pair->status = -ENOMEM;
		}
	}
	ldm_free_request(pair->halves[0]);
	ldm_free_request(pair->halves[1]);
	ldm_complete_request(pair->request, pair->status);
	ldm_free(pair);
}

static void half_done(void *context, struct ldm_request *request, int status)
{
	struct pair *pair = context;
	bool last;

	ldm_lock(&lock);
	if (status)
		pair->status = status;
	last = !--pair->missing;
	ldm_unlock(&lock);
	if (last)
		join(pair);
}

static int pair_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct pair *pair = ldm_alloc(sizeof(*pair));
	int half;

	if (!pair)
		return -ENOMEM;
	pair->request = request;
	pair->missing = 2;
	for (half = 0; half < 2; half++)
		pair->halves[half] = ldm_forward_request(request);
	for (half = 0; half < 2; half++)
		ldm_send_request(consumer->state, pair->halves[half], half_done, pair);
	return LDM_LATER;
}

static int own_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *first = ldm_alloc_request(2, LDM_CALL);
	int status;

	if (!first)
		return -ENOMEM;
	status = ldm_fill(first, &first->input, "own", 3);
	if (!status)
		status = ldm_fill(first, &first->input_metadata, "about", 5);
	if (!status)
		status = ldm_send_request(consumer->state, first, NULL, NULL);
	if (!status)
		ldm_take_output(request, first);
	ldm_free_request(first);
	return status;
}

static void cancelled(void *context, struct ldm_request *request, int status)
{
	ldm_free_request(request);
	ldm_complete_request(context, status);
}

static int cancelling_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *next = ldm_forward_request(request);

	if (!next)
		return -ENOMEM;
	ldm_send_request(consumer->state, next, cancelled, request);
	ldm_cancel_request(next);
	return LDM_LATER;
}

static void count(void *context, struct ldm_request *request, int status)
{
	++*(int *)context;
	ldm_free_request(request);
}

static int leaving_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *next = ldm_forward_request(request);
	int ended = 0, size;
	char text[16];

	if (!next)
		return -ENOMEM;
	ldm_send_request(consumer->state, next, count, &ended);
	ldm_close_device(consumer->state);
	consumer->state = NULL;
	size = snprintf(text, sizeof(text), "%d", ended);
	return ldm_fill(request, &request->output, text, size);
}

static int about_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_about about;
	char text[100];
	int size;

	ldm_about_device(consumer->state, &about);
	size = snprintf(text, sizeof(text), "consumer %d kind %d size %d accepts %x execution %d", !!about.consumer_id,
			about.kind, (int)about.size, about.accepts, about.execution);
	return ldm_fill(request, &request->output, text, size);
}

static int number_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *next = ldm_alloc_request(1, LDM_NON_STANDARD);
	int number = 21, status, size;
	char text[16];

	if (!next)
		return -ENOMEM;
	next->object = &number;
	status = ldm_send_request(consumer->state, next, NULL, NULL);
	ldm_free_request(next);
	size = snprintf(text, sizeof(text), "%d", number);
	return status ? status : ldm_fill(request, &request->output, text, size);
}

static int number_of(struct ldm_consumer *consumer, struct ldm_request *request)
{
	int *number;

	if (request->input.size != 1)
		return -EINVAL;
	number = ldm_alloc(sizeof(*number));
	if (!number)
		return -ENOMEM;
	*number = *(unsigned char *)request->input.data;
	request->object = number;
	return 0;
}

static int object_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	if (!request->object)
		return -EINVAL;
	*(int *)request->object *= 2;
	return 0;
}

static int byte_of(struct ldm_consumer *consumer, struct ldm_request *request)
{
	unsigned char byte = *(int *)request->object;

	ldm_free(request->object);
	return ldm_fill(request, &request->output, &byte, 1);
}

static struct ldm_request *waiting;

static int slow_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	const struct ldm_data *input = &request->input;

	if (input->size != 4 || memcmp(input->data, "wait", 4))
		return ldm_fill(request, &request->output, input->data, input->size);
	ldm_lock(&lock);
	request->data = waiting;
	waiting = request;
	ldm_unlock(&lock);
	return LDM_LATER;
}

static void slow_cancel(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request **link;
	bool found;

	ldm_lock(&lock);
	for (link = &waiting; *link && *link != request; link = (struct ldm_request **)&(*link)->data)
		;
	found = *link;
	if (found)
		*link = request->data;
	ldm_unlock(&lock);
	if (found)
		ldm_complete_request(request, -ECANCELED);
}

static struct ldm_timer timer;
static unsigned int rung;
static struct ldm_request *listener;

static void ring(void *context)
{
	char text[16];
	int size;

	if (++rung < ticks) {
		ldm_start_timer(&timer, 1);
		return;
	}
	size = snprintf(text, sizeof(text), "%u", rung);
	ldm_complete_request(listener, ldm_fill(listener, &listener->output, text, size));
}

static int ticks_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	rung = 0;
	listener = request;
	ldm_start_timer(&timer, 1);
	return LDM_LATER;
}

static int *volatile nowhere;

static int crash_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	*nowhere = 0;
	return 0;
}

static int odd_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	return 7;
}

static int talk_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	ldm_warn("%.*s", (int)request->input.size, (char *)request->input.data);
	return 0;
}

static int big_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	void *output = ldm_resize(request, &request->output, 2 * request->length);

	if (!output)
		return -ENOMEM;
	memset(output, 'b', request->length);
	request->output.size = request->length;
	return 0;
}

#define LOWER .open = open_lower, .close = close_lower

static const struct ldm_device_spec devices[] = {
	{ .name = "sync", .request = sync_request, LOWER },
	{ .name = "changed", .request = changed_request, LOWER },
	{ .name = "pair", .request = pair_request, LOWER },
	{ .name = "own", .request = own_request, LOWER },
	{ .name = "cancelling", .request = cancelling_request, LOWER },
	{ .name = "leaving", .request = leaving_request, LOWER },
	{ .name = "about", .request = about_request, LOWER },
	{ .name = "number", .request = number_request, LOWER },
	{ .name = "object", .request = object_request, .unmarshal = number_of, .marshal = byte_of },
	{ .name = "slow", .request = slow_request, .cancel = slow_cancel, .accepts = 1 << LDM_CALL },
	{ .name = "ticks", .request = ticks_request, .accepts = 1 << LDM_READ },
	{ .name = "crash", .request = crash_request, .description = "bad", .takes = "anything", .gives = "nothing",
	  .mode = 0640, .uid = 12, .gid = 34 },
	{ .name = "odd", .request = odd_request },
	{ .name = "talk", .request = talk_request },
	{ .name = "big", .request = big_request },
};

static void caller_stop(struct ldm_provider *provider)
{
	ldm_stop_timer(&timer);
}

static int caller_start(struct ldm_provider *provider)
{
	size_t place;
	int status = 0;

	ldm_init_mutex(&lock);
	ldm_init_timer(&timer, ring, NULL);
	for (place = 0; place < sizeof(devices) / sizeof(devices[0]) && !status; place++)
		status = ldm_create_device(provider, &devices[place], NULL);
	return refuse ? -ENODEV : status;
}

LDM_PROVIDER(caller, caller_start, caller_stop, "Devices for tests that consume another one");
