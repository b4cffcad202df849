// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel reads from and writes to the file of a device in user space: the same as any program.
 *
 * It runs in work items, as root in the first mount name space.  A call that the container's process has read and not
 * answered cannot be interrupted; it ends by the answer or by the process's death.  So a message device is not waited
 * for in a call: its file is in non-blocking mode, poll tells when the reply is there, and who does not want it any
 * more closes the file, by which the handler is cancelled.
 */
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/moduleparam.h>
#include <linux/poll.h>

#include "user_file.h"

static char *root = "/ldm";
module_param(root, charp, 0644);
MODULE_PARM_DESC(root, "where the tree is mounted (default /ldm)");

/* Bytes of the first read of a reply, and of each further one. */
enum { FIRST_READ = 64 << 10, NEXT_READ = 1 << 20 };

/* Milliseconds after which poll is asked again: nobody wakes those who wait for a process that has died. */
enum { FIRST_LOOK = 50, LONGEST_LOOK = 500 };

static char *path_of(const char *name)
{
	char *path;

	kernel_param_lock(THIS_MODULE);
	path = kasprintf(GFP_KERNEL, "%s/%s", root, name);
	kernel_param_unlock(THIS_MODULE);
	return path;
}

/* Only a file of a FUSE mount is a device; whatever else a container may have put in its place is not touched. */
static bool is_device(const struct file *file)
{
	return file_inode(file)->i_sb->s_magic == FUSE_SUPER_MAGIC && S_ISREG(file_inode(file)->i_mode);
}

int ldm_user_file_open(struct user_file *user)
{
	char *path = path_of(user->name);
	struct file *file;

	if (!path)
		return -ENOMEM;
	file = filp_open(path, O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_LARGEFILE, 0);
	kfree(path);
	if (IS_ERR(file))
		return PTR_ERR(file);
	if (!is_device(file)) {
		filp_close(file, NULL);
		return -ENOENT;
	}
	user->file = file;
	user->end_due = false;
	/* A message device's file has no positions.  Its size says nothing: the kernel takes what is written for it. */
	user->kind = file->f_mode & FMODE_PREAD ? LDM_BLOCK : LDM_MESSAGE;
	user->size = user->kind == LDM_BLOCK ? i_size_read(file_inode(file)) : 0;
	return 0;
}

void ldm_user_file_close(struct user_file *user)
{
	if (user->file)
		filp_close(user->file, NULL);
	user->file = NULL;
}

/* Waits at the file's wait queue for the request that has been sent. */
struct waiter {
	poll_table table;
	wait_queue_entry_t entry;
	wait_queue_head_t *queue;
	struct request *request;
	bool woken;
};

static int on_wake(wait_queue_entry_t *entry, unsigned int mode, int sync, void *key)
{
	struct waiter *waiter = container_of(entry, struct waiter, entry);

	smp_store_mb(waiter->woken, true);	/* before the look at who waits */
	wake_up_var(&waiter->request->state);
	return 0;
}

static void on_queue(struct file *file, wait_queue_head_t *queue, poll_table *table)
{
	struct waiter *waiter = container_of(table, struct waiter, table);

	if (waiter->queue)
		return;
	waiter->queue = queue;
	add_wait_queue(queue, &waiter->entry);
}

static bool has_ended(const struct request *request)
{
	return atomic_read(&request->state) == REQUEST_ENDED;
}

/* Waits until the handler has ended.  Returns 0 when read will tell how. */
static int wait_in(struct file *file, struct waiter *waiter)
{
	unsigned int look = FIRST_LOOK;
	__poll_t events;

	for (;;) {
		events = vfs_poll(file, waiter->queue ? NULL : &waiter->table);
		if (events & (EPOLLERR | EPOLLHUP))
			return -ECONNABORTED;
		if (events & EPOLLIN)
			return 0;
		if (events & EPOLLOUT)
			return -EAGAIN;		/* no request runs: this was the handler's own word */
		wait_var_event_timeout(&waiter->request->state, READ_ONCE(waiter->woken) ||
				       has_ended(waiter->request), msecs_to_jiffies(look));
		if (has_ended(waiter->request))
			return -ECANCELED;
		WRITE_ONCE(waiter->woken, false);
		look = min_t(unsigned int, 2 * look, LONGEST_LOOK);
	}
}

static int wait_for_reply(struct user_file *user, struct request *request)
{
	struct waiter waiter = { .request = request };
	int status;

	init_poll_funcptr(&waiter.table, on_queue);
	init_waitqueue_func_entry(&waiter.entry, on_wake);
	status = wait_in(user->file, &waiter);
	if (waiter.queue)
		remove_wait_queue(waiter.queue, &waiter.entry);
	return status;
}

/* The first read of a reply, which sends a READ when nothing was written. */
static ssize_t first_read(struct user_file *user, struct request *request, void *to, size_t size)
{
	loff_t position = 0;
	ssize_t count = kernel_read(user->file, to, size, &position);
	int status;

	if (count != -EAGAIN)
		return count;
	status = wait_for_reply(user, request);
	if (status == -ECANCELED)
		ldm_user_file_close(user);
	return status ? status : kernel_read(user->file, to, size, &position);
}

