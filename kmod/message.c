// SPDX-License-Identifier: GPL-2.0-only
/* Open files of message devices: what read, write, poll and close mean. */
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "exchange.h"

static ssize_t message_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct exchange *exchange = iocb->ki_filp->private_data;
	size_t size = iov_iter_count(from);
	int status;

	if (size > LDM_MAX_MESSAGE)
		return -EMSGSIZE;
	if (!size)
		return 0;
	status = ldm_exchange_call(exchange, from);
	return status ? status : size;
}

/* Waits for what runs.  A reader that is interrupted may come again; one that is killed does not. */
static int wait_for_reply(struct exchange *exchange)
{
	bool killed;
	int status = wait_event_interruptible(exchange->changed, !ldm_exchange_runs(exchange));

	if (!status)
		return 0;
	killed = fatal_signal_pending(current);
	spin_lock(&exchange->lock);
	exchange->interrupted = true;
	exchange->abandoned = killed;
	spin_unlock(&exchange->lock);
	if (killed)
		ldm_exchange_cancel(exchange);
	return status;
}

static ssize_t copy_piece(struct exchange *exchange, const struct piece *piece, struct iov_iter *to)
{
	size_t copied;

	if (!piece->request)
		return piece->error;
	copied = copy_to_iter(piece->request->public.output.data + piece->offset, piece->size, to);
	if (copied < piece->size)
		ldm_exchange_give_back(exchange, piece, copied);
	ldm_request_put(piece->request);
	return copied ? copied : -EFAULT;
}

static bool is_nonblocking(const struct kiocb *iocb)
{
	return iocb->ki_filp->f_flags & O_NONBLOCK || iocb->ki_flags & IOCB_NOWAIT;
}

static ssize_t message_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct exchange *exchange = iocb->ki_filp->private_data;
	struct piece piece;
	int status = 0;

	if (!iov_iter_count(to))
		return 0;
	while (!ldm_exchange_take(exchange, iov_iter_count(to), &piece)) {
		if (!ldm_exchange_runs(exchange))
			status = ldm_exchange_read(exchange, iov_iter_count(to));
		else
			status = is_nonblocking(iocb) ? -EAGAIN : wait_for_reply(exchange);
		if (status)
			return status;
	}
	return copy_piece(exchange, &piece, to);
}

static __poll_t message_poll(struct file *file, poll_table *wait)
{
	struct exchange *exchange = file->private_data;
	bool readable = (file->f_flags & O_ACCMODE) == O_RDONLY;

	poll_wait(file, &exchange->changed, wait);
	switch (READ_ONCE(exchange->state)) {
	case RUNNING:
		return 0;
	case READY:
		readable = true;
		fallthrough;
	default:
		return EPOLLOUT | EPOLLWRNORM | (readable ? EPOLLIN | EPOLLRDNORM : 0);
	}
}

/* A descriptor is closed: what is to be seen when close(2) returns is done here. */
static int message_flush(struct file *file, fl_owner_t id)
{
	struct exchange *exchange = file->private_data;
	bool wait = !READ_ONCE(exchange->interrupted) && !(file->f_flags & O_NONBLOCK) &&
		    !(current->flags & PF_EXITING);

	if (wait && wait_event_interruptible(exchange->changed, !ldm_exchange_runs(exchange)))
		return -EINTR;
	return ldm_exchange_leave(exchange);
}

static int message_release(struct inode *inode, struct file *file)
{
	struct exchange *exchange = file->private_data;

	ldm_consumer_close(exchange->open.consumer);
	ldm_exchange_put(exchange);
	return 0;
}

int ldm_message_open(struct file *file, struct consumer *consumer)
{
	file->private_data = ldm_exchange_new(consumer);
	return file->private_data ? stream_open(file_inode(file), file) : -ENOMEM;
}

static long message_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct exchange *exchange = file->private_data;

	return ldm_ioctl(exchange->open.consumer, file, command, argument);
}

const struct file_operations ldm_message_fops = {
	.owner = THIS_MODULE,
	.read_iter = message_read,
	.write_iter = message_write,
	.fsync = noop_fsync,
	.poll = message_poll,
	.unlocked_ioctl = message_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.flush = message_flush,
	.release = message_release,
};
