// SPDX-License-Identifier: GPL-2.0-only
/*
 * Replies that their writer closed without reading, for the next reader of the same user and login session.
 *
 * `echo hello > device; cat device` are two opens, so two consumers: the reply of the first is kept here until the
 * second asks.  One for each device, user and session, the latest.
 */
#include <linux/jiffies.h>

#include "internal.h"

struct kept {
	struct list_head list;
	u64 device;
	kuid_t uid;
	struct pid *session;
	u64 writer;
	unsigned long expires;
	int error;
	struct request *reply;		/* has nothing but the output */
};

static DEFINE_SPINLOCK(lock);
static LIST_HEAD(all);			/* the oldest first; this and the sums: under `lock` */
static unsigned int count;
static size_t bytes;

static void expire(struct work_struct *work);
static DECLARE_DELAYED_WORK(expiry, expire);

static void free_kept(struct kept *kept)
{
	put_pid(kept->session);
	ldm_request_put(kept->reply);
	kfree(kept);
}

static void free_all(struct list_head *dropped)
{
	struct kept *kept, *next;

	list_for_each_entry_safe(kept, next, dropped, list)
		free_kept(kept);
}

static void drop(struct kept *kept, struct list_head *to)
{
	lockdep_assert_held(&lock);
	list_move_tail(&kept->list, to);
	count--;
	bytes -= kept->reply->public.output.size;
}

static struct kept *find(const struct consumer *consumer)
{
	struct kept *kept;

	lockdep_assert_held(&lock);
	list_for_each_entry(kept, &all, list)
		if (kept->device == consumer->public.device->serial && uid_eq(kept->uid, consumer->uid) &&
		    kept->session == consumer->session)
			return kept;
	return NULL;
}

static void drop_expired(struct list_head *to)
{
	struct kept *kept;

	lockdep_assert_held(&lock);
	while ((kept = list_first_entry_or_null(&all, struct kept, list)) && time_after_eq(jiffies, kept->expires))
		drop(kept, to);
}

static void expire(struct work_struct *work)
{
	struct kept *kept;
	LIST_HEAD(dropped);

	spin_lock(&lock);
	drop_expired(&dropped);
	kept = list_first_entry_or_null(&all, struct kept, list);
	if (kept)
		queue_delayed_work(ldm_workqueue, &expiry, kept->expires - jiffies + 1);
	spin_unlock(&lock);
	free_all(&dropped);
}

/* The reply with its output only: the request may be large, and its chain has more blocks. */
static struct kept *make(struct consumer *writer, struct request *reply, int error)
{
	struct ldm_request *copy = ldm_alloc_request(1, reply->public.type);
	struct kept *kept = kmalloc(sizeof(*kept), GFP_KERNEL_ACCOUNT);
	const struct ldm_data *output = &reply->public.output;

	if (!copy || !kept || (!error && ldm_fill(copy, &copy->output, output->data, output->size))) {
		ldm_free_request(copy);
		kfree(kept);
		return NULL;
	}
	*kept = (struct kept){
		.device = writer->public.device->serial,
		.uid = writer->uid,
		.session = get_pid(writer->session),
		.writer = writer->public.id,
		.expires = jiffies + LDM_KEPT_SECONDS * HZ,
		.error = error,
		.reply = to_request(copy),
	};
	return kept;
}

/* Keeps a reply, or the error instead of it; false when there is nobody to keep it for, or no memory. */
bool ldm_keep(struct consumer *writer, struct request *reply, int error)
{
	struct kept *kept, *old;
	LIST_HEAD(dropped);

	if (!writer->session)
		return false;
	kept = make(writer, reply, error);
	if (!kept)
		return false;
	spin_lock(&lock);
	old = find(writer);
	if (old)
		drop(old, &dropped);
	list_add_tail(&kept->list, &all);
	count++;
	bytes += kept->reply->public.output.size;
	while (count > LDM_MAX_KEPT || bytes > LDM_MAX_KEPT_BYTES)
		drop(list_first_entry(&all, struct kept, list), &dropped);
	spin_unlock(&lock);
	queue_delayed_work(ldm_workqueue, &expiry, LDM_KEPT_SECONDS * HZ + 1);
	free_all(&dropped);
	return true;
}

/* Returns what was kept for a reader like this one, with its reference, and is kept no longer; or NULL. */
struct request *ldm_take_kept(struct consumer *reader, int *error)
{
	struct request *reply = NULL;
	struct kept *kept = NULL;
	LIST_HEAD(dropped);

	if (!reader->session)
		return NULL;
	spin_lock(&lock);
	drop_expired(&dropped);
	kept = find(reader);
	if (kept)
		drop(kept, &dropped);
	spin_unlock(&lock);
	if (kept) {
		*error = kept->error;
		reply = ldm_request_get(kept->reply);
	}
	free_all(&dropped);
	return reply;
}

/* Forgets what the writer left: it goes on with the file itself, through another descriptor. */
void ldm_withdraw_kept(struct consumer *writer)
{
	struct kept *kept;
	LIST_HEAD(dropped);

	spin_lock(&lock);
	kept = find(writer);
	if (kept && kept->writer == writer->public.id)
		drop(kept, &dropped);
	spin_unlock(&lock);
	free_all(&dropped);
}

void ldm_forget_kept(struct ldm_device *device)
{
	struct kept *kept, *next;
	LIST_HEAD(dropped);

	spin_lock(&lock);
	list_for_each_entry_safe(kept, next, &all, list)
		if (kept->device == device->serial)
			drop(kept, &dropped);
	spin_unlock(&lock);
	free_all(&dropped);
}

/* No device is left, and so nothing that is kept. */
void ldm_kept_exit(void)
{
	cancel_delayed_work_sync(&expiry);
}
