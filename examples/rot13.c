// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#include "ldm.h"

static unsigned int by = 13;
LDM_PARAM(by, uint, "how far letters are moved (default 13)");

static char moved(char letter, char first)
{
	return first + (letter - first + by) % 26;
}

static int rot13_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	const char *from = request->input.data;
	char *to = ldm_resize(request, &request->output, request->input.size);
	size_t i;

	for (i = 0; to && i < request->input.size; i++)
		to[i] = from[i] >= 'a' && from[i] <= 'z' ? moved(from[i], 'a') :
			from[i] >= 'A' && from[i] <= 'Z' ? moved(from[i], 'A') : from[i];
	return to ? 0 : -ENOMEM;
}

static int rot13_start(struct ldm_provider *provider)
{
	struct ldm_device_spec spec = { .name = "rot13", .accepts = 1 << LDM_CALL, .request = rot13_request };

	return ldm_create_device(provider, &spec, NULL);
}

LDM_PROVIDER(rot13, rot13_start, NULL, "Letters moved round the alphabet");
