// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * gate.c - devices for tests, whose requests end when the test says so
 *
 *	gate		holds each request until `keeper` lets it go; cancelling lets it go as well
 *	stubborn	the same, and does not care for cancelling
 *	blocks		a block device of 4096 bytes that does as `gate` does
 *	keeper		CALL "release" ends all that is held, with its own input as reply; "fail N" ends it with errno N;
 *			READ tells what has happened to `gate`, `stubborn` and `blocks`, and to `plain`
 *	plain		answers a CALL with its input, data and metadata, and "fail N" with errno N; READ tells "READ"
 *	thread		the same in a thread of its own
 *	either		the same, but that a CALL "wait" is held as by `gate`
 */
#include "ldm.h"

#define BLOCKS_SIZE 4096
#define LINE 200

struct held {
	struct ldm_request *request;
	struct held *next;
};

static struct ldm_mutex lock;	/* for all below */
static struct held *all_held;
static unsigned int held, opened, closed, cancelled, calls;

static int count_open(struct ldm_consumer *consumer)
{
	ldm_lock(&lock);
	opened++;
	ldm_unlock(&lock);
	return 0;
}

static void count_close(struct ldm_consumer *consumer)
{
	ldm_lock(&lock);
	closed++;
	ldm_unlock(&lock);
}

static int hold(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct held *entry = ldm_alloc(sizeof(*entry));

	if (!entry)
		return -ENOMEM;
	entry->request = request;
	ldm_lock(&lock);
	entry->next = all_held;
	all_held = entry;
	held++;
	ldm_unlock(&lock);
	return LDM_LATER;
}

static int reply(struct ldm_request *request)
{
	void *output;

	if (request->type != LDM_READ)
		return ldm_fill(request, &request->output, request->input.data, request->input.size);
	output = ldm_resize(request, &request->output, request->length < BLOCKS_SIZE ? request->length : BLOCKS_SIZE);
	if (!output)
		return -ENOMEM;
	memset(output, 'r', request->output.size);
	return 0;
}

/* Ends what is held of one request, or of all: NULL. */
static unsigned int let_go(struct ldm_request *request, int status)
{
	struct held **where = &all_held, *entry, *found = NULL;
	unsigned int number = 0;

	ldm_lock(&lock);
	while ((entry = *where)) {
		if (request && entry->request != request) {
			where = &entry->next;
			continue;
		}
		*where = entry->next;
		entry->next = found;
		found = entry;
		held--;
		cancelled += request != NULL;
	}
	ldm_unlock(&lock);
	for (; (entry = found); number++) {
		found = entry->next;
		ldm_complete_request(entry->request, status ? status : reply(entry->request));
		ldm_free(entry);
	}
	return number;
}

static void let_go_early(struct ldm_consumer *consumer, struct ldm_request *request)
{
	let_go(request, -ECANCELED);
}

/* The N of "fail N", else 0. */
static int failure(const struct ldm_request *request)
{
	const char *text = request->input.data;
	size_t at;
	int code = 0;

	if (request->input.size < 6 || memcmp(text, "fail ", 5))
		return 0;
	for (at = 5; at < request->input.size && code < 400 && text[at] >= '0' && text[at] <= '9'; at++)
		code = code * 10 + text[at] - '0';
	return -code;
}

static int keep(struct ldm_consumer *consumer, struct ldm_request *request)
{
	char line[LINE];
	int size, status = failure(request);

	if (request->type == LDM_READ) {
		ldm_lock(&lock);
		size = snprintf(line, LINE, "held %u opened %u closed %u cancelled %u calls %u\n",
				held, opened, closed, cancelled, calls);
		ldm_unlock(&lock);
	} else if (status || (request->input.size >= 7 && !memcmp(request->input.data, "release", 7))) {
		size = snprintf(line, LINE, "%u\n", let_go(NULL, status));
	} else {
		return -EINVAL;
	}
	return ldm_fill(request, &request->output, line, size);
}

static int echo(struct ldm_consumer *consumer, struct ldm_request *request)
{
	int status = failure(request);

	ldm_lock(&lock);
	calls++;
	ldm_unlock(&lock);
	if (status)
		return status;
	if (request->type == LDM_READ)
		return ldm_fill(request, &request->output, "READ", 4);
	status = ldm_fill(request, &request->output, request->input.data, request->input.size);
	if (!status)
		status = ldm_fill(request, &request->output_metadata, request->input_metadata.data,
				  request->input_metadata.size);
	return status;
}

static int hold_or_echo(struct ldm_consumer *consumer, struct ldm_request *request)
{
	bool waits = request->input.size == 4 && !memcmp(request->input.data, "wait", 4);

	return waits ? hold(consumer, request) : echo(consumer, request);
}

static const struct ldm_device_spec devices[] = {
	{ .name = "gate", .request = hold, .cancel = let_go_early, .open = count_open, .close = count_close },
	{ .name = "stubborn", .request = hold, .open = count_open, .close = count_close },
	{ .name = "blocks", .kind = LDM_BLOCK, .size = BLOCKS_SIZE, .request = hold, .cancel = let_go_early,
	  .open = count_open, .close = count_close },
	{ .name = "keeper", .request = keep },
	{ .name = "plain", .description = "an echo", .takes = "anything", .gives = "the same", .request = echo },
	{ .name = "thread", .request = echo, .thread = true },
	{ .name = "either", .request = hold_or_echo, .cancel = let_go_early },
};

static int gate_start(struct ldm_provider *provider)
{
	size_t i;
	int status = 0;

	ldm_init_mutex(&lock);
	for (i = 0; i < sizeof(devices) / sizeof(devices[0]) && !status; i++)
		status = ldm_create_device(provider, &devices[i], NULL);
	return status;
}

LDM_PROVIDER(gate, gate_start, NULL, "Devices for tests, whose requests end when the test says so");