/* Reads to the end of a reply, whose first read is one of `first` bytes; a read that comes out short was the last. */
static int read_reply(struct user_file *user, struct request *request, size_t first)
{
	struct ldm_data *output = &request->public.output;
	size_t done = 0, step = first;
	loff_t position = 0;
	ssize_t count;

	user->end_due = false;
	do {
		step = min_t(size_t, step, LDM_MAX_DATA - done);
		if (!step || ldm_request_grow_output(request, done + step)) {
			ldm_user_file_close(user);	/* and with it the rest of the reply */
			return step ? -ENOMEM : -EMSGSIZE;
		}
		if (!done)
			count = first_read(user, request, output->data, step);
		else
			count = kernel_read(user->file, output->data + done, step, &position);
		if (count < 0)
			return count;
		done += count;
		user->end_due = count > 0;
		first = step;
		step = max_t(size_t, NEXT_READ, done);
	} while (count == first);
	output->size = done;
	return 0;
}

static int write_all(struct user_file *user, const struct ldm_data *input, loff_t position)
{
	size_t done = 0;
	ssize_t count;

	do {
		count = kernel_write(user->file, input->data + done, input->size - done, &position);
		if (count < 0)
			return count;
		done += count;
	} while (count && done < input->size);
	return done == input->size ? 0 : -ENOSPC;
}

static int call(struct user_file *user, struct request *request, bool *reached)
{
	const struct ldm_data *input = &request->public.input;
	int status;

	if (!input->size)
		return -EOPNOTSUPP;	/* a write of nothing does not leave the kernel */
	if (input->size > LDM_MAX_MESSAGE)
		return -EMSGSIZE;
	status = write_all(user, input, 0);
	if (status)
		return status;
	*reached = true;
	return read_reply(user, request, FIRST_READ);
}

static int read_message(struct user_file *user, struct request *request)
{
	size_t size = request->public.length ? min_t(u64, request->public.length, NEXT_READ) : NEXT_READ;
	loff_t position = 0;
	ssize_t count = 0;
	char rest;

	if (user->end_due)
		count = kernel_read(user->file, &rest, sizeof(rest), &position);
	if (count)
		return count < 0 ? count : -EPROTO;
	return read_reply(user, request, size);
}

static int read_block(struct user_file *user, struct request *request)
{
	struct ldm_request *public = &request->public;
	loff_t position = public->offset;
	ssize_t count;

	if (public->offset >= user->size)
		return 0;
	public->length = min_t(u64, public->length, user->size - public->offset);
	if (public->length > LDM_MAX_DATA)
		return -EMSGSIZE;
	if (!ldm_resize(public, &public->output, public->length))
		return -ENOMEM;
	count = kernel_read(user->file, public->output.data, public->length, &position);
	public->output.size = max_t(ssize_t, count, 0);
	return min_t(ssize_t, count, 0);
}

static int write_block(struct user_file *user, const struct ldm_request *public)
{
	if (public->offset > user->size || public->input.size > user->size - public->offset)
		return -ENOSPC;
	return write_all(user, &public->input, public->offset);
}

static int exchange(struct user_file *user, struct request *request, bool *reached)
{
	const struct ldm_request *public = &request->public;

	if (public->offset < 0 || public->length < 0)
		return -EINVAL;
	switch (public->type) {
	case LDM_CALL:
		return user->kind == LDM_MESSAGE ? call(user, request, reached) : -EOPNOTSUPP;
	case LDM_READ:
		return user->kind == LDM_MESSAGE ? read_message(user, request) : read_block(user, request);
	case LDM_WRITE:
		return user->kind == LDM_BLOCK ? write_block(user, public) : -EOPNOTSUPP;
	case LDM_FLUSH:
		return vfs_fsync(user->file, 0);
	default:
		return -EOPNOTSUPP;	/* a file has no way to say it */
	}
}

/* Tells of a file that is not to be used any more: its connection, or the instance it was opened under, is gone. */
static bool is_lost(int status)
{
	return status == -ESTALE || status == -ENOTCONN || status == -ECONNABORTED;
}

/* Opens a lost file again; tells whether a request that was refused with `status` is to be sent again. */
static bool reopen(struct user_file *user, int status)
{
	struct super_block *before = file_inode(user->file)->i_sb;

	ldm_user_file_close(user);
	if (status == -ECONNABORTED || ldm_user_file_open(user))
		return false;
	/* On the same mount it was no dead connection, but what the handler said. */
	return status == -ESTALE || file_inode(user->file)->i_sb != before;
}

int ldm_user_file_send(struct user_file *user, struct request *request)
{
	bool reached = false;
	int status = user->file ? 0 : ldm_user_file_open(user);

	if (!status)
		status = exchange(user, request, &reached);
	if (!user->file || !is_lost(status))
		return status;
	if (reopen(user, status) && !reached)
		return exchange(user, request, &reached);
	return reached && status == -ESTALE ? -ECONNABORTED : status;
}
