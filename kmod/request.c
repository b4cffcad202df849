// SPDX-License-Identifier: GPL-2.0-only
/* Parameter blocks: allocated together for a chain of requests, taken one after the other, each with its own memory. */
#include <linux/bitmap.h>
#include <linux/overflow.h>

#include "internal.h"

struct chain {
	refcount_t refs;			/* its blocks that are in use */
	spinlock_t lock;
	unsigned int count;
	DECLARE_BITMAP(used, LDM_MAX_BLOCKS);	/* this and the list: under `lock` */
	struct list_head forwarded;		/* all blocks but the first */
	struct request blocks[];
};

static atomic_long_t memory_in_use;

static void init_request(struct request *request, struct chain *chain)
{
	request->chain = chain;
	refcount_set(&request->refs, 1);
	INIT_LIST_HEAD(&request->sibling);
	INIT_LIST_HEAD(&request->node);
}

struct ldm_request *ldm_alloc_request(unsigned int blocks, enum ldm_request_type type)
{
	struct chain *chain;

	if (!blocks || blocks > LDM_MAX_BLOCKS)
		return NULL;
	chain = kzalloc(struct_size(chain, blocks, blocks), GFP_KERNEL_ACCOUNT);
	if (!chain)
		return NULL;
	refcount_set(&chain->refs, 1);
	spin_lock_init(&chain->lock);
	INIT_LIST_HEAD(&chain->forwarded);
	chain->count = blocks;
	__set_bit(0, chain->used);
	init_request(&chain->blocks[0], chain);
	chain->blocks[0].public.type = type;
	return &chain->blocks[0].public;
}
EXPORT_SYMBOL_GPL(ldm_alloc_request);

static struct request *next_block(struct chain *chain)
{
	struct request *request = NULL;
	unsigned int place;

	spin_lock(&chain->lock);
	place = find_first_zero_bit(chain->used, chain->count);
	if (place < chain->count) {
		__set_bit(place, chain->used);
		request = &chain->blocks[place];
	}
	spin_unlock(&chain->lock);
	if (request) {
		memset(request, 0, sizeof(*request));
		return request;
	}
	request = kzalloc(sizeof(*request), GFP_KERNEL_ACCOUNT);
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
	init_request(request, parent->chain);
	refcount_inc(&parent->chain->refs);
	request->parent = ldm_request_get(parent);
	request->depth = parent->depth + 1;
	request->public.type = public->type;
	request->public.offset = public->offset;
	request->public.length = public->length;
	request->public.input = public->input;
	request->public.input_metadata = public->input_metadata;
	request->public.object = public->object;
	spin_lock(&parent->chain->lock);
	list_add_tail(&request->sibling, &parent->chain->forwarded);
	spin_unlock(&parent->chain->lock);
	return &request->public;
}
EXPORT_SYMBOL_GPL(ldm_forward_request);

static_assert(offsetof(struct ldm_request, output_metadata) ==
	      offsetof(struct ldm_request, input) + PART_OUTPUT_METADATA * sizeof(struct ldm_data));

static struct ldm_data *part_of(struct request *request, enum request_part part)
{
	return &request->public.input + part;
}

static void set_part(struct request *request, enum request_part part, void *memory, size_t room)
{
	kvfree(request->memory[part]);
	atomic_long_sub(request->room[part], &memory_in_use);
	request->memory[part] = memory;
	request->room[part] = room;
	part_of(request, part)->data = memory;
	part_of(request, part)->size = room;
}

static void *get_memory(enum request_part part, size_t size)
{
	bool metadata = part == PART_INPUT_METADATA || part == PART_OUTPUT_METADATA;
	void *memory;

	if (size > (metadata ? LDM_MAX_METADATA : LDM_MAX_DATA) || !ldm_count(&memory_in_use, size, LDM_MAX_MEMORY))
		return NULL;
	memory = kvmalloc(size, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!memory)
		atomic_long_sub(size, &memory_in_use);
	return memory;
}

void *ldm_resize(struct ldm_request *public, struct ldm_data *data, size_t size)
{
	struct request *request = to_request(public);
	ptrdiff_t part = data - &public->input;
	void *memory;

	if (WARN_ON_ONCE(part < 0 || part >= PARTS))
		return NULL;
	memory = get_memory(part, size);
	set_part(request, part, memory, memory ? size : 0);
	return memory;
}
EXPORT_SYMBOL_GPL(ldm_resize);

