// SPDX-License-Identifier: Apache-2.0
/* Parameter blocks: allocated together for a chain of requests, taken one after the other, each with its own memory. */
#include "runtime.h"

struct chain;

/* The memory of a part: the block's own, or the host's with its number; neither where it is the parent's. */
struct memory {
	void *own;
	size_t room;		/* bytes of `own` */
	uint64_t number;
};

/* A parameter block. */
struct request {
	struct ldm_request public;
	struct chain *chain;
	struct request *parent;		/* whose input it borrows */
	atomic_uint refs;		/* its own, and those of the blocks that were forwarded from it */
	bool alone;			/* allocated by itself: the chain had no block left */
	bool inherits_input;
	atomic_bool sent;
	struct memory memory[LDM_PARTS];
	struct ldm_data output_room;	/* the host's, while the request lasts */
	ldm_completion_handler completion_handler;
	void *completion_context;
};

struct chain {
	atomic_uint refs;		/* its blocks that are in use */
	atomic_ullong unused;		/* a bit for each of `blocks` */
	struct request blocks[];
};

_Static_assert(LDM_MAX_BLOCKS <= 64, "a chain's blocks are bits of one number");
_Static_assert(offsetof(struct ldm_request, output_metadata) ==
	       offsetof(struct ldm_request, input) + LDM_OUTPUT_METADATA * sizeof(struct ldm_data),
	       "the parts of a request follow each other in the order of enum ldm_part");

static atomic_size_t memory_in_use;

static struct request *to_request(struct ldm_request *public)
{
	return (struct request *)public;	/* its first member */
}

static struct ldm_data *part_of(struct request *request, enum ldm_part part)
{
	return &request->public.input + part;
}

struct ldm_request *ldm_alloc_request(unsigned int blocks, enum ldm_request_type type)
{
	struct chain *chain;

	if (!blocks || blocks > LDM_MAX_BLOCKS)
		return NULL;
	chain = ldm_alloc(sizeof(*chain) + blocks * sizeof(chain->blocks[0]));
	if (!chain)
		return NULL;
	chain->refs = 1;
	chain->unused = (blocks < 64 ? 1ull << blocks : 0) - 2;
	chain->blocks[0].chain = chain;
	chain->blocks[0].refs = 1;
	chain->blocks[0].public.type = type;
	return &chain->blocks[0].public;
}

static struct request *next_block(struct chain *chain)
{
	unsigned long long unused = atomic_load(&chain->unused);
	struct request *request;

	while (unused) {
		if (!atomic_compare_exchange_weak(&chain->unused, &unused, unused & (unused - 1)))
			continue;
		request = &chain->blocks[__builtin_ctzll(unused)];
		memset(request, 0, sizeof(*request));
		return request;
	}
	request = ldm_alloc(sizeof(*request));
	if (request)
		request->alone = true;
	return request;
}

struct ldm_request *ldm_forward_request(struct ldm_request *public)
{
	struct request *parent = to_request(public);
	struct request *request = next_block(parent->chain);

	if (!request)
		return NULL;
	atomic_fetch_add(&parent->chain->refs, 1);
	atomic_fetch_add(&parent->refs, 1);
	request->chain = parent->chain;
	request->parent = parent;
	request->refs = 1;
	request->inherits_input = true;
	request->public.type = public->type;
	request->public.offset = public->offset;
	request->public.length = public->length;
	request->public.input = public->input;
	request->public.input_metadata = public->input_metadata;
	request->public.object = public->object;
	return &request->public;
}

/* Lets go of a part's memory, for what is there from now on. */
static void set_part(struct request *request, enum ldm_part part, struct ldm_data data, struct memory memory)
{
	struct memory *before = &request->memory[part];

	ldm_free(before->own);
	atomic_fetch_sub(&memory_in_use, before->room);
	if (before->number)
		ldm_host->release(before->number);
	*before = memory;
	*part_of(request, part) = data;
	if (part == LDM_INPUT)
		request->inherits_input = false;
}

