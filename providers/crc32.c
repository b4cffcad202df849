// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * CRC-32 of a message: the device `crc32`.
 *
 *	$ printf abc > /dev/ldm/kernel/crc32; cat /dev/ldm/kernel/crc32
 *	352441c2
 *
 * The CRC of gzip, PNG and Ethernet: polynomial 0x04c11db7, bits reversed, as eight hexadecimal digits and a line end.
 */
#include "ldm.h"

static uint32_t table[256];

static void fill_table(void)
{
	uint32_t byte, bit, crc;

	for (byte = 0; byte < 256; byte++) {
		crc = byte;
		for (bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
		table[byte] = crc;
	}
}

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
	uint32_t crc = 0xffffffff;

	while (size--)
		crc = crc >> 8 ^ table[(crc ^ *data++) & 0xff];
	return ~crc;
}

static int crc32_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	char text[16];
	int size = snprintf(text, sizeof(text), "%08x\n", crc32_of(request->input.data, request->input.size));

	return ldm_fill(request, &request->output, text, size);
}

static int crc32_start(struct ldm_provider *provider)
{
	struct ldm_device_spec spec = {
		.name = "crc32",
		.description = "CRC-32 of the message",
		.takes = "any bytes",
		.gives = "eight hexadecimal digits",
		.accepts = 1 << LDM_CALL,
		.request = crc32_request,
	};

	fill_table();
	return ldm_create_device(provider, &spec, NULL);
}

LDM_PROVIDER(crc32, crc32_start, NULL, "CRC-32 of messages");
