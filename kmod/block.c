// SPDX-License-Identifier: GPL-2.0-only
/* An open file of a block device: reads and writes at an offset, answered by READ and WRITE requests. */
#include <linux/blkdev.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/uio.h>

#include "internal.h"

/* Bytes of one request: a longer read or write is several. */
#define PIECE SZ_1M

static struct consumer *consumer_of(struct file *file)
{
	return ((struct open_file *)file->private_data)->consumer;
}

static loff_t size_of(struct file *file)
{
	return consumer_of(file)->public.device->spec.size;
}

static struct ldm_request *new_request(enum ldm_request_type type, loff_t offset, size_t length)
{
	struct ldm_request *request = ldm_alloc_request(LDM_FILE_BLOCKS, type);

	if (request) {
		request->offset = offset;
		request->length = length;
	}
	return request;
}

static ssize_t read_piece(struct file *file, loff_t offset, struct iov_iter *to)
{
	size_t size = min_t(u64, min_t(size_t, iov_iter_count(to), PIECE), size_of(file) - offset);
	struct ldm_request *request = new_request(LDM_READ, offset, size);
	ssize_t status;

	if (!request)
		return -ENOMEM;
	status = ldm_send_and_wait(consumer_of(file), request);
	if (!status)
		status = copy_to_iter(request->output.data, size, to) ?: -EFAULT;
	ldm_free_request(request);
	return status;
}

static ssize_t write_piece(struct file *file, loff_t offset, struct iov_iter *from)
{
	size_t size = min_t(u64, min_t(size_t, iov_iter_count(from), PIECE), size_of(file) - offset);
	struct ldm_request *request = new_request(LDM_WRITE, offset, size);
	ssize_t status = -ENOMEM;

	if (request && ldm_resize(request, &request->input, size))
		status = copy_from_iter_full(request->input.data, size, from) ? 0 : -EFAULT;
	if (!status)
		status = ldm_send_and_wait(consumer_of(file), request);
	ldm_free_request(request);
	return status ? status : size;
}

/* Applies one of the two to piece after piece, until the device's end, an error, or a piece that came out short. */
static ssize_t in_pieces(struct kiocb *iocb, struct iov_iter *iter,
			 ssize_t (*piece)(struct file *file, loff_t offset, struct iov_iter *iter))
{
	struct file *file = iocb->ki_filp;
	ssize_t done = 0, status = 0;

	while (iov_iter_count(iter) && iocb->ki_pos < size_of(file)) {
		status = piece(file, iocb->ki_pos, iter);
		if (status <= 0)
			break;
		iocb->ki_pos += status;
		done += status;
		if (fatal_signal_pending(current))
			break;
		cond_resched();
	}
	return done ? done : status;
}

static ssize_t block_read(struct kiocb *iocb, struct iov_iter *to)
{
	return in_pieces(iocb, to, read_piece);
}

static ssize_t block_write(struct kiocb *iocb, struct iov_iter *from)
{
	if (iov_iter_count(from) && iocb->ki_pos >= size_of(iocb->ki_filp))
		return -ENOSPC;
	return in_pieces(iocb, from, write_piece);
}

static loff_t block_llseek(struct file *file, loff_t offset, int whence)
{
	return generic_file_llseek_size(file, offset, whence, S64_MAX, size_of(file));
}

static int block_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	struct ldm_request *request = new_request(LDM_FLUSH, 0, 0);
	int status;

	if (!request)
		return -ENOMEM;
	status = ldm_send_and_wait(consumer_of(file), request);
	ldm_free_request(request);
	return status;
}

static __poll_t block_poll(struct file *file, poll_table *wait)
{
	return EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM;
}

static long block_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	if (command == BLKGETSIZE64)	/* mkfs and others ask this where they find no regular file */
		return put_user((u64)size_of(file), (u64 __user *)argument);
	return ldm_ioctl(consumer_of(file), file, command, argument);
}

static int block_release(struct inode *inode, struct file *file)
{
	ldm_consumer_close(consumer_of(file));
	kfree(file->private_data);
	return 0;
}

int ldm_block_open(struct file *file, struct consumer *consumer)
{
	struct open_file *open = kzalloc(sizeof(*open), GFP_KERNEL_ACCOUNT);

	if (!open)
		return -ENOMEM;
	open->consumer = consumer;
	file->private_data = open;
	file->f_mode |= FMODE_CAN_ODIRECT;	/* nothing is cached */
	return 0;
}

const struct file_operations ldm_block_fops = {
	.owner = THIS_MODULE,
	.llseek = block_llseek,
	.read_iter = block_read,
	.write_iter = block_write,
	.fsync = block_fsync,
	.poll = block_poll,
	.unlocked_ioctl = block_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = block_release,
};
