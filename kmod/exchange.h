/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The exchange of one open file of a message device: a request, its reply, end of file.
 *
 *	state	  write			request ended	read				state after
 *	IDLE	  a new CALL		-		kept reply, else sends a READ	RUNNING or READY
 *	RUNNING	  EBUSY			READY		waits, or EAGAIN		RUNNING
 *	READY	  replaces the reply	-		the reply from `offset`		READY
 *	READY	  -			-		at its end: no bytes, once	IDLE
 *
 * What a handler returns is the outcome of the write or read that sent the request.  What it completes later is for the
 * next read, or the close.
 */
#ifndef LDM_EXCHANGE_H
#define LDM_EXCHANGE_H

#include "internal.h"

enum exchange_state { IDLE, RUNNING, READY };

/* An open file; requests that are under way keep its memory. */
struct exchange {
	struct open_file open;
	struct kref memory;
	wait_queue_head_t changed;
	spinlock_t lock;		/* of all below */
	enum exchange_state state;
	struct request *request;	/* RUNNING: the one that runs; READY: the one with the reply */
	int error;			/* READY: instead of a reply */
	size_t offset;			/* READY: of the next byte that is read */
	bool kept;			/* READY: kept for another reader as well */
	bool interrupted;		/* a read was, and may not come again: the close is not to wait */
	bool abandoned;			/* who waited for it was killed: nobody is to get it */
};

/* Some bytes of a reply. */
struct piece {
	struct request *request;	/* who has them, with a reference; NULL when there are none */
	size_t offset;
	size_t size;
	int error;
};

struct exchange *ldm_exchange_new(struct consumer *consumer);

/* Forgets the request and its reply, after its consumer was closed; the memory goes with the last request. */
void ldm_exchange_put(struct exchange *exchange);

/* Sends a CALL with what `from` has, at most LDM_MAX_MESSAGE bytes.  Returns 0, or an error that is known at once. */
int ldm_exchange_call(struct exchange *exchange, struct iov_iter *from);

/* Takes the reply that an earlier consumer of the same session left, or else sends a READ.  Returns the same. */
int ldm_exchange_read(struct exchange *exchange, size_t size);

/* Takes the next bytes of the reply, its end, or its error; false when there is no reply. */
bool ldm_exchange_take(struct exchange *exchange, size_t size, struct piece *piece);

/* What could not be copied to the reader is still to be read, unless somebody else went on meanwhile. */
void ldm_exchange_give_back(struct exchange *exchange, const struct piece *piece, size_t copied);

/* Cancels what runs. */
void ldm_exchange_cancel(struct exchange *exchange);

/* Keeps the reply if there is one of which nothing was read; returns the error that is to be told. */
int ldm_exchange_leave(struct exchange *exchange);

static inline bool ldm_exchange_runs(const struct exchange *exchange)
{
	return READ_ONCE(exchange->state) == RUNNING;
}

#endif
