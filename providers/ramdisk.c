// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * A disk in memory: the block device `ramdisk` of `size` bytes.
 *
 *	$ mkfs.ext4 -F /dev/ldm/kernel/ramdisk
 *
 * It takes memory as it is written to, in chunks.  A TRIM gives back those that it covers whole, and fills the rest
 * with zeros.  A read or write is not torn by another one within a chunk.
 */
#include "ldm.h"

#define CHUNK ((size_t)64 << 10)

static uint64_t size = 16 << 20;
LDM_PARAM(size, size, "bytes of the disk (default 16M)");

static struct ldm_mutex lock;
static void **chunks;		/* NULL where all is zero; under `lock` */

/* A part of a request that lies in one chunk. */
struct part {
	void **chunk;
	size_t begin;		/* in the chunk */
	size_t size;
	size_t done;		/* bytes of the request before it */
};

typedef int (*part_function)(struct ldm_request *request, const struct part *part);

static int each_part(struct ldm_request *request, part_function function)
{
	uint64_t offset = request->offset;
	struct part part = { .done = 0 };
	int status = 0;

	for (; !status && part.done < (uint64_t)request->length; part.done += part.size) {
		part.chunk = &chunks[(offset + part.done) / CHUNK];
		part.begin = (offset + part.done) % CHUNK;
		part.size = CHUNK - part.begin;
		if (part.size > request->length - part.done)
			part.size = request->length - part.done;
		ldm_lock(&lock);
		status = function(request, &part);
		ldm_unlock(&lock);
	}
	return status;
}

static int read_part(struct ldm_request *request, const struct part *part)
{
	char *to = (char *)request->output.data + part->done;

	if (*part->chunk)
		memcpy(to, (char *)*part->chunk + part->begin, part->size);
	else
		memset(to, 0, part->size);
	return 0;
}

static int write_part(struct ldm_request *request, const struct part *part)
{
	if (!*part->chunk)
		*part->chunk = ldm_alloc(CHUNK);
	if (!*part->chunk)
		return -ENOSPC;
	memcpy((char *)*part->chunk + part->begin, (char *)request->input.data + part->done, part->size);
	return 0;
}

static int trim_part(struct ldm_request *request, const struct part *part)
{
	if (part->size == CHUNK) {
		ldm_free(*part->chunk);
		*part->chunk = NULL;
	} else if (*part->chunk) {
		memset((char *)*part->chunk + part->begin, 0, part->size);
	}
	return 0;
}

static int ramdisk_request(struct ldm_consumer *consumer, struct ldm_request *request)
{
	switch (request->type) {
	case LDM_READ:
		if (!ldm_resize(request, &request->output, request->length))
			return -ENOMEM;
		return each_part(request, read_part);
	case LDM_WRITE:
		return each_part(request, write_part);
	case LDM_TRIM:
		return each_part(request, trim_part);
	default:
		return 0;	/* LDM_FLUSH: memory is as durable as it gets */
	}
}

static uint64_t chunk_count(void)
{
	return size / CHUNK + !!(size % CHUNK);
}

static void ramdisk_stop(struct ldm_provider *provider)
{
	uint64_t place;

	for (place = 0; place < chunk_count(); place++)
		ldm_free(chunks[place]);
	ldm_free(chunks);
}

static int ramdisk_start(struct ldm_provider *provider)
{
	struct ldm_device_spec spec = {
		.name = "ramdisk",
		.description = "a disk in memory",
		.kind = LDM_BLOCK,
		.size = size,
		.mode = 0660,
		.request = ramdisk_request,
	};
	int status;

	ldm_init_mutex(&lock);
	if (!size || chunk_count() > SIZE_MAX / sizeof(*chunks))
		return -EINVAL;
	chunks = ldm_alloc(chunk_count() * sizeof(*chunks));
	if (!chunks)
		return -ENOMEM;
	status = ldm_create_device(provider, &spec, NULL);
	if (status)
		ldm_free(chunks);
	return status;
}

LDM_PROVIDER(ramdisk, ramdisk_start, ramdisk_stop, "A disk in memory");