int ldm_fill(struct ldm_request *request, struct ldm_data *part, const void *data, size_t size)
{
	void *memory = ldm_resize(request, part, size);

	if (!memory)
		return -ENOMEM;
	memcpy(memory, data, size);
	return 0;
}
EXPORT_SYMBOL_GPL(ldm_fill);

/* Gives the output more room and leaves what is in it; its size is then the room's. */
int ldm_request_grow_output(struct request *request, size_t room)
{
	void *memory = get_memory(PART_OUTPUT, room);

	if (!memory)
		return -ENOMEM;
	memcpy(memory, request->memory[PART_OUTPUT], min(request->room[PART_OUTPUT], room));
	set_part(request, PART_OUTPUT, memory, room);
	return 0;
}

void ldm_take_output(struct ldm_request *public, struct ldm_request *lower_public)
{
	struct request *request = to_request(public), *lower = to_request(lower_public);
	enum request_part part;

	for (part = PART_OUTPUT; part <= PART_OUTPUT_METADATA; part++) {
		set_part(request, part, NULL, 0);
		swap(request->memory[part], lower->memory[part]);
		swap(request->room[part], lower->room[part]);
		swap(*part_of(request, part), *part_of(lower, part));
	}
	public->object = lower_public->object;
}
EXPORT_SYMBOL_GPL(ldm_take_output);

struct request *ldm_request_get(struct request *request)
{
	refcount_inc(&request->refs);
	return request;
}

void ldm_request_put(struct request *request)
{
	struct chain *chain = request->chain;
	struct request *parent = request->parent;
	enum request_part part;

	if (!refcount_dec_and_test(&request->refs))
		return;
	for (part = 0; part < PARTS; part++)
		set_part(request, part, NULL, 0);
	if (request->consumer)
		kref_put(&request->consumer->memory, ldm_consumer_free);
	spin_lock(&chain->lock);
	list_del(&request->sibling);
	if (!request->alone)
		__clear_bit(request - chain->blocks, chain->used);
	spin_unlock(&chain->lock);
	if (request->alone)
		kfree(request);
	if (parent)
		ldm_request_put(parent);
	if (refcount_dec_and_test(&chain->refs))
		kfree(chain);
}

void ldm_free_request(struct ldm_request *public)
{
	if (!public)
		return;
	WARN_ON_ONCE(atomic_read(&to_request(public)->state) == REQUEST_SENT);
	ldm_request_put(to_request(public));
}
EXPORT_SYMBOL_GPL(ldm_free_request);

/* From here on it may be cancelled.  Refuses what was sent before, and what its parent does not need any more. */
int ldm_request_mark_sent(struct request *request)
{
	int status = 0;

	spin_lock(&request->chain->lock);
	if (WARN_ON_ONCE(atomic_read(&request->state) != REQUEST_NEW))
		status = -EINVAL;
	else if (request->parent && atomic_read(&request->parent->state) == REQUEST_ENDED)
		status = -ECANCELED;
	else
		atomic_set(&request->state, REQUEST_SENT);
	request->sent = !status;
	spin_unlock(&request->chain->lock);
	return status;
}

/* Returns a request that was forwarded from `parent` and has not ended, with a reference; NULL when there is none. */
struct request *ldm_request_next_child(struct request *parent)
{
	struct request *child, *found = NULL;

	spin_lock(&parent->chain->lock);
	list_for_each_entry(child, &parent->chain->forwarded, sibling) {
		if (child->parent == parent && atomic_read(&child->state) == REQUEST_SENT &&
		    refcount_inc_not_zero(&child->refs)) {
			found = child;
			break;
		}
	}
	spin_unlock(&parent->chain->lock);
	return found;
}

/* Notes that the provider has completed the request; false when it had before. */
bool ldm_request_retire(struct request *request)
{
	bool first;

	spin_lock(&request->chain->lock);
	first = !request->retired;
	request->retired = true;
	spin_unlock(&request->chain->lock);
	return first;
}

/* Keeps the consumer of a request open while its provider has it; false when it has it no longer. */
bool ldm_request_pin_consumer(struct request *request)
{
	bool pinned;

	spin_lock(&request->chain->lock);
	pinned = request->consumer && request->sent && !request->retired &&
		 refcount_inc_not_zero(&request->consumer->uses);
	spin_unlock(&request->chain->lock);
	return pinned;
}
