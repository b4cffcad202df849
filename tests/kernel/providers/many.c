// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * many.c - a consumer that has more requests outstanding than is allowed
 *
 *	many	CALL "N container/device" sends N requests to that device, which is not to answer, and closes it; the
 *		reply tells how many were refused with EAGAIN, how many were cancelled by the close, and how many ended
 *		in another way
 */
#include "ldm.h"

struct ended {
	struct ldm_mutex lock;
	unsigned int refused, cancelled, other;
};

static void count(void *context, struct ldm_request *request, int status)
{
	struct ended *ended = context;

	ldm_lock(&ended->lock);
	if (status == -EAGAIN)
		ended->refused++;
	else if (status == -ECANCELED)
		ended->cancelled++;
	else
		ended->other++;
	ldm_unlock(&ended->lock);
	ldm_free_request(request);
}

static int send_one(struct ldm_handle *handle, struct ended *ended)
{
	struct ldm_request *request = ldm_alloc_request(1, LDM_CALL);

	if (!request || ldm_fill(request, &request->input, "x", 1)) {
		ldm_free_request(request);
		return -ENOMEM;
	}
	return ldm_send_request(handle, request, count, ended);
}

static int send_many(struct ldm_consumer *consumer, const char *name, unsigned int number, struct ended *ended)
{
	struct ldm_handle *handle;
	int status = ldm_open_device(name, consumer, &handle);

	if (status)
		return status;
	while (!status && number--)
		status = send_one(handle, ended);
	ldm_close_device(handle);
	return status;
}

static int many_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ended ended = { .refused = 0 };
	char text[300] = "";
	unsigned int number = 0;
	const char *at = text;
	int status;

	if (request->input.size >= sizeof(text))
		return -EINVAL;
	memcpy(text, request->input.data, request->input.size);
	while (*at >= '0' && *at <= '9' && number < 100000)
		number = number * 10 + *at++ - '0';
	if (*at++ != ' ')
		return -EINVAL;
	ldm_init_mutex(&ended.lock);
	status = send_many(consumer, at, number, &ended);
	if (status)
		return status;
	number = snprintf(text, sizeof(text), "refused %u cancelled %u other %u\n", ended.refused, ended.cancelled,
			  ended.other);
	return ldm_fill(request, &request->output, text, number);
}

static int many_start(struct ldm_provider *provider)
{
	struct ldm_device_spec spec = { .name = "many", .accepts = 1 << LDM_CALL, .request = many_request };

	return ldm_create_device(provider, &spec, NULL);
}

LDM_PROVIDER(many, many_start, NULL, "A consumer that has more requests outstanding than is allowed");