static void put(struct request *request)
{
	struct chain *chain = request->chain;
	struct request *parent = request->parent;
	enum ldm_part part;

	if (atomic_fetch_sub(&request->refs, 1) != 1)
		return;
	for (part = 0; part < LDM_PARTS; part++)
		set_part(request, part, (struct ldm_data){}, (struct memory){});
	if (request->alone)
		ldm_free(request);
	else
		atomic_fetch_or(&chain->unused, 1ull << (request - chain->blocks));
	if (parent)
		put(parent);
	if (atomic_fetch_sub(&chain->refs, 1) == 1)
		ldm_free(chain);
}

void ldm_free_request(struct ldm_request *request)
{
	if (request)
		put(to_request(request));
}

static bool take_room(size_t size)
{
	if (atomic_fetch_add(&memory_in_use, size) + size <= LDM_MAX_MEMORY)
		return true;
	atomic_fetch_sub(&memory_in_use, size);
	return false;
}

static void *resize_own(struct request *request, enum ldm_part part, size_t size)
{
	struct memory memory = { .room = size };

	if (take_room(size)) {
		memory.own = malloc(size ? size : 1);
		if (!memory.own)
			atomic_fetch_sub(&memory_in_use, size);
	}
	if (!memory.own)
		set_part(request, part, (struct ldm_data){}, (struct memory){});
	else
		set_part(request, part, (struct ldm_data){ memory.own, size }, memory);
	return memory.own;
}

void *ldm_resize(struct ldm_request *public, struct ldm_data *data, size_t size)
{
	struct request *request = to_request(public);
	enum ldm_part part = data - &public->input;
	bool metadata = part == LDM_INPUT_METADATA || part == LDM_OUTPUT_METADATA;
	struct ldm_data room = request->output_room;

	if (size > (metadata ? LDM_MAX_METADATA : LDM_MAX_DATA)) {
		set_part(request, part, (struct ldm_data){}, (struct memory){});
		return NULL;
	}
	if (part != LDM_OUTPUT || !room.data || size > room.size)
		return resize_own(request, part, size);
	set_part(request, part, (struct ldm_data){ room.data, size }, (struct memory){});
	return room.data;
}

int ldm_fill(struct ldm_request *request, struct ldm_data *part, const void *data, size_t size)
{
	void *memory = ldm_resize(request, part, size);

	if (!memory)
		return -ENOMEM;
	if (size)
		memcpy(memory, data, size);
	return 0;
}

void ldm_take_output(struct ldm_request *public, struct ldm_request *lower_public)
{
	struct request *request = to_request(public), *lower = to_request(lower_public);
	enum ldm_part part;

	for (part = LDM_OUTPUT; part <= LDM_OUTPUT_METADATA; part++) {
		set_part(request, part, *part_of(lower, part), lower->memory[part]);
		lower->memory[part] = (struct memory){};
		*part_of(lower, part) = (struct ldm_data){};
	}
	public->object = lower_public->object;
}

/* -- for runtime.c and the host */

int ldm_fill_part(struct ldm_request *request, enum ldm_part part, const void *data, size_t size)
{
	return ldm_fill(request, part_of(to_request(request), part), data, size);
}

void ldm_lend(struct ldm_request *request, enum ldm_part part, void *data, size_t size, uint64_t number)
{
	set_part(to_request(request), part, (struct ldm_data){ data, size }, (struct memory){ .number = number });
}

uint64_t ldm_lender(struct ldm_request *request, enum ldm_part part)
{
	return to_request(request)->memory[part].number;
}

void ldm_lend_room(struct ldm_request *request, void *data, size_t size)
{
	to_request(request)->output_room = (struct ldm_data){ data, size };
}

struct ldm_request *ldm_parent(struct ldm_request *request)
{
	struct request *parent = to_request(request)->parent;

	return parent ? &parent->public : NULL;
}

bool ldm_inherits_input(struct ldm_request *request)
{
	return to_request(request)->inherits_input;
}

/* Notes who is told of the end; false for a request that was sent before. */
bool ldm_mark_sent(struct ldm_request *public, ldm_completion_handler completion_handler, void *completion_context)
{
	struct request *request = to_request(public);

	if (atomic_exchange(&request->sent, true))
		return false;
	request->completion_handler = completion_handler;
	request->completion_context = completion_context;
	return true;
}

void ldm_end(struct ldm_request *public, int status)
{
	struct request *request = to_request(public);

	public->status = status;
	request->completion_handler(request->completion_context, public, status);
}
