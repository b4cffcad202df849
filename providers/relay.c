// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Devices that pass their requests on to other devices: the simplest stacks.
 *
 *	lower=text/upper			the device `relay` consumes text/upper
 *	lower=x=text/upper,y=kernel/x		the device `x` does, and `y` consumes `x` of the kernel
 *
 * The lower device is opened when a consumer opens the upper one, so that it need not be there before.  A cycle is
 * found out then: ELOOP.  When the lower provider dies, what was under way fails with ECONNABORTED; later requests are
 * answered when it serves again.
 */
#include "ldm.h"

static const char *lower = "text/upper";
LDM_PARAM(lower, string, "the device that is consumed, as container/device; or several, as NAME=container/device,…");

struct relay {
	struct relay *next;
	char lower[2 * LDM_MAX_NAME + 2];
};

static struct relay *relays;

static int relay_open(struct ldm_consumer *consumer)
{
	struct relay *relay = consumer->context;
	struct ldm_handle *handle;
	int status = ldm_open_device(relay->lower, consumer, &handle);

	if (!status)
		consumer->state = handle;
	return status;
}

static void relay_close(struct ldm_consumer *consumer)
{
	ldm_close_device(consumer->state);
}

static void relay_answered(void *context, struct ldm_request *lower_request, int status)
{
	struct ldm_request *request = context;

	if (!status)
		ldm_take_output(request, lower_request);
	ldm_free_request(lower_request);
	ldm_complete_request(request, status);
}

static int relay_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_request *lower_request = ldm_forward_request(request);

	if (!lower_request)
		return -ENOMEM;
	ldm_send_request(consumer->state, lower_request, relay_answered, request);
	return LDM_LATER;
}

/* Creates the device that `text` names: `size` bytes, [NAME=]container/device. */
static int create(struct ldm_provider *provider, const char *text, size_t size)
{
	const char *equals = memchr(text, '=', size);
	size_t name_size = equals ? (size_t)(equals - text) : strlen("relay");
	size_t lower_size = equals ? size - name_size - 1 : size;
	char name[LDM_MAX_NAME + 1] = "relay";
	struct ldm_device_spec spec = {
		.name = name,
		.description = "passes requests on to another device",
		.takes = "what the device below takes",
		.gives = "what it gives",
		.open = relay_open,
		.close = relay_close,
		.request = relay_request,
	};
	struct relay *relay;

	if (name_size >= sizeof(name) || lower_size >= sizeof(relay->lower))
		return -ENAMETOOLONG;
	relay = ldm_alloc(sizeof(*relay));
	if (!relay)
		return -ENOMEM;
	if (equals) {
		memcpy(name, text, name_size);
		name[name_size] = '\0';
	}
	memcpy(relay->lower, text + size - lower_size, lower_size);
	relay->next = relays;
	relays = relay;
	spec.context = relay;
	return ldm_create_device(provider, &spec, NULL);
}

static void relay_stop(struct ldm_provider *provider)
{
	struct relay *relay;

	while ((relay = relays)) {
		relays = relay->next;
		ldm_free(relay);
	}
}

static int relay_start(struct ldm_provider *provider)
{
	const char *text = lower, *comma;
	int status = 0;

	while (!status && *text) {
		comma = strchr(text, ',');
		status = create(provider, text, comma ? (size_t)(comma - text) : strlen(text));
		text = comma ? comma + 1 : "";
	}
	if (status)
		relay_stop(provider);
	return status;
}

LDM_PROVIDER(relay, relay_start, relay_stop, "Passes requests on to other devices");
