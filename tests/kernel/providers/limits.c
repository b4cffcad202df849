// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * limits.c - a provider that goes to its limits
 *
 *	devices	CALL "count" creates devices until one is refused, and destroys them; the reply tells how many there
 *		were, and the errno; CALL "name N" creates and keeps one whose name has N letters, instead of the last one
 *	waits	a device with `thread`, whose requests wait for kernel/gate in their thread
 */
#include "ldm.h"

#define TRIED 5000
#define LINE 60

static struct ldm_provider *this_provider;
static struct ldm_mutex lock;	/* for what follows */
static struct ldm_device *all[TRIED];
static struct ldm_device *named;
static char name[1000];

static int nothing(struct ldm_consumer *consumer, struct ldm_request *request)
{
	return 0;
}

static int create(struct ldm_device **device)
{
	struct ldm_device_spec spec = { .name = name, .request = nothing };

	return ldm_create_device(this_provider, &spec, device);
}

static int count(char *line)
{
	int status = 0, number = 0, created;

	while (number < TRIED && !status) {
		snprintf(name, sizeof(name), "device-%d", number);
		status = create(&all[number]);
		number += !status;
	}
	for (created = number; number--;)
		if (ldm_destroy_device(all[number]))
			ldm_error("%d is busy", number);
	return snprintf(line, LINE, "%d %d\n", created, -status);
}

static int create_named(size_t letters, char *line)
{
	struct ldm_device *before = named;
	int status;

	if (letters >= sizeof(name))
		return -EINVAL;
	memset(name, 'n', letters);
	name[letters] = '\0';
	status = create(&named);
	if (status)
		named = before;
	else if (before)
		ldm_destroy_device(before);
	return snprintf(line, LINE, "%d\n", -status);
}

static int devices_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	char line[LINE];
	const char *text = request->input.data;
	size_t at, letters = 0;
	int size = -EINVAL;

	ldm_lock(&lock);
	if (request->input.size == 5 && !memcmp(text, "count", 5)) {
		size = count(line);
	} else if (request->input.size > 5 && !memcmp(text, "name ", 5)) {
		for (at = 5; at < request->input.size && letters < sizeof(name); at++)
			letters = letters * 10 + text[at] - '0';
		size = create_named(letters, line);
	}
	ldm_unlock(&lock);
	return size < 0 ? size : ldm_fill(request, &request->output, line, size);
}

static int waits_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	struct ldm_handle *handle;
	struct ldm_request *lower;
	int status = ldm_open_device("kernel/gate", consumer, &handle);

	if (status)
		return status;
	lower = ldm_forward_request(request);
	status = lower ? ldm_send_request(handle, lower, NULL, NULL) : -ENOMEM;
	if (!status)
		ldm_take_output(request, lower);
	ldm_free_request(lower);
	ldm_close_device(handle);
	return status;
}

static int limits_start(struct ldm_provider *provider)
{
	struct ldm_device_spec devices = { .name = "devices", .accepts = 1 << LDM_CALL, .request = devices_request };
	struct ldm_device_spec waits = {
		.name = "waits", .accepts = 1 << LDM_CALL, .request = waits_request, .thread = true,
	};
	int status;

	this_provider = provider;
	ldm_init_mutex(&lock);
	status = ldm_create_device(provider, &devices, NULL);
	return status ? status : ldm_create_device(provider, &waits, NULL);
}

LDM_PROVIDER(limits, limits_start, NULL, "A provider that goes to its limits");
